"""Nothing reaches a program that it would misread."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranking.model import RankerConfig, SemanticConfig
from serving.package.tables import ServingTable, TableError
from serving.scoring.ranker_scorer import RankerScorer, ScoringBatch, ScoringError
from serving.scoring.request_ranker import RankerShape
from tests.serving.small_rankers import plain_tables, random_requests, request_ranker, small_ranker

CONTEXT = ("user", "query", "hour")


@pytest.fixture(scope="module")
def parts() -> tuple[RankerScorer, ScoringBatch]:
    config = RankerConfig(embedding_dim=4, cross_layers=1, semantic=SemanticConfig(widths=(4,)))
    ranker = small_ranker(config)
    module = request_ranker(ranker, CONTEXT)
    tables, vectors = plain_tables(ranker)
    scorer = RankerScorer(lambda inputs: module(*inputs), module.shape, tables=tables, vectors=vectors)
    requests = random_requests([3, 2], purchases=4, request_columns=CONTEXT)
    return scorer, requests.scoring_batch(module.shape, ranker)


def changed(array: np.ndarray, value: float, at: tuple[int, ...]) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("request_sparse_RS", (1, 0), 30, "table of 'user' must lie in 0 to 29, got 30"),
        ("request_sparse_RS", (1, 1), -1, "table of 'query' must lie in 0 to 11, got -1"),
        ("candidate_sparse_NS", (4, 0), 7, "table of 'brand' must lie in 0 to 6, got 7"),
        ("history_RH", (0, 3), 21, "product vectors must lie in 0 to 20, got 21"),
        ("product_N", (2,), -1, "product vectors must lie in 0 to 20, got -1"),
        ("request_of_N", (0,), 2, "requests must lie in 0 to 1, got 2"),
    ],
)
def test_a_row_that_a_table_lacks_is_refused_by_name(
    parts: tuple[RankerScorer, ScoringBatch], field: str, at: tuple[int, ...], value: int, message: str
) -> None:
    scorer, batch = parts
    with pytest.raises(TableError, match=message):
        scorer.score(replace(batch, **{field: changed(getattr(batch, field), value, at)}))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("query_RD", lambda _: None, "query_RD must be float32 of shape .2, 8., got None"),
        ("query_RD", lambda a: a.astype(np.float64), "got float64"),
        ("product_N", lambda a: a.astype(np.int32), "product_N must be int64"),
        ("candidate_dense_NF", lambda a: a[:-1], r"candidate_dense_NF must be float32 of shape \(5, 2\)"),
        ("candidate_sparse_NS", lambda a: a[:, :0], r"shape \(5, 1\), got int32 of shape \(5, 0\)"),
        ("history_RH", lambda a: a[0], r"history_RH must be int64 of shape \(2, H\)"),
        ("request_of_N", lambda a: a[:, None], r"request_of_N must be int64 of shape \(5\)"),
    ],
)
def test_an_array_of_another_type_or_shape_is_refused_by_name(
    parts: tuple[RankerScorer, ScoringBatch], field: str, change, message: str
) -> None:
    scorer, batch = parts
    with pytest.raises(ScoringError, match=message):
        scorer.score(replace(batch, **{field: change(getattr(batch, field))}))


def test_no_purchase_at_all_scores_as_purchases_without_vectors(
    parts: tuple[RankerScorer, ScoringBatch],
) -> None:
    scorer, batch = parts
    none_N, missing_N = (
        scorer.score(replace(batch, history_RH=np.zeros((2, length), np.int64))) for length in (0, 3)
    )
    assert np.array_equal(none_N, missing_N)


def test_no_candidate_gets_no_score(parts: tuple[RankerScorer, ScoringBatch]) -> None:
    scorer, batch = parts
    values = {name: value[:0] for name, value in vars(batch).items() if name.split("_")[-1].startswith("N")}
    assert scorer.score(replace(batch, **values)).shape == (0,)


def test_arrays_need_not_be_contiguous(parts: tuple[RankerScorer, ScoringBatch]) -> None:
    scorer, batch = parts
    striped = {name: np.asfortranarray(value) for name, value in vars(batch).items()}
    np.testing.assert_array_equal(scorer.score(ScoringBatch(**striped)), scorer.score(batch))


def bound(shape: RankerShape, tables: dict[str, ServingTable], vectors: ServingTable | None) -> RankerScorer:
    return RankerScorer(lambda inputs: inputs[0], shape, tables=tables, vectors=vectors)


def test_tables_must_be_those_that_the_program_was_made_for() -> None:
    ranker = small_ranker(RankerConfig(embedding_dim=4, semantic=SemanticConfig(widths=(4,))))
    shape = request_ranker(ranker, CONTEXT).shape
    tables, vectors = plain_tables(ranker)
    bound(shape, tables, vectors)
    wide = ServingTable(torch.zeros(30, 8), None)
    eight_bit = ServingTable(torch.zeros(21, 8, dtype=torch.uint8), torch.zeros(21, 2))
    with pytest.raises(ScoringError, match=r"table of 'user' must be .*, 4 wide, got float32, 8 wide"):
        bound(shape, tables | {"user": wide}, vectors)
    with pytest.raises(ScoringError, match=r"table of 'brand' .* got none"):
        bound(shape, {name: table for name, table in tables.items() if name != "brand"}, vectors)
    with pytest.raises(ScoringError, match=r"product vectors must be .*, 8 wide, got none"):
        bound(shape, tables, None)
    with pytest.raises(ScoringError, match=r"vectors must be float16 or float32, 8 wide, got int8"):
        bound(shape, tables, eight_bit)
    with pytest.raises(ScoringError, match=r"vectors must be int8, 8 wide, got float32"):
        bound(shape.model_copy(update={"quantised": True}), tables, vectors)
    bound(shape.model_copy(update={"quantised": True}), tables, eight_bit)


def test_projections_must_be_those_of_the_vectors() -> None:
    ranker = small_ranker(RankerConfig(embedding_dim=4, semantic=SemanticConfig(widths=(4,))))
    shape = request_ranker(ranker, CONTEXT, projected=True).shape
    tables, vectors = plain_tables(ranker)
    for rows, dim, message in (
        (21, 8, "projections must be float16 or float32, 48 wide, got float32, 8"),
        (20, 48, "those of the 21 product vectors, got 20"),
    ):
        projections = ServingTable(torch.zeros(rows, dim), None)
        with pytest.raises(ScoringError, match=message):
            RankerScorer(lambda i: i[0], shape, tables=tables, vectors=vectors, projections=projections)
    with pytest.raises(ScoringError, match="got none"):
        bound(shape, tables, vectors)


def test_warming_up_meets_every_number_of_candidates(parts: tuple[RankerScorer, ScoringBatch]) -> None:
    scorer, batch = parts
    met: list[int] = []

    def program(inputs: list[torch.Tensor]) -> torch.Tensor:
        met.append(len(inputs[-1]))
        return torch.zeros(len(inputs[-1]))

    scorer.with_program(program).warm_up([1, 5, 40])
    assert met == [1, 5, 40]
    scorer.warm_up([3])  # nothing in it is out of a table's range
    assert not scorer.with_program(program).score(batch).any()
