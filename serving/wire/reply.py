"""What every server answers a `ScoreRequest` with, and what a predictor has to offer for that.

No torch here: clients import this module, too.

Shapes: N candidates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from features.online.request import RequestError, ScoreRequest

if TYPE_CHECKING:
    from features.online.request_features import FeatureRows

#: Of several packages, the one that was there first: it answers what no other does.
CHAMPION = "champion"


@dataclass(frozen=True, eq=False)
class Shadow:
    """A variant that is to score what another one has served; None of `score` is a failure."""

    variant: str
    score: "Callable[[Sequence[ScoreRequest]], Sequence[ScoreReply | RequestError | None]]"


class Unavailable(RuntimeError):
    """No scores now, through no fault of the request; later there may be.

    Attributes:
        reason: one word for the measures.
        retry_after_s: after which to ask again, whole seconds, at least 1.
    """

    def __init__(self, reason: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = max(1, math.ceil(retry_after_s))


@dataclass(frozen=True, eq=False)
class ScoreReply:
    """Scores of one request, in the order in which its candidates came.

    Attributes:
        scores_N: float32, probabilities of a click.
        order_N: int64, positions in `candidates`, best first; equal scores stay in the order they came.
        model_version: of the package.
        generation: of its vectors and snapshot.
        as_of: the moment of the snapshot, ISO 8601.
        unknown: how many ids of each kind were not known ("users", "queries", "products", "history").
        history_length: how many purchases the model read.
        variant: which of several packages scored it; None where there is one.
        salt: by which the variant was drawn.
        instead_of: the variant that was drawn and refused or failed, so that the champion answered.
        shadows: who is to score it, too; never sent.
        is_shadow: nobody sees these scores.
        rows: all features as the model read them; for drift counts and the feature log, never sent.
    """

    scores_N: np.ndarray
    order_N: np.ndarray
    model_version: str
    generation: str
    as_of: str
    unknown: Mapping[str, int]
    history_length: int = 0
    variant: str | None = None
    salt: str | None = None
    instead_of: str | None = None
    shadows: tuple[Shadow, ...] = ()
    is_shadow: bool = False
    rows: "FeatureRows | None" = None


class Scorer(Protocol):
    """What a server needs: `serving.scoring.predictor.Predictor`, or several behind a `RoutedScorer`."""

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """One reply or refusal for each request: a bad one does not fail its neighbours.

        Raises:
            Unavailable: there is nothing to score with now.
        """
        ...

    def reload_if_changed(self) -> object:
        """Swap in a new generation of vectors and snapshot if there is one. Cheap if there is none."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What is being served: model version, generation, as_of, encoder, counts.

        `refused_generation` says why another generation than the current one is served, if one is.
        """
        ...


def best_first(scores_N: np.ndarray) -> np.ndarray:
    """Positions int64[N] by falling score, equal ones as they came: [.2, .5, .5] gives [1, 2, 0]."""
    return np.argsort(-scores_N, kind="stable").astype(np.int64, copy=False)
