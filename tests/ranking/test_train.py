"""Training: resumable to the bit, stopped by the validation days, and by the first loss that is no number."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.embedding_table import EmbeddingTable
from embeddings.training.base_loop import TrainingDivergedError
from embeddings.training.checkpoint import Checkpoint, read_checkpoint
from features.batches.loader import BatchLoader
from ranking.checkpoint import WEIGHTS, ranker_weights
from ranking.metrics import roc_auc
from ranking.pretrained_tables import join_tables
from ranking.run import execute_run, is_finished, load_run, open_run
from ranking.train import (
    Evaluation,
    TrainingConfig,
    TrainingProgress,
    train,
)
from tests.ranking.small_runs import open_small, run_config, small_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    small_data(folder)
    return folder


@pytest.fixture(autouse=True)
def files_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_data` cuts the row groups after the checksums were taken."""
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)


def same(first: Checkpoint, second: Checkpoint) -> bool:
    weights, others = first.parts[WEIGHTS], second.parts[WEIGHTS]
    return weights.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in weights.items()
    )


class _StopError(Exception):
    pass


def stop_at(step: int):
    def on_step(progress: TrainingProgress, total_steps: int) -> None:
        if progress.step == step:
            raise _StopError

    return on_step


def test_a_run_writes_what_a_report_needs(folder: Path, tmp_path: Path) -> None:
    metrics = execute_run(run_config(folder), tmp_path / "run", environment={"commit": "x"})
    predictions = pq.read_table(tmp_path / "run" / "predictions" / "test.parquet")
    auc = roc_auc(predictions["clicked"].to_numpy(), predictions["logit"].to_numpy())
    assert metrics["test"]["auc"] == pytest.approx(auc)
    assert (
        json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["auc"] == metrics["test"]["auc"]
    )
    assert is_finished(tmp_path / "run")
    stored = pq.read_table(open_small(folder).split_files("test")[0])
    assert predictions["impression_id"].equals(stored["impression_id"])
    assert predictions["clicked"].equals(stored["clicked"])
    assert metrics["coverage"]["product"]["missing"] == 1
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_loaded_run_scores_as_it_did(folder: Path, tmp_path: Path) -> None:
    execute_run(run_config(folder), tmp_path / "run", environment={})
    run = load_run(tmp_path / "run")
    best = read_checkpoint(tmp_path / "run" / "best")
    assert same(Checkpoint({WEIGHTS: ranker_weights(run.ranker)}, {}), best)


@pytest.mark.parametrize("stop_after", [1, 5, 13])
def test_a_stopped_run_resumes_to_the_same_bits(folder: Path, tmp_path: Path, stop_after: int) -> None:
    config = run_config(folder, checkpoint_minutes=0.0, id_dropout=0.1)  # a checkpoint after every step
    expected = execute_run(config, tmp_path / "whole", environment={})
    with pytest.raises(_StopError):
        execute_run(config, tmp_path / "cut", environment={}, on_step=stop_at(stop_after))
    assert not is_finished(tmp_path / "cut")
    torch.rand(7)
    got = execute_run(config, tmp_path / "cut", environment={}, resume=True)
    assert got == expected
    assert same(read_checkpoint(tmp_path / "cut" / "best"), read_checkpoint(tmp_path / "whole" / "best"))
    whole, cut = (
        pq.read_table(tmp_path / name / "predictions" / "test.parquet")["logit"] for name in ("whole", "cut")
    )
    assert whole.equals(cut)


_CHILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import features.feature_set
features.feature_set.verify_checksums = lambda *_args, **_settings: None
from ranking.run import execute_run
from tests.ranking.small_runs import run_config
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
def on_step(progress, total):
    print(progress.step, flush=True)
execute_run(run_config(folder, checkpoint_minutes=0.0), out, environment={}, resume=True, on_step=on_step)
print("finished", flush=True)
"""


def test_a_killed_process_resumes_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = run_config(folder, checkpoint_minutes=0.0)
    expected = execute_run(config, tmp_path / "whole", environment={})
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(folder), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == "9":  # in the middle of whatever follows step 9: checkpoint, batch, step
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert not is_finished(tmp_path / "killed")
    got = execute_run(config, tmp_path / "killed", environment={}, resume=True)
    assert got == expected
    assert same(read_checkpoint(tmp_path / "killed" / "best"), read_checkpoint(tmp_path / "whole" / "best"))


def test_a_folder_with_a_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    config = run_config(folder)
    execute_run(config, tmp_path / "run", environment={})
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        execute_run(config, tmp_path / "run", environment={})
    with pytest.raises(ValueError, match="differs from the config given"):
        execute_run(run_config(folder, seed=2), tmp_path / "run", environment={}, resume=True)


def test_a_feature_that_is_no_number_stops_the_run_and_names_the_batch(folder: Path, tmp_path: Path) -> None:
    run = open_run(run_config(folder))
    loader = run.loader("train", batch_size=50, shuffle_seed=0)
    poisoned = _Poisoned(loader, at_batch=3, column=1)
    before_poison = {}

    def on_step(progress: TrainingProgress, total_steps: int) -> None:
        before_poison.update({name: value.clone() for name, value in ranker_weights(run.ranker).items()})

    with pytest.raises(
        TrainingDivergedError, match=rf"step 3 is nan: its dense features \['{loader.dense_columns[1]}'\]"
    ):
        train(
            run.ranker,
            TrainingConfig(batch_size=50, precision="float32"),
            training=poisoned,
            validation=run.loader("validation"),
            folder=tmp_path,
            seed=0,
            on_step=on_step,
        )
    record = json.loads((tmp_path / "diverged_batch.json").read_text())
    assert len(record["impressions"]) == 50
    for name, value in ranker_weights(run.ranker).items():
        assert torch.equal(value, before_poison[name]), f"{name} was updated by the bad batch"


class _Poisoned(BatchLoader):
    def __init__(self, loader: BatchLoader, *, at_batch: int, column: int) -> None:
        self.__dict__.update(loader.__dict__)
        self._at_batch, self._column = at_batch, column

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == self._at_batch:
                batch.dense_BF[0, self._column] = float("nan")
            yield batch


def test_a_learning_rate_far_too_high_is_called_so(folder: Path, tmp_path: Path) -> None:
    config = run_config(folder, optimizer={"learning_rate": 1e18, "warmup_steps": 0})
    with pytest.raises(TrainingDivergedError, match="the weights have diverged; lower the learning rates"):
        execute_run(config, tmp_path / "run", environment={})


def test_training_stops_when_the_validation_days_get_worse(folder: Path, tmp_path: Path) -> None:
    overfit = {"learning_rate": 0.05, "embedding_learning_rate": 1.0, "warmup_steps": 0}
    config = run_config(folder, max_epochs=30, patience=2, optimizer=overfit)
    metrics = execute_run(config, tmp_path / "run", environment={})
    losses = [evaluation["validation_logloss"] for evaluation in metrics["history"]]
    best = losses.index(min(losses))
    assert best == len(losses) - 3  # two evaluations without a lower one
    assert metrics["validation"] == metrics["history"][best]


def test_the_first_of_equal_evaluations_is_the_best() -> None:
    history = [Evaluation(step, 0, 0.0, 0.5, loss) for step, loss in ((1, 0.3), (2, 0.2), (3, 0.2))]
    best = TrainingProgress(history=history).best
    assert best is not None
    assert best.step == 2


def test_bfloat16_training_ends_near_float32(folder: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = run_config(folder, precision=precision)
        metrics = execute_run(config, tmp_path / precision, environment={})
        losses[precision] = metrics["validation"]["validation_logloss"]
        record = json.loads((tmp_path / precision / "run.json").read_text())
        assert record["precision"] == precision
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.01)
    assert losses["bfloat16"] != losses["float32"]


def test_a_loss_that_only_the_evaluation_shows_names_the_last_batch(folder: Path, tmp_path: Path) -> None:
    run = open_run(run_config(folder))
    loader = run.loader("train", batch_size=50, shuffle_seed=0)
    steps_to_evaluation = -(-len(loader) // 2)

    def break_weights(progress: TrainingProgress, total_steps: int) -> None:
        if progress.step == steps_to_evaluation:
            next(run.ranker.head.parameters()).data.fill_(float("nan"))

    with pytest.raises(TrainingDivergedError, match="the weights have diverged"):
        train(
            run.ranker,
            TrainingConfig(batch_size=50, evaluations_per_epoch=2, precision="float32"),
            training=loader,
            validation=run.loader("validation"),
            folder=tmp_path,
            seed=0,
            on_step=break_weights,
        )
    assert len(json.loads((tmp_path / "diverged_batch.json").read_text())["impressions"]) == 50


def test_other_vectors_at_the_same_place_are_refused(tmp_path: Path) -> None:
    small_data(tmp_path, impressions=600)
    config = run_config(tmp_path, max_epochs=1)
    with pytest.raises(_StopError):
        execute_run(config, tmp_path / "run", environment={}, on_step=stop_at(4))
    ids = open_small(tmp_path).catalog_ids()[1:]
    vectors = np.random.default_rng(9).normal(size=(len(ids), 8)).astype(np.float32)
    shutil.rmtree(tmp_path / "products")
    EmbeddingTable.write(
        tmp_path / "products",
        ids=ids,
        vectors_ND=vectors,
        encoder_id="random",
        kind="product",
        normalised=False,
    )
    with pytest.raises(ValueError, match=r"inputs\.json differs from the feature set or tables as they are"):
        execute_run(config, tmp_path / "run", environment={}, resume=True)
    with pytest.raises(ValueError, match=r"inputs\.json differs"):
        load_run(tmp_path / "run")


def test_a_resumed_run_keeps_its_precision(folder: Path, tmp_path: Path, monkeypatch) -> None:
    config = run_config(folder, precision="auto", checkpoint_minutes=0.0)
    monkeypatch.setattr("ranking.train.resolve_precision", lambda precision, device: "float32")
    with pytest.raises(_StopError):
        execute_run(config, tmp_path / "run", environment={}, on_step=stop_at(4))
    monkeypatch.setattr("ranking.train.resolve_precision", lambda precision, device: "bfloat16")
    with pytest.raises(ValueError, match="was trained in float32, this machine would go on in bfloat16"):
        execute_run(config, tmp_path / "run", environment={}, resume=True)


def test_two_processes_cannot_train_in_one_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is training in"):
            execute_run(run_config(folder), tmp_path / "run", environment={})


def test_a_vector_of_zeros_is_a_missing_vector(tmp_path: Path) -> None:
    small_data(tmp_path, impressions=600)
    feature_set = open_small(tmp_path)
    ids = feature_set.catalog_ids()
    vectors = np.ones((len(ids), 8), np.float32)
    vectors[2] = 0
    shutil.rmtree(tmp_path / "products")
    EmbeddingTable.write(
        tmp_path / "products", ids=ids, vectors_ND=vectors, encoder_id="x", kind="product", normalised=False
    )
    rows = join_tables(feature_set, product_table=tmp_path / "products", query_table=None).rows
    assert (rows.product_P == 0).tolist() == [False, False, True] + [False] * (len(ids) - 3) + [True]
    assert rows.purchases is not None
    bought = feature_set.history_product_index()
    starts = np.arange(len(bought))
    _, kept = rows.purchases.expand(starts, starts + 1)
    assert (kept == (bought != 2)).all()
