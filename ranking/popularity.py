"""The popularity floor: how well item mean + user mean alone rank. A model that does not beat it is idle.

Shapes: N past rows, M test rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.feature_set import FeatureSet
from ranking.metrics import normalized_log_loss, roc_auc

#: Probabilities of the floor are kept this far from 0 and 1: a mean over one row would claim certainty.
_MARGIN = 0.01


@dataclass(frozen=True)
class PopularityFloor:
    """Quality of the floor on the test rows; `new_*_share` are rows whose user or item has no past."""

    auc: float
    norm_logloss: float
    past_rows: int
    test_rows: int
    new_user_share: float
    new_product_share: float


def popularity_floor(past: pa.Table, test: pa.Table) -> PopularityFloor:
    """Score each test row by mean click of its product + mean click of its user, over `past`.

    Both tables have the columns user_index, product_index (non-negative) and clicked (0/1). A user or
    product without a past counts with the mean of all. The probability is product + user - overall mean,
    clipped to [0.01, 0.99]. With no past in common with the test the AUC is 0.5.

    Raises:
        ranking.metrics.UndefinedMetricError: the test rows are all clicked, or none is.
    """
    clicked_N = _column(past, "clicked").astype(np.float64)
    if not len(clicked_N):
        raise ValueError(
            "the popularity baseline needs past rows, but the training and validation splits are empty"
        )
    overall = clicked_N.mean()
    product_M, new_product_M = _means(past, test, "product_index", clicked_N, overall)
    user_M, new_user_M = _means(past, test, "user_index", clicked_N, overall)
    labels_M = _column(test, "clicked")
    probability_M = np.clip(product_M + user_M - overall, _MARGIN, 1 - _MARGIN)
    logits_M = np.log(probability_M) - np.log1p(-probability_M)
    return PopularityFloor(
        auc=float(roc_auc(labels_M, product_M + user_M)),
        norm_logloss=normalized_log_loss(labels_M, logits_M),
        past_rows=len(clicked_N),
        test_rows=len(labels_M),
        new_user_share=float(new_user_M.mean()),
        new_product_share=float(new_product_M.mean()),
    )


def popularity_floor_of(features: Path) -> PopularityFloor:
    """The floor of a built feature set: the past is training + validation, the test split is scored."""
    feature_set = FeatureSet.open(features)

    def rows(split: str) -> pa.Table:
        columns = ["user_index", "product_index", "clicked"]
        files = [pq.read_table(file, columns=columns) for file in feature_set.split_files(split)]
        return pa.concat_tables(files)

    return popularity_floor(pa.concat_tables([rows("train"), rows("validation")]), rows("test"))


def _column(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return table.column(name).to_numpy().astype(np.int64)


def _means(
    past: pa.Table, test: pa.Table, key: str, clicked_N: npt.NDArray[np.float64], overall: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    keys_N, keys_M = _column(past, key), _column(test, key)
    size = int(max(keys_N.max(), keys_M.max(initial=0))) + 1
    rows = np.bincount(keys_N, minlength=size)
    clicks = np.bincount(keys_N, weights=clicked_N, minlength=size)
    means = np.divide(clicks, rows, out=np.full(size, overall), where=rows > 0)
    return means[keys_M], rows[keys_M] == 0
