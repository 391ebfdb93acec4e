"""A handler without a model, for tests of everything around the model. Runs inside TorchServe, too.

A candidate's score is 1 / (1 + its digits' sum), whatever else the request says. An id of 13 breaks the
scorer as a fault of ours would; an id of 14 is refused as a feature's fault would be; 15 ends the process; 16
scores NaN.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.online.request import RequestError, ScoreRequest
from serving.drift.live_counts import LiveCounts
from serving.servers.torchserve.handler import DashclipHandler
from serving.wire.reply import Scorer, ScoreReply, best_first

AS_OF = "2026-01-01T00:00:00+00:00"


def stand_in_scorer() -> Scorer:
    """Its class is local: TorchServe wants one class in this file."""

    class StandInScorer:
        def __init__(self) -> None:
            self.reloads = 0

        def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
            return [self._score(request) for request in requests]

        def reload_if_changed(self) -> object:
            self.reloads += 1
            return None

        def facts(self) -> Mapping[str, Any]:
            return {"model_version": "stand-in", "generation": "000001", "as_of": AS_OF}

        def _score(self, request: ScoreRequest) -> ScoreReply | RequestError:
            ids = request.candidates.to_pylist()
            if 13 in ids:
                raise ZeroDivisionError("secret query text")
            if 14 in ids:
                return RequestError("candidate_columns.price", "14", "send another price")
            if 16 in ids:
                ids = [float("nan") if one == 16 else one for one in ids]
            if 15 in ids:
                os._exit(3)
            scores_N = np.array([one if one != one else stand_in_score(one) for one in ids], np.float32)
            return ScoreReply(
                scores_N=scores_N,
                order_N=best_first(scores_N),
                model_version="stand-in",
                generation="000001",
                as_of=AS_OF,
                unknown={"users": int(request.user_id is None), "products": ids.count(-1)},
                history_length=0 if request.history is None else len(request.history),
            )

    return StandInScorer()


def stand_in_score(product_id: int | str) -> float:
    """1 / (1 + sum of digits): 101 gives 1 / 3."""
    return 1 / (1 + sum(int(digit) for digit in str(product_id) if digit.isdigit()))


class StandInHandler(DashclipHandler):
    """The handler as it is, but for the predictor."""

    def open(self, settings: Mapping[str, Any], model_dir: Path) -> tuple[Scorer, LiveCounts | None]:
        return stand_in_scorer(), None
