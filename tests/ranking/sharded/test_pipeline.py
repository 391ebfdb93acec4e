"""The pipeline trains what the plain loop trains, works ahead on every spread collection, or is refused."""

import pytest

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
