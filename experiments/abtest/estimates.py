"""The lift of one metric: tea-tasting's delta method and CUPED over units, and Fieller's interval around it.

tea-tasting gives both means, adjusted by what units did before the experiment (CUPED: A. Deng, Y. Xu,
R. Kohavi and T. Walker, "Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data", WSDM 2013), the variance of a ratio over units (delta method: A. Deng, U. Knoblich and
J. Lu, KDD 2018, https://arxiv.org/abs/1803.06336) and the p-value of their difference. Its interval of the
*relative* lift is a delta method on the logarithm, which may disagree with that p-value. Here it is
Fieller's: it excludes 0 exactly where p is below 0.05, and has no limits where the control is not told apart
from zero.

Both adjusted means share the mean of what was before over all units, so they are not independent; Fieller's
interval takes their covariance.

Shapes: U units, K columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from tea_tasting.aggr import Aggregates
from tea_tasting.metrics import RatioOfMeans

from experiments.abtest.metrics import BEFORE, Metric
from experiments.statistics.intervals import Interval, fieller
from experiments.statistics.sequential import mixture_critical

FloatArray = npt.NDArray[np.float64]
CONFIDENCE = 0.95
#: Scale of sequential intervals where no lift was planned: relative. Too large costs little, too small much.
LIFT_SCALE = 0.1
#: With fewer units a variant's mean is not normal: on the first days sequential intervals have no limits yet.
LEAST_UNITS = 30


@dataclass(frozen=True)
class Estimate:
    """One metric of both variants. `lift` and `difference` hold at one look, the sequential ones at all.

    Attributes:
        control, treatment: means, adjusted by CUPED if there was something to adjust by.
        lift: treatment / control - 1; None where the control has nothing.
        difference: treatment - control.
        lift_error: standard error of the lift by the delta method.
        p: that there is no difference; None where nothing varies.
    """

    control: float
    treatment: float
    control_units: int
    treatment_units: int
    adjusted: bool
    lift: Interval | None
    sequential: Interval | None
    lift_error: float
    difference: Interval
    sequential_difference: Interval
    p: float | None


@dataclass(frozen=True)
class _Means:
    """Means of both variants after CUPED, their variances and covariance, and Welch's degrees of freedom."""

    control: float
    treatment: float
    control_variance: float
    treatment_variance: float
    covariance: float
    freedom: float

    @property
    def error(self) -> float:
        """Standard error of treatment - control."""
        variance = self.control_variance + self.treatment_variance - 2 * self.covariance
        return float(np.sqrt(max(variance, 0.0)))


def aggregated(columns: Mapping[str, FloatArray], *, zeros: int = 0) -> Aggregates:
    """Count, means, variances and covariances of columns over units.

    Args:
        zeros: further units, of which every column is 0.
    """
    names = list(columns)
    values_KU = np.stack([columns[name] for name in names])
    units = values_KU.shape[1] + zeros
    mean_K = values_KU.sum(axis=1) / units
    centred_KU = values_KU - mean_K[:, None]
    product_KK = (centred_KU @ centred_KU.T + zeros * np.outer(mean_K, mean_K)) / (units - 1)
    return Aggregates(
        count_=units,
        mean_={name: float(mean) for name, mean in zip(names, mean_K, strict=True)},
        var_={name: float(product_KK[k, k]) for k, name in enumerate(names)},
        cov_={(names[i], names[j]): float(product_KK[i, j]) for i in range(len(names)) for j in range(i)},
    )


def columns_of(metric: Metric, *, adjusted: bool) -> tuple[str, ...]:
    """Names of what `estimate` needs."""
    before = tuple(BEFORE + name for name in metric.columns) if adjusted else ()
    return (*metric.columns, *before)


def tea_metric(metric: Metric, *, adjusted: bool, **power: float | list[float]) -> RatioOfMeans:
    """The metric as tea-tasting has it.

    Args:
        power: for the analysis of power. It takes the normal distribution, as SciPy's noncentral t gives NaN
            far from its centre; of the many users of a plan both say the same.
    """
    covariates = [BEFORE + name for name in metric.columns] if adjusted else []
    return RatioOfMeans(
        metric.numerator,
        metric.denominator,
        *[*covariates, None, None][:2],
        confidence_level=CONFIDENCE,
        equal_var=False,
        use_t=not power,
        **power,
    )


def estimate(
    metric: Metric,
    control: Aggregates,
    treatment: Aggregates,
    *,
    adjusted: bool,
    lift_scale: float = LIFT_SCALE,
    difference_scale: float | None = None,
) -> Estimate | None:
    """The lift of the challenger with its intervals.

    Args:
        adjusted: whether the aggregates have the columns before the experiment, and they should be used.
        lift_scale: of sequential intervals of the lift, fixed before the experiment.
        difference_scale: the same of the difference; that of a lift by `lift_scale` if not given.

    Returns:
        None where a variant has no impressions (or clicks) to divide by.
    """
    if metric.denominator and not (control.mean(metric.denominator) and treatment.mean(metric.denominator)):
        return None
    adjusted = adjusted and _has_before(metric, control, treatment)
    measured = tea_metric(metric, adjusted=adjusted)
    means = _means(metric, control, treatment, adjusted=adjusted)
    error = means.error
    found = measured.analyze_aggregates(control, treatment) if error > 0 else None
    at_one_look = float(stats.t.ppf(0.5 + CONFIDENCE / 2, means.freedom)) if error > 0 else 0.0
    difference = means.treatment - means.control
    scale = difference_scale if difference_scale is not None else lift_scale * abs(means.control)
    early = min(control.count(), treatment.count()) < LEAST_UNITS

    def at_all_looks(ratio: float) -> float:
        return math.inf if early else mixture_critical(ratio, error=1 - CONFIDENCE)

    return Estimate(
        control=means.control,
        treatment=means.treatment,
        control_units=int(control.count()),
        treatment_units=int(treatment.count()),
        adjusted=adjusted,
        lift=_lift(means, at_one_look),
        lift_error=_lift_error(means),
        sequential=_lift(means, at_all_looks(_ratio(lift_scale, _lift_error(means)))),
        difference=_around(difference, at_one_look, error),
        sequential_difference=_around(difference, at_all_looks(_ratio(scale, error)), error),
        p=None if found is None else float(found.pvalue),
    )


def _has_before(metric: Metric, control: Aggregates, treatment: Aggregates) -> bool:
    """Whether units of both variants did something before that a mean can be adjusted by."""
    denominator = BEFORE + (metric.denominator or metric.numerator)
    return all(arm.mean(denominator) > 0 for arm in (control, treatment))


def _means(metric: Metric, control: Aggregates, treatment: Aggregates, *, adjusted: bool) -> _Means:
    """Adjusted means are m - slope * (b - B): b what the variant did before, B what all units did."""
    numerator, denominator = metric.numerator, metric.denominator
    values, variances, behind, mixed = [], [], [], []
    slope = 0.0
    before = (BEFORE + numerator, None if denominator is None else BEFORE + denominator)
    if adjusted:
        total = control + treatment
        spread = total.ratio_var(*before)
        slope = total.ratio_cov(numerator, denominator, *before) / spread if spread > 0 else 0.0
    for arm in (control, treatment):
        units = arm.count()
        values.append(arm.mean(numerator) / arm.mean(denominator))
        variances.append(arm.ratio_var(numerator, denominator) / units)
        behind.append(arm.ratio_var(*before) / units if slope else 0.0)
        mixed.append(arm.ratio_cov(numerator, denominator, *before) / units if slope else 0.0)
    shared = [0.0, 0.0]
    if slope:
        weights = [arm.count() * arm.mean(before[1]) for arm in (control, treatment)]
        weights = [weight / sum(weights) for weight in weights]
        overall = total.mean(before[0]) / total.mean(before[1])
        for place, arm in enumerate((control, treatment)):
            values[place] -= slope * (arm.mean(before[0]) / arm.mean(before[1]) - overall)
            # Of the mean without `overall`, and its covariance with slope * overall.
            variances[place] += slope**2 * behind[place] - 2 * slope * mixed[place]
            shared[place] = slope * weights[place] * (mixed[place] - slope * behind[place])
        of_overall = slope**2 * sum(w**2 * v for w, v in zip(weights, behind, strict=True))
    else:
        of_overall = 0.0
    counts = [arm.count() for arm in (control, treatment)]
    welch = sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    return _Means(
        control=float(values[0]),
        treatment=float(values[1]),
        control_variance=float(variances[0] + of_overall + 2 * shared[0]),
        treatment_variance=float(variances[1] + of_overall + 2 * shared[1]),
        covariance=float(of_overall + shared[0] + shared[1]),
        freedom=float(sum(variances) ** 2 / welch) if welch > 0 else np.inf,
    )


def _lift(means: _Means, critical: float) -> Interval | None:
    """Fieller's interval; counts are not negative, so no lift is below -100 %."""
    if means.control <= 0:
        return None
    if np.isinf(critical):
        return Interval(means.treatment / means.control - 1, None, None)
    found = fieller(
        means.treatment,
        means.control,
        part_variance=means.treatment_variance,
        whole_variance=means.control_variance,
        covariance=means.covariance,
        critical=critical,
    )
    if found.low is None or found.high is None:
        return Interval(found.mean - 1, None, None)
    return Interval(found.mean - 1, max(found.low - 1, -1.0), found.high - 1)


def _lift_error(means: _Means) -> float:
    """Standard error of the lift by the delta method, 0 without a lift."""
    if means.control <= 0:
        return 0.0
    ratio = means.treatment / means.control
    variance = (
        means.treatment_variance + ratio**2 * means.control_variance - 2 * ratio * means.covariance
    ) / means.control**2
    return float(np.sqrt(max(variance, 0.0)))


def _ratio(scale: float, error: float) -> float:
    return (scale / error) ** 2 if error > 0 else np.inf


def _around(centre: float, critical: float, error: float) -> Interval:
    if np.isinf(critical):
        return Interval(centre, None, None)
    return Interval(centre, centre - critical * error, centre + critical * error)
