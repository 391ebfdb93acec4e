"""A run gives the training what is meant for it: its split, its seed, its share of dropped ids."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ranking.checkpoint import ranker_weights
from ranking.metrics import evaluate
from ranking.prediction import predict
from ranking.run import RunConfig, check_same_run, execute_run, input_fingerprints, load_run, open_run
from ranking.train import TrainingProgress
from tests.ranking.small_runs import run_config, small_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    small_data(folder)
    return folder


@pytest.fixture(autouse=True)
def files_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_data` cuts the row groups after the checksums were taken."""
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A whole run, and the metrics that it returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)
        return folder / "run", execute_run(run_config(folder), folder / "run", environment={"commit": "x"})


def test_the_validation_days_choose_the_weights_and_the_test_days_are_only_measured(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, metrics = finished
    run = load_run(out)
    found = {}
    for split in ("train", "validation", "test"):
        clicked_N, logit_N = predict(run.ranker, run.loader(split), device=torch.device("cpu"))
        found[split] = evaluate(clicked_N, logit_N)
    chosen = min(metrics["history"], key=lambda evaluation: evaluation["validation_logloss"])
    assert chosen == metrics["validation"]
    assert chosen["validation_logloss"] == pytest.approx(found["validation"].log_loss)
    assert chosen["validation_auc"] == pytest.approx(found["validation"].auc)
    assert metrics["test"]["log_loss"] == pytest.approx(found["test"].log_loss)
    assert len({round(split.log_loss, 4) for split in found.values()}) == 3, "equal losses would show nothing"


def test_each_seed_draws_its_own_weights_and_the_same_seed_the_same(folder: Path) -> None:
    one, again, other = (ranker_weights(open_run(run_config(folder, seed=seed)).ranker) for seed in (1, 1, 2))
    assert all(value.equal(again[name]) for name, value in one.items())
    drawn = {name for name, value in one.items() if len(value.unique()) > 1}
    assert {name for name, value in one.items() if not value.equal(other[name])} == drawn
    assert any("table" in name for name in drawn)
    assert any("head" in name for name in drawn)


class _Given(Exception):
    pass


def given_to_training(config: RunConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run hands to the training, which does not start."""

    def refuse(*_: object, **given: object) -> None:
        raise _Given(given)

    monkeypatch.setattr("ranking.run.train", refuse)
    with pytest.raises(_Given) as caught:
        execute_run(config, out, environment={})
    given: dict[str, Any] = caught.value.args[0]
    return given


def test_each_seed_draws_its_own_order_of_rows_and_its_own_dropout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    for seed in (1, 2):
        given = given_to_training(run_config(folder, seed=seed), tmp_path / str(seed), monkeypatch)
        orders.append([row for batch in given["training"] for row in batch.row_B.tolist()])
        assert given["seed"] == seed
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_only_training_drops_ids_and_shuffles(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(run_config(folder))
    given = given_to_training(run_config(folder, id_dropout=0.5), tmp_path / "run", monkeypatch)
    changed = {}
    for name, split in (("training", "train"), ("validation", "validation")):
        [stored] = run.loader(split, batch_size=10_000)
        ids_NS = stored.sparse.values().view(-1, len(stored)).T
        drawn = list(given[name])
        rows = torch.cat([batch.row_B for batch in drawn])
        found_NS = torch.cat([batch.sparse.values().view(-1, len(batch)).T for batch in drawn])
        assert (rows.tolist() == sorted(rows.tolist())) == (name == "validation")
        changed[name] = float((found_NS != ids_NS[rows]).float().mean())
    assert 0.2 < changed["training"] < 0.5  # an unknown id may be replaced by itself
    assert changed["validation"] == 0


def test_the_record_of_a_run_agrees_with_its_predictions_and_its_data(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, metrics = finished
    record, environment = (json.loads((out / f"{name}.json").read_text()) for name in ("run", "environment"))
    assert environment == {"commit": "x"}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    run = load_run(out)
    steps = 2 * len(run.loader("train", batch_size=50))
    assert (record["variant"], record["seed"]) == ("small", 1)
    assert (record["steps"], record["rows"]) == (steps, 2 * run.loader("train").rows)
    assert (record["device"], record["precision"]) == ("cpu", "float32")
    assert record["rows_per_s"] == pytest.approx(record["rows"] / record["training_seconds"])
    assert record["parameters"] == sum(parameter.numel() for parameter in run.ranker.parameters())
    assert [evaluation["step"] for evaluation in metrics["history"]] == [
        -(-steps // 4),
        steps // 2,
        steps // 2 + -(-steps // 4),
        steps,
    ]

    stored = pa.concat_tables(pq.read_table(path) for path in run.feature_set.split_files("test"))
    predictions = pq.read_table(out / "predictions" / "test.parquet")
    sliced = ["user_index", "query_index", "product_index"]
    sliced += [name for name in stored.column_names if name.startswith("slice_")]
    for name in ("impression_id", "clicked", *sliced):
        assert predictions[name].equals(stored[name]), name
    expected = evaluate(
        stored["clicked"].to_numpy(),
        predictions["logit"].to_numpy(),
        queries_N=stored["query_index"].to_numpy(),
        users_N=stored["user_index"].to_numpy(),
    )
    assert metrics["test"] == pytest.approx(expected.to_dict())
    assert expected.gauc_query != expected.gauc_user


def test_an_untrained_run_starts_at_the_click_rate_of_its_training_days(folder: Path) -> None:
    run = open_run(run_config(folder))
    stored = pa.concat_tables(pq.read_table(path) for path in run.feature_set.split_files("train"))
    rate = stored["clicked"].to_numpy().mean()
    bias = list(run.ranker.head.parameters())[-1]
    assert float(bias.detach().sigmoid()) == pytest.approx(rate)


def test_a_baseline_does_not_depend_on_tables_that_it_does_not_read(folder: Path, tmp_path: Path) -> None:
    whole = run_config(folder, max_epochs=1)
    baseline = whole.model_copy(update={"ranker": whole.ranker.model_copy(update={"semantic": None})})
    elsewhere = baseline.model_copy(update={"product_table": folder / "none", "query_table": folder / "none"})
    assert input_fingerprints(baseline) == input_fingerprints(elsewhere)
    assert input_fingerprints(baseline)["features"] == input_fingerprints(whole)["features"]
    assert execute_run(elsewhere, tmp_path / "run", environment={})["coverage"] == {}
    assert load_run(tmp_path / "run").semantic is None
    exchanged = whole.model_copy(
        update={"product_table": whole.query_table, "query_table": whole.product_table}
    )
    found, other = input_fingerprints(whole), input_fingerprints(exchanged)
    assert (found["product_table"], found["query_table"]) == (other["query_table"], other["product_table"])
    assert found["product_table"] != found["query_table"]


def test_what_is_no_feature_set_or_table_is_named(folder: Path, tmp_path: Path) -> None:
    config = run_config(folder).model_copy(update={"query_table": tmp_path})
    for content in (None, "{}"):  # an empty folder, then the manifest of something else
        if content is not None:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=f"{tmp_path} is not a feature set or embedding table"):
            input_fingerprints(config)


@pytest.mark.parametrize("minutes, written", [(10.0, 0), (0.0, 1)])
def test_between_evaluations_checkpoints_wait_for_their_minutes(
    folder: Path, tmp_path: Path, minutes: float, written: int
) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: TrainingProgress, total_steps: int) -> None:
        if progress.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        execute_run(
            run_config(folder, checkpoint_minutes=minutes), tmp_path / "run", environment={}, on_step=stop
        )
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == written


def test_the_training_loss_on_record_is_the_mean_over_the_rows_since_the_last_evaluation(
    folder: Path, tmp_path: Path
) -> None:
    """Of a ranker that does not learn: then it is the loss of an untrained one over the whole epoch."""
    still = {"learning_rate": 1e-12, "embedding_learning_rate": 1e-12}
    config = run_config(folder, max_epochs=1, id_dropout=0.0, optimizer=still)
    config = config.model_copy(update={"ranker": config.ranker.model_copy(update={"dropout": 0.0})})
    history = execute_run(config, tmp_path / "run", environment={})["history"]
    run = open_run(config)
    expected = evaluate(*predict(run.ranker, run.loader("train"), device=torch.device("cpu"))).log_loss
    rows = [history[0]["rows"], history[1]["rows"] - history[0]["rows"]]
    total = sum(part * evaluation["train_loss"] for part, evaluation in zip(rows, history, strict=True))
    assert total / run.loader("train").rows == pytest.approx(expected, rel=1e-5)


def test_a_run_recorded_before_a_setting_existed_opens_with_its_default(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    older = shutil.copytree(finished[0], tmp_path / "older")
    config = json.loads((older / "config.json").read_text())
    del config["ranker"]["semantic"]["history_tiers"]
    (older / "config.json").write_text(json.dumps(config))
    weights, again = (ranker_weights(load_run(folder).ranker) for folder in (finished[0], older))
    assert all(value.equal(again[name]) for name, value in weights.items())
    check_same_run(older, load_run(older).config)
    other = load_run(older).config.model_copy(update={"seed": 99})
    with pytest.raises(
        ValueError, match=r"config.json differs from the config given \(seed was \d+, now 99\)"
    ):
        check_same_run(older, other)
