"""Training-serving skew: what a package's snapshot says of logged impressions, against what was logged.

Differences have two causes only: the snapshot's age (counters and purchases since then) and the product
attributes of its log. A feature that differs although the snapshot is fresh would be a fault.

Shapes: M impressions, N candidates of a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.online.request import ScoreRequest
from features.online.request_features import FeatureRows
from features.progress import Progress, silent
from serving.packaging.logged_requests import LoggedImpressions


@dataclass(frozen=True)
class FeatureSkew:
    """One feature: how often, and how far, the snapshot differs from the log.

    Attributes:
        kind: "dense", "sparse" or "history".
        differs: share of impressions (of requests, for the history) whose value is another one.
        mean, largest: absolute difference of a dense feature, in standard deviations of training.
        live: of values that requests gave; the others are of the snapshot.
        values: how many were compared.
    """

    name: str
    kind: str
    differs: float
    mean: float | None = None
    largest: float | None = None
    live: bool = False
    values: int = 0

    @classmethod
    def of(
        cls, name: str, kind: str, one_M: npt.NDArray[Any], other_M: npt.NDArray[Any], *, live: bool = False
    ) -> Self:
        """Of both values of each impression."""
        if kind != "dense":
            differs = float((one_M != other_M).mean()) if len(one_M) else 0.0
            return cls(name, kind, differs, live=live, values=len(one_M))
        gap_M = np.abs(one_M - other_M)
        return cls(
            name,
            kind,
            float((gap_M != 0).mean()) if len(gap_M) else 0.0,
            mean=float(gap_M.mean()) if len(gap_M) else 0.0,
            largest=float(gap_M.max(initial=0.0)),
            live=live,
            values=len(gap_M),
        )


def skew(
    logged: LoggedImpressions,
    groups: Sequence[npt.NDArray[np.int64]],
    feature_rows: Callable[[ScoreRequest], FeatureRows],
    *,
    dense_columns: Sequence[str],
    sparse_columns: Sequence[str],
    progress: Progress = silent,
) -> list[FeatureSkew]:
    """Compare feature by feature, the most different first.

    Args:
        groups: rows of the requests to compare.
        feature_rows: of a package: `Predictor.feature_rows`.
    """
    rows_M = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    dense_MF = np.empty((len(rows_M), len(dense_columns)), np.float32)
    sparse_MS = np.empty((len(rows_M), len(sparse_columns)), np.int32)
    other_histories = end = 0
    for number, rows_N in enumerate(groups, start=1):
        seen, served = (feature_rows(logged.request(rows_N, live=live)) for live in (True, False))
        start, end = end, end + len(rows_N)
        dense_MF[start:end], sparse_MS[start:end] = served.dense_NF, served.sparse_NS
        other_histories += not np.array_equal(seen.history, served.history)
        progress("reading the snapshot", number, len(groups))
    found = [
        FeatureSkew("purchase history", "history", other_histories / max(1, len(groups)), values=len(groups)),
    ]
    for column, name in enumerate(dense_columns):
        found.append(FeatureSkew.of(name, "dense", dense_MF[:, column], logged.rows[name].to_numpy()[rows_M]))
    for column, name in enumerate(sparse_columns):
        found.append(
            FeatureSkew.of(name, "sparse", sparse_MS[:, column], logged.rows[name].to_numpy()[rows_M])
        )
    return sorted(found, key=lambda one: (-one.differs, one.name))
