"""A mean from few labels and many predictions: prediction-powered inference with power tuning (PPI++).

People label some rows, a model predicts these and many more. With l = 0 the mean is that of the labels alone,
with l = 1 that of the predictions, put right by what they miss where there are labels:

    mean(y) - l * (mean(f of labelled rows) - mean(f of the others)),

l chosen for the least variance (Angelopoulos, Duchi and Zrnic 2023, https://arxiv.org/abs/2311.01453,
section 6; Angelopoulos et al. 2023, https://doi.org/10.1126/science.adi6000). Rows of one group, as the pairs
of a query, are not independent, so the variance is that of whole groups; a group may have rows of both kinds.

Both kinds must be drawn from one population. `shift` says whether the predictions look like it.

Shapes: G groups.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.statistics.intervals import Interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Of each group: labelled rows, the sums of their labels and predictions, other rows and their sum."""

    labelled_G: npt.NDArray[np.integer]
    label_G: FloatArray
    predicted_G: FloatArray
    others_G: npt.NDArray[np.integer]
    other_predicted_G: FloatArray


@dataclass(frozen=True)
class PoweredMean:
    """The mean with predictions and without, l, and mean prediction of other rows - of labelled ones."""

    powered: Interval
    labels_alone: Interval
    tuning: float
    shift: Interval


def prediction_powered_mean(sums: GroupSums, *, confidence: float = 0.95) -> PoweredMean:
    """The mean of labels, sharpened by predictions; no limits where fewer than two groups have labels.

    Raises:
        ValueError: there is no labelled row, or no other one.
    """
    labelled, others = int(sums.labelled_G.sum()), int(sums.others_G.sum())
    if not labelled or not others:
        raise ValueError(f"needs labelled rows and others, got {labelled:,} and {others:,}")
    label, label_error_G = _mean(sums.label_G, sums.labelled_G)
    predicted, predicted_error_G = _mean(sums.predicted_G, sums.labelled_G)
    other, other_error_G = _mean(sums.other_predicted_G, sums.others_G)
    gap_error_G = predicted_error_G - other_error_G
    spread = float(gap_error_G @ gap_error_G)
    tuning = float(np.clip(label_error_G @ gap_error_G / spread, 0.0, 1.0)) if spread > 0 else 0.0
    groups = int((sums.labelled_G > 0).sum())

    def interval(mean: float, error_G: FloatArray) -> Interval:
        if groups < 2:
            return Interval(mean, None, None)
        deviation = float(np.sqrt(groups / (groups - 1) * (error_G @ error_G)))
        half = float(stats.t.ppf(0.5 + confidence / 2, groups - 1)) * deviation
        return Interval(mean, mean - half, mean + half)

    return PoweredMean(
        powered=interval(label - tuning * (predicted - other), label_error_G - tuning * gap_error_G),
        labels_alone=interval(label, label_error_G),
        tuning=tuning,
        shift=interval(other - predicted, -gap_error_G),
    )


def _mean(sum_G: FloatArray, rows_G: npt.NDArray[np.integer]) -> tuple[float, FloatArray]:
    """The mean over rows, and what each group adds to its error (linearised ratio of sums)."""
    rows = int(rows_G.sum())
    mean = float(sum_G.sum() / rows)
    return mean, (sum_G - mean * rows_G) / rows
