"""Training on several ranks: the loop of one process, with what ranks must exchange."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from embeddings.training.ranks import Ranks, decided_by_first, sum_over_ranks
from features.batches.batch import Batch
from ranking.checkpoint import WEIGHTS, copy_weights, ranker_weights
from ranking.model import Ranker
from ranking.sharded.checkpoint import TENSORS, add_sharded_checkpoint, load_sharded_tensors
from ranking.sharded.config import ShardingConfig
from ranking.sharded.plan import OnPlan, TablePlan, plan_tables
from ranking.train import RankerLoop


def spread(ranker: Ranker, plan: TablePlan, *, device: torch.device) -> nn.Module:
    """Spread the tables of `ranker` over the ranks, in place, with the values that they have.

    Returns:
        The ranker as it is trained: the same module, which averages the gradients of dense layers.
    """
    # torchrec draws the weights of what it shards anew
    whole = dict(ranker.state_dict())
    for name, module in ranker.named_children():
        if f"{name}.collection" not in plan.sharding.plan:
            module.to(device)
    parallel = DistributedModelParallel(
        ranker, device=device, plan=plan.sharding, sharders=plan.sharders, init_parameters=False
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
    return partial(ShardedLoop, ranks=ranks, parallel=spread(ranker, plan, device=device), seed=seed)


class ShardedLoop(RankerLoop):
    """Steps, evaluations and checkpoints of one of several ranks."""

    def __init__(self, *given: Any, ranks: Ranks, parallel: nn.Module, seed: int) -> None:
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
        return self.parallel(batch.dense_BF, batch.sparse, batch.semantic)

    def value_of(self, loss: Tensor) -> float:
        """The mean over ranks, the same on all, and whether the first one's clock asks for a checkpoint."""
        due = float(self.ranks.first and super().checkpoint_due())
        shared = torch.stack(
            [loss.detach().double(), torch.tensor(due, dtype=torch.double, device=loss.device)]
        )
        total, asked = sum_over_ranks(shared, self.ranks).tolist()
        self.due = asked > 0
        return total / self.ranks.count

    def save(self, name: str) -> None:
        self.checkpointed_at = time.monotonic()
        add_sharded_checkpoint(
            self.checkpoints,
            name,
            self.tensors(),
            self.progress_state(),
            keep=self.checkpoints_kept,
            ranks=self.ranks,
        )

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
