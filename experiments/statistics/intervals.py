"""How sure a comparison is: over training seeds, and over the users of the test week.

Two different noises, two different intervals, and neither covers the other:

- *Training noise* (initialisation, order of batches): the same variant trained with another seed gives
  another AUC. `paired_difference` covers it: a Student-t interval over seeds, on one fixed test sample.
- *Test-sample noise*: another week would have brought other users. `bootstrap_aucs` covers it: whole users
  are drawn again with replacement, because the impressions of one user are not independent. The trained
  models stay fixed.

`both_noises` joins them where one interval has to say it all.

Shapes: S seeds, V independent values, N test rows, P clicked rows, Q rows not clicked, U users,
R resamples, M scored runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedSummary:
    """Mean over seeds and the sample standard deviation (divisor S - 1); None for a single seed."""

    mean: float
    sd: float | None
    seeds: int


class Limits(Protocol):
    """What lies between two limits, each None where it is not known."""

    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def surely_positive(found: Limits) -> bool:
    """It lies above zero. What has no limits is never sure."""
    return found.low is not None and found.low > 0


def surely_negative(found: Limits) -> bool:
    """It lies below zero. What has no limits is never sure."""
    return found.high is not None and found.high < 0


def excludes_zero(found: Limits) -> bool:
    """Both limits lie on the same side of zero."""
    return surely_positive(found) or surely_negative(found)


Verdict = Literal["above", "below", "not told apart"]


def verdict(*intervals: Limits) -> Verdict:
    """Whether a difference lies above zero or below it, in each of its intervals; else they say neither."""
    if all(surely_positive(one) for one in intervals):
        return "above"
    return "below" if all(surely_negative(one) for one in intervals) else "not told apart"


@dataclass(frozen=True)
class Interval:
    """An estimate between two limits; the limits are None where the sample is too small for them."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Both limits exist and lie on the same side of zero."""
        return excludes_zero(self)


def summarize_seeds(values_S: Sequence[float]) -> SeedSummary:
    """Mean and spread of one metric over seeds. [1, 3] has mean 2 and sd sqrt(2).

    Raises:
        ValueError: there is no seed.
    """
    if len(values_S) == 0:
        raise ValueError("a summary over seeds needs at least one finished seed")
    sd = float(np.std(values_S, ddof=1)) if len(values_S) > 1 else None
    return SeedSummary(mean=float(np.mean(values_S)), sd=sd, seeds=len(values_S))


def paired_difference(
    candidate_S: Sequence[float], baseline_S: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Mean of candidate - baseline with a Student-t interval over seeds: what *training noise* leaves open.

    Entry s of both is the same seed on the same test rows, so what a seed or the test week does to both
    cancels. The interval says where the mean difference of infinitely many seeds would lie on these test
    rows; it says nothing about other test weeks. Equal differences give an interval of width zero, a
    single seed gives no interval.

    Raises:
        ValueError: the two have different lengths, or no seed.
    """
    if len(candidate_S) != len(baseline_S) or len(candidate_S) == 0:
        raise ValueError(
            "a paired difference needs the same seeds on both sides, at least one; "
            f"got {len(candidate_S)} and {len(baseline_S)}"
        )
    difference_S = np.asarray(candidate_S, dtype=np.float64) - np.asarray(baseline_S, dtype=np.float64)
    return mean_interval(difference_S, confidence=confidence)


def mean_interval(values_V: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of independent values with a Student-t interval; a single value gives no interval.

    Raises:
        ValueError: there is no value.
    """
    values_V = np.asarray(values_V, dtype=np.float64)
    mean, count = float(values_V.mean()) if len(values_V) else float("nan"), len(values_V)
    if count == 0:
        raise ValueError("a mean needs at least one value")
    if count == 1:
        return Interval(mean=mean, low=None, high=None)
    half_width = stats.t.ppf(0.5 + confidence / 2, count - 1) * values_V.std(ddof=1) / np.sqrt(count)
    return Interval(mean=mean, low=float(mean - half_width), high=float(mean + half_width))


def paired_share(
    part_S: Sequence[float], whole_S: Sequence[float], *, confidence: float = 0.95
) -> Interval | None:
    """Mean of `part` over mean of `whole`, with Fieller's interval over seeds.

    The limits hold every share r for which `paired_difference` of part and r * whole does not exclude zero;
    so they rest on the same assumption, and noise of the whole counts as well. They are None for a single
    seed, and where the whole itself is not told apart from zero (`fieller`).

    Returns:
        None if the whole is not positive: there is nothing to have a share of.

    Raises:
        ValueError: the two have different lengths, or no seed.

    >>> paired_share([1.0, 1.0], [2.0, 2.0])
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    if len(part_S) != len(whole_S) or len(part_S) == 0:
        raise ValueError(
            "a share needs the same seeds of the part and of the whole, at least one; "
            f"got {len(part_S)} and {len(whole_S)}"
        )
    part_mean, whole_mean, seeds = float(np.mean(part_S)), float(np.mean(whole_S)), len(part_S)
    if whole_mean <= 0:
        return None
    share = part_mean / whole_mean
    if seeds == 1:
        return Interval(mean=share, low=None, high=None)
    (of_part, of_both), (_, of_whole) = np.cov(part_S, whole_S) / seeds
    return fieller(
        part_mean,
        whole_mean,
        part_variance=float(of_part),
        whole_variance=float(of_whole),
        covariance=float(of_both),
        critical=float(stats.t.ppf(0.5 + confidence / 2, seeds - 1)),
    )


def fieller(
    part: float,
    whole: float,
    *,
    part_variance: float,
    whole_variance: float,
    covariance: float = 0.0,
    critical: float,
) -> Interval:
    """A ratio of two means, with every r for which part - r * whole is at most `critical` errors from zero.

    Args:
        part_variance, whole_variance, covariance: of the means, as they would vary between samples.

    Returns:
        No limits where `whole` itself is at most that many errors from zero: any ratio is possible then.

    Fieller 1954, https://doi.org/10.1111/j.2517-6161.1954.tb00159.x

    >>> fieller(3.0, 2.0, part_variance=0.25, whole_variance=0.0, critical=2.0)
    Interval(mean=1.5, low=1.0, high=2.0)
    """
    ratio, scale = part / whole, critical**2
    square, cross = whole**2 - scale * whole_variance, part * whole - scale * covariance
    if not square > 0:
        return Interval(mean=ratio, low=None, high=None)
    root = math.sqrt(max(0.0, cross**2 - square * (part**2 - scale * part_variance)))
    return Interval(mean=ratio, low=(cross - root) / square, high=(cross + root) / square)


class UserWeightedAuc:
    """AUC of fixed labels and scores under user weights that change: one sort, then O(N) for each weighting.

    A click wins against the non-clicks below it and half of those equal to it. Their *positions* among the
    sorted non-clicks never change; only the weight accumulated up to a position does.
    """

    def __init__(self, labels_N: npt.ArrayLike, scores_N: npt.ArrayLike, users_N: npt.ArrayLike) -> None:
        clicked_N = np.asarray(labels_N) == 1
        scores_N, users_N = np.asarray(scores_N), np.asarray(users_N)
        order_Q = np.argsort(scores_N[~clicked_N], kind="stable")
        sorted_Q = scores_N[~clicked_N][order_Q]
        # Sorted clicks read the accumulated weights from low to high addresses, which is kinder to the cache.
        order_P = np.argsort(scores_N[clicked_N], kind="stable")
        sorted_P = scores_N[clicked_N][order_P]
        self._user_Q = users_N[~clicked_N][order_Q]
        self._user_P = users_N[clicked_N][order_P]
        self._below_P = np.searchsorted(sorted_Q, sorted_P, side="left")
        self._through_P = np.searchsorted(sorted_Q, sorted_P, side="right")
        self._without_ties = bool((self._below_P == self._through_P).all())

    def __call__(self, weights_U: FloatArray) -> float:
        """AUC when each row weighs what its user does; NaN where a class weighs nothing.

        All weights one gives `ranking.metrics.roc_auc`.
        """
        weight_P = weights_U[self._user_P]
        accumulated_Q = np.concatenate([[0.0], np.cumsum(weights_U[self._user_Q])])
        won_P = accumulated_Q[self._below_P]
        if not self._without_ties:
            won_P = 0.5 * (won_P + accumulated_Q[self._through_P])
        pairs = weight_P.sum() * accumulated_Q[-1]
        return float(weight_P @ won_P / pairs) if pairs > 0 else float("nan")


def bootstrap_aucs(
    runs_M: Sequence[UserWeightedAuc],
    *,
    num_users: int,
    resamples: int,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> FloatArray:
    """AUCs [R, M] of M scored runs on R samples of users drawn with replacement: *test-sample noise*.

    Every run of a row sees the same drawn users, so differences of columns are paired. Average the columns
    of a variant's seeds before taking differences: then no training noise is left but that of the average.

    Raises:
        ValueError: there is no user.
    """
    if num_users < 1:
        raise ValueError("a bootstrap over users needs at least one user")
    aucs_RM = np.empty((resamples, len(runs_M)))
    for resample in range(resamples):
        drawn = rng.integers(0, num_users, size=num_users)
        weights_U = np.bincount(drawn, minlength=num_users).astype(np.float64)
        aucs_RM[resample] = [run(weights_U) for run in runs_M]
        progress("bootstrap over users", resample + 1, resamples)
    return aucs_RM


def percentile_interval(estimate: float, resampled_R: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """The central `confidence` of resampled values around an estimate. 1..99 at 0.5 gives 25.5 to 74.5.

    Resamples without a value (NaN) are left out; if fewer than half have one, the limits are None.
    """
    resampled_R = np.asarray(resampled_R, dtype=np.float64)
    valid = resampled_R[~np.isnan(resampled_R)]
    if len(valid) < 2 or 2 * len(valid) < len(resampled_R):
        return Interval(mean=estimate, low=None, high=None)
    low, high = np.quantile(valid, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(mean=estimate, low=float(low), high=float(high))


def both_noises(values_S: npt.ArrayLike, resampled_R: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean over seeds, with an interval for *training and test-sample noise*, as if either were drawn anew.

    The variances of the mean add: that over seeds, v / S, and that of `resampled_R`. Student-t, with the
    degrees of freedom of their sum (Satterthwaite 1946: (a + b)^2 / (a^2 / (S - 1)), as resamples are many).
    What seed and sample do together counts in both parts, so the interval is rather too wide than too narrow.

    Args:
        values_S: of each seed on the whole test sample, e.g. an AUC or a paired difference.
        resampled_R: means over the seeds on resampled test samples; those without a value are NaN.

    Returns:
        Without limits for a single seed, and where fewer than half of the resamples have a value.

    Raises:
        ValueError: there is no seed.
    """
    summary = summarize_seeds(np.asarray(values_S, dtype=np.float64).tolist())
    sample = percentile_interval(summary.mean, resampled_R, confidence=confidence)
    if summary.sd is None or sample.low is None:
        return Interval(mean=summary.mean, low=None, high=None)
    of_seeds = summary.sd**2 / summary.seeds
    both = of_seeds + float(np.nanvar(np.asarray(resampled_R, dtype=np.float64), ddof=1))
    freedom = (summary.seeds - 1) * (both / of_seeds) ** 2 if of_seeds else math.inf
    half_width = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(both)
    return Interval(mean=summary.mean, low=summary.mean - half_width, high=summary.mean + half_width)
