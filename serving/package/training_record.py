"""What a model saw while it was evaluated: its scores and dense features, in bins of equal mass.

Part of a package's manifest; `serving/servers/drift.py` compares what a server sees with it.

Shapes: N candidates, F dense columns, E interior edges of E + 1 bins.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

BINS = 10

Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Distribution(_Record):
    """Shares of values in bins: bin i holds edges[i - 1] < value <= edges[i]; the outer two are open."""

    edges: tuple[float, ...]
    shares: tuple[Share, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.shares) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{len(self.edges)} rising edges bound {len(self.edges) + 1} shares")
        return self

    @classmethod
    def of(cls, values_N: np.ndarray) -> Self:
        """Bins of about equal mass; a value that fills several of them gets one.

        Raises:
            ValueError: there are no values, or one is not finite.
        """
        if len(values_N) == 0 or not np.isfinite(values_N).all():
            raise ValueError("a distribution needs at least one value, all of them finite")
        values_N = values_N.astype(np.float64)
        edges = np.unique(np.quantile(values_N, np.arange(1, BINS) / BINS, method="lower"))
        counts = count_bins(values_N, edges)
        return cls(edges=tuple(edges.tolist()), shares=tuple((counts / counts.sum()).tolist()))


class TrainingRecord(_Record):
    """What the model saw while it was evaluated: the yardstick of `dashclip drift`."""

    rows: Annotated[int, Field(ge=1)]
    scores: Distribution
    features: dict[str, Distribution]
    #: Shares of impressions whose user, query or product was out of vocabulary or without a vector.
    unknown_shares: dict[str, Share] = {}
    empty_history_share: Share | None = None

    @classmethod
    def of(
        cls,
        scores_N: np.ndarray,
        dense_NF: np.ndarray,
        dense_columns: Sequence[str],
        *,
        unknown_shares: dict[str, float] | None = None,
        empty_history_share: float | None = None,
    ) -> Self:
        """The record of logged impressions: their predicted probabilities and transformed dense features."""
        return cls(
            rows=len(scores_N),
            scores=Distribution.of(scores_N),
            features={
                name: Distribution.of(dense_NF[:, column]) for column, name in enumerate(dense_columns)
            },
            unknown_shares=unknown_shares or {},
            empty_history_share=empty_history_share,
        )


def count_bins(values_N: np.ndarray, edges_E: np.ndarray) -> np.ndarray:
    """int64[E + 1], how many values fall in each bin; a value on an edge belongs to the bin below it."""
    bins_N = np.searchsorted(edges_E, values_N, side="left")
    return np.bincount(bins_N, minlength=len(edges_E) + 1).astype(np.int64, copy=False)
