"""The training record of a new package: it is asked what the test days asked; the answers are counted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from features.online.request import ScoreRequest
from features.progress import Progress, silent
from serving.drift.watched import record_of, watched_columns
from serving.package.training_record import TrainingRecord
from serving.scoring.predictor import Predictor
from serving.wire.reply import ScoreReply

#: Logged requests that are served, evenly spread: their shares are then known to about a point.
RECORD_REQUESTS = 4_000


def training_record_of(
    predictor: Predictor, requests: Sequence[ScoreRequest], *, progress: Progress = silent
) -> TrainingRecord:
    """What a package answers to logged requests (`RECORD_REQUESTS` of them are enough).

    They come with counters and purchases as they were, and without what no server is told (the position): as
    live traffic does, but for the age of the snapshot.
    """
    manifest = predictor.manifest
    snapshot = predictor.live.features.snapshot.manifest
    untold = [
        feature.column
        for feature in snapshot.config.features
        if getattr(feature, "serving_value", None) is not None
    ]
    served: list[tuple[int | str | None, ScoreReply]] = []
    for done, request in enumerate(requests):
        if done % 100 == 0:
            progress("serving the test days", done, len(requests))
        asked = replace(
            request,
            context=_without(request.context, untold),
            candidate_columns=_without(request.candidate_columns, untold),
        )
        served.append((request.user_id, predictor.score(asked)))
    progress("serving the test days", len(requests), len(requests))
    return record_of(
        watched_columns(snapshot, manifest.request_columns, manifest.entities),
        served,
        dense_columns=manifest.dense_columns,
        sparse_columns=tuple(manifest.sparse_rows),
    )


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
