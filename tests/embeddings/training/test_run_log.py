"""Numbers of a training on their way to TensorBoard and to a tracker."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embeddings.training.run_log import TrackerWarning, TrainingLog


class Listening:
    """A tracker and its only run, which keep what they hear and fail where they are told to."""

    def __init__(self, *, fails: str = "") -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.fails = fails

    def open(self, folder: Path, *, name: str, params: Mapping[str, Any]) -> "Listening":
        return self._hear("open", folder, name, dict(params))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._hear("log", dict(values), step)

    def nested(self) -> "Listening":
        return self

    def close(self, ending: str) -> None:
        self._hear("close", ending)

    def _hear(self, *what: Any) -> "Listening":
        self.heard.append(what)
        if what[0] == self.fails:
            raise ConnectionError("the server is gone\nand more")
        return self


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder."""
    found = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    return {
        tag: {event.step: pytest.approx(event.value) for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }


def test_evaluations_go_to_both_and_steps_to_tensorboard_alone(tmp_path):
    tracker = Listening()
    with TrainingLog(tmp_path, tracker=tracker, name="one", params={"seed": 3}) as log:
        log.step({"train/loss": 0.5}, 20)
        log.evaluation({"validation/auc": 0.7}, 25)
    assert tracker.heard == [
        ("open", tmp_path, "one", {"seed": 3}),
        ("log", {"validation/auc": 0.7}, 25),
        ("close", "finished"),
    ]
    assert scalars(tmp_path) == {"train/loss": {20: 0.5}, "validation/auc": {25: 0.7}}


@pytest.mark.parametrize("fails", ["open", "log", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, fails):
    tracker = Listening(fails=fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with TrainingLog(tmp_path, tracker=tracker) as log:
            for step in (1, 2, 3):
                log.evaluation({"loss": 1.0 / step}, step)
    [warning] = [found for found in caught if found.category is TrackerWarning]
    assert str(warning.message).endswith("TensorBoard has all numbers: the server is gone")
    assert [what[0] for what in tracker.heard].count(fails) == 1
    assert tracker.heard[-1][0] == fails
    assert set(scalars(tmp_path)["loss"]) == {1, 2, 3}


@pytest.mark.parametrize(
    ("error", "ending"), [(None, "finished"), (ValueError(), "failed"), (KeyboardInterrupt(), "killed")]
)
def test_the_tracker_hears_how_the_run_ended(tmp_path, error, ending):
    tracker = Listening()
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, TrainingLog(tmp_path, tracker=tracker):
        if error:
            raise error
    assert tracker.heard[-1] == ("close", ending)


def test_what_a_killed_process_logged_beyond_its_checkpoint_is_taken_back(tmp_path):
    with TrainingLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.evaluation({"loss": 1.0}, step)
    with TrainingLog(tmp_path) as log:
        log.resume_at(1)
        log.evaluation({"loss": 0.25}, 2)
    assert scalars(tmp_path)["loss"] == {1: 1.0, 2: 0.25}


def test_of_several_ranks_one_logs(tmp_path):
    tracker = Listening()
    with TrainingLog(tmp_path, tracker=tracker, writes=False) as log:
        log.evaluation({"loss": 1.0}, 1)
        assert log.nested() is None
    assert tracker.heard == []
    assert list(tmp_path.iterdir()) == []
