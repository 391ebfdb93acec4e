"""What a model saw of its test days when they were served: the yardstick of `dashclip drift`.

Part of a package's manifest. It is made by the packaged model itself, of logged requests, and counted as a
server counts (`serving/drift`), so that both speak of the same thing: one value a request for what its
candidates share, one a candidate for the rest.

Shapes: N values, E interior edges of E + 1 bins.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

BINS = 10

Share = Annotated[float, Field(ge=0, le=1)]
#: What a column says of a request or a candidate; all but the first two are 0 or 1.
Kind = Literal["score", "dense", "unknown id", "no purchases", "no product vector", "no query vector"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WatchedColumn(_Record):
    """One column and how its values were distributed.

    Bin i holds edges[i - 1] < value <= edges[i]; the outer two are open.

    Attributes:
        name: as reports call it.
        by: what is counted once: a request, or each of its candidates.
        column: the dense or sparse column of the feature set that it is read from, if it is.
        oov_rows: of a sparse column: unknown ids have the rows 1 to `oov_rows`.
        shares: of the bins.
        errors: standard errors of the shares, from how they differ between groups of users.
        mean: of the values, on the model's scale.
    """

    name: str
    by: Literal["request", "candidate"]
    kind: Kind
    column: str = ""
    oov_rows: int = 0
    edges: tuple[float, ...]
    shares: tuple[Share, ...]
    errors: tuple[Annotated[float, Field(ge=0)], ...]
    mean: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.shares) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{len(self.edges)} rising edges bound {len(self.edges) + 1} shares")
        if len(self.errors) != len(self.shares):
            raise ValueError(f"{len(self.shares)} shares have as many errors, not {len(self.errors)}")
        return self

    @property
    def is_share(self) -> bool:
        """Whether its values are 0 and 1, so that its mean is a share."""
        return self.kind not in ("score", "dense")


class TrainingRecord(_Record):
    """Test days as they would have been served.

    Attributes:
        requests, candidates: how many were served.
        groups: groups of users among them.
    """

    requests: Annotated[int, Field(ge=1)]
    candidates: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]
    columns: tuple[WatchedColumn, ...]


def _none_of_impressions(value: Any) -> Any:
    """None for the record of an earlier version, which counted impressions."""
    return None if isinstance(value, dict) and "columns" not in value else value


#: In a manifest; None where a package was made before requests were counted.
RecordInManifest = Annotated[TrainingRecord | None, BeforeValidator(_none_of_impressions)]


def edges_of(values_N: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Edges of bins of about equal mass; a value that fills several of them gets one.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    if len(values_N) == 0 or not np.isfinite(values_N).all():
        raise ValueError("a distribution needs at least one value, all of them finite")
    values_N = values_N.astype(np.float64)
    return np.unique(np.quantile(values_N, np.arange(1, BINS) / BINS, method="lower"))


def bins_of(values_N: npt.NDArray[np.floating], edges_E: Sequence[float]) -> npt.NDArray[np.int64]:
    """The bin of each value; one on an edge belongs to the bin below it. Edges [1, 2]: 1 is in 0, 3 in 2."""
    return np.searchsorted(np.asarray(edges_E), values_N, side="left")
