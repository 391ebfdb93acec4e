"""Ranking metrics: exact tie-aware AUC, log loss, its normalised form, calibration and grouped AUC.

Normalised log loss and calibration follow He et al., "Practical Lessons from Predicting Clicks on Ads at
Facebook" (ADKDD 2014). AUC is the Mann-Whitney statistic: ties count one half, so it depends on the order
of the scores alone and never on the order of the rows. Everything is float64 NumPy on the whole sample:
no thresholds, no windows, no sampling.

Shapes: N rows (impressions), K bins.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
GroupWeighting = Literal["impressions", "equal", "clicks"]


class UndefinedMetricError(ValueError):
    """The metric has no value on this sample, e.g. AUC where every label is the same."""


@dataclass(frozen=True)
class GroupedAuc:
    """AUC within groups, averaged; only groups with a click and a non-click have one."""

    auc: float
    weighting: str
    groups: int
    groups_used: int
    rows: int
    rows_used: int


@dataclass(frozen=True)
class CalibrationCurve:
    """Mean predicted and observed CTR in bins of about equal row count, by rising prediction."""

    predicted_K: FloatArray
    observed_K: FloatArray
    rows_K: npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankingMetrics:
    """The metrics of one sample of impressions; None where undefined, with the reason in `undefined`."""

    rows: int
    clicks: int
    ctr: float | None = None
    auc: float | None = None
    log_loss: float | None = None
    norm_log_loss: float | None = None
    calibration: float | None = None
    gauc_query: float | None = None
    gauc_user: float | None = None
    undefined: dict[str, str] = field(default_factory=dict)

    def require(self, name: str) -> float:
        """The value of metric `name`.

        Raises:
            UndefinedMetricError: it is undefined on this sample; the message says why.
        """
        value = getattr(self, name)
        if value is None:
            raise UndefinedMetricError(self.undefined.get(name, f"{name} was not evaluated"))
        return float(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `undefined` only where something is."""
        content = asdict(self)
        if not self.undefined:
            del content["undefined"]
        return content


def roc_auc(
    labels_N: npt.ArrayLike, scores_N: npt.ArrayLike, weights_N: npt.ArrayLike | None = None
) -> float:
    """Probability that a random click outscores a random non-click; an equal score counts one half.

    `weights_N` (non-negative) counts row i as that many rows: doubling every weight changes nothing.
    O(N log N). Constant scores give exactly 0.5; a monotone transformation of the scores changes nothing.

    Raises:
        UndefinedMetricError: only clicks or only non-clicks carry weight.
        ValueError: lengths differ, a label is not 0 or 1, a score is NaN, or a weight is negative.

    Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747

    >>> float(roc_auc([1, 0, 0], [0.9, 0.1, 0.9]))  # wins one pair, ties the other
    0.75
    """
    clicked_N = _binary(labels_N)
    scores_N = _scores(scores_N, len(clicked_N))
    weights_N = np.ones(len(clicked_N)) if weights_N is None else _weights(weights_N, len(clicked_N))
    positive_N, negative_N = weights_N * clicked_N, weights_N * (1.0 - clicked_N)
    _need_both_classes(positive_N.sum(), negative_N.sum(), "AUC")
    return _won_pairs(scores_N, positive_N, negative_N) / (positive_N.sum() * negative_N.sum())


def expected_roc_auc(probabilities_N: npt.ArrayLike, scores_N: npt.ArrayLike) -> float:
    """AUC of the scores when row i is clicked with probability p_i and not with 1 - p_i.

    The expected number of won pairs over the expected number of (click, non-click) pairs; a row makes no
    pair with itself, since it is never both. Free of the label noise of one draw, so it suits simulated
    data, where p is known: scores = p give the best AUC any ranker can expect. With p in {0, 1} it is
    `roc_auc`. O(N log N).

    Raises:
        UndefinedMetricError: no pair is possible.
        ValueError: a probability lies outside [0, 1] or a score is NaN.

    >>> expected_roc_auc([1.0, 0.0, 0.0], [0.9, 0.1, 0.9])
    0.75
    """
    positive_N = _vector(probabilities_N, "probabilities")
    _refuse(~((positive_N >= 0) & (positive_N <= 1)), positive_N, "probabilities must lie in [0, 1]")
    negative_N = 1.0 - positive_N
    own_pairs = float(positive_N @ negative_N)
    pairs = positive_N.sum() * negative_N.sum() - own_pairs
    if pairs <= 0:
        raise UndefinedMetricError(
            "expected AUC is undefined: no pair of a click and a non-click is possible"
        )
    won = _won_pairs(_scores(scores_N, len(positive_N)), positive_N, negative_N) - 0.5 * own_pairs
    return float(won / pairs)


def log_loss(labels_N: npt.ArrayLike, logits_N: npt.ArrayLike) -> float:
    """Mean binary cross-entropy in nats, computed from logits, so large ones lose no precision.

    Logits of 0 give log 2.

    Raises:
        UndefinedMetricError: there are no rows.
        ValueError: lengths differ, a label is not 0 or 1, or a logit is NaN.
    """
    clicked_N = _binary(labels_N)
    logits_N = _scores(logits_N, len(clicked_N))
    return float(np.logaddexp(0.0, np.where(clicked_N == 1, -logits_N, logits_N)).mean())


def normalized_log_loss(labels_N: npt.ArrayLike, logits_N: npt.ArrayLike) -> float:
    """Log loss over the entropy of the evaluated sample's own CTR (He et al. 2014); lower is better.

    1 means no better than predicting that CTR for every row. A slice is normalised by its own CTR, so
    values of different slices are comparable.

    Raises:
        UndefinedMetricError: every label is the same, so the entropy is zero.
        ValueError: as for `log_loss`.

    https://doi.org/10.1145/2648584.2648589

    >>> round(normalized_log_loss([1, 0, 0, 0], np.log([1 / 3] * 4)), 6)  # says the CTR, 1/4, of every row
    1.0
    """
    clicked_N = _binary(labels_N)
    ctr = clicked_N.mean()
    _need_both_classes(clicked_N.sum(), len(clicked_N) - clicked_N.sum(), "normalised log loss")
    entropy = -(ctr * np.log(ctr) + (1 - ctr) * np.log1p(-ctr))
    return float(log_loss(clicked_N, logits_N) / entropy)


def calibration(labels_N: npt.ArrayLike, logits_N: npt.ArrayLike) -> float:
    """Mean predicted CTR over observed CTR (He et al. 2014): above 1 the model promises too many clicks.

    Raises:
        UndefinedMetricError: there is no click to compare with.
        ValueError: as for `log_loss`.

    https://doi.org/10.1145/2648584.2648589

    >>> calibration([1, 0, 0, 0], [0.0] * 4)  # says 1/2 where 1/4 are clicked
    2.0
    """
    clicked_N = _binary(labels_N)
    predicted_N = sigmoid(_scores(logits_N, len(clicked_N)))
    if clicked_N.sum() == 0:
        raise UndefinedMetricError(f"calibration is undefined: none of {len(clicked_N):,} rows was clicked")
    return float(predicted_N.mean() / clicked_N.mean())


def grouped_auc(
    labels_N: npt.ArrayLike,
    scores_N: npt.ArrayLike,
    groups_N: npt.ArrayLike,
    *,
    weighting: GroupWeighting = "impressions",
) -> GroupedAuc:
    """Average of the AUCs within groups (say, within queries), over groups that have both classes.

    The literature uses several weightings under one name, so ours is named in the result: `impressions`
    weights a group by its rows (DIN, FuxiCTR's gAUC), `equal` not at all (MIND, TorchEasyRec), `clicks`
    by its clicks. One group gives `roc_auc`. Scores shifted by a constant per group change nothing.

    Raises:
        UndefinedMetricError: no group has both classes.
        ValueError: as for `roc_auc`, or an unknown weighting.

    Zhou et al. 2018, https://arxiv.org/abs/1706.06978

    >>> found = grouped_auc([1, 0, 0, 1, 0], [2, 1, 9, 8, 7], [0, 0, 1, 1, 2])
    >>> found.auc, found.groups_used, found.rows_used  # AUC 1 in group 0, 0 in group 1; group 2 has no click
    (0.5, 2, 4)
    """
    if weighting not in get_args(GroupWeighting):
        raise ValueError(f"weighting must be one of {get_args(GroupWeighting)}, got {weighting!r}")
    clicked_N = _binary(labels_N)
    scores_N = _scores(scores_N, len(clicked_N))
    _, groups_N = np.unique(np.asarray(groups_N), return_inverse=True)
    if groups_N.shape != clicked_N.shape:
        raise ValueError(f"groups must have one entry a row ({len(clicked_N):,}), got {groups_N.shape}")

    order = np.lexsort((scores_N, groups_N))
    group_N, score_N, positive_N = groups_N[order], scores_N[order], clicked_N[order]
    new_group_N = np.diff(group_N, prepend=-1) != 0
    # Inequality, not a difference: equal infinities would give NaN.
    new_tie_N = new_group_N | np.concatenate([[True], score_N[1:] != score_N[:-1]])
    tie_start = np.flatnonzero(new_tie_N)
    tie_positive = np.add.reduceat(positive_N, tie_start)
    tie_negative = np.add.reduceat(1.0 - positive_N, tie_start)
    group_start = np.flatnonzero(new_group_N[tie_start])  # in ties, not in rows
    tie_group = np.cumsum(new_group_N[tie_start]) - 1

    below_all = np.cumsum(tie_negative) - tie_negative
    below = below_all - below_all[group_start][tie_group]  # non-clicks of the same group with a lower score
    won = np.add.reduceat(tie_positive * (below + 0.5 * tie_negative), group_start)
    clicks = np.add.reduceat(tie_positive, group_start)
    others = np.add.reduceat(tie_negative, group_start)
    used = (clicks > 0) & (others > 0)
    if not used.any():
        raise UndefinedMetricError(
            f"grouped AUC is undefined: none of {len(clicks):,} groups has both a click and a non-click"
        )
    auc = won[used] / (clicks[used] * others[used])
    weight = {"impressions": (clicks + others)[used], "equal": np.ones(used.sum()), "clicks": clicks[used]}
    return GroupedAuc(
        auc=float(np.average(auc, weights=weight[weighting])),
        weighting=weighting,
        groups=len(clicks),
        groups_used=int(used.sum()),
        rows=len(clicked_N),
        rows_used=int((clicks + others)[used].sum()),
    )


def calibration_curve(
    labels_N: npt.ArrayLike, logits_N: npt.ArrayLike, *, num_bins: int = 10
) -> CalibrationCurve:
    """Predicted against observed CTR in at most `num_bins` bins of about equal row count.

    Rows of equal prediction stay in one bin, so the result does not depend on row order; many ties make
    fewer, unequal bins. The bins' rows add up to N.

    Raises:
        UndefinedMetricError: there are no rows.
        ValueError: as for `log_loss`.
    """
    clicked_N = _binary(labels_N)
    logits_N = _scores(logits_N, len(clicked_N))
    order = np.argsort(logits_N, kind="stable")
    sorted_N = logits_N[order]
    wanted = np.arange(num_bins) * len(sorted_N) // num_bins
    start = np.unique(np.searchsorted(sorted_N, sorted_N[wanted], side="left"))
    rows_K = np.diff(start, append=len(sorted_N))
    predicted_K = np.add.reduceat(sigmoid(sorted_N), start) / rows_K
    observed_K = np.add.reduceat(clicked_N[order], start) / rows_K
    return CalibrationCurve(predicted_K=predicted_K, observed_K=observed_K, rows_K=rows_K)


def evaluate(
    labels_N: npt.ArrayLike,
    logits_N: npt.ArrayLike,
    *,
    queries_N: npt.ArrayLike | None = None,
    users_N: npt.ArrayLike | None = None,
) -> RankingMetrics:
    """All metrics of one sample. A metric that this sample leaves undefined is None, with its reason.

    `queries_N` and `users_N` are row numbers; a negative one means that the impression has none and leaves
    it out of that grouped AUC. Grouped AUCs are weighted by impressions.

    Raises:
        ValueError: lengths differ, a label is not 0 or 1, or a logit is NaN.
    """
    labels_N, logits_N = np.asarray(labels_N), np.asarray(logits_N)
    if labels_N.shape == (0,):
        reason = "the sample has no rows"
        names = ("ctr", "auc", "log_loss", "norm_log_loss", "calibration", "gauc_query", "gauc_user")
        return RankingMetrics(rows=0, clicks=0, undefined=dict.fromkeys(names, reason))
    clicked_N = _binary(labels_N)
    logits_N = _scores(logits_N, len(clicked_N))

    def auc_within(groups_N: npt.ArrayLike | None, kind: str) -> float:
        if groups_N is None:
            raise UndefinedMetricError(f"no {kind} was given")
        groups_N = np.asarray(groups_N)
        known_N = groups_N >= 0
        if not known_N.any():
            raise UndefinedMetricError(f"no row has a {kind}")
        return grouped_auc(clicked_N[known_N], logits_N[known_N], groups_N[known_N]).auc

    values: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    for name, formula in {
        "auc": lambda: roc_auc(clicked_N, logits_N),
        "norm_log_loss": lambda: normalized_log_loss(clicked_N, logits_N),
        "calibration": lambda: calibration(clicked_N, logits_N),
        "gauc_query": lambda: auc_within(queries_N, "query"),
        "gauc_user": lambda: auc_within(users_N, "user"),
    }.items():
        try:
            values[name] = formula()
        except UndefinedMetricError as reason:
            values[name], undefined[name] = None, str(reason)
    return RankingMetrics(
        rows=len(clicked_N),
        clicks=int(clicked_N.sum()),
        ctr=float(clicked_N.mean()),
        log_loss=log_loss(clicked_N, logits_N),
        undefined=undefined,
        **values,
    )


def sigmoid(logits_N: FloatArray) -> FloatArray:
    """1 / (1 + exp(-logit)) without overflow; 0 gives 0.5."""
    small_N = np.exp(-np.abs(logits_N))
    return np.where(logits_N >= 0, 1.0, small_N) / (1.0 + small_N)


def _won_pairs(scores_N: FloatArray, positive_N: FloatArray, negative_N: FloatArray) -> float:
    """Sum over pairs of positive x negative mass: whole if the positive scores higher, half if equal."""
    order = np.argsort(scores_N, kind="stable")
    score_N = scores_N[order]
    tie_start = np.flatnonzero(np.concatenate([[True], score_N[1:] != score_N[:-1]]))
    tie_positive = np.add.reduceat(positive_N[order], tie_start)
    tie_negative = np.add.reduceat(negative_N[order], tie_start)
    below = np.cumsum(tie_negative) - tie_negative
    return float(tie_positive @ (below + 0.5 * tie_negative))


def _need_both_classes(positive: float, negative: float, metric: str) -> None:
    if positive <= 0 or negative <= 0:
        found = "no row was clicked" if positive <= 0 else "every row was clicked"
        raise UndefinedMetricError(f"{metric} is undefined: it needs both clicks and non-clicks, but {found}")


def _vector(values_N: npt.ArrayLike, what: str, rows: int | None = None) -> FloatArray:
    vector_N = np.asarray(values_N, dtype=np.float64)
    if vector_N.ndim != 1:
        raise ValueError(f"{what} must have one dimension, got shape {vector_N.shape}")
    if rows is not None and len(vector_N) != rows:
        raise ValueError(f"{what} must have one entry a row ({rows:,}), got {len(vector_N):,}")
    if len(vector_N) == 0:
        raise UndefinedMetricError(f"no metric is defined without rows: {what} is empty")
    return vector_N


def _binary(labels_N: npt.ArrayLike) -> FloatArray:
    clicked_N = _vector(labels_N, "labels")
    _refuse((clicked_N != 0) & (clicked_N != 1), clicked_N, "labels must be 0 or 1")
    return clicked_N


def _scores(scores_N: npt.ArrayLike, rows: int) -> FloatArray:
    vector_N = _vector(scores_N, "scores", rows)
    _refuse(np.isnan(vector_N), vector_N, "scores must be numbers")
    return vector_N


def _weights(weights_N: npt.ArrayLike, rows: int) -> FloatArray:
    vector_N = _vector(weights_N, "weights", rows)
    _refuse(~(np.isfinite(vector_N) & (vector_N >= 0)), vector_N, "weights must be finite and not negative")
    return vector_N


def _refuse(bad_N: npt.NDArray[np.bool_], values_N: FloatArray, rule: str) -> None:
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(f"{rule}; row {row} has {values_N[row]} ({int(bad_N.sum()):,} such rows)")
