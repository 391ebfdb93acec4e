"""Does the lift fade or grow? A line through the lifts of the days, with the variance over units.

A user who comes on several days is in several lifts, so these are not independent. Each unit's share in the
error of the slope is summed over its days first, then the variance is that of the sums over units.

Shapes: N unit-days, U units, D days.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.abtest.experiment_log import ExperimentLog
from experiments.abtest.metrics import Metric
from experiments.abtest.result import Trend

#: Two days always lie on a line.
LEAST_DAYS = 3


def trend_of(log: ExperimentLog, metric: Metric) -> Trend | None:
    """The slope of log(treatment / control) of single days, by least squares.

    On each day the metric is that of the units that came. Equal lifts on all days have a slope of 0; a lift
    that goes from 10 % to nothing in ten days has one of -0.0106 = -log(1.1) / 9.

    Returns:
        None for fewer than three days on which both variants have something to count.
    """
    numerator_N = log.counts[metric.numerator]
    denominator_N = log.counts[metric.denominator] if metric.denominator else np.ones_like(numerator_N)
    arm_N = log.treated_U[log.unit_N].astype(np.int64)
    cell_N = 2 * log.day_N + arm_N
    shape = (log.days, 2)
    sum_DA = np.bincount(cell_N, weights=numerator_N, minlength=2 * log.days).reshape(shape)
    whole_DA = np.bincount(cell_N, weights=denominator_N, minlength=2 * log.days).reshape(shape)
    usable_D: npt.NDArray[np.bool_] = np.all(sum_DA > 0, axis=1)
    days = np.flatnonzero(usable_D).astype(np.float64)
    if len(days) < LEAST_DAYS:
        return None
    weight_D = np.zeros(log.days)
    weight_D[usable_D] = (days - days.mean()) / np.square(days - days.mean()).sum()
    ratio_DA = np.divide(sum_DA, whole_DA, out=np.ones(shape), where=usable_D[:, None])
    log_lift_D = np.log(ratio_DA[:, 1] / ratio_DA[:, 0])
    slope = float(weight_D @ log_lift_D)
    scale_DA = np.divide(weight_D[:, None], sum_DA, out=np.zeros(shape), where=usable_D[:, None])
    error_N = (numerator_N - ratio_DA.ravel()[cell_N] * denominator_N) * scale_DA.ravel()[cell_N]
    error_U = np.bincount(log.unit_N, weights=error_N, minlength=len(log.units))
    variance = 0.0
    for arm_U in (log.treated_U, ~log.treated_U):
        units = int(arm_U.sum())
        variance += float(units / (units - 1) * np.square(error_U[arm_U]).sum())
    deviation = float(np.sqrt(variance))
    half = float(stats.norm.ppf(0.975)) * deviation
    p = float(2 * stats.norm.sf(abs(slope) / deviation)) if deviation > 0 else 1.0
    return Trend(slope=slope, low=slope - half, high=slope + half, p=p)
