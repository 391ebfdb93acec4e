"""The pipeline trains what the plain loop trains, works ahead on every spread collection, or is refused."""

import pytest
from torchrec.distributed.train_pipeline.tracing import Tracer

from ranking.embedding_collection import PooledEmbeddings
from ranking.model import build_ranker
from ranking.sharded.plan import BatchRanker
from tests.ranking.random_batches import RANKERS, inputs
from tests.ranking.sharded.conftest import Outcomes

IDS, VECTORS = "ranker.sparse_tables.collection", "ranker.semantic_tables.collection"


@pytest.mark.parametrize(
    ("piped", "plain"), [("piped_tables", "two_table_wise"), ("piped_vectors", "spread_vectors")]
)
def test_the_pipeline_trains_the_same_bits(outcomes: Outcomes, piped: str, plain: str) -> None:
    for with_it, without in zip(outcomes.of(piped), outcomes.of(plain), strict=True):
        assert len(with_it["losses"]) == 14
        assert with_it["losses"] == without["losses"]
        assert with_it["metrics"] == without["metrics"]
    best, others = outcomes.best(piped), outcomes.best(plain)
    assert all(best[name].equal(value) for name, value in others.items())


@pytest.mark.parametrize(("job", "collections"), [("piped_tables", [IDS]), ("piped_vectors", [VECTORS, IDS])])
def test_each_step_works_ahead_on_every_spread_collection(
    outcomes: Outcomes, job: str, collections: list[str]
) -> None:
    for rank in outcomes.of(job):
        assert rank["worked_ahead_on"] == [[*collections, "of", *collections]]


def test_a_run_that_is_stopped_with_batches_under_way_goes_on_with_the_next_one(outcomes: Outcomes) -> None:
    for resumed, whole in zip(outcomes.of("piped_resumed"), outcomes.of("two_table_wise"), strict=True):
        assert [*resumed["losses"], *resumed["losses_after"][1:]] == whole["losses"]
        assert resumed["metrics"] == whole["metrics"]


def test_a_pipeline_that_pipelines_nothing_is_an_error(outcomes: Outcomes) -> None:
    for rank in outcomes.of("pipes_nothing"):
        assert rank["error"] == "PipelineError"
        assert f"works ahead on 0 of 1 spread collections, not on {IDS}" in rank["text"]
        assert 'set sharding.pipeline = "off"' in rank["text"]


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_hands_its_ids_to_its_collections_as_they_came(name: str) -> None:
    """What torchrec's pipeline needs, without ranks: it traces down to what would be spread."""
    ranker = build_ranker(RANKERS[name], inputs(), seed=1)
    spread, whole = [], []
    for child, module in ranker.named_children():
        if isinstance(module, PooledEmbeddings) and not module.frozen:
            spread.append(BatchRanker.collection_path(child))
            whole += [f"ranker.{child}.{part}" for part, _ in module.named_children()]
        else:
            whole.append(f"ranker.{child}")
    graph = Tracer(leaf_modules=whole).trace(BatchRanker(ranker))
    called = {node.target: node for node in graph.nodes if node.op == "call_module"}
    assert spread
    for path in spread:
        (ids,) = called[path].args
        (batch, field) = ids.args
        assert ids.target is getattr
        assert batch.op == "placeholder"
        assert field in ("sparse", "semantic")
