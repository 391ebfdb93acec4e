"""Several ranks train the ranker that one trains, on the same rows, and fail together."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from features.feature_set import FeatureSet
from ranking.model import build_ranker
from ranking.optimizer import dense_parameters
from ranking.prediction import predict
from ranking.run import load_run
from tests.ranking.random_batches import RANKERS, inputs
from tests.ranking.sharded.conftest import Outcomes

SPREAD = ["two_table_wise", "two_row_wise", "four_auto", "spread_vectors"]
FROZEN = {f"semantic_tables.collection.embedding_bags.{name}.weight" for name in ("product", "query")}


@pytest.fixture(autouse=True)
def files_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_data` cuts the row groups after the checksums were taken."""
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)


@pytest.mark.parametrize("job", SPREAD)
def test_every_step_has_the_loss_of_one_rank(outcomes: Outcomes, job: str) -> None:
    (alone,) = outcomes.of("one")
    together = outcomes.of(job)
    assert len(set(alone["losses"])) == len(alone["losses"]) == 14
    for rank in together:
        np.testing.assert_allclose(rank["losses"], alone["losses"], rtol=0, atol=1e-6)
        assert rank["losses"] == together[0]["losses"], "all ranks know the same numbers"
        assert rank["metrics"] == together[0]["metrics"]


def test_tables_of_vectors_that_are_trained_are_spread_like_those_of_ids(outcomes: Outcomes) -> None:
    (alone,), together = outcomes.of("random_alone"), outcomes.of("random_together")
    np.testing.assert_allclose(together[0]["losses"], alone["losses"], rtol=0, atol=1e-6)
    spread = {table: sharding for table, sharding, _ in together[0]["plan"] if "semantic" in table}
    assert len(spread) == 2
    assert "replicated" not in spread.values()


def test_the_last_batch_of_an_epoch_has_the_rows_that_are_left(outcomes: Outcomes) -> None:
    train = FeatureSet.open(outcomes.data / "features", verify=False).manifest.splits["train"]
    for job in ("one", *SPREAD):
        rows = [evaluation["rows"] for evaluation in outcomes.of(job)[0]["metrics"]["history"]]
        epoch = train.rows // 8 * 8
        assert epoch % 96, "else no batch would be smaller"
        assert rows == [4 * 96, epoch, epoch + 4 * 96, 2 * epoch]


@pytest.mark.parametrize("job", SPREAD)
def test_the_best_weights_are_those_of_one_rank(outcomes: Outcomes, job: str) -> None:
    alone, together = outcomes.best("one"), outcomes.best(job)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("job", SPREAD)
def test_one_process_opens_the_run_and_predicts_the_same(outcomes: Outcomes, job: str) -> None:
    run = load_run(outcomes.run(job))
    clicked_N, logit_N = predict(run.ranker, run.loader("test"), device=torch.device("cpu"))
    stored = pq.read_table(outcomes.run(job) / "predictions" / "test.parquet")
    np.testing.assert_allclose(stored["logit"].to_numpy(), logit_N, rtol=0, atol=1e-6)
    assert stored["clicked"].to_pylist() == clicked_N.tolist()
    assert outcomes.of(job)[0]["metrics"]["validation"] == min(
        outcomes.of(job)[0]["metrics"]["history"], key=lambda evaluation: evaluation["validation_logloss"]
    )


def test_a_run_says_how_many_ranks_trained_it_and_how_large_it_is(outcomes: Outcomes) -> None:
    records = {job: json.loads((outcomes.run(job) / "run.json").read_text()) for job in ("one", "four_auto")}
    assert {job: record["ranks"] for job, record in records.items()} == {"one": 1, "four_auto": 4}
    assert records["four_auto"]["parameters"] == records["one"]["parameters"]


@pytest.mark.parametrize("job", ["spread_trained", "spread_all"])
def test_spreading_keeps_every_weight(outcomes: Outcomes, job: str) -> None:
    assert [rank["lost"] for rank in outcomes.of(job)] == [[], []]


@pytest.mark.parametrize("job", ["spread_trained", "spread_all"])
def test_pretrained_tables_alone_stay_as_they_are(outcomes: Outcomes, job: str) -> None:
    for rank in outcomes.of(job):
        moves_anyway = {name for name in rank["unmoved"] if name not in FROZEN}
        assert set(rank["unmoved"]) - moves_anyway == FROZEN
        assert moves_anyway == set(), "training moves all others"


@pytest.mark.parametrize("job", ["spread_trained", "spread_all"])
def test_adam_trains_no_table(outcomes: Outcomes, job: str) -> None:
    plain = build_ranker(RANKERS["product + query + history"], inputs(), seed=1)
    kinds = {name.split(".")[0] for name, _ in dense_parameters(plain)}
    for rank in outcomes.of(job):
        assert rank["in_adam"] == rank["dense"]
        assert {name.split(".")[0] for name in rank["in_adam"]} == kinds
        assert not any("table" in name for name in rank["in_adam"])


def test_a_loss_that_is_no_number_on_one_rank_stops_all_with_one_sentence(outcomes: Outcomes) -> None:
    first, last = outcomes.of("not_a_number")
    assert first == last
    assert first["error"] == "TrainingDivergedError"
    assert "the loss of step 2 is nan: its dense features ['price_missing'] are not finite" in first["text"]
    record = json.loads((outcomes.run("not_a_number") / "diverged_batch.json").read_text())
    assert len(set(record["impressions"])) == 96, "those of all ranks"


def test_a_killed_rank_ends_the_others_with_one_sentence(outcomes: Outcomes) -> None:
    first, killed = outcomes.of("killed")
    assert killed == {}
    assert first["error"] == "RankLostError"
    assert first["text"].startswith("rank 0 of 2 stopped, since another rank ended without a word")


def test_a_rank_that_does_not_answer_ends_the_others_when_their_patience_does(outcomes: Outcomes) -> None:
    first, silent = outcomes.of("silent")
    assert silent == {}
    assert (first["error"], "does not answer in time" in first["text"]) == ("RankLostError", True)


def test_what_one_rank_alone_meets_the_first_one_tells(outcomes: Outcomes) -> None:
    first, failed = outcomes.of("failing_alone")
    assert (failed["error"], failed["text"]) == ("OSError", "the disk of rank 1 is gone")
    assert (first["error"], first["text"]) == ("RankFailedError", "rank 1: the disk of rank 1 is gone")


def test_no_rank_leaves_a_traceback(outcomes: Outcomes) -> None:
    assert "Traceback" not in outcomes.stderr
    assert not any(Path(outcomes.folder).rglob(".*.writing"))
