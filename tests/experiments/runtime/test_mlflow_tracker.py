"""Training runs in an MLflow store: what a user finds there, and what happens without one."""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from embeddings.training.run_log import TrackerWarning
from experiments.commands.options import tracker_of
from experiments.runtime import mlflow_tracker
from experiments.runtime.mlflow_tracker import FOLDER_TAG, MlflowTracker, flat_params
from experiments.sweeps.sweep import execute_sweep, plan
from ranking.run import RunConfig, execute_run
from ranking.train import TrainingProgress
from tests.experiments.sweeps.small_sweeps import sweep_config, write_inputs

#: What turns MLflow's reports off; it also takes continuous integration and the word of others for a no.
WISHES = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set and tables that a ranker can be trained on within a second."""
    return write_inputs(tmp_path_factory.mktemp("small"))


def run_config(folder: Path, **training: object) -> RunConfig:
    config = plan(sweep_config(folder), folder)[0].config
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of files: MLflow wants to be told that it is meant."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "store").as_uri()


def runs_in(store: str, experiment: str = "dashclip"):
    from mlflow import MlflowClient

    client = MlflowClient(store)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.mark.parametrize(("wish", "found"), [(None, "True"), ("false", "False")])
def test_mlflow_reports_nothing_to_its_makers_unless_asked_to(tmp_path, wish, found):
    code = (
        "from experiments.runtime.mlflow_tracker import _client\n"
        f"_client({(tmp_path / 'store').as_uri()!r})\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "print(is_telemetry_disabled())"
    )
    others = {name: value for name, value in os.environ.items() if name not in WISHES}
    asked = {**others, "MLFLOW_ALLOW_FILE_STORE": "true"} | ({} if wish is None else {WISHES[0]: wish})
    ended = subprocess.run(
        [sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == found


class StopError(Exception):
    """Ends a training in the middle."""


def test_a_run_has_its_config_its_evaluations_and_its_folder(folder, store, tmp_path):
    metrics = execute_run(run_config(folder), tmp_path / "run", environment={}, tracker=MlflowTracker(store))
    client, [run] = runs_in(store)
    assert run.info.run_name == "dcn, seed 3"
    assert run.info.status == "FINISHED"
    assert run.data.params["ranker.embedding_dim"] == "4"
    assert run.data.params["training.batch_size"] == str(run_config(folder).training.batch_size)
    assert run.data.tags[FOLDER_TAG] == str(tmp_path / "run")
    history = client.get_metric_history(run.info.run_id, "validation/auc")
    assert [(entry.step, entry.value) for entry in history] == [
        (evaluation["step"], pytest.approx(evaluation["validation_auc"])) for evaluation in metrics["history"]
    ]
    assert run.data.metrics["test/auc"] == pytest.approx(metrics["test"]["auc"])


def test_a_resumed_training_continues_its_run(folder, store, tmp_path):
    config = run_config(folder, checkpoint_minutes=0.0)

    def stop(progress: TrainingProgress, total_steps: int) -> None:
        if progress.step == total_steps // 2 + 1:
            raise StopError

    tracker = MlflowTracker(store)
    with pytest.raises(StopError):
        execute_run(config, tmp_path / "run", environment={}, tracker=tracker, on_step=stop)
    _, [run] = runs_in(store)
    assert run.info.status == "FAILED"
    metrics = execute_run(config, tmp_path / "run", environment={}, tracker=tracker, resume=True)
    client, [again] = runs_in(store)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    steps = [entry.step for entry in client.get_metric_history(run.info.run_id, "validation/auc")]
    assert steps == [evaluation["step"] for evaluation in metrics["history"]], "none twice, none lost"


def test_a_run_that_was_deleted_or_is_of_another_store_is_made_anew(store, tmp_path):
    tracker = MlflowTracker(store)
    first = tracker.open(tmp_path, name="first", params={})
    runs_in(store)[0].delete_run(first.run_id)
    second = tracker.open(tmp_path, name="second", params={})
    assert second.run_id != first.run_id
    elsewhere = MlflowTracker(store + "-2").open(tmp_path, name="third", params={})
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] == elsewhere.run_id


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_nested_in_its_own(folder, store, tmp_path):
    config = sweep_config(folder, seeds=[1])
    for _ in range(2):  # the second call finds everything finished
        errors = execute_sweep(config, tmp_path / "sweep", processes=1, tracker=MlflowTracker(store, "shop"))
        assert set(errors.values()) == {None}
    _, runs = runs_in(store, "shop")
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == "sweep small"
    children = [run for run in runs if run is not parent]
    assert {run.info.run_name for run in children} == {"dcn, seed 1", "dcn_p_sim_history, seed 1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_server_that_is_gone_costs_a_warning_and_no_training(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = execute_run(
            run_config(folder),
            tmp_path / "run",
            environment={},
            tracker=MlflowTracker(f"http://127.0.0.1:{port}"),
        )
    assert [found.category for found in caught].count(TrackerWarning) == 1
    assert metrics == execute_run(run_config(folder), tmp_path / "alone", environment={})
    assert not (tmp_path / "run" / "mlflow.json").exists()


def test_a_config_becomes_flat_texts_that_mlflow_takes():
    nested = {"a": {"b": [1, 2], "c": {"d": None}}, "path": Path("x/y"), "long": "z" * 900}
    assert dict(flat_params(nested)) == {
        "a.b": "[1, 2]",
        "a.c.d": "null",
        "path": '"x/y"',
        "long": "z" * 500,
    }


def test_without_mlflow_the_wish_for_it_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(mlflow_tracker, "is_installed", lambda: False)
    assert tracker_of(None, "dashclip") is None
    assert tracker_of("", "dashclip") is None, "an empty variable is none"
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI.*dashclip-ranker\[mlflow\]"):
        tracker_of("http://localhost:5000", "dashclip")


def test_the_variables_of_mlflow_mean_what_they_mean_elsewhere(monkeypatch):
    from experiments.commands.rankers.train import train

    application = typer.Typer()
    application.command()(train)
    command = typer.main.get_command(application)
    names = {parameter.name: parameter.envvar for parameter in command.params}
    assert names["mlflow"] == "MLFLOW_TRACKING_URI"
    assert names["mlflow_experiment"] == "MLFLOW_EXPERIMENT_NAME"


def test_mlflow_is_not_imported_until_a_run_opens():
    code = (
        "import sys, experiments.api, experiments.runtime.mlflow_tracker, ranking.run\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
