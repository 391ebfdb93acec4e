"""Training runs as runs of an MLflow server: config, numbers of each evaluation, and where the folder is.

Nothing is uploaded but numbers and texts: a tag names the folder of a run, whose files stay where they are.
MLflow is optional and is imported when the first run opens, which takes seconds.
"""

import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.training.run_log import Ending
from features.artifacts import atomic_write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: In the folder of a run: which MLflow run is its own.
RECORD = "mlflow.json"
#: Tag that holds the folder of a run.
FOLDER_TAG = "dashclip.folder"
MISSING = (
    "MLflow is not installed; `pip install 'dashclip-ranker[mlflow]'` brings what talks to a server, and "
    "`pip install mlflow` a store on this machine as well"
)
#: MLflow takes so many parameters at a time, and so many characters of one.
_PARAMS_AT_A_TIME = 100
_PARAM_CHARACTERS = 500
#: A server that is gone holds the training up for so long; MLflow's own default is minutes.
_RETRIES, _TIMEOUT_S = 1, 10
_STATUS: dict[Ending, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@dataclass(frozen=True)
class MlflowTracker:
    """A `Tracker`: each folder has a run of its own, found again by `mlflow.json` in the folder.

    Attributes:
        uri: of the server or the store, as `http://localhost:5000`.
        experiment: made if it is missing.
        parent: run that the others are nested in.
    """

    uri: str
    experiment: str = "dashclip"
    parent: str | None = None

    def open(self, folder: Path, *, name: str, params: Mapping[str, Any]) -> "MlflowRun":
        """The run of `folder`, made or continued."""
        client = _client(self.uri)
        run_id = self._recorded(client, folder)
        if run_id is None:
            run_id = self._create(client, folder, name, params)
        else:
            client.update_run(run_id, status="RUNNING")
        return MlflowRun(self, client, run_id)

    def _create(self, client: "MlflowClient", folder: Path, name: str, params: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        found = client.get_experiment_by_name(self.experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(self.experiment)
        tags = {FOLDER_TAG: str(folder.resolve())}
        if self.parent is not None:
            tags["mlflow.parentRunId"] = self.parent
        run_id: str = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        named = [Param(key, value) for key, value in flat_params(params)]
        for start in range(0, len(named), _PARAMS_AT_A_TIME):
            client.log_batch(run_id, params=named[start : start + _PARAMS_AT_A_TIME])
        atomic_write_json(folder / RECORD, {"uri": self.uri, "run_id": run_id})
        return run_id

    def _recorded(self, client: "MlflowClient", folder: Path) -> str | None:
        """The run that the folder names, if it is of this store and was not deleted there."""
        from mlflow.exceptions import MlflowException

        try:
            recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if recorded.get("uri") != self.uri:
            return None
        try:
            info = client.get_run(recorded["run_id"]).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return info.run_id if info.lifecycle_stage == "active" else None


class MlflowRun:
    """A `TrackedRun`: one run of an MLflow store."""

    def __init__(self, tracker: MlflowTracker, client: "MlflowClient", run_id: str) -> None:
        self._tracker, self._client, self.run_id = tracker, client, run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Each value as the metric of its name."""
        from mlflow.entities import Metric

        now_ms = round(1000 * time.time())
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def nested(self) -> MlflowTracker:
        """A tracker whose runs have this one as their parent."""
        return replace(self._tracker, parent=self.run_id)

    def close(self, ending: Ending) -> None:
        """Give the run its end."""
        self._client.set_terminated(self.run_id, status=_STATUS[ending])


def is_installed() -> bool:
    """Whether MLflow, or its smaller part mlflow-skinny, can be imported."""
    return importlib.util.find_spec("mlflow") is not None


def flat_params(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of what a config holds, cut to what MLflow takes.

    >>> list(flat_params({"seed": 1, "ranker": {"layers": [64, 32], "name": "dcn"}}))
    [('seed', '1'), ('ranker.layers', '[64, 32]'), ('ranker.name', 'dcn')]
    """
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat_params(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", text[:_PARAM_CHARACTERS]


def _client(uri: str) -> "MlflowClient":
    """Talks to the store alone, and gives up an unreachable one soon, unless MLflow was told otherwise."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    for variable, value in (
        (MLFLOW_HTTP_REQUEST_MAX_RETRIES, _RETRIES),
        (MLFLOW_HTTP_REQUEST_TIMEOUT, _TIMEOUT_S),
    ):
        if not variable.is_set():
            variable.set(value)
    return MlflowClient(uri)
