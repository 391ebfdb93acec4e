"""How `torchrun` spreads a ranker's tables over its ranks."""

from typing import Annotated, Literal

from pydantic import Field

from features.artifacts import StrictModel

Strategy = Literal["auto", "table_wise", "row_wise"]


class ShardingConfig(StrictModel):
    """Where tables lie when `torchrun` trains on several ranks; one process alone reads none of it."""

    #: "table_wise" keeps each table on one rank, "row_wise" spreads the rows of each over all ranks, "auto"
    #: spreads the rows of those that are larger than a quarter of what a rank would hold on average.
    strategy: Strategy = "auto"
    #: Memory of a rank for tables and their optimizer in GB; its GPU's, or its share of what the machine or
    #: the container has, if left out.
    rank_memory_gb: Annotated[float, Field(gt=0)] | None = None
    #: Every rank holds all pretrained tables if these have at most so many GB; else they are spread, too.
    replicated_up_to_gb: Annotated[float, Field(ge=0)] = 4.0
    #: Whether the ids of the next batch are exchanged while this one is computed, by torchrec's pipeline:
    #: "auto" on GPUs alone. The numbers are the same either way.
    pipeline: Literal["auto", "on", "off"] = "auto"
    #: Streams of rows that make each batch; any number of ranks that divides it trains on the same batches.
    streams: Annotated[int, Field(ge=1, le=4096)] = 8
