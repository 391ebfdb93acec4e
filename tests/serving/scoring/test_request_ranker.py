"""The request ranker computes what the trained ranker does, however its columns are parted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.model import Ranker, RankerConfig, SemanticConfig
from serving.package.tables import ServingTable
from serving.packaging.from_ranker import product_projections, request_ranker_of, vectors_of
from serving.scoring.ranker_scorer import RankerScorer, ScoringBatch
from serving.scoring.request_ranker import RankerShape, RequestRanker
from tests.serving.small_rankers import (
    COLUMNS,
    DENSE,
    SPARSE_ROWS,
    configs,
    mixed_width_ranker,
    plain_tables,
    random_requests,
    request_ranker,
    small_ranker,
    written_tables,
)
from tests.tolerances import float32_drift

TWO_TOWERS = RankerConfig(
    embedding_dim=4, cross_layers=2, deep_widths=(8,), top_widths=(8,), semantic=SemanticConfig(widths=(8,))
)
CONTEXT = ("user", "query", "hour")
#: Of a logit of TWO_TOWERS: a cross layer and a deep one of 30 inputs, then the head's, of 32 and 8.
ROUNDING = float32_drift(30 + 30 + 32 + 8)


def scorer_of(ranker: Ranker, module: RequestRanker) -> RankerScorer:
    tables, vectors = plain_tables(ranker)
    projections = None
    if module.shape.projected:
        projected = product_projections(module, vectors_of(ranker)["product"])
        projections = ServingTable(torch.from_numpy(projected), None)
    return RankerScorer(
        lambda inputs: module.logits(*inputs),
        module.shape,
        tables=tables,
        vectors=vectors,
        projections=projections,
    )


@settings(deadline=None, max_examples=60)
@given(
    config=configs(),
    request_columns=st.sets(st.sampled_from(COLUMNS)).map(lambda names: tuple(sorted(names))),
    candidates=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    purchases=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_any_ranker_and_any_parting_of_its_columns_give_the_offline_logits(
    config: RankerConfig, request_columns: tuple[str, ...], candidates: list[int], purchases: int, seed: int
) -> None:
    ranker = small_ranker(config, seed=seed)
    module = request_ranker(ranker, request_columns)
    requests = random_requests(candidates, purchases=purchases, request_columns=request_columns, seed=seed)
    served_N = scorer_of(ranker, module).score(requests.scoring_batch(module.shape, ranker))
    np.testing.assert_allclose(served_N, requests.offline_logits(ranker), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cross_layers", [0, 1, 2])
def test_looking_up_projections_changes_logits_by_their_rounding(cross_layers: int) -> None:
    semantic = SemanticConfig(cross_layers=cross_layers, widths=(8,))
    ranker = small_ranker(TWO_TOWERS.model_copy(update={"semantic": semantic}))
    module = request_ranker(ranker, CONTEXT, projected=True)
    requests = random_requests([9, 30], purchases=3, request_columns=CONTEXT)
    served_N = scorer_of(ranker, module).score(requests.scoring_batch(module.shape, ranker))
    offline_N = requests.offline_logits(ranker)
    assert np.abs(served_N - offline_N).max() < 2e-3 * offline_N.std()


@pytest.mark.parametrize("request_columns", [(), CONTEXT, COLUMNS])
def test_tables_of_different_widths_are_told_apart_by_key(request_columns: tuple[str, ...]) -> None:
    ranker = mixed_width_ranker()
    module = request_ranker(ranker, request_columns)
    requests = random_requests([3, 1], purchases=0, request_columns=request_columns)
    served_N = scorer_of(ranker, module).score(requests.scoring_batch(module.shape, ranker))
    np.testing.assert_allclose(served_N, requests.offline_logits(ranker), rtol=1e-5, atol=1e-5)


def test_the_order_in_which_sparse_columns_are_named_does_not_matter() -> None:
    ranker = mixed_width_ranker()
    module = request_ranker_of(
        ranker, dense_columns=DENSE, sparse_columns=("query", "user", "brand"), request_columns=("brand",)
    )
    requests = random_requests([4], purchases=0, request_columns=("brand",))
    batch = requests.scoring_batch(module.shape, ranker)
    served_N = scorer_of(ranker, module).score(batch)
    np.testing.assert_allclose(served_N, requests.offline_logits(ranker), rtol=1e-5, atol=1e-5)


def test_merged_requests_score_as_one_by_one() -> None:
    ranker = small_ranker(TWO_TOWERS)
    module = request_ranker(ranker, CONTEXT)
    scorer = scorer_of(ranker, module)
    requests = random_requests([2, 1, 4], purchases=3, request_columns=CONTEXT)
    batch = requests.scoring_batch(module.shape, ranker)
    alone = [scorer.score(only(batch, request)) for request in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), scorer.score(batch), rtol=1e-5, atol=1e-6)


def only(batch: ScoringBatch, request: int) -> ScoringBatch:
    of_it = batch.request_of_N == request
    values = {
        name: value[request : request + 1] if name.split("_")[-1].startswith("R") else value[of_it]
        for name, value in vars(batch).items()
    }
    return replace(ScoringBatch(**values), request_of_N=np.zeros(of_it.sum(), np.int64))


def test_candidates_may_come_in_any_order() -> None:
    ranker = small_ranker(TWO_TOWERS)
    module = request_ranker(ranker, CONTEXT)
    batch = random_requests([3, 3], purchases=2, request_columns=CONTEXT).scoring_batch(module.shape, ranker)
    order_N = np.array([5, 0, 3, 2, 4, 1])
    shuffled = replace(
        batch,
        **{
            name: value[order_N] for name, value in vars(batch).items() if name.split("_")[-1].startswith("N")
        },
    )
    scorer = scorer_of(ranker, module)
    np.testing.assert_allclose(scorer.score(shuffled), scorer.score(batch)[order_N], rtol=0, atol=ROUNDING)


def test_a_purchase_without_a_vector_is_no_purchase_wherever_it_stands() -> None:
    ranker = small_ranker(TWO_TOWERS)
    module = request_ranker(ranker, CONTEXT)
    scorer = scorer_of(ranker, module)
    batch = random_requests([3], purchases=1, request_columns=CONTEXT).scoring_batch(module.shape, ranker)
    with_gaps, without = (
        scorer.score(replace(batch, history_RH=np.array([rows]))) for rows in ([0, 5, 0, 9], [9, 5])
    )
    np.testing.assert_allclose(with_gaps, without, rtol=0, atol=ROUNDING)


def test_a_vector_of_zeros_scores_as_a_missing_one() -> None:
    ranker = small_ranker(TWO_TOWERS)
    module = request_ranker(ranker, CONTEXT)
    tables, vectors = plain_tables(ranker)
    vectors.values_MD[7] = 0
    scorer = RankerScorer(lambda inputs: module.logits(*inputs), module.shape, tables=tables, vectors=vectors)
    batch = random_requests([3], purchases=2, request_columns=CONTEXT).scoring_batch(module.shape, ranker)
    zeros_N, missing_N = (scorer.score(replace(batch, product_N=np.full(3, row))) for row in (7, 0))
    assert np.array_equal(zeros_N, missing_N)


def test_a_trained_row_zero_of_the_vectors_is_served_as_missing() -> None:
    semantic = SemanticConfig(initialisation="random", widths=(8,))
    ranker = small_ranker(TWO_TOWERS.model_copy(update={"semantic": semantic}))
    assert ranker.semantic_tables.collection.embedding_bags["product"].weight[0].any()
    assert not vectors_of(ranker)["product"][0].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-3), ("float16", 3e-3), ("int8", 0.03)])
def test_written_tables_change_scores_by_little(dtype: str, tolerance: float, tmp_path: Path) -> None:
    ranker = small_ranker(TWO_TOWERS)
    module = request_ranker(ranker, CONTEXT, quantised=dtype == "int8")
    tables, vectors = written_tables(ranker, tmp_path, vectors_dtype=dtype)
    requests = random_requests([20], purchases=3, request_columns=CONTEXT)
    scorer = RankerScorer(lambda inputs: module(*inputs), module.shape, tables=tables, vectors=vectors)
    served_N = scorer.score(requests.scoring_batch(module.shape, ranker))
    offline_N = torch.sigmoid(torch.from_numpy(requests.offline_logits(ranker))).numpy()
    assert np.abs(served_N - offline_N).max() < tolerance
    assert served_N.std() > 10 * tolerance or dtype == "int8"


def test_inputs_come_in_the_documented_order() -> None:
    shape = request_ranker(small_ranker(TWO_TOWERS), CONTEXT, quantised=True).shape
    assert shape.inputs == (
        *("table:user", "table:query", "table:brand", "vectors", "scales"),
        *("request_dense", "request_sparse", "query", "history"),
        *("candidate_dense", "candidate_sparse", "product", "request_of"),
    )
    baseline = request_ranker(small_ranker(TWO_TOWERS.model_copy(update={"semantic": None})), ()).shape
    assert not {"vectors", "scales", "query", "history", "product"} & set(baseline.inputs)


def test_a_shape_survives_its_file() -> None:
    shape = request_ranker(small_ranker(TWO_TOWERS), CONTEXT).shape
    assert RankerShape.model_validate_json(shape.model_dump_json()) == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_columns": ("price",)}, "3 dense columns, got 1"),
        ({"sparse_columns": ("user", "brand")}, "sparse_columns must be those of the ranker"),
        ({"request_columns": ("colour",)}, "request_columns must be features"),
    ],
)
def test_columns_of_another_ranker_are_refused(changes: dict[str, tuple[str, ...]], message: str) -> None:
    columns = {"dense_columns": DENSE, "sparse_columns": tuple(SPARSE_ROWS), "request_columns": ()}
    with pytest.raises(ValueError, match=message):
        request_ranker_of(small_ranker(TWO_TOWERS), **{**columns, **changes})


def test_only_vectors_of_candidates_can_be_projected() -> None:
    semantic = SemanticConfig(entities=("query", "history"), widths=(8,))
    with pytest.raises(ValueError, match="only vectors of candidates can be projected"):
        request_ranker(small_ranker(TWO_TOWERS.model_copy(update={"semantic": semantic})), (), projected=True)


def test_only_product_vectors_can_be_quantised() -> None:
    with pytest.raises(ValueError, match="only product vectors can be quantised"):
        request_ranker(mixed_width_ranker(), (), quantised=True)
