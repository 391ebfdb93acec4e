"""What a worker does beside its requests: look for a new generation, export measures, write drift counts.

A thread, so that none of it is paid by a request. `open_package` opens the predictor and its counts for
drift.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from serving.package.manifest import PackageManifest
from serving.scoring.predictor import Predictor
from serving.servers.drift import LiveCounts
from serving.servers.endpoint import Endpoint, place_of
from serving.servers.measures import Series

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
#: Drift counts are written once in so many periods.
_PERIODS_A_WRITE = 15


class Background:
    """Runs from `start` to `stop`; what fails is logged and tried again a period later."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        export: Callable[[Series], None] | None = None,
        live: LiveCounts | None = None,
        counts_folder: Path | None = None,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._endpoint = endpoint
        self._export = export
        self._live = live
        self._counts_folder = counts_folder
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
            self._attempt("exporting measures", lambda: export(self._endpoint.series()))
        if period % _PERIODS_A_WRITE == 0:
            self._attempt("drift counts", self._write_counts)

    def _run(self) -> None:
        period = 0
        while not self._stopped.wait(self._period_s):
            period += 1
            self.beat(period)

    def _reload(self) -> None:
        self._endpoint.scorer.reload_if_changed()

    def _write_counts(self) -> None:
        if self._live is not None and self._counts_folder is not None:
            version = str(self._endpoint.scorer.facts()["model_version"])
            self._live.write(self._counts_folder, model_version=version)

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            _log.error("%s failed: %s", what, place_of(error))


def open_package(package: Path) -> tuple[Predictor, LiveCounts]:
    """Load and verify a package.

    Raises:
        PackageError: a file is missing, damaged or altered, or the parity record does not come out.
    """
    predictor = Predictor.load(package)
    manifest = PackageManifest.read(package)
    return predictor, LiveCounts(manifest.training_record, manifest.dense_columns)
