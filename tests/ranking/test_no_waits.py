"""A training on a GPU waits for it in no step; here its way is gone on a CPU, and gives the same bits."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.training.base_loop import TrainingDivergedError
from embeddings.training.checkpoint import newest_checkpoint, read_checkpoint
from embeddings.training.run_log import TrainingLog
from embeddings.training.step_numbers import NumbersOnTheWay
from features.batches.batch import Batch
from features.batches.loader import BatchLoader
from ranking.checkpoint import WEIGHTS
from ranking.model import build_ranker
from ranking.run import open_run
from ranking.train import RankerLoop, TrainingConfig, TrainingProgress, train
from tests.device_waits import DeviceWaits
from tests.ranking.random_batches import RANKERS, batch, inputs
from tests.ranking.small_runs import run_config, small_data

CPU = torch.device("cpu")
EVERY = 3


class AsOnGpu(RankerLoop):
    """The loop with what it does for a GPU: losses are read later, a thread reads ahead."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.on_the_way, self.reads_ahead = NumbersOnTheWay(CPU, every=EVERY), True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waits")
    small_data(folder)
    return folder


@pytest.fixture(autouse=True)
def files_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_data` cuts the row groups after the checksums were taken."""
    monkeypatch.setattr("features.feature_set.verify_checksums", lambda *_args, **_settings: None)


def trained(
    data: Path,
    out: Path,
    *,
    make_loop: Callable[..., RankerLoop],
    resume: bool = False,
    on_step: Callable[[TrainingProgress, int], None] | None = None,
    poison: Callable[[BatchLoader], BatchLoader] = lambda loader: loader,
    **settings: Any,
) -> TrainingProgress:
    run = open_run(run_config(data, id_dropout=0.1, **settings))
    return train(
        run.ranker,
        run.config.training,
        training=poison(run.training_loader()),  # type: ignore[arg-type]
        validation=run.loader("validation"),
        folder=out,
        seed=1,
        resume=resume,
        on_step=on_step,
        make_loop=make_loop,
    )


class _Few:
    """As much of a loader as a loop asks for before its first epoch."""

    def __len__(self) -> int:
        return 100

    def state_dict(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_step_waits_for_the_device(name: str, precision: str, tmp_path: Path) -> None:
    ranker = build_ranker(RANKERS[name], inputs(), seed=1)
    config = TrainingConfig(precision=precision, batch_size=32)
    few: Any = _Few()
    with TrainingLog(tmp_path) as log:
        loop = RankerLoop(ranker, config, few, few, tmp_path, CPU, None, log)
        loop.on_the_way = NumbersOnTheWay(CPU, every=20)
        batches = [batch(32, seed) for seed in range(4)]
        with DeviceWaits() as waits:
            for one in batches:
                loop.take_step(one)
        assert waits.calls == []
        loop.settle()
    assert loop.progress.loss_rows == 4 * 32


def test_losses_that_are_read_later_change_no_bit(folder: Path, tmp_path: Path) -> None:
    plain = trained(folder, tmp_path / "plain", make_loop=RankerLoop)
    later = trained(folder, tmp_path / "later", make_loop=AsOnGpu)
    assert later.history == plain.history
    one, other = (read_checkpoint(tmp_path / name / "best").parts[WEIGHTS] for name in ("plain", "later"))
    assert all(other[name].equal(value) for name, value in one.items())


class _StopError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 5, 13])
def test_a_run_that_is_stopped_with_batches_read_ahead_resumes_to_the_same_bits(
    folder: Path, tmp_path: Path, stop_after: int
) -> None:
    def stop(progress: TrainingProgress, _total: int) -> None:
        if progress.step == stop_after:
            raise _StopError

    whole = trained(folder, tmp_path / "whole", make_loop=RankerLoop)
    every_step = partial(trained, folder, tmp_path / "cut", make_loop=AsOnGpu, checkpoint_minutes=0.0)
    with pytest.raises(_StopError):
        every_step(on_step=stop)
    assert every_step(resume=True).history == whole.history


class _Poisoned(BatchLoader):
    def __init__(self, loader: BatchLoader, *, at_batch: int) -> None:
        self.__dict__.update(loader.__dict__)
        self._at_batch = at_batch

    def __iter__(self) -> Iterator[Batch]:
        for number, one in enumerate(super().__iter__()):
            if number == self._at_batch:
                one.dense_BF[0, 1] = float("nan")
            yield one


@pytest.mark.parametrize("at_batch", [2, 3, 4, 6])
def test_a_loss_that_is_no_number_is_found_later_and_its_own_batch_is_named(
    folder: Path, tmp_path: Path, at_batch: int
) -> None:
    taken: list[int] = []
    with pytest.raises(TrainingDivergedError, match=rf"the loss of step {at_batch} is nan: its dense feat"):
        trained(
            folder,
            tmp_path,
            make_loop=AsOnGpu,
            on_step=lambda progress, _total: taken.append(progress.step),
            poison=lambda loader: _Poisoned(loader, at_batch=at_batch),
            evaluations_per_epoch=1,
        )
    assert at_batch < len(taken) <= at_batch + 2 * EVERY, "some steps later"
    record = json.loads((tmp_path / "diverged_batch.json").read_text())
    assert (record["step"], len(record["impressions"])) == (at_batch, 50)


def test_no_checkpoint_is_written_after_a_loss_that_is_no_number(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="the loss of step 4 is nan"):
        trained(
            folder,
            tmp_path,
            make_loop=AsOnGpu,
            poison=lambda loader: _Poisoned(loader, at_batch=4),
            checkpoint_minutes=0.0,
        )
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    saved = read_checkpoint(newest)
    assert saved.progress["training"]["step"] == 4, "steps are counted from 1 there"
    assert all(value.isfinite().all() for value in saved.parts[WEIGHTS].values())
