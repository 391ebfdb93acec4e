"""Which rank holds which rows of which table: torchrec's planner, kept from its silent choices.

Every table that is trained gets a fused kernel, hence the row-wise Adagrad that one process trains it by;
left alone, the planner gives small tables to the dense optimizer. Pretrained tables are replicated, or spread
with a learning rate of 0.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from embeddings.training.ranks import Ranks, decided_by_first
from features.batches.batch import Batch
from features.machine import usable_memory_bytes
from ranking.embedding_collection import PooledEmbeddings
from ranking.model import Ranker, TwoTowerRanker
from ranking.sharded.config import ShardingConfig

_GB = 1e9
_FLOAT_BYTES = 4
_FUSED, _TABLE_WISE, _ROW_WISE = "fused", "table_wise", "row_wise"


class BatchRanker(nn.Module):
    """A ranker as a function of whole batches: what torchrec spreads, and what its pipeline reads."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a click [B]."""
        logit_B: Tensor = self.ranker(batch.dense_BF, batch.sparse, batch.semantic)
        return logit_B

    @staticmethod
    def collection_path(name: str) -> str:
        """Where the collection of the `PooledEmbeddings` called `name` is found in it."""
        return f"ranker.{name}.collection"


class ShardingError(ValueError):
    """A ranker that cannot be spread over these ranks; says what would do."""


@dataclass(frozen=True)
class TablePlace:
    """Where one table lies.

    Attributes:
        sharding: "table_wise", "row_wise" or "replicated".
        gb_of: GB on each rank that holds some of it, its optimizer's state included.
    """

    table: str
    sharding: str
    gb_of: dict[int, float]


#: Called with where the tables of a ranker lie.
OnPlan = Callable[[Sequence[TablePlace]], None]


@dataclass(frozen=True)
class TablePlan:
    """Where all tables lie; what `torchrec` makes of it, and what people read."""

    sharding: ShardingPlan
    sharders: list[ModuleSharder[nn.Module]]
    places: tuple[TablePlace, ...]


def plan_tables(
    ranker: Ranker, config: ShardingConfig, *, ranks: Ranks, device: torch.device, rows: int
) -> TablePlan:
    """The same plan on every rank; the first one makes it.

    Args:
        rows: of a step, on one rank.

    Raises:
        ShardingError: the tables do not fit, or the ranker reads a spread table row by row.
    """
    collections = dict(_spread_collections(ranker, config))
    sharders: list[ModuleSharder[nn.Module]] = [_TrainedSharder()]
    if any(pooled.frozen for pooled in collections.values()):
        sharders.append(_FrozenSharder(fused_params={"learning_rate": 0.0}))
    if isinstance(ranker, TwoTowerRanker) and ranker.dashclip_tower.history_tiers is not None:
        _refuse_spread_histories(collections.get("semantic_tables"))
    made = decided_by_first(
        ranks, lambda: _planned(ranker, collections, sharders, config, ranks, device, rows)
    )
    return TablePlan(made, sharders, tuple(_places(ranker, made, ranks)))


def _refuse_spread_histories(vectors: PooledEmbeddings | None) -> None:
    if vectors is None:
        return
    size = _gb(vectors.collection.embedding_bag_configs(), trained=not vectors.frozen)
    replicate = (
        f"raise sharding.replicated_up_to_gb to {size:.3g} or more" if vectors.frozen else "pretrain them"
    )
    raise ShardingError(
        "ranker.semantic.history_tiers reads the vectors of single purchases, which tables that are spread "
        f"over ranks cannot give; {replicate}, set history_tiers = 0, or train in one process"
    )


def _planned(
    ranker: Ranker,
    collections: dict[str, PooledEmbeddings],
    sharders: list[ModuleSharder[nn.Module]],
    config: ShardingConfig,
    ranks: Ranks,
    device: torch.device,
    rows: int,
) -> ShardingPlan:
    memory = _rank_memory(config, ranks, device)
    on_gpu = device.type == "cuda"
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=ranks.count,
            compute_device=device.type,
            local_world_size=get_local_size(ranks.count),
            hbm_cap=memory if on_gpu else None,
            ddr_cap=None if on_gpu else memory,
        ),
        batch_size=rows,
        constraints=_constraints(collections, config, ranks),
    )
    try:
        return planner.plan(BatchRanker(ranker), sharders)
    except PlannerError as error:
        total = sum(
            _gb(pooled.collection.embedding_bag_configs(), trained=not pooled.frozen)
            for pooled in collections.values()
        )
        other = "" if config.strategy == _ROW_WISE else ', or set sharding.strategy = "row_wise"'
        raise ShardingError(
            f"{config.strategy}: tables of {total:.3g} GB do not fit {ranks.count} ranks of "
            f"{memory / _GB:.3g} GB, of which torchrec keeps 15 % and room for what is exchanged free; start "
            f"more ranks, or raise sharding.rank_memory_gb{other}"
        ) from error


def _spread_collections(ranker: Ranker, config: ShardingConfig) -> Iterator[tuple[str, PooledEmbeddings]]:
    """What is spread over ranks: all that is trained, and pretrained tables above the limit."""
    for name, pooled in _all_collections(ranker):
        size = _gb(pooled.collection.embedding_bag_configs(), trained=not pooled.frozen)
        if not pooled.frozen or size > config.replicated_up_to_gb:
            yield name, pooled


def _all_collections(ranker: Ranker) -> Iterator[tuple[str, PooledEmbeddings]]:
    for name, module in ranker.named_children():
        if isinstance(module, PooledEmbeddings):
            yield name, module


def _constraints(
    collections: dict[str, PooledEmbeddings], config: ShardingConfig, ranks: Ranks
) -> dict[str, ParameterConstraints]:
    tables = [
        (table.name, _gb([table], trained=not pooled.frozen))
        for pooled in collections.values()
        for table in pooled.collection.embedding_bag_configs()
    ]
    large = sum(size for _, size in tables) / ranks.count / 4
    # the planner knows tables by name alone: of two that share one, the larger decides for both
    spread = {name for name, size in tables if size > large and ranks.count > 1}

    def sharding(name: str) -> str:
        if config.strategy != "auto":
            return config.strategy
        return _ROW_WISE if name in spread else _TABLE_WISE

    return {
        name: ParameterConstraints(sharding_types=[sharding(name)], compute_kernels=[_FUSED])
        for name, _ in tables
    }


def _places(ranker: Ranker, plan: ShardingPlan, ranks: Ranks) -> Iterator[TablePlace]:
    for name, pooled in _all_collections(ranker):
        planned = plan.plan.get(BatchRanker.collection_path(name))
        trained = not pooled.frozen
        for table in pooled.collection.embedding_bag_configs():
            if planned is None:
                whole = _gb([table], trained=trained)
                yield TablePlace(
                    f"{name}.{table.name}", "replicated", dict.fromkeys(range(ranks.count), whole)
                )
                continue
            assert isinstance(planned, EmbeddingModuleShardingPlan)
            parameter = planned[table.name]
            assert parameter.compute_kernel == _FUSED, "another optimizer would train it"
            assert parameter.sharding_spec is not None
            gb_of: dict[int, float] = {}
            for shard in parameter.sharding_spec.shards:
                rank = shard.placement.rank()
                gb_of[rank] = gb_of.get(rank, 0.0) + _table_gb(*shard.shard_sizes, trained=trained)
            yield TablePlace(f"{name}.{table.name}", parameter.sharding_type, gb_of)


def _gb(tables: Sequence[EmbeddingBagConfig], *, trained: bool) -> float:
    return sum(_table_gb(table.num_embeddings, table.embedding_dim, trained=trained) for table in tables)


def _table_gb(rows: int, dim: int, *, trained: bool) -> float:
    """Weights, and one number a row of row-wise Adagrad."""
    return rows * (dim + int(trained)) * _FLOAT_BYTES / _GB


def _rank_memory(config: ShardingConfig, ranks: Ranks, device: torch.device) -> int:
    if config.rank_memory_gb is not None:
        return int(config.rank_memory_gb * _GB)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return usable_memory_bytes() // get_local_size(ranks.count)


class _TrainedSharder(FusedEmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPUs as well: torchrec leaves it out, gloo can do it since 2025."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [_TABLE_WISE, _ROW_WISE]


class _FrozenSharder(EmbeddingBagCollectionSharder):
    """Pretrained tables; the fused optimizer that torchrec gives them anyway has a learning rate of 0."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [_TABLE_WISE, _ROW_WISE]
