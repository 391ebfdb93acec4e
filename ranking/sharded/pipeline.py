"""Exchange between ranks while others compute: torchrec's pipeline, held to what it promises.

A step of several ranks begins with an exchange: each rank sends the ids of its rows to the ranks that hold
their tables, and must first tell them how many. The pipeline lets three batches be under way at once: one is
computed, the ids of the next are exchanged, and a third is copied to the device. Each on a stream of its own,
so on a GPU; on a CPU the order is the same and nothing is gained.

torchrec finds what it can do ahead by tracing the model, and where it does not find a spread collection, it
says so in its own log and trains on without a pipeline. Here that is an error.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule

from features.batches.batch import Batch
from ranking.optimizer import RankerOptimizer


class PipelineError(ValueError):
    """torchrec cannot work ahead on this ranker; says what to do."""


class RankerPipeline:
    """Steps of a spread ranker with three batches under way."""

    def __init__(
        self,
        parallel: DistributedModelParallel,
        optimizer: RankerOptimizer,
        device: torch.device,
        *,
        loss_of: Callable[[Batch], Tensor],
    ) -> None:
        """
        Args:
            parallel: the spread ranker itself: the collections of what only contains it are not found.
            loss_of: of a batch on the device; calls `parallel`.
        """
        modules = parallel.module.named_modules()
        self.collections = sorted(path for path, module in modules if isinstance(module, ShardedModule))
        self._pipeline: TrainPipelineSparseDist[Batch, int] = TrainPipelineSparseDist(
            parallel,
            cast(torch.optim.Optimizer, optimizer),  # of which it calls zero_grad and step
            device,
            custom_model_fwd=lambda batch: (loss_of(cast(Batch, batch)), len(cast(Batch, batch))),
        )

    def step(self, batches: Iterator[Batch]) -> int | None:
        """One update by the oldest batch under way, and rows that it has; None when `batches` has ended.

        Raises:
            PipelineError: a spread collection waits for its ids in the step that reads them.
        """
        try:
            rows: int = self._pipeline.progress(batches)
        except StopIteration:
            return None
        self._check()
        return rows

    def detach(self) -> None:
        """Let the ranker be called without the pipeline; the next step takes it back.

        Only with no batch under way: after `step` gave all that it was given.
        """
        self._pipeline.detach()

    @property
    def pipelined(self) -> list[str]:
        """Paths of the spread collections whose exchange is under way ahead of their use."""
        modules: list[Any] = self._pipeline._pipelined_modules
        return sorted(module.forward.name for module in modules)

    def _check(self) -> None:
        if self.pipelined != self.collections:
            late = sorted(set(self.collections) - set(self.pipelined))
            raise PipelineError(
                f"torchrec's pipeline works ahead on {len(self.pipelined)} of {len(self.collections)} spread "
                f"collections, not on {', '.join(late)}, so it would exchange their ids in the step that "
                'reads them; set sharding.pipeline = "off", which trains the same'
            )
