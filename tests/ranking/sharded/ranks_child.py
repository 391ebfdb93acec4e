"""Ranks of rankers' trainings, as `torchrun` would start them: one process imports, then forks all ranks.

`python -m tests.ranking.sharded.ranks_child DATA OUT JOB ...`: each job has its folder OUT/JOB, where rank r
leaves rank-r.json.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

import features.feature_set
from embeddings.training.checkpoint import newest_checkpoint
from embeddings.training.ranks import Ranks, gather_objects, join_ranks
from features.batches.batch import Batch
from ranking.model import SemanticConfig
from ranking.optimizer import dense_parameters
from ranking.run import RunConfig, execute_run, open_run
from ranking.sharded.config import ShardingConfig
from ranking.sharded.loop import ShardedLoop, loop_of_ranks
from ranking.sharded.pipeline import RankerPipeline
from ranking.sharded.plan import BatchRanker, TablePlace
from ranking.train import TrainingProgress
from tests.ranking.small_runs import run_config

CPU = torch.device("cpu")
#: The first checkpoint of `trained` that `stopped` and what resumes it go on from.
STOP = 7


def config_of(data: Path, **sharding: Any) -> RunConfig:
    """Dropout of layers depends on the number of ranks, that of ids does not."""
    config = run_config(
        data,
        batch_size=96,  # the last one of an epoch is smaller
        id_dropout=0.1,
        patience=99,
        checkpoint_minutes=0.0,
        optimizer={"learning_rate": 0.01, "embedding_learning_rate": 0.1, "warmup_steps": 2},
    )
    ranker = config.ranker.model_copy(update={"dropout": 0.0})
    return config.model_copy(update={"ranker": ranker, "sharding": ShardingConfig(**sharding)})


class _StopError(Exception):
    pass


@dataclass
class Rank:
    """One rank of a job."""

    data: Path
    out: Path
    ranks: Ranks

    def trained(
        self,
        *,
        stop: int | None = None,
        resume: bool = False,
        config: RunConfig | None = None,
        **sharding: Any,
    ) -> dict[str, Any]:
        """A whole run in OUT/run; its losses step by step, its metrics and its plan."""
        losses: list[float] = []
        places: list[TablePlace] = []
        before = TrainingProgress()

        def on_step(progress: TrainingProgress, _total: int) -> None:
            nonlocal before
            began = progress.loss_rows < before.loss_rows or not losses
            total = progress.loss_sum - (0.0 if began else before.loss_sum)
            rows = progress.loss_rows - (0 if began else before.loss_rows)
            losses.append(total / rows)
            before = TrainingProgress(loss_sum=progress.loss_sum, loss_rows=progress.loss_rows)

        def on_step_or_stop(progress: TrainingProgress, total: int) -> None:
            on_step(progress, total)
            if progress.step == stop:
                raise _StopError

        try:
            metrics: Any = execute_run(
                config or config_of(self.data, **sharding),
                self.out / "run",
                environment={},
                ranks=self.ranks,
                resume=resume,
                on_step=on_step_or_stop,
                on_plan=places.extend,
            )
        except _StopError:
            metrics = None
        return {
            "losses": losses,
            "metrics": metrics,
            "plan": [(place.table, place.sharding, place.gb_of) for place in places],
        }

    def loop(self, **sharding: Any) -> ShardedLoop:
        """A loop before its first step."""
        config = config_of(self.data, **sharding)
        run = open_run(config)
        self.initial = {name: value.clone() for name, value in run.ranker.state_dict().items()}
        make = loop_of_ranks(
            run.ranker,
            config.sharding,
            batch_size=config.training.batch_size,
            seed=config.seed,
            ranks=self.ranks,
            device=CPU,
            on_plan=None,
        )
        loader, validation = run.training_loader(self.ranks), run.loader("validation", ranks=self.ranks)
        return make(run.ranker, config.training, loader, validation, self.out, CPU, None, None)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors, of which ranks may hold different ones, put together on every rank."""
        mine: dict[str, list[tuple[Any, Any, Tensor]]] = {}
        for name, value in tensors.items():
            if isinstance(value, ShardedTensor):
                mine[name] = [
                    (tuple(value.size()), tuple(shard.metadata.shard_offsets), shard.tensor.detach().clone())
                    for shard in value.local_shards()
                ]
            else:
                mine[name] = [(tuple(value.shape), (0,) * value.ndim, value.detach().clone())]
        found: dict[str, Tensor] = {}
        for of_rank in gather_objects(mine, self.ranks):
            for name, parts in of_rank.items():
                for size, offsets, part in parts:
                    full = found.setdefault(name, torch.full(size, float("nan")))
                    rows = zip(offsets, part.shape, strict=True)
                    full[tuple(slice(start, start + length) for start, length in rows)] = part.float()
        return found


def table_wise(rank: Rank) -> dict[str, Any]:
    return rank.trained(strategy="table_wise")


def row_wise(rank: Rank) -> dict[str, Any]:
    return rank.trained(strategy="row_wise")


def auto(rank: Rank) -> dict[str, Any]:
    return rank.trained()


def spread_vectors(rank: Rank) -> dict[str, Any]:
    return rank.trained(replicated_up_to_gb=0.0, strategy="row_wise")


def with_pipeline(job: Callable[[Rank], dict[str, Any]], rank: Rank) -> dict[str, Any]:
    """The job, and which collections the pipeline has worked ahead on, of which."""
    worked: set[tuple[str, ...]] = set()
    stepped = RankerPipeline.step

    def step(pipeline: RankerPipeline, batches: Any) -> int | None:
        rows = stepped(pipeline, batches)
        if rows is not None:
            worked.add((*pipeline.pipelined, "of", *pipeline.collections))
        return rows

    RankerPipeline.step = step  # type: ignore[method-assign]
    return {**job(rank), "worked_ahead_on": sorted(worked)}


def piped_tables(rank: Rank) -> dict[str, Any]:
    return with_pipeline(lambda one: one.trained(strategy="table_wise", pipeline="on"), rank)


def piped_vectors(rank: Rank) -> dict[str, Any]:
    """Two collections, one of them frozen."""
    return with_pipeline(
        lambda one: one.trained(replicated_up_to_gb=0.0, strategy="row_wise", pipeline="on"), rank
    )


def piped_resumed(rank: Rank) -> dict[str, Any]:
    """Stops with batches under way and goes on."""
    first = rank.trained(stop=STOP, strategy="table_wise", pipeline="on")
    second = rank.trained(resume=True, strategy="table_wise", pipeline="on")
    return {**second, "losses": first["losses"], "losses_after": second["losses"]}


def pipes_nothing(rank: Rank) -> dict[str, Any]:
    """A ranker that does something with the ids before it looks them up."""

    def changed(task: BatchRanker, batch: Batch) -> Tensor:
        ids = batch.sparse.permute(list(range(6)))
        return task.ranker(batch.dense_BF, ids, batch.semantic)

    BatchRanker.forward = changed  # type: ignore[method-assign]
    return rank.trained(strategy="table_wise", pipeline="on")


def random_tables(rank: Rank) -> dict[str, Any]:
    """Vectors that are trained, too; one of their tables has the name of a table of ids."""
    config = config_of(rank.data, strategy="auto")
    semantic = SemanticConfig(initialisation="random", widths=(8,))
    ranker = config.ranker.model_copy(update={"semantic": semantic})
    return rank.trained(config=config.model_copy(update={"ranker": ranker}))


def before_and_after(rank: Rank, **sharding: Any) -> dict[str, Any]:
    """What spreading changes of the weights, and three steps of those that nothing trains."""
    loop = rank.loop(**sharding)
    start = rank.whole(loop.ranker.state_dict())
    for batch, _ in zip(loop.training, range(3), strict=False):
        loop.take_step(batch)
    end = rank.whole(loop.ranker.state_dict())
    return {
        "lost": [name for name, value in rank.initial.items() if not start[name].equal(value.float())],
        "unmoved": [name for name, value in start.items() if end[name].equal(value)],
        "dense": sorted(name for name, _ in dense_parameters(loop.ranker)),
        "in_adam": sorted(loop.optimizer._named),
    }


def spread_all(rank: Rank) -> dict[str, Any]:
    return before_and_after(rank, replicated_up_to_gb=0.0, strategy="row_wise")


def spread_trained(rank: Rank) -> dict[str, Any]:
    return before_and_after(rank, strategy="table_wise")


def stopped(rank: Rank) -> dict[str, Any]:
    """Stops one step after its newest checkpoint, and leaves what that holds."""
    result = rank.trained(stop=STOP, strategy="table_wise")
    read_newest(rank, strategy="table_wise")
    return result


def read_newest(rank: Rank, **sharding: Any) -> None:
    """Leave what this number of ranks reads of the newest checkpoint in OUT/whole.safetensors."""
    loop = rank.loop(**sharding)
    loop.checkpoints = rank.out / "run" / "checkpoints"
    loop.log = _NoLog()
    loop.resume()
    tensors = rank.whole(loop.tensors())
    if rank.ranks.first:
        save_file(tensors, rank.out / "whole.safetensors")


class _NoLog:
    def resume_at(self, step: int) -> None:
        pass


def resumed(rank: Rank, **sharding: Any) -> dict[str, Any]:
    """Reads the checkpoint of `stopped`, then goes on from it to the end."""
    if rank.ranks.first:
        shutil.copytree(rank.out.parent / "stopped" / "run", rank.out / "run")
    if rank.ranks.count > 1:
        dist.barrier()
    read_newest(rank, **sharding)
    return rank.trained(resume=True, **sharding)


def resumed_alike(rank: Rank) -> dict[str, Any]:
    return resumed(rank, strategy="table_wise")


def resumed_otherwise(rank: Rank) -> dict[str, Any]:
    return resumed(rank, strategy="row_wise")


def of_one_process(rank: Rank) -> dict[str, Any]:
    """Goes on from what a process without torchrun has written."""

    def stop(progress: TrainingProgress, _total: int) -> None:
        if progress.step == STOP:
            raise _StopError

    with suppress(_StopError):
        execute_run(config_of(rank.data), rank.out / "run", environment={}, on_step=stop)
    return rank.trained(resume=True)


def not_a_number(rank: Rank) -> dict[str, Any]:
    """The last rank's third batch has a feature that is no number."""
    taken = ShardedLoop.take_step

    def poisoned(loop: ShardedLoop, batch: Batch) -> None:
        if loop.progress.step == 2 and loop.ranks.rank == loop.ranks.count - 1:
            batch.dense_BF[3, 1] = float("nan")
        taken(loop, batch)

    ShardedLoop.take_step = poisoned  # type: ignore[method-assign]
    return rank.trained()


def too_small(rank: Rank) -> dict[str, Any]:
    return rank.trained(rank_memory_gb=1e-7)


def killed(rank: Rank) -> dict[str, Any]:
    taken = ShardedLoop.take_step

    def die(loop: ShardedLoop, batch: Batch) -> None:
        if loop.progress.step == 3 and loop.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        taken(loop, batch)

    ShardedLoop.take_step = die  # type: ignore[method-assign]
    return rank.trained()


def failing_disk(rank: Rank) -> dict[str, Any]:
    """One rank cannot write its part of the second checkpoint."""
    from torch.distributed.checkpoint import filesystem

    written = filesystem.torch.save

    def full(*given: Any, **settings: Any) -> None:
        saved = newest_checkpoint(rank.out / "run" / "checkpoints")
        if rank.ranks.rank == 1 and saved is not None:
            raise OSError(28, "No space left on device")
        written(*given, **settings)

    filesystem.torch.save = full
    return rank.trained()


def failing_alone(rank: Rank) -> dict[str, Any]:
    """An error that only one rank meets, where no exchange hands it on."""
    taken = ShardedLoop.take_step

    def fail(loop: ShardedLoop, batch: Batch) -> None:
        if loop.progress.step == 3 and loop.ranks.rank == 1:
            raise OSError("the disk of rank 1 is gone")
        taken(loop, batch)

    ShardedLoop.take_step = fail  # type: ignore[method-assign]
    return rank.trained()


def silent(rank: Rank) -> dict[str, Any]:
    """A rank that no longer answers."""
    taken = ShardedLoop.take_step

    def sleep(loop: ShardedLoop, batch: Batch) -> None:
        if loop.progress.step == 3 and loop.ranks.rank == 1:
            time.sleep(600)
        taken(loop, batch)

    ShardedLoop.take_step = sleep  # type: ignore[method-assign]
    return rank.trained()


#: Name of each job: what a rank does, how many there are, and how many seconds they wait for each other.
JOBS: dict[str, tuple[Callable[[Rank], dict[str, Any]], int, int]] = {
    "one": (table_wise, 1, 60),
    "two_table_wise": (table_wise, 2, 60),
    "two_row_wise": (row_wise, 2, 60),
    "four_auto": (auto, 4, 60),
    "spread_vectors": (spread_vectors, 2, 60),
    "piped_tables": (piped_tables, 2, 60),
    "piped_vectors": (piped_vectors, 2, 60),
    "piped_resumed": (piped_resumed, 2, 60),
    "pipes_nothing": (pipes_nothing, 2, 60),
    "random_alone": (random_tables, 1, 60),
    "random_together": (random_tables, 2, 60),
    "spread_all": (spread_all, 2, 60),
    "spread_trained": (spread_trained, 2, 60),
    "stopped": (stopped, 2, 60),
    "stopped_alone": (stopped, 1, 60),
    "resumed_by_two": (resumed_alike, 2, 60),
    "resumed_by_one": (resumed_otherwise, 1, 60),
    "resumed_by_four": (resumed_otherwise, 4, 60),
    "of_one_process": (of_one_process, 1, 60),
    "not_a_number": (not_a_number, 2, 60),
    "too_small": (too_small, 2, 60),
    "killed": (killed, 2, 60),
    "failing_disk": (failing_disk, 2, 60),
    "failing_alone": (failing_alone, 2, 60),
    "silent": (silent, 2, 10),
}


def be_rank(rank: int, name: str, data: Path, out: Path, port: int) -> None:
    """Join the others, do the job, and leave what came of it."""
    job, count, seconds = JOBS[name]
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",  # what torchrun sets
    )
    features.feature_set.verify_checksums = lambda *_given, **_settings: (
        None
    )  # `small_data` cut the row groups
    ranks = join_ranks("cpu", timeout=timedelta(seconds=seconds))
    result: dict[str, Any]
    try:
        result = job(Rank(data, out, ranks))
    except Exception as error:
        result = {"error": type(error).__name__, "text": str(error)}
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
    (out / f"rank-{rank}.json").write_text(json.dumps(result), encoding="utf-8")


def forked(task: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        task()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(data: Path, out: Path, *names: str) -> None:
    torch.set_num_threads(1)
    for name in names:
        (out / name).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = range(JOBS[name][1])
        children = [forked(partial(be_rank, rank, name, data, out / name, port)) for rank in ranks]
        os.waitpid(children[0], 0)
        for child in children[1:]:
            if name == "silent":
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
