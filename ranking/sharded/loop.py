"""Training on several ranks: the loop of one process, with what ranks must exchange."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from embeddings.training.ranks import Ranks, decided_by_first, sum_over_ranks
from embeddings.training.step_numbers import StepNumbers
from features.batches.batch import Batch
from ranking.checkpoint import WEIGHTS, copy_weights, ranker_weights
from ranking.model import Ranker
from ranking.sharded.checkpoint import TENSORS, add_sharded_checkpoint, load_sharded_tensors
from ranking.sharded.config import ShardingConfig
from ranking.sharded.pipeline import RankerPipeline
from ranking.sharded.plan import BatchRanker, OnPlan, TablePlan, plan_tables
from ranking.train import RankerLoop


def spread(ranker: Ranker, plan: TablePlan, *, device: torch.device) -> DistributedModelParallel:
    """Spread the tables of `ranker` over the ranks, in place, with the values that they have.

    Returns:
        The ranker as it is trained, a function of batches: it averages the gradients of dense layers.
    """
    # torchrec draws the weights of what it shards anew
    whole = dict(ranker.state_dict())
    for name, module in ranker.named_children():
        if BatchRanker.collection_path(name) not in plan.sharding.plan:
            module.to(device)
    parallel = DistributedModelParallel(
        BatchRanker(ranker), device=device, plan=plan.sharding, sharders=plan.sharders, init_parameters=False
    )
    copy_weights(ranker.state_dict(), whole)
    return parallel


def loop_of_ranks(
    ranker: Ranker,
    config: ShardingConfig,
    *,
    batch_size: int,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    on_plan: OnPlan | None,
) -> "Callable[..., ShardedLoop]":
    """Spread the tables of `ranker` over the ranks; what then makes its training loop.

    Args:
        batch_size: rows of a step, over all ranks.
        seed: of dropout.
        on_plan: called on the first rank, before anything is spread.

    Raises:
        ShardingError: the tables do not fit. All ranks raise alike.
    """
    rows = max(1, batch_size // ranks.count)
    plan = plan_tables(ranker, config, ranks=ranks, device=device, rows=rows)
    if on_plan is not None and ranks.first:
        on_plan(plan.places)
    pipelined = config.pipeline == "on" or (config.pipeline == "auto" and device.type == "cuda")
    kind = PipelinedLoop if pipelined else ShardedLoop
    return partial(kind, ranks=ranks, parallel=spread(ranker, plan, device=device), seed=seed)


class ShardedLoop(RankerLoop):
    """Steps, evaluations and checkpoints of one of several ranks."""

    def __init__(self, *given: Any, ranks: Ranks, parallel: DistributedModelParallel, seed: int) -> None:
        """
        Args:
            given: what `RankerLoop` takes.
            parallel: what `spread` made of the ranker.
            seed: of dropout.
        """
        super().__init__(*given)
        self.ranks, self.parallel, self.seed = ranks, parallel, seed
        self.precision = decided_by_first(ranks, lambda: self.precision)
        self.due = False

    def checkpoint_due(self) -> bool:
        return self.due

    def logits(self, batch: Batch) -> Tensor:
        # Dropout draws anew for each step and rank, so that a resumed run draws what a whole one does.
        draw = np.random.default_rng((self.seed, self.progress.step, self.ranks.rank))
        torch.manual_seed(int(draw.integers(2**62)))
        return self.parallel(batch)

    def noted(self, loss: Tensor) -> Tensor:
        """The sum over ranks, the same on all, and whether the first one's clock asks for a checkpoint."""
        due = float(self.ranks.first and super().checkpoint_due())
        return sum_over_ranks(torch.cat([super().noted(loss), loss.new_full((1,), due).double()]), self.ranks)

    def mean_loss(self, found: StepNumbers) -> float:
        total, asked = found.numbers_K
        self.due = asked > 0
        return total / self.ranks.count

    def save(self, name: str) -> None:
        """Write a checkpoint of all ranks."""
        self.checkpointed_at = time.monotonic()
        add_sharded_checkpoint(
            self.checkpoints,
            name,
            self.tensors(),
            self.progress_state(),
            keep=self.checkpoints_kept,
            ranks=self.ranks,
        )
        self.due = False  # whatever asked for one before

    def resume(self) -> None:
        found = decided_by_first(self.ranks, self._newest)
        if found is not None:
            saved, source = found
            self.restore(saved, source)

    def restore(self, saved: Checkpoint, source: Path) -> None:
        self.check_precision(saved, source)
        self.optimizer.begin()
        load_sharded_tensors(source, self.tensors())
        self.restore_progress(saved)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer states, of which a rank holds its part; written to, they change."""
        weights = {f"{WEIGHTS}/{name}": value for name, value in ranker_weights(self.ranker).items()}
        return weights | {
            f"optimizer/{name}": value for name, value in self.optimizer.state_tensors().items()
        }

    def _newest(self) -> tuple[Checkpoint, Path] | None:
        newest = newest_checkpoint(self.checkpoints)
        if newest is None:
            return None
        if not (newest / TENSORS).is_dir():
            raise ValueError(
                f"{newest} was written by one process without torchrun, whose batches are other ones; go on "
                "without torchrun, or train again in another folder"
            )
        return read_checkpoint(newest), newest


class PipelinedLoop(ShardedLoop):
    """The same steps, in each of which the ids of the next batch are exchanged already.

    The pipeline runs empty before each evaluation, which reads the tables without it.
    """

    def __init__(self, *given: Any, **of_ranks: Any) -> None:
        """See `ShardedLoop`."""
        super().__init__(*given, **of_ranks)
        self.pipeline = RankerPipeline(self.parallel, self.optimizer, self.device, loss_of=self.loss_of)

    def steps(self, batches: Iterator[Batch]) -> Iterator[None]:
        """Take a step with each batch."""
        while True:
            coming = [step for step in self.evaluation_steps if step > self.progress.step]
            part = islice(batches, min(coming) - self.progress.step) if coming else batches
            taken = 0
            while self.take_pipelined_step(part):
                taken += 1
                yield
            if not taken:
                return

    def take_pipelined_step(self, batches: Iterator[Batch]) -> bool:
        """One update by the first batch under way; False if there is none, and `batches` has no more."""
        self.optimizer.set_learning_rates(self.progress.step)
        rows = self.pipeline.step(batches)
        if rows is None:
            return False
        self.count(rows)
        return True

    def evaluate(self) -> None:
        """Evaluate without the pipeline."""
        self.pipeline.detach()
        super().evaluate()
