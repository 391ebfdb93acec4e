"""Where the challenger is better, and where it only looks so: lifts of slices, tested together and shrunk.

Among many slices some look good by chance. Two remedies, for two questions: false discovery control (Y.
Benjamini and Y. Hochberg, 1995) says which single slices differ from nothing; shrinkage says how large a lift
is best believed in. Lifts l_k with standard errors s_k are taken as draws around a common mean m of true
lifts that deviate by t, so that each is drawn to m by the share s_k^2 / (s_k^2 + t^2). A value of t alone
would make limits too narrow, so all values count, by their probability (A. Gelman et al., "Bayesian data
analysis", section 5.4, with the half-normal prior of A. Gelman 2006, https://doi.org/10.1214/06-BA117A). All
on logarithms of treatment / control.

Slices of searches share users, which makes their lifts a little alike: the Q test then finds differences
somewhat less often than it could.

Shapes: U units, S slices, T deviations.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from tea_tasting import adjust_fdr
from tea_tasting.experiment import ExperimentResult

from experiments.abtest.estimates import LEAST_UNITS, Estimate
from experiments.abtest.experiment_log import ExperimentLog
from experiments.abtest.metrics import METRICS, SLICE_METRICS, Metric
from experiments.abtest.result import Heterogeneity, Limited, SliceResult
from experiments.abtest.unit_sums import UnitSums

#: Slices of a kind, those with most impressions: chosen without a look at their lifts.
TOP = 20
#: Standard deviation of the half-normal prior of t: slices whose lifts differ by more are rare.
PRIOR_DEVIATION = 0.1
_DEVIATIONS = np.linspace(0, 5, 401)
FloatArray = npt.NDArray[np.float64]


def slice_results(log: ExperimentLog, everyone: UnitSums) -> tuple[list[SliceResult], list[Heterogeneity]]:
    """Lifts of all slices of the log: groups of units, and slices of what they searched."""
    rows: list[SliceResult] = []
    spreads: list[Heterogeneity] = []
    for kind, parts in _kinds(log, everyone):
        for name in SLICE_METRICS:
            if not everyone.can(METRICS[name]):
                continue
            found = {
                part: estimate
                for part, (sums, zeros) in parts.items()
                if _enough(sums, METRICS[name], everyone.units)
                and (estimate := sums.estimate(METRICS[name], zeros=zeros)) is not None
            }
            shrunk, spread = shrink(list(found.values()))
            deviation, p = spread or (None, None)
            left_out = len(parts) - len(found)
            spreads.append(
                Heterogeneity(
                    kind=kind, metric=name, slices=len(found), left_out=left_out, p=p, deviation=deviation
                )
            )
            adjusted = false_discovery_adjusted([one.p for one in found.values()], dependent=False)
            for (part, one), drawn, p_adjusted in zip(found.items(), shrunk, adjusted, strict=True):
                lift = Limited.of(one.lift)
                rows.append(
                    SliceResult(
                        kind=kind,
                        name=part,
                        metric=name,
                        impressions=int(parts[part][0].sums["impressions"].sum()),
                        lift=lift.lift,
                        low=lift.low,
                        high=lift.high,
                        p=one.p,
                        p_adjusted=p_adjusted,
                        shrunk=drawn,
                    )
                )
    return rows, spreads


def _enough(sums: UnitSums, metric: Metric, units: tuple[int, int]) -> bool:
    """Whether limits by the normal distribution make sense in a slice.

    Of its units that clicked (or bought), LEAST_UNITS are to be expected in each variant by its share: which
    slices are measured does not depend on who came off better there.
    """
    counting = float((sums.sums[metric.numerator] > 0).sum()) if metric.numerator in sums.sums else 0.0
    return counting * min(units) / sum(units) >= LEAST_UNITS


def _kinds(
    log: ExperimentLog, everyone: UnitSums
) -> Iterator[tuple[str, dict[str, tuple[UnitSums, tuple[int, int]]]]]:
    """Each kind of slice with its slices: sums of their units, and how many units never came there.

    The groups of a segment are units of their own. In a slice of searches all units of a variant count.
    """
    for segment, group_U in log.segments.items():
        names, counts = np.unique(group_U, return_counts=True)
        largest = names[np.argsort(-counts, kind="stable")][:TOP]
        yield segment, {str(name): (everyone.of_units(group_U == name), (0, 0)) for name in largest}
    if log.slices is None:
        return
    slices, units = log.slices, everyone.units
    shown_S = np.bincount(slices.slice_L, weights=slices.counts["impressions"], minlength=len(slices.names))
    for kind in slices.kinds:
        places = np.array([place for place, (of, _) in enumerate(slices.names) if of == kind])
        parts = {}
        for place in places[np.argsort(-shown_S[places], kind="stable")][:TOP]:
            chosen_L = slices.slice_L == place
            sums = UnitSums(
                log.treated_U[slices.unit_L[chosen_L]],
                {name: values_L[chosen_L] for name, values_L in slices.counts.items()},
            )
            absent = (units[0] - sums.units[0], units[1] - sums.units[1])
            parts[slices.names[place][1]] = (sums, absent)
        yield kind, parts


def shrink(
    estimates: Sequence[Estimate],
) -> tuple[list[Limited], tuple[float, float] | None]:
    """Each lift drawn towards the mean of all; then the deviation t of true lifts, and p of the Q test.

    Equal lifts stay where they are. Both of the latter are missing for fewer than two slices with a lift.
    """
    usable = [one.lift is not None and one.lift.mean > -1 and one.lift_error > 0 for one in estimates]
    if sum(usable) < 2:
        return [Limited.of(one.lift) for one in estimates], None
    chosen = [one for one, use in zip(estimates, usable, strict=True) if use]
    ratio_S = np.array([1 + one.lift.mean for one in chosen if one.lift is not None])
    log_S = np.log(ratio_S)
    variance_S = np.square(np.array([one.lift_error for one in chosen]) / ratio_S)
    mean_S, error_S, deviation, p = shrunk_logs(log_S, variance_S)
    half_S = float(stats.norm.ppf(0.975)) * error_S
    ends = iter(zip(mean_S, mean_S - half_S, mean_S + half_S, strict=True))
    drawn = [
        Limited(**dict(zip(("lift", "low", "high"), np.expm1(next(ends)).tolist(), strict=True)))
        if use
        else Limited.of(one.lift)
        for one, use in zip(estimates, usable, strict=True)
    ]
    return drawn, (deviation, p)


def shrunk_logs(log_S: FloatArray, variance_S: FloatArray) -> tuple[FloatArray, FloatArray, float, float]:
    """Shrunk values, their standard errors, the mean deviation of the true ones, and p of Cochran's Q test.

    Values that all have one variance keep their order and their mean.
    """
    weight_S = 1 / variance_S
    fixed = weight_S @ log_S / weight_S.sum()
    p = float(stats.chi2.sf(weight_S @ np.square(log_S - fixed), len(log_S) - 1))
    # T values of the deviation, each with the posterior of the mean and of the values given it.
    deviation_T = _DEVIATIONS * PRIOR_DEVIATION
    total_TS = variance_S + np.square(deviation_T)[:, None]
    spread_T = 1 / (1 / total_TS).sum(axis=1)
    mean_T = spread_T * (log_S / total_TS).sum(axis=1)
    evidence_T = (
        0.5 * np.log(spread_T)
        - 0.5 * (np.log(total_TS) + np.square(log_S - mean_T[:, None]) / total_TS).sum(axis=1)
        - 0.5 * np.square(_DEVIATIONS)
    )
    weight_T = np.exp(evidence_T - evidence_T.max())
    weight_T /= weight_T.sum()
    drawn_TS = variance_S / total_TS
    value_TS = drawn_TS * mean_T[:, None] + (1 - drawn_TS) * log_S
    square_TS = (1 - drawn_TS) * variance_S + np.square(drawn_TS) * spread_T[:, None]
    value_S = weight_T @ value_TS
    error_S = np.sqrt(weight_T @ (square_TS + np.square(value_TS - value_S)))
    return value_S, error_S, float(weight_T @ deviation_T), p


def false_discovery_adjusted(p_values: Sequence[float | None], *, dependent: bool) -> list[float | None]:
    """p-values adjusted so that of what is below 0.05 at most 5 % are false, on average; None stays None.

    Args:
        dependent: the tests may depend on each other in any way (Benjamini and Yekutieli 2001).
    """
    known = {str(place): {"pvalue": p} for place, p in enumerate(p_values) if p is not None}
    if not known:
        return list(p_values)
    [found] = adjust_fdr(ExperimentResult(known), arbitrary_dependence=dependent).values()
    adjusted = {int(place): float(row["pvalue_adj"]) for place, row in found.items()}
    return [adjusted.get(place) for place in range(len(p_values))]
