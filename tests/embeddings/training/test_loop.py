"""The training loop: schedule, early stop, resume."""

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from embeddings.training.base_loop import TrainingDivergedError
from embeddings.training.checkpoint import CheckpointError, newest_checkpoint
from embeddings.training.loop import (
    OptimizerConfig,
    Report,
    learning_rate_share,
    rows_of_a_step,
    train,
)
from embeddings.training.ranks import Ranks

ROWS, WIDTH = 12, 3


class Line(nn.Module):
    """Least squares with dropout, and a buffer that counts forward passes."""

    steps: Tensor

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, WIDTH))
        self.bias = nn.Parameter(torch.zeros(1))
        self.unused = nn.Parameter(torch.ones(2))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x_BF, y_B = batch
        self.steps += 1
        loss = (self.dropout(x_BF) @ self.weight[0] + self.bias - y_B).square().mean()
        return {"loss": loss, "twice": 2 * loss.detach()}


class LineTask:
    """Rows 0 to 11 in an order drawn for each epoch; measures come from a list when one is given."""

    title, rows_name = "line", "points"

    def __init__(
        self,
        config: OptimizerConfig,
        *,
        dropout: float = 0.0,
        evaluations: list[float] | None = None,
        poison: int | None = None,
    ) -> None:
        self.module = Line(dropout)
        self.config, self.batch_rows = config, config.batch_size
        self.steps_per_epoch = ROWS // config.batch_size
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, WIDTH, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
        self.evaluations, self.poison, self.evaluated = evaluations, poison, 0
        self.before: list[int] = []
        self.open_iterators = 0
        self.weights: list[Tensor] = []

    def before_step(self, step: int) -> None:
        self.before.append(step)

    def micro_batches(self, epoch: int, first_step: int) -> Generator[Any, None, None]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        rows = self.batch_rows // self.config.accumulation
        self.open_iterators += 1
        try:
            for micro in range(
                first_step * self.config.accumulation, self.steps_per_epoch * self.config.accumulation
            ):
                index = order[micro * rows : (micro + 1) * rows]
                y = self.y[index]
                if self.poison == epoch * self.steps_per_epoch + micro // self.config.accumulation:
                    y = y * math.nan
                yield self.x[index], y
        finally:
            self.open_iterators -= 1

    def evaluate(self) -> dict[str, float]:
        self.evaluated += 1
        self.weights.append(self.module.weight.detach().clone())
        if self.evaluations is not None:
            return {"loss": self.evaluations[self.evaluated - 1]}
        return {"loss": float((self.x @ self.module.weight[0] + self.module.bias - self.y).square().mean())}


def config_of(**changes: Any) -> OptimizerConfig:
    settings = {"epochs": 3, "batch_size": 4, "learning_rate": 0.1, "checkpoint_every_steps": 1}
    return OptimizerConfig.model_validate(settings | changes)


class DenormalsSeen(LineTask):
    """Notes before each step whether numbers below 1e-38 are left."""

    def before_step(self, step: int) -> None:
        self.before.append(int(bool(torch.tensor(1e-39) * 1 > 0)))


@pytest.mark.parametrize("flushed_by_the_caller", [False, True])
def test_no_step_calculates_with_denormals_and_the_callers_setting_stays(
    tmp_path: Path, flushed_by_the_caller: bool
) -> None:
    config = config_of()
    task = DenormalsSeen(config)
    torch.set_flush_denormal(flushed_by_the_caller)
    try:
        train(task, tmp_path, config=config, fingerprint="a")
        assert bool(torch.tensor(1e-39) * 1 == 0) == flushed_by_the_caller
    finally:
        torch.set_flush_denormal(False)
    assert task.before
    assert not any(task.before)


@given(total=st.integers(2, 400), share=st.floats(0, 1), final=st.floats(0, 1))
def test_the_learning_rate_rises_evenly_to_its_peak_and_then_falls(
    total: int, share: float, final: float
) -> None:
    warmup = int(share * total)
    shares = [
        learning_rate_share(step, total=total, warmup=warmup, final_share=final) for step in range(total + 1)
    ]
    assert all(0 < value <= 1 + 1e-12 for value in shares[:-1])
    rises = [after - before for before, after in pairwise(shares[: warmup + 1])]
    assert rises == pytest.approx([1 / (warmup + 1)] * warmup)
    assert shares[warmup] == pytest.approx(1.0)
    falls = shares[warmup:]
    assert all(after <= before + 1e-12 for before, after in pairwise(falls))
    if warmup < total:
        assert shares[total] == pytest.approx(final)
    if (total - warmup) % 2 == 0 and warmup < total:
        assert shares[warmup + (total - warmup) // 2] == pytest.approx((1 + final) / 2)


def test_the_optimizer_follows_the_schedule_and_decays_matrices_alone(tmp_path: Path) -> None:
    """The first step of Adam is the learning rate, whatever the gradient; decay comes on top of it."""
    config = config_of(epochs=1, warmup_share=0.67, weight_decay=0.5)
    task = LineTask(config)
    module = task.module
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.bias.fill_(2.0)
    moves = []

    def show(report: Report) -> None:
        moves.append([(2.0 - value.detach()).abs() for value in (module.weight, module.bias)])

    train(task, tmp_path, config=config, fingerprint="a", progress=show)
    weight, bias = moves[0]
    rate = 0.1 / 3
    torch.testing.assert_close(bias, torch.tensor([rate]), rtol=1e-4, atol=0)
    distance = (weight - rate).abs()
    torch.testing.assert_close(distance, torch.full((1, WIDTH), rate * 0.5 * 2.0), rtol=1e-4, atol=0)
    assert module.unused.equal(torch.ones(2))
    assert task.before == [0, 1, 2]
    assert not task.open_iterators


def test_the_warm_up_is_its_share_of_the_steps_as_written_in_decimal(tmp_path: Path) -> None:
    """The first of 29 steps of warm-up has a thirtieth of the rate; in binary, .29 of 100 is 28.999..."""
    config = config_of(epochs=25, batch_size=3, warmup_share=0.29, weight_decay=0.0)
    task = LineTask(config)
    moves = []
    train(
        task,
        tmp_path,
        config=config,
        fingerprint="a",
        progress=lambda report: moves.append(float(task.module.bias.detach().abs())),
    )
    assert len(moves) == 100
    assert moves[0] == pytest.approx(config.learning_rate / 30, rel=1e-4)


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    whole, parts = config_of(batch_size=12), config_of(batch_size=12, accumulation=3)
    tasks = [LineTask(whole), LineTask(parts)]
    for number, task in enumerate(tasks):
        train(task, tmp_path / str(number), config=task.config, fingerprint="a")
    torch.testing.assert_close(tasks[0].module.weight, tasks[1].module.weight, rtol=1e-5, atol=1e-7)
    assert int(tasks[1].module.steps) == 3 * int(tasks[0].module.steps)


def test_an_early_stop_returns_the_best_weights_and_says_so(tmp_path: Path) -> None:
    config = config_of(epochs=9, patience=2)
    task = LineTask(config, evaluations=[3.0, 1.0, 1.0, 2.0, 0.0])
    outcome = train(task, tmp_path, config=config, fingerprint="a")
    assert (outcome.stopped_early, outcome.steps, outcome.best_step) == (True, 12, 6)
    assert outcome.best == {"loss": 1.0}
    assert [entry["step"] for entry in outcome.history] == [3, 6, 9, 12]
    assert task.module.weight.equal(task.weights[1])
    assert not task.module.weight.equal(task.weights[3])
    assert not task.open_iterators


@pytest.mark.parametrize(
    ("evaluations", "steps"),
    [(1, [3, 6]), (2, [2, 3, 5, 6]), (3, [1, 2, 3, 4, 5, 6]), (9, [1, 2, 3, 4, 5, 6])],
)
def test_evaluations_are_spread_over_an_epoch_and_end_with_it(
    tmp_path: Path, evaluations: int, steps: list[int]
) -> None:
    config = config_of(epochs=2, evaluations_per_epoch=evaluations, patience=99)
    outcome = train(LineTask(config), tmp_path, config=config, fingerprint="a")
    assert [entry["step"] for entry in outcome.history] == steps
    assert not outcome.stopped_early


@pytest.mark.parametrize(("most", "evaluated"), [(2, [2]), (3, [3]), (5, [3, 5]), (6, [3, 6]), (99, [3, 6])])
def test_a_limit_of_steps_ends_the_training_with_an_evaluation(
    tmp_path: Path, most: int, evaluated: list[int]
) -> None:
    config = config_of(epochs=2, max_steps=most)
    task = LineTask(config)
    reports: list[Report] = []
    outcome = train(task, tmp_path, config=config, fingerprint="a", progress=reports.append)
    assert [entry["step"] for entry in outcome.history] == evaluated
    assert (outcome.steps, outcome.stopped_early) == (evaluated[-1], False)
    assert {report.total_steps for report in reports} == {evaluated[-1]}
    assert not task.open_iterators


def test_the_learning_rate_falls_until_the_last_step_of_the_limit(tmp_path: Path) -> None:
    """Two limited steps move the weights as the two steps of a run do that has no more."""
    moved = []
    for number, changes in enumerate(({"max_steps": 2, "epochs": 50}, {"epochs": 1, "batch_size": 6})):
        config = config_of(**{"batch_size": 6, "weight_decay": 0.0, **changes})
        task = LineTask(config)
        train(task, tmp_path / str(number), config=config, fingerprint="a")
        moved.append(task.module.weight)
    assert moved[0].equal(moved[1])


def test_a_config_without_a_limit_is_written_as_before_there_was_one() -> None:
    """A finished run is opened by equal settings: those of older runs have no such key."""
    assert "max_steps" not in config_of().model_dump(mode="json")
    assert config_of(max_steps=7).model_dump(mode="json")["max_steps"] == 7


def test_the_history_has_the_mean_training_loss_since_the_last_evaluation(tmp_path: Path) -> None:
    config = config_of(epochs=2)
    reports: list[Report] = []
    task = LineTask(config)
    outcome = train(task, tmp_path, config=config, fingerprint="a", progress=reports.append)
    losses = [report.losses["loss"] for report in reports]
    assert [entry["train_loss"] for entry in outcome.history] == pytest.approx(
        [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    )
    assert all(report.losses["twice"] == pytest.approx(2 * report.losses["loss"]) for report in reports)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.evaluation is not None for report in reports] == [False, False, True] * 2


def test_a_loss_that_is_no_number_names_its_step(tmp_path: Path) -> None:
    config = config_of()
    task = LineTask(config, poison=4)
    with pytest.raises(TrainingDivergedError, match=r"the loss of step 5 is nan .*lower learning_rate"):
        train(task, tmp_path, config=config, fingerprint="a")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000004"
    assert task.module.weight.isfinite().all()


def test_a_gradient_that_is_no_number_names_its_step(tmp_path: Path) -> None:
    class Steep(Line):
        def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {"loss": self.bias.abs().sqrt().sum()}  # finite at zero, its slope there is not

    config = config_of()
    task = LineTask(config)
    task.module = Steep(0.0)
    with pytest.raises(TrainingDivergedError, match=r"the gradient norm of step 1 is (nan|inf)"):
        train(task, tmp_path, config=config, fingerprint="a")


def test_an_evaluation_that_is_no_number_is_no_best(tmp_path: Path) -> None:
    config = config_of()
    with pytest.raises(TrainingDivergedError, match="the evaluation loss after step 3 is nan"):
        train(LineTask(config, evaluations=[math.nan]), tmp_path, config=config, fingerprint="a")


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[[Report], None]:
    def show(report: Report) -> None:
        if report.step == step:
            raise Interrupted

    return show


@pytest.mark.parametrize(("every", "accumulation"), [(1, 1), (2, 2), (50, 1)])
@pytest.mark.parametrize("at", [1, 4, 8])
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, at: int, every: int, accumulation: int
) -> None:
    config = config_of(checkpoint_every_steps=every, accumulation=accumulation)
    whole = LineTask(config, dropout=0.3)
    expected = train(whole, tmp_path / "whole", config=config, fingerprint="a")
    task = LineTask(config, dropout=0.3)
    with pytest.raises(Interrupted):
        train(task, tmp_path / "cut", config=config, fingerprint="a", progress=interrupt_at(at))
    torch.rand(at)  # the state of the process must not matter
    resumed = LineTask(config, dropout=0.3)
    got = train(resumed, tmp_path / "cut", config=config, fingerprint="a")
    for name, value in whole.module.state_dict().items():
        assert resumed.module.state_dict()[name].equal(value), name
    assert (got.history, got.best, got.best_step) == (expected.history, expected.best, expected.best_step)
    assert resumed.before[0] == max(step for step in range(at + 1) if step % every == 0 or step % 3 == 0)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = config_of()
    first, again = LineTask(config), LineTask(config)
    expected = train(first, tmp_path, config=config, fingerprint="a")
    got = train(again, tmp_path, config=config, fingerprint="a")
    assert (got.steps, got.history, again.before) == (expected.steps, expected.history, [])
    assert again.module.weight.equal(first.module.weight)


def test_dropout_draws_by_seed_and_leaves_the_callers_random_state(tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        config = config_of(seed=seed)
        task = LineTask(config, dropout=0.5)
        train(task, tmp_path / str(number), config=config, fingerprint="a")
        assert torch.get_rng_state().equal(state)
        weights.append(task.module.weight)
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_checkpoints_of_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    config = config_of(epochs=1)
    train(LineTask(config), tmp_path, config=config, fingerprint="a")
    with pytest.raises(CheckpointError, match=r"step-00000003 is of a run with other settings.*delete"):
        train(LineTask(config), tmp_path, config=config, fingerprint="b")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]


def test_a_run_in_auto_goes_on_only_in_the_precision_it_began_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=1, precision="auto")
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr("embeddings.training.loop.resolve_precision", lambda *_, found=precision: found)
        if precision == "float32":
            train(LineTask(config), tmp_path, config=config, fingerprint="a")
            continue
        with pytest.raises(CheckpointError, match=r'trained in float32, but .*"auto" is bfloat16.*"float32"'):
            train(LineTask(config), tmp_path, config=config, fingerprint="a")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "module.safetensors",
            b"short",
            "module.safetensors has changed .*delete .* to resume from an old",
        ),
        ("progress.json", b"{}", "progress.json has changed"),
        ("best.safetensors", None, "best.safetensors is missing; delete .* to resume from an older"),
        ("checksums.json", b"{", "cannot be read: .*delete .* to resume"),
        ("checksums.json", b"[]", "cannot be read: .*delete .* to resume"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_an_older_one_serves(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    config = config_of(epochs=1)
    whole = LineTask(config)
    train(whole, tmp_path, config=config, fingerprint="a")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    if content is None:
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        train(LineTask(config), tmp_path, config=config, fingerprint="a")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    resumed = LineTask(config)
    train(resumed, tmp_path, config=config, fingerprint="a")
    assert resumed.before == [2]
    assert resumed.module.weight.equal(whole.module.weight)


@given(
    available=st.integers(1, 200),
    micro_rows=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    count=st.integers(1, 4),
    fewest=st.integers(1, 3),
)
def test_a_step_parts_evenly_and_uses_all_rows_it_can(
    available: int, micro_rows: int, accumulation: int, count: int, fewest: int
) -> None:
    parts = accumulation * count
    config = config_of(batch_size=2 * micro_rows * parts, accumulation=accumulation)
    possible = [
        rows
        for rows in range(1, min(config.batch_size, available) + 1)
        if rows % parts == 0 and rows // accumulation >= fewest
    ]
    if possible:
        assert rows_of_a_step(config, available, ranks=Ranks(0, count), fewest=fewest) == possible[-1]
    else:
        with pytest.raises(ValueError, match=f"{available} training rows are too few"):
            rows_of_a_step(config, available, ranks=Ranks(0, count), fewest=fewest)


def test_a_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of accumulation times ranks, got 8 for 2 .* on 3 ranks"):
        rows_of_a_step(config_of(batch_size=8, accumulation=2), 100, ranks=Ranks(0, 3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"accumulation": 3}, "batch_size must be a multiple of accumulation, got 4 and 3"),
        ({"precision": "float16"}, "precision"),
        ({"warmup_share": 1.5}, "warmup_share"),
        ({"lr": 0.1}, "lr"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config_of(**changes)
