"""What another policy would have earned, from decisions that one policy logged with their chances.

With weights w = target chance / logged chance of what was done, reward r and a reward model q:

    IPS    mean(w r)                              unbiased if every action of the target had a chance
    SNIPS  sum(w r) / sum(w)                      a little bias for less variance; a reward of 1 counts as 1
    DR     mean(q(target) + w (r - q(done)))      unbiased whatever q is, narrow where q is good
    model  mean(q(target))                        the model alone: as wrong as it is

(Horvitz and Thompson 1952; Swaminathan and Joachims 2015; Dudik, Langford and Li 2011,
https://arxiv.org/abs/1103.4601.) Intervals are Student's t over groups, such as the decisions of one user,
of what each group adds to the estimate. q must not have been fitted on the rewards of the same group.

Shapes: N decisions, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.statistics.intervals import Interval

FloatArray = npt.NDArray[np.float64]
IPS, SNIPS, DOUBLY_ROBUST, MODEL = "IPS", "SNIPS", "doubly robust", "model"


@dataclass(frozen=True, eq=False)
class Decisions:
    """What one policy did: the reward of each decision and the chance that it had.

    Attributes:
        group_N: whose decision it was; decisions of one group are not independent.
        predicted_N: the reward that a model expects of what was done.
    """

    reward_N: FloatArray
    propensity_N: FloatArray
    group_N: npt.NDArray[np.int64]
    predicted_N: FloatArray

    def __post_init__(self) -> None:
        if not len(self.reward_N):
            raise ValueError("there is no logged decision to estimate from")
        wrong = ~((self.propensity_N > 0) & (self.propensity_N <= 1))
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum()):,} logged decisions have propensities such as "
                f"{self.propensity_N[wrong][0]}; each must lie above 0 and be 1 at most"
            )

    @property
    def group_row_N(self) -> npt.NDArray[np.int64]:
        """Groups counted from 0."""
        return np.unique(self.group_N, return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class Target:
    """The policy to be judged: its chance of what was done, and the reward that a model expects of it."""

    probability_N: FloatArray
    predicted_N: FloatArray


@dataclass(frozen=True, eq=False)
class PolicyValue:
    """Mean reward of a target policy.

    Attributes:
        estimates: by method; the model alone has no interval.
        effective: effective sample size, (sum w)^2 / sum w^2.
        mean_weight: 1 in expectation if the log could have done all that the target does.
        largest_weight: one decision with it counts as so many.
        influence: what each decision adds to each estimate [N], by method; for differences of policies.
    """

    estimates: Mapping[str, Interval]
    decisions: int
    effective: float
    mean_weight: Interval
    largest_weight: float
    influence: Mapping[str, FloatArray]


def policy_value(logged: Decisions, target: Target, *, confidence: float = 0.95) -> PolicyValue:
    """Value of a policy that took no part in the log.

    Two decisions with rewards 1 and 0, chances 1/4 and 3/4 and a target that always does the first: weights
    are 4 and 0, IPS is 4 / 2 = 2, SNIPS 4 / 4 = 1.
    """
    weight_N = target.probability_N / logged.propensity_N
    group_row_N = logged.group_row_N
    mean_weight = float(weight_N.mean())
    values = {
        IPS: weight_N * logged.reward_N,
        DOUBLY_ROBUST: target.predicted_N + weight_N * (logged.reward_N - logged.predicted_N),
    }
    means = {name: float(value_N.mean()) for name, value_N in values.items()}
    influence = {name: value_N - means[name] for name, value_N in values.items()}
    if mean_weight > 0:
        means[SNIPS] = means[IPS] / mean_weight
        influence[SNIPS] = weight_N * (logged.reward_N - means[SNIPS]) / mean_weight
    estimates = {
        name: _interval(means[name], influence[name], group_row_N, confidence)
        for name in (IPS, SNIPS, DOUBLY_ROBUST)
        if name in means
    }
    estimates[MODEL] = Interval(mean=float(target.predicted_N.mean()), low=None, high=None)
    squares = float((weight_N**2).sum())
    return PolicyValue(
        estimates=estimates,
        decisions=len(weight_N),
        effective=float(weight_N.sum()) ** 2 / squares if squares > 0 else 0.0,
        mean_weight=_interval(mean_weight, weight_N - mean_weight, group_row_N, confidence),
        largest_weight=float(weight_N.max()),
        influence=influence,
    )


def relative_lift(
    logged: Decisions, value: PolicyValue, baseline: PolicyValue, *, confidence: float = 0.95
) -> dict[str, Interval]:
    """value / baseline - 1 by method, both estimated from the same decisions (delta method)."""
    lifts = {}
    for name, influence_N in value.influence.items():
        if name not in baseline.influence:
            continue
        above, below = value.estimates[name].mean, baseline.estimates[name].mean
        if not below > 0:
            continue
        ratio = above / below
        error_N = (influence_N - ratio * baseline.influence[name]) / below
        lifts[name] = _interval(ratio - 1, error_N, logged.group_row_N, confidence)
    return lifts


def _interval(
    mean: float, influence_N: FloatArray, group_row_N: npt.NDArray[np.int64], confidence: float
) -> Interval:
    """Student's t over groups; no limits with a single group."""
    sum_G = np.bincount(group_row_N, weights=influence_N)
    groups = len(sum_G)
    if groups < 2:
        return Interval(mean=mean, low=None, high=None)
    error = np.sqrt((sum_G**2).sum() * groups / (groups - 1)) / len(influence_N)
    half_width = float(stats.t.ppf(0.5 + confidence / 2, groups - 1) * error)
    return Interval(mean=mean, low=mean - half_width, high=mean + half_width)
