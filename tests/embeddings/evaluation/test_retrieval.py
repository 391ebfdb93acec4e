"""Search against a loop, metrics against loops and ir-measures, intervals against closed forms."""

import math
from dataclasses import astuple

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.evaluation.judgements import Judgements
from embeddings.evaluation.retrieval import (
    METRICS,
    best_ranking,
    bootstrap,
    paired_differences,
    rank_judged,
    retrieval_metrics,
)
from embeddings.evaluation.search import pair_scores, search, top_rows


def judge(grades: list[dict[int, int]], *, products: int = 20, complete: bool = False) -> Judgements:
    """Judgements of one dictionary {product row: grade} for each query."""
    pairs = [(query, row, grade) for query, found in enumerate(grades) for row, grade in found.items()]
    query_J, product_J, grade_J = np.array(pairs, np.int64).reshape(-1, 3).T
    return Judgements.from_pairs(
        queries=pa.array([f"query {index}" for index in range(len(grades))], pa.string()),
        products=pa.array(np.arange(100, 100 + products)),
        query_J=query_J,
        product_J=product_J,
        grade_J=grade_J,
        complete=complete,
    )


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def loop_search(products_ND: np.ndarray, queries_QD: np.ndarray, k: int) -> list[list[int]]:
    ranked = []
    for query in queries_QD.astype(np.float64):
        scores = [round(float(product.astype(np.float64) @ query), 9) for product in products_ND]
        has_vector = [bool(product.any()) for product in products_ND]
        rows = range(len(products_ND))
        ranked.append(sorted(rows, key=lambda row: (not has_vector[row], -scores[row] + 0.0, row))[:k])
    return ranked


def loop_metrics(ranked: list[int], grades: dict[int, int], k: int) -> dict[str, float]:
    got = [grades.get(row, 0) if row >= 0 else 0 for row in ranked[:k]]
    got += [0] * (k - len(got))
    highly = sum(grade == 2 for grade in grades.values())
    dcg = sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(got))
    ideal = sorted(grades.values(), reverse=True)[:k]
    best = sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(ideal))
    first = next((1 / (place + 1) for place, grade in enumerate(got) if grade == 2), 0.0)
    return {
        "graded_rel": sum(got) / 2 / k,
        "recall": got.count(2) / highly if highly else math.nan,
        "precision": got.count(2) / k,
        "ndcg": dcg / best if best else math.nan,
        "mrr": first if highly else math.nan,
    }


def random_case(
    seed: int, *, queries: int = 40, products: int = 30
) -> tuple[list[dict[int, int]], np.ndarray]:
    generator = np.random.default_rng(seed)
    grades = []
    for _ in range(queries):
        rows = generator.permutation(products)[: generator.integers(0, 15)]
        grades.append({int(row): int(generator.choice(3, p=(0.5, 0.3, 0.2))) for row in rows})
    ranked = np.stack([generator.permutation(products)[:12] for _ in range(queries)])
    return grades, ranked


# --- search -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    products=st.integers(1, 60),
    queries=st.integers(0, 5),
    k=st.integers(1, 70),
    levels=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_exact_search_is_the_loop_whatever_ties_and_zeros_there_are(products, queries, k, levels, seed):
    generator = np.random.default_rng(seed)
    # Few levels make many equal vectors, zero vectors and equal scores.
    products_ND = generator.integers(-levels, levels + 1, (products, 4)).astype(np.float32)
    queries_QD = generator.integers(-levels, levels + 1, (queries, 4)).astype(np.float32)
    found = search(products_ND, queries_QD, k)
    assert found.shape == (queries, min(k, products))
    assert found.tolist() == loop_search(products_ND, queries_QD, k)


def test_exact_search_equals_the_loop_on_unit_vectors_of_either_width():
    products_ND, queries_QD = unit(2000, 64, 0), unit(30, 64, 1)
    expected = loop_search(products_ND, queries_QD, 10)
    assert search(products_ND, queries_QD, 10).tolist() == expected
    half = search(products_ND.astype(np.float16), queries_QD, 10)
    assert half.tolist() == loop_search(products_ND.astype(np.float16), queries_QD, 10)


def test_a_query_finds_the_same_products_alone_and_in_a_batch():
    products_ND, queries_QD = unit(500, 32, 2), unit(20, 32, 3)
    alone = np.vstack([search(products_ND, queries_QD[row : row + 1], 7) for row in range(20)])
    np.testing.assert_array_equal(search(products_ND, queries_QD, 7), alone)


def test_a_hundred_copies_of_one_product_come_in_order_of_rows():
    products_ND = np.repeat(unit(5, 16, 4), 100, axis=0)
    nearest = search(products_ND, products_ND[250:251], 30)
    assert nearest.tolist() == [list(range(200, 230))]


def test_a_product_without_a_vector_ranks_after_the_most_unlike_one():
    products_ND = np.array([[0, 0], [-1, 0], [1, 0], [0, 0]], np.float32)
    assert search(products_ND, np.array([[1, 0]], np.float32), 4).tolist() == [[2, 1, 0, 3]]


@pytest.mark.parametrize("exponent", [-100, -60, -30, 0, 30, 60, 100])
def test_vectors_of_another_length_are_found_in_the_same_order(exponent):
    products_ND, queries_QD = unit(300, 16, 5), unit(20, 16, 6)
    expected = search(products_ND, queries_QD, 10)
    scale = np.float32(2.0**exponent)
    np.testing.assert_array_equal(search(products_ND * scale, queries_QD, 10), expected)
    np.testing.assert_array_equal(search(products_ND, queries_QD * scale, 10), expected)
    far = 2.0 ** (8 * exponent)
    wide_ND, wide_QD = products_ND.astype(np.float64) * far, queries_QD.astype(np.float64) / far
    np.testing.assert_array_equal(search(wide_ND, wide_QD, 10), expected)


def test_one_long_vector_does_not_make_ties_of_the_others():
    products_ND = unit(100, 16, 7)
    products_ND[40] *= 1e15
    queries_QD = -products_ND[40:41] / 1e15 + unit(1, 16, 8)
    ranked = search(products_ND, queries_QD, 100)[0].tolist()
    scores = products_ND.astype(np.float64) @ queries_QD[0].astype(np.float64)
    assert ranked == sorted(range(100), key=lambda row: -scores[row])


def test_scores_of_pairs_keep_their_digits_whatever_the_length():
    judgements = judge([{0: 2, 1: 0}], products=2)
    products_ND = np.array([[3, 4], [4, 3]], np.float32) / 5
    expected = products_ND.astype(np.float64) @ [1, 0]
    for scale in (1e-12, 1.0, 1e12):
        found = pair_scores(products_ND * np.float32(scale), np.array([[1, 0]], np.float32), judgements)
        np.testing.assert_allclose(found / scale, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((unit(3, 8, 0), unit(2, 8, 0), 0), "k must be at least 1, got 0"),
        ((unit(3, 8, 0), unit(2, 4, 0), 1), r"same width, got shapes \(3, 8\) and \(2, 4\)"),
    ],
)
def test_search_says_what_it_needs(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(*arguments)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 35))
def test_top_rows_is_a_stable_sort_cut_off(scores, k):
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert top_rows(np.array(scores, np.float32), k).tolist() == expected


# --- judgements -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.randoms())
def test_judgements_do_not_depend_on_the_order_of_pairs(seed, random):
    grades, ranked = random_case(seed, queries=6)
    shuffled = [dict(random.sample(sorted(found.items()), len(found))) for found in grades]
    one, other = judge(grades, products=30), judge(shuffled, products=30)
    for name in ("start_Q", "product_J", "grade_J"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    expected = [
        [found.get(row, 0) for row in rows] for found, rows in zip(grades, ranked.tolist(), strict=True)
    ]
    assert one.grades_of(ranked).tolist() == expected


def test_an_empty_place_and_a_product_without_judgement_have_grade_zero():
    judgements = judge([{0: 2, 19: 2}, {}, {0: 1}])
    # Row -1 of the second query must not be read as the last product of the first.
    ranked = np.array([[0, -1, 5], [-1, 0, 19], [-1, -1, 0]])
    assert judgements.grades_of(ranked).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert judge([{}, {}]).grades_of(ranked[:2]).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product_J": [0, 3]}, r"product_J must lie in 0 ... 2, got 0 ... 3"),
        ({"query_J": [-1, 0]}, r"query_J must lie in 0 ... 0, got -1 ... 0"),
        ({"grade_J": [0, 3]}, r"grades must be 0, 1 or 2, got \[0, 3\]"),
        ({"product_J": [1, 1]}, r"'tea' and product 8 have several \(1 repetitions\)"),
        ({"grade_J": [1]}, "got 2, 2 and 1"),
    ],
)
def test_wrong_pairs_are_refused_by_name(change, message):
    columns = {"query_J": [0, 0], "product_J": [0, 1], "grade_J": [1, 2]} | change
    arrays = {name: np.array(values) for name, values in columns.items()}
    with pytest.raises(ValueError, match=message):
        Judgements.from_pairs(queries=pa.array(["tea"]), products=pa.array([7, 8, 9]), **arrays)


def test_selected_queries_have_the_metrics_they_had():
    grades, ranked = random_case(1)
    judgements, mask_Q = judge(grades, products=30), np.arange(40) % 3 == 0
    fewer = judgements.select_queries(mask_Q)
    assert fewer.queries.to_pylist() == [f"query {index}" for index in range(0, 40, 3)]
    before, after = retrieval_metrics(ranked, judgements, 10), retrieval_metrics(ranked[mask_Q], fewer, 10)
    for name in METRICS:
        np.testing.assert_array_equal(after[name], before[name][mask_Q])


def test_selected_products_keep_their_ids_and_grades():
    fewer = judge([{0: 2, 3: 1, 5: 2}, {3: 2}]).select_products(np.isin(np.arange(20), (3, 5)))
    assert fewer.products.to_pylist() == [103, 105]
    assert fewer.query_J.tolist() == [0, 0, 1]
    assert fewer.product_J.tolist() == [0, 1, 0]
    assert fewer.grade_J.tolist() == [1, 2, 2]


def test_positions_are_not_taken_for_a_mask():
    with pytest.raises(ValueError, match="a mask must have 1 booleans, got int64"):
        judge([{0: 2}]).select_queries(np.array([0]))


# --- rankings of judged pairs -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 20))
def test_the_judged_pool_ranks_only_judged_products_by_score_then_row(seed, k):
    grades, _ = random_case(seed, queries=8)
    judgements = judge(grades, products=30)
    score_J = np.random.default_rng(seed).integers(0, 4, len(judgements.grade_J)).astype(float)
    score_of = dict(zip(zip(judgements.query_J, judgements.product_J, strict=True), score_J, strict=True))
    for query, (found, row_K) in enumerate(zip(grades, rank_judged(score_J, judgements, k), strict=True)):
        expected = sorted(found, key=lambda row, query=query: (-score_of[query, row], row))[:k]
        assert row_K.tolist() == expected + [-1] * (k - len(expected))


def test_pair_scores_are_inner_products_and_products_without_a_vector_come_last():
    products_ND, queries_QD = unit(20, 8, 0), unit(2, 8, 1)
    products_ND[3] = 0
    judgements = judge([{3: 2, 4: 0}, {0: 1}])
    score_J = pair_scores(products_ND, queries_QD, judgements)
    np.testing.assert_allclose(
        score_J, [-np.inf, products_ND[4] @ queries_QD[0], products_ND[0] @ queries_QD[1]], rtol=1e-5
    )
    assert rank_judged(score_J, judgements, 2).tolist() == [[4, 3], [0, -1]]


def test_complete_judgements_have_no_judged_pool():
    with pytest.raises(ValueError, match="use the pool 'catalogue'"):
        rank_judged(np.ones(1), judge([{0: 2}], complete=True), 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12))
def test_no_ranking_beats_the_ranking_by_grade(seed, k):
    grades, ranked = random_case(seed)
    judgements = judge(grades, products=30)
    best = retrieval_metrics(best_ranking(judgements, k), judgements, k)
    other = retrieval_metrics(ranked, judgements, k)
    for name in METRICS:
        valid = ~np.isnan(best[name])
        assert (other[name][valid] <= best[name][valid] + 1e-12).all()
    np.testing.assert_allclose(best["ndcg"][~np.isnan(best["ndcg"])], 1)
    np.testing.assert_array_equal(best["mrr"][~np.isnan(best["mrr"])], 1)


# --- metrics ----------------------------------------------------------------------------------------------


def test_metrics_of_one_ranking_by_hand():
    judgements = judge([{0: 2, 1: 1, 2: 0, 3: 2, 4: 2}])
    found = retrieval_metrics(np.array([[1, 0, 9, 3]]), judgements, 4)
    assert found["graded_rel"][0] == (1 + 2 + 0 + 2) / 2 / 4
    assert found["precision"][0] == 2 / 4
    assert found["recall"][0] == 2 / 3
    assert found["mrr"][0] == 1 / 2
    gained = 1 / math.log2(2) + 3 / math.log2(3) + 3 / math.log2(5)
    best = 3 / math.log2(2) + 3 / math.log2(3) + 3 / math.log2(4) + 1 / math.log2(5)
    assert found["ndcg"][0] == pytest.approx(gained / best, abs=1e-15)


def test_a_product_counts_at_its_first_place_only():
    judgements = judge([{0: 2, 1: 1, 2: 2}])
    repeated = retrieval_metrics(np.array([[0, 0, 1, 0, 1]]), judgements, 5)
    once = retrieval_metrics(np.array([[0, -1, 1, -1, -1]]), judgements, 5)
    assert repeated == once
    assert (repeated["recall"][0], repeated["precision"][0]) == (1 / 2, 1 / 5)
    assert repeated["ndcg"][0] < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 15))
def test_metrics_equal_their_loops(seed, k):
    grades, ranked = random_case(seed)
    found = retrieval_metrics(ranked, judge(grades, products=30), k)
    assert tuple(found) == METRICS
    expected = [loop_metrics(row, one, k) for row, one in zip(ranked.tolist(), grades, strict=True)]
    for name in METRICS:
        np.testing.assert_allclose(found[name], [one[name] for one in expected], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_equal_those_of_ir_measures(k):
    grades, ranked = random_case(11, queries=150)
    judgements = judge(grades, products=30)
    found = retrieval_metrics(ranked, judgements, k)
    qrels = {
        f"q{query}": {f"p{row}": grade for row, grade in one.items()}
        for query, one in enumerate(grades)
        if one
    }
    run = {
        f"q{query}": {f"p{row}": 100.0 - place for place, row in enumerate(rows)}
        for query, rows in enumerate(ranked.tolist())
    }
    theirs = {
        "precision": ir_measures.P(rel=2) @ k,
        "recall": ir_measures.R(rel=2) @ k,
        "mrr": ir_measures.RR(rel=2) @ k,
        "ndcg": ir_measures.nDCG(gains={0: 0, 1: 1, 2: 3}) @ k,
    }
    compared = 0
    for name, measure in theirs.items():
        for value in ir_measures.iter_calc([measure], qrels, run):
            ours = found[name][int(value.query_id[1:])]
            if not math.isnan(ours):  # they say 0 where there is nothing to find
                assert ours == pytest.approx(value.value, abs=1e-6)
                compared += 1
    assert compared > 400


def test_a_query_with_nothing_to_find_has_no_recall_and_no_mrr_but_a_precision_of_zero():
    found = retrieval_metrics(np.array([[0, 1], [0, 1]]), judge([{0: 1}, {0: 0}]), 2)
    assert np.isnan(found["recall"]).all()
    assert np.isnan(found["mrr"]).all()
    assert np.isnan(found["ndcg"]).tolist() == [False, True]
    assert found["precision"].tolist() == [0, 0]
    assert found["graded_rel"].tolist() == [0.25, 0]


def test_a_longer_ranking_is_cut_at_k_and_a_shorter_one_has_empty_places():
    judgements = judge([{0: 2, 1: 2}])
    long, short = np.array([[5, 0, 1]]), np.array([[0]])
    assert retrieval_metrics(long, judgements, 2)["recall"].tolist() == [0.5]
    assert retrieval_metrics(short, judgements, 4)["precision"].tolist() == [0.25]


def test_a_ranking_of_other_queries_is_refused():
    with pytest.raises(ValueError, match="one row for each of the 2 queries, got 3"):
        retrieval_metrics(np.zeros((3, 1), int), judge([{0: 2}, {}]), 1)


# --- intervals --------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_has_the_width_of_the_central_limit_theorem():
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    found = bootstrap({"x": values}, n=4000, seed=1)["x"]
    half_width = 1.96 * values.std() / math.sqrt(1000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half_width, abs=0.08 * half_width)
    assert found.high == pytest.approx(values.mean() + half_width, abs=0.08 * half_width)


def test_queries_without_a_value_are_left_out_and_counted():
    found = bootstrap({"x": np.array([1.0, np.nan, 1.0, np.nan, np.nan])}, n=50)["x"]
    assert (found.mean, found.low, found.high, found.queries, found.left_out) == (1, 1, 1, 2, 3)


@pytest.mark.parametrize(("values", "mean"), [([], None), ([np.nan], None), ([0.5], 0.5), ([np.nan, 2], 2)])
def test_fewer_than_two_values_have_no_interval(values, mean):
    found = bootstrap({"x": np.array(values)}, n=20)["x"]
    assert (found.mean, found.low, found.high) == (mean, None, None)
    assert not found.excludes_zero


def test_a_metric_is_resampled_as_if_it_were_alone():
    values = {name: np.random.default_rng(place).random(50) for place, name in enumerate("abc")}
    together = bootstrap(values, n=100, seed=5)
    for name in values:
        alone = bootstrap({name: values[name]}, n=100, seed=5)[name]
        assert astuple(together[name]) == pytest.approx(astuple(alone))  # sums may round differently
    assert bootstrap({}) == {}


def test_paired_differences_cancel_what_is_hard_for_both():
    generator = np.random.default_rng(2)
    hard_Q = generator.random(400)
    base = {"mrr": hard_Q, "other": hard_Q}
    better = {"mrr": hard_Q + 0.01 + generator.normal(0, 0.005, 400)}
    difference = paired_differences(better, base, n=400)
    assert set(difference) == {"mrr"}
    assert difference["mrr"].excludes_zero
    single = [bootstrap(rows, n=400)["mrr"] for rows in (base, better)]
    assert single[0].high > single[1].low, "the two intervals overlap widely"
    assert paired_differences(base, base, n=20)["mrr"] == bootstrap({"mrr": np.zeros(400)}, n=20)["mrr"]


def test_queries_of_one_group_count_as_one_draw() -> None:
    """Each of 40 values five times over tells no more than once."""
    value_Q = np.random.default_rng(0).random(40)
    once = bootstrap({"ndcg": value_Q})["ndcg"]
    repeated, groups_Q = np.repeat(value_Q, 5), np.repeat(np.arange(40), 5)
    assert bootstrap({"ndcg": repeated}, groups_Q=groups_Q)["ndcg"].low == pytest.approx(once.low)
    assert bootstrap({"ndcg": repeated})["ndcg"].low > once.low + 0.02
    difference = paired_differences({"a": repeated}, {"a": 0 * repeated}, groups_Q=groups_Q)["a"]
    assert (difference.low, difference.high) == pytest.approx((once.low, once.high))
    assert bootstrap({"ndcg": value_Q}, groups_Q=np.zeros(40, int))["ndcg"].low is None
