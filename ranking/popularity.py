"""The popularity floor: how well product mean + user mean alone rank. A model that does not beat it is idle.

A mean over few rows is drawn towards the mean of all: (clicks + prior rows x overall) / (rows + prior rows).
How strongly, for products and for users, is chosen as a ranker's epoch is: by the log loss of the validation
rows under means of the training rows. The means of the floor are then those of both.

Shapes: N past rows, M rows that are scored.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns.counters import smoothed_ctr
from features.feature_set import FeatureSet
from ranking.metrics import log_loss, normalized_log_loss, roc_auc

#: Probabilities of the floor are kept this far from 0 and 1: two means may add up to more than certainty.
_MARGIN = 0.01

#: How many rows at the overall mean a product or user may be given.
PRIOR_ROWS = (1, 2, 5, 10, 20, 50, 100)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PopularityFloor:
    """Quality of the floor on the test rows; `new_*_share` are rows whose user or product has no past."""

    auc: float
    norm_logloss: float
    past_rows: int
    test_rows: int
    new_user_share: float
    new_product_share: float
    product_prior_rows: int
    user_prior_rows: int


def popularity_floor(train: pa.Table, validation: pa.Table, test: pa.Table) -> PopularityFloor:
    """Score each test row by the shrunken mean click of its product + that of its user.

    The tables have the columns user_index (-1: nobody), product_index and clicked (0/1). The means are of
    training and validation rows; a user or product without a past has the mean of all, and so has nobody.
    The probability is product + user - overall mean, clipped to [0.01, 0.99]. With no past in common with the
    test the AUC is 0.5.

    Raises:
        ValueError: training or validation is empty.
        ranking.metrics.UndefinedMetricError: the test rows are all clicked, or none is.
    """
    for name, table in (("training", train), ("validation", validation)):
        if not len(table):
            raise ValueError(f"the popularity floor needs past rows, but the {name} split is empty")
    product_rows, user_rows = _prior_rows(_Means(train, validation), _column(validation, "clicked"))
    past = pa.concat_tables([train, validation])
    means = _Means(past, test)
    product_M, user_M = means.of("product_index", product_rows), means.of("user_index", user_rows)
    labels_M = _column(test, "clicked")
    return PopularityFloor(
        auc=float(roc_auc(labels_M, product_M + user_M)),
        norm_logloss=normalized_log_loss(labels_M, means.logits(product_M, user_M)),
        past_rows=len(past),
        test_rows=len(labels_M),
        new_user_share=means.new_share("user_index"),
        new_product_share=means.new_share("product_index"),
        product_prior_rows=product_rows,
        user_prior_rows=user_rows,
    )


def popularity_floor_of(features: Path) -> PopularityFloor:
    """The floor of a built feature set."""
    feature_set = FeatureSet.open(features)

    def rows(split: str) -> pa.Table:
        columns = ["user_index", "product_index", "clicked"]
        files = [pq.read_table(file, columns=columns) for file in feature_set.split_files(split)]
        return pa.concat_tables(files)

    return popularity_floor(rows("train"), rows("validation"), rows("test"))


class _Means:
    """Mean clicks of the keys of some rows, over past rows."""

    def __init__(self, past: pa.Table, scored: pa.Table) -> None:
        clicked_N = _column(past, "clicked").astype(np.float64)
        self._overall = float(clicked_N.mean())
        self._counts: dict[str, tuple[Floats, Floats]] = {}
        for key in ("product_index", "user_index"):
            keys_N, keys_M = _column(past, key) + 1, _column(scored, key) + 1
            size = int(max(keys_N.max(), keys_M.max(initial=0))) + 1
            rows_K: Floats = np.bincount(keys_N, minlength=size).astype(np.float64)
            clicks_K: Floats = np.bincount(keys_N, weights=clicked_N, minlength=size).astype(np.float64)
            rows_K[0] = clicks_K[0] = 0.0  # strangers have no past in common
            self._counts[key] = (rows_K[keys_M], clicks_K[keys_M])

    def of(self, key: str, prior_rows: int) -> Floats:
        """Shrunken means [M]."""
        rows_M, clicks_M = self._counts[key]
        return smoothed_ctr(rows_M, clicks_M, prior_impressions=prior_rows, prior_ctr=self._overall)

    def logits(self, product_M: Floats, user_M: Floats) -> Floats:
        """Of the probabilities that two means make together [M]."""
        probability_M = np.clip(product_M + user_M - self._overall, _MARGIN, 1 - _MARGIN)
        logits_M: Floats = np.log(probability_M) - np.log1p(-probability_M)
        return logits_M

    def new_share(self, key: str) -> float:
        """Share of the rows whose key has no past."""
        return float((self._counts[key][0] == 0).mean())


def _prior_rows(means: _Means, labels_M: npt.NDArray[np.int64]) -> tuple[int, int]:
    """For products and users, those with the lowest log loss; the fewest of equals."""
    user_XM = {rows: means.of("user_index", rows) for rows in PRIOR_ROWS}
    losses = {}
    for product_rows in PRIOR_ROWS:
        product_M = means.of("product_index", product_rows)
        for user_rows, user_M in user_XM.items():
            losses[product_rows, user_rows] = log_loss(labels_M, means.logits(product_M, user_M))
    return min(losses, key=lambda pair: losses[pair])


def _column(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return table.column(name).to_numpy().astype(np.int64)
