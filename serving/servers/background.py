"""What a worker does beside its requests: look for a new generation, export measures, write drift counts.

A thread, so that none of it is paid by a request.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from features.artifacts import atomic_write_json
from serving.drift.watch import DriftWatch
from serving.servers.endpoint import Endpoint, place_of, readiness
from serving.servers.measures import Series

_log = logging.getLogger(__name__)

#: Of what each worker says of itself, in a server's folder.
WORKERS_FOLDER = "workers"
#: In a server's folder, if large requests have workers of their own: the name that TorchServe knows them by.
LARGE_MODEL = "large_model"
#: In a server's folder while it is being emptied to be ended: new requests are refused.
DRAINING = "draining"
#: Whose packages are served, in a server's folder.
TRUSTED_KEY = "trusted_key.pem"
_PERIOD_S = 1.0
#: Drift counts are written once in so many periods, and what a worker says of itself to the probes.
_PERIODS_A_WRITE = 15
_PERIODS_A_STATUS = 5
#: And so often it is looked whether a window has ended.
_PERIODS_A_LOOK = 60


class Background:
    """Runs from `start` to `stop`; what fails is logged and tried again a period later."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        export: Callable[[Series], None] | None = None,
        counts_folder: Path | None = None,
        status_folder: Path | None = None,
        draining_file: Path | None = None,
        model_name: str = "",
        period_s: float = _PERIOD_S,
    ) -> None:
        self._endpoint = endpoint
        self._export = export
        self._counts_folder = counts_folder
        self._watch = None if counts_folder is None else DriftWatch(counts_folder)
        self._status_folder = status_folder
        self._draining_file = draining_file
        self._model_name = model_name
        self._period_s = period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashclip-background", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; drift counts are written once more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._attempt("drift counts", self._write_counts)

    def beat(self, period: int) -> None:
        """One period's work."""
        self._attempt("looking for a new generation", self._reload)
        if self._export is not None:
            export = self._export
            self._attempt("exporting measures", lambda: export(self._endpoint.measures().series()))
        if self._draining_file is not None:
            self._endpoint.draining = self._draining_file.exists()
        said_now = self._endpoint.draining or period % _PERIODS_A_STATUS == 1
        if said_now and self._status_folder is not None:
            folder = self._status_folder
            self._attempt("the status", lambda: write_status(folder, self._endpoint, self._model_name))
        if period % _PERIODS_A_WRITE == 0:
            self._attempt("drift counts", self._write_counts)
        if period % _PERIODS_A_LOOK == 1:
            self._attempt("looking for drift", self._look_for_drift)

    def _run(self) -> None:
        period = 0
        while not self._stopped.wait(self._period_s):
            period += 1
            self.beat(period)

    def _reload(self) -> None:
        self._endpoint.scorer.reload_if_changed()

    def _write_counts(self) -> None:
        live = self._endpoint.live
        if live is not None and self._counts_folder is not None:
            live.write(self._counts_folder)

    def _look_for_drift(self) -> None:
        live = self._endpoint.live
        if live is None or self._watch is None:
            return
        seen = self._watch.look(live.record, model_version=live.model_version, now_s=time.time())
        for report in seen.values():
            self._endpoint.measures().set_drift(report)

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            _log.error("%s failed: %s", what, place_of(error))


def write_status(folder: Path, endpoint: Endpoint, model_name: str) -> None:
    """What a worker says of itself, for probes that have no token: generation, and when it last scored.

    Beside that, for who may read the folder, why it serves nothing or not the current generation.
    """
    ago_s = endpoint.scored_s_ago
    scored_at = None if ago_s is None else time.time() - ago_s
    facts = endpoint.scorer.facts()
    reasons = {"unavailable": facts.get("unavailable"), "refused": facts.get("refused_generation")}
    content = {
        "model": model_name,
        **readiness(facts),
        **reasons,
        "scored_at": scored_at,
        "draining": endpoint.draining,
        "asked_s_ago": endpoint.asked_s_ago,
    }
    atomic_write_json(folder / f"worker-{os.getpid()}.json", content)
