"""What two ranks have saved, any number of them reads, and goes on with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ranking.run import execute_run
from tests.ranking.sharded.conftest import Outcomes
from tests.ranking.sharded.ranks_child import STOP, config_of

RESUMED = ["resumed_by_one", "resumed_by_two", "resumed_by_four"]


@pytest.mark.parametrize("job", RESUMED)
def test_any_number_of_ranks_reads_the_bits_that_two_have_saved(outcomes: Outcomes, job: str) -> None:
    saved, read = outcomes.whole("stopped"), outcomes.whole(job)
    assert read.keys() == saved.keys()
    assert [name for name, value in saved.items() if not read[name].equal(value)] == []
    kinds = {name.split("/")[0] + " " + name.split("/")[-1].split(".")[-1] for name in saved}
    assert kinds >= {"model weight", "optimizer momentum1", "optimizer exp_avg_sq", "optimizer step"}
    trained = [name for name in saved if "exp_avg" in name or "momentum1" in name]
    assert all(saved[name].any() for name in trained), "zeros would be equal in any case"


def test_two_ranks_have_the_optimizer_states_of_one(outcomes: Outcomes) -> None:
    """Adam and Adagrad hardly notice gradients that are twice as large; their states do."""
    alone, together = outcomes.whole("stopped_alone"), outcomes.whole("stopped")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(outcomes: Outcomes) -> None:
    whole, resumed = outcomes.best("two_table_wise"), outcomes.best("resumed_by_two")
    assert all(resumed[name].equal(value) for name, value in whole.items())
    assert outcomes.of("resumed_by_two")[0]["metrics"] == outcomes.of("two_table_wise")[0]["metrics"]
    predictions = [
        (outcomes.run(job) / "predictions" / "test.parquet").read_bytes()
        for job in ("two_table_wise", "resumed_by_two")
    ]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("job", RESUMED)
def test_any_number_of_ranks_goes_on_with_the_same_batches(outcomes: Outcomes, job: str) -> None:
    uninterrupted = outcomes.of("two_table_wise")[0]["losses"][STOP:]
    for rank in outcomes.of(job):
        np.testing.assert_allclose(rank["losses"][1:], uninterrupted, rtol=0, atol=1e-6)


def test_a_rank_without_room_stops_all_and_spares_the_older_checkpoint(outcomes: Outcomes) -> None:
    first, last = outcomes.of("failing_disk")
    assert first == last
    assert first["error"] == "CheckpointError"
    assert "step-0000000002 could not be written: rank 1: [Errno 28] No space left" in first["text"]
    checkpoints = outcomes.run("failing_disk") / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-0000000001"]


def test_ranks_and_one_process_do_not_go_on_with_each_other(
    outcomes: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)
    shutil.copytree(outcomes.run("stopped"), tmp_path / "run")
    with pytest.raises(ValueError, match="was written under torchrun, whose batches are other ones"):
        execute_run(config_of(outcomes.data), tmp_path / "run", environment={}, resume=True)
    (refused,) = outcomes.of("of_one_process")
    assert "was written by one process without torchrun, whose batches are other ones" in refused["text"]


def test_where_tables_lie_may_change_between_resumes_and_the_streams_may_not(
    outcomes: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)
    assert outcomes.of("resumed_by_one")[0]["metrics"], "row-wise after table-wise"
    shutil.copytree(outcomes.run("stopped"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.json differs from the config given"):
        execute_run(config_of(outcomes.data, streams=4), tmp_path / "run", environment={}, resume=True)
