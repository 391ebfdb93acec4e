"""Where tables lie: one optimizer for all of them, whatever the plan, and a refusal that all ranks know."""

import pytest
import torch

from embeddings.training.ranks import Ranks
from features.feature_set import FeatureSet
from ranking.model import SemanticConfig, build_ranker
from ranking.sharded.config import ShardingConfig
from ranking.sharded.plan import ShardingError, plan_tables
from tests.ranking.random_batches import RANKERS, inputs
from tests.ranking.sharded.conftest import Outcomes

CPU = torch.device("cpu")


def ranks_of(outcomes: Outcomes, job: str) -> dict[str, tuple[str, list[int]]]:
    """Sharding and ranks of each table."""
    plan = outcomes.of(job)[0]["plan"]
    return {table: (sharding, [int(rank) for rank in gb_of]) for table, sharding, gb_of in plan}


def test_table_wise_keeps_each_table_on_one_rank_and_row_wise_on_all(outcomes: Outcomes) -> None:
    by_table, by_row = ranks_of(outcomes, "two_table_wise"), ranks_of(outcomes, "two_row_wise")
    trained = {table for table in by_table if table.startswith("sparse_tables.")}
    assert len(trained) == 6
    assert {by_table[table][0] for table in trained} == {"table_wise"}
    assert sorted(rank for table in trained for rank in by_table[table][1]) == [0, 0, 0, 1, 1, 1]
    assert {str(by_row[table]) for table in trained} == {"('row_wise', [0, 1])"}


def test_pretrained_tables_are_on_every_rank_or_spread_by_their_size(outcomes: Outcomes) -> None:
    for table in ("semantic_tables.product", "semantic_tables.query"):
        assert ranks_of(outcomes, "four_auto")[table] == ("replicated", [0, 1, 2, 3])
        assert ranks_of(outcomes, "spread_vectors")[table] == ("row_wise", [0, 1])


def test_the_plan_counts_weights_and_one_number_a_row_of_the_optimizer(outcomes: Outcomes) -> None:
    columns = FeatureSet.open(outcomes.data / "features", verify=False).manifest.sparse_columns
    for job in ("two_table_wise", "two_row_wise"):
        held = {table: sum(gb_of.values()) for table, _, gb_of in outcomes.of(job)[0]["plan"]}
        for column in columns:
            assert held[f"sparse_tables.{column.name}"] == pytest.approx(column.rows * (4 + 1) * 4 / 1e9)


def test_auto_spreads_the_rows_of_large_tables_and_no_others(outcomes: Outcomes) -> None:
    """Large: above a quarter of a rank's share of all."""
    plan = outcomes.of("four_auto")[0]["plan"]
    size = {table: sum(gb_of.values()) for table, sharding, gb_of in plan if sharding != "replicated"}
    large = {table for table in size if size[table] > sum(size.values()) / 4 / 4}
    assert {table for table, sharding, _ in plan if sharding == "row_wise"} == large
    lone = plan_tables(
        build_ranker(RANKERS["dcn"], inputs(), seed=1), ShardingConfig(), ranks=Ranks(), device=CPU, rows=8
    )
    assert {place.sharding for place in lone.places} == {"table_wise"}, "one rank has nothing to spread"


def test_tables_without_room_are_refused_on_all_ranks_with_what_would_do(outcomes: Outcomes) -> None:
    first, other = outcomes.of("too_small")
    assert first["error"] == "ShardingError"
    assert first["text"] == other["text"]
    assert "do not fit 2 ranks of 1e-07 GB" in first["text"]
    assert 'raise sharding.rank_memory_gb, or set sharding.strategy = "row_wise"' in first["text"]


def test_single_purchases_are_read_of_replicated_tables_alone() -> None:
    tiered = RANKERS["product + query + history"].model_copy(
        update={"semantic": SemanticConfig(history_tiers=4, widths=(8,))}
    )
    ranker = build_ranker(tiered, inputs(), seed=1)
    plan_tables(ranker, ShardingConfig(), ranks=Ranks(), device=CPU, rows=8)
    with pytest.raises(ShardingError, match=r"raise sharding.replicated_up_to_gb to .* or more"):
        plan_tables(ranker, ShardingConfig(replicated_up_to_gb=0), ranks=Ranks(), device=CPU, rows=8)
    random = tiered.model_copy(
        update={"semantic": SemanticConfig(history_tiers=4, widths=(8,), initialisation="random")}
    )
    ranker = build_ranker(random, inputs(), seed=1)
    with pytest.raises(ShardingError, match="set history_tiers = 0, or train in one process"):
        plan_tables(ranker, ShardingConfig(), ranks=Ranks(), device=CPU, rows=8)


def test_ranks_share_what_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranking.sharded.plan.usable_memory_bytes", lambda: 100)
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    with pytest.raises(ShardingError, match=r"do not fit 1 ranks of 1e-07 GB"):
        plan_tables(ranker, ShardingConfig(), ranks=Ranks(), device=CPU, rows=8)
