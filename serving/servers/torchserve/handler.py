"""The TorchServe handler: how TorchServe's worker talks to an `Endpoint`, and nothing else.

`dashclip archive` puts a copy of this file into the model store. TorchServe wants exactly one class in it.

Batching: TorchServe hands over as many requests as its `batchSize` and `maxBatchDelay` let it collect; each
gets its own status.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from serving.drift.count_files import DRIFT_FOLDER
from serving.drift.live_counts import LiveCounts
from serving.feature_log.feature_log import FeatureLogSettings
from serving.observers.assembly import build_endpoint, with_challengers
from serving.scoring.predictor import Predictor, load_to_serve
from serving.servers.background import DRAINING, LARGE_MODEL, TRUSTED_KEY, WORKERS_FOLDER, Background
from serving.servers.endpoint import FORM, Body, Endpoint
from serving.servers.healing import HealingScorer
from serving.servers.json_lines import WorkerLines
from serving.servers.measures import GAUGES, Series, increase
from serving.servers.torchserve.worker_messages import read_by_segments
from serving.servers.trace_settings import TraceSettings
from serving.wire.reply import Scorer

#: Of an exported value.
_DECIMALS = 6
_LARGE_NICE = 10
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    413: "Payload Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class DashclipHandler:
    """One of these lives in each worker process."""

    #: A package that cannot be opened is tried again, and requests get 503 until then: a worker that ended
    #: would leave them waiting in TorchServe's queue. The check of an archive wants the error instead.
    heals = True

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._background: Background | None = None
        self._traced = False
        #: Whose packages are served, if not everybody's.
        self.trusted_key: Path | None = None

    def initialize(self, context: Any) -> None:
        """Open the package named in model-config.yaml, or go on trying."""
        settings = context.model_yaml_config["dashclip"]
        torch.set_num_threads(1)  # workers scale; threads of several workers would fight for the cores
        _quiet_logs()
        read_by_segments()
        # TorchServe times each batch and has its frontend told; our measures have the time in the worker.
        context.metrics.add_time = lambda *_, **__: None
        model_dir = Path(context.system_properties["model_dir"])
        # The server's own folder, which no setting of an archive could know, is where its metrics.yaml is.
        state = Path(context.metrics.config_file_path).parent
        key = state / TRUSTED_KEY

        def opened() -> Scorer:
            self.trusted_key = key if key.is_file() else None
            champion, endpoint.live = self.open(settings, model_dir)
            challengers = {name: Path(path) for name, path in settings.get("challengers", {}).items()}
            return with_challengers(
                champion, challengers, state=state, heals=self.heals, trusted_key=self.trusted_key
            )

        healing = HealingScorer(opened)
        traces = TraceSettings.of_server(state)
        self._traced = traces is not None
        endpoint = self._endpoint = build_endpoint(
            healing, log=FeatureLogSettings.of_server(state), traces=traces
        )
        healing.open(raises=not self.heals)
        large_model = state / LARGE_MODEL
        if large_model.is_file():
            if context.model_name == (name := large_model.read_text(encoding="utf-8").strip()):
                os.nice(_LARGE_NICE)  # of two that want a core the small request gets it
            else:
                endpoint.large_at = f"/predictions/{name}"
        self._background = Background(
            self._endpoint,
            export=_exporter(context),
            counts_folder=state / DRIFT_FOLDER,
            status_folder=state / WORKERS_FOLDER,
            draining_file=state / DRAINING,
            model_name=context.model_name,
        )
        self._background.start()

    def open(self, settings: Mapping[str, Any], model_dir: Path) -> tuple[Scorer, LiveCounts | None]:
        """The predictor of the package, which is beside this file if it was embedded."""
        package = model_dir / settings["package"]
        predictor = load_to_serve(package, self.trusted_key) if self.heals else Predictor.load(package)
        return predictor, LiveCounts.of_package(predictor.manifest)

    def handle(self, requests: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch."""
        assert self._endpoint is not None
        answers = self._endpoint.answer(
            [_body(request, context, i, traced=self._traced) for i, request in enumerate(requests)]
        )
        for position, answer in enumerate(answers):
            context.set_response_status(answer.status, _PHRASES[answer.status], position)
            context.set_response_content_type(position, answer.content_type)
            if answer.retry_after_s is not None:
                context.set_response_header(position, "retry-after", str(answer.retry_after_s))
        return [answer.content for answer in answers]


def _traceparent(context: Any, position: int) -> str | None:
    """The header of that name, however it was spelled."""
    headers = context.get_all_request_header(position)
    return next((value for name, value in headers.items() if name.lower() == "traceparent"), None)


def _body(request: Mapping[str, Any], context: Any, position: int, *, traced: bool) -> Body:
    """The bytes of a request; none if TorchServe took it for a form, which may have altered them."""
    name = "body" if "body" in request else "data" if "data" in request else None
    if name is None:
        return Body(b"", FORM if request else None, context.get_request_id(position))
    content = request[name]
    header = context.get_request_header(position, name)
    kind = header.get("content-type") if isinstance(header, Mapping) else None
    content = content.encode() if isinstance(content, str) else content
    return Body(
        content, kind, context.get_request_id(position), _traceparent(context, position) if traced else None
    )


def _exporter(context: Any) -> Any:
    """A function that tells TorchServe's frontend what was counted since it was last called.

    The frontend adds up what it is told, so what rounding leaves is told the next time.
    """
    from ts.metrics.metric_type_enum import MetricTypes

    told: Series = {}

    def export(series: Series) -> None:
        gauges = {key: value for key, value in series.items() if key[0] in GAUGES}
        counters = {key: value for key, value in series.items() if key[0] not in GAUGES}
        for key, value in (increase(counters, told) | gauges).items():
            name, *labels = key
            kind = MetricTypes.GAUGE if key in gauges else MetricTypes.COUNTER
            rounded = round(value, _DECIMALS)
            if rounded == 0 and key not in gauges:
                continue
            metric = context.metrics.get_metric(name, kind)
            metric.add_or_update(rounded, [context.model_name, *(labels if any(labels) else [])])
            if key in counters:
                told[key] = told.get(key, 0.0) + rounded

    return export


def _quiet_logs() -> None:
    """TorchServe's worker writes a line a request to its frontend; what it says is in our measures."""
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) is sys.stdout:  # which the frontend reads
            handler.setFormatter(WorkerLines())
    logging.getLogger("ts.metrics.caching_metric").setLevel(logging.INFO)
