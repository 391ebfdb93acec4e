"""Processes that train: some are killed on the way, some are the ranks of one training.

`python -m tests.embeddings.training.training_child killed DATA OUT` and `... ranks DATA OUT PORT`. One
process imports torch and transformers, and forks before it computes anything.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import embeddings.training.checkpoint
from embeddings.catalog.holdout import HoldoutConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import TupleConfig, TupleSet
from embeddings.stages.run_folder import InputConfig, StageRun
from embeddings.stages.runs import align, pretrain
from embeddings.training.base_loop import TrainingDivergedError
from embeddings.training.loop import Report, train
from embeddings.training.ranks import Ranks, join_ranks
from tests.embeddings.small_encoders import (
    Tuples,
    align_config,
    align_task,
    pretrain_config,
    pretrain_task,
    small_encoder,
)

INPUTS = InputConfig(
    holdout=HoldoutConfig(
        test_query_share=0.1,
        validation_query_share=0.2,
        test_product_share=0.05,
        validation_product_share=0.2,
    )
)
TUPLES = TupleConfig(max_positives=4, negatives=3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_pretrain(data: Path, folder: Path, *, dropout: float = 0.1, **settings: Any) -> StageRun:
    start = small_encoder(dropout=dropout)
    config = pretrain_config(epochs=2, checkpoint_every_steps=3)
    return pretrain(data, folder, start=start, config=config, inputs=INPUTS, **settings)


def run_align(data: Path, folder: Path, *, start: DashClipEncoder | None = None, **settings: Any) -> StageRun:
    common = {
        "config": align_config(epochs=2, checkpoint_every_steps=1, patience=99),
        "tuple_config": TUPLES,
        "inputs": INPUTS,
    }
    return align(data, folder, start=start or small_encoder(dropout=0.1), **{**common, **settings})


def killed_between_checkpoints(data: Path, out: Path) -> None:
    def show(report: Report) -> None:
        if report.step == 4:
            kill()

    run_pretrain(data, out / "pretrain", show=show)


def killed_inside_a_checkpoint(data: Path, out: Path) -> None:
    """In the third checkpoint, with one of its files written and the next begun."""
    written = []

    def save(tensors: dict[str, Tensor], path: Path) -> None:
        written.append(path)
        if len(written) == 2 * 3 + 2:
            path.write_bytes(b"half")
            kill()
        save_file(tensors, path)

    embeddings.training.checkpoint.save_file = save
    run_align(data, out / "align")


def train_both_stages(data: Path, tuples: Tuples, out: Path, ranks: Ranks) -> None:
    """In float64, where the order of a sum is of no account; the first rank writes what came out."""
    for stage in ("pretrain", "align"):
        encoder = small_encoder().with_query_encoder()
        assert encoder.query is not None
        encoder.product.double()
        encoder.query.double()
        settings: dict[str, Any] = {"encoder": encoder, "ranks": ranks, "accumulation": 2}
        settings["checkpoint_every_steps"] = 99
        task: Any = (
            pretrain_task(data, **settings, frozen_layers=1)
            if stage == "pretrain"
            else align_task(data, tuples, **settings)
        )
        task.module.double()
        losses: list[dict[str, float]] = []
        outcome = train(
            task,
            out / stage,
            config=task.config,
            fingerprint=stage,
            ranks=ranks,
            progress=lambda report, losses=losses: losses.append(report.losses),  # type: ignore[misc]
        )
        save_file(task.module.state_dict(), out / f"{stage}-{ranks.rank}.safetensors")
        if ranks.first:
            (out / f"{stage}.json").write_text(json.dumps({"losses": losses, "history": outcome.history}))


def diverge_on_the_last_rank(out: Path, ranks: Ranks) -> None:
    """All ranks must stop: one that waited for another would wait for ever."""
    from tests.embeddings.training.test_loop import LineTask, config_of

    config = config_of()
    task = LineTask(config, poison=1 if ranks.rank == ranks.count - 1 else None)
    try:
        train(task, out / "diverged", config=config, fingerprint="a", ranks=ranks)
    except TrainingDivergedError as error:
        (out / f"diverged-{ranks.rank}.txt").write_text(str(error), encoding="utf-8")


def one_of_two_ranks(rank: int, data: Path, out: Path, port: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    os.environ["TORCHELASTIC_RUN_ID"] = "test"  # what torchrun sets
    ranks = join_ranks("cpu")
    tuples = Tuples(*(TupleSet.open(out / "tuples" / name) for name in ("train", "validation")))
    train_both_stages(data, tuples, out, ranks)
    run = run_pretrain(data, out / "stage", dropout=0.0)
    (out / f"id-{rank}.txt").write_text(run.encoder.encoder_id, encoding="utf-8")
    diverge_on_the_last_rank(out, ranks)
    torch.distributed.destroy_process_group()


def forked(job: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        job()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(kind: str, data: Path, out: Path, *more: str) -> None:
    torch.set_num_threads(1)
    jobs: list[Callable[[], None]] = (
        [lambda: killed_between_checkpoints(data, out), lambda: killed_inside_a_checkpoint(data, out)]
        if kind == "killed"
        else [lambda rank=rank: one_of_two_ranks(rank, data, out, *more) for rank in range(2)]  # type: ignore[misc]
    )
    children = [forked(job) for job in jobs]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.stdout.write(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
