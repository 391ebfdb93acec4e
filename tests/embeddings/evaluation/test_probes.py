"""Probes: metrics by hand and as loops, splits that leak nothing, and vectors whose answer is obvious."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix, f1_score, recall_score, roc_auc_score

from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.probe_report import (
    ProbeComparison,
    ProbeReport,
    grade_auc,
    macro_f1,
    recalls,
)
from embeddings.evaluation.probe_training import ByteDropout, ProbeConfig, fit_and_predict, split_rows
from embeddings.evaluation.probes import (
    ProbeLabels,
    VectorPair,
    aisle_probe,
    cosines,
    pair_features,
    relevance_probe,
    run_probes,
)
from experiments.reports.probes_text import to_markdown
from tests.tolerances import float32_error

QUICK = ProbeConfig(seeds=(0, 1), hidden_dim=16, batch_rows=128, learning_rate=0.02, max_epochs=25)
PRODUCTS, QUERIES, DIM = 60, 40, 8


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def limits_of(found: ProbeComparison) -> tuple[float, float | None, float | None]:
    return found.difference.mean, found.difference.low, found.difference.high


@pytest.fixture(scope="module")
def world() -> tuple[VectorPair, VectorPair, ProbeLabels]:
    """`after` places products by aisle and sets grades by its cosines; `before` is noise."""
    rng = np.random.default_rng(5)
    aisle_P = np.arange(PRODUCTS) % 3
    centre_CD = np.eye(3, DIM) * 2
    products_PD = unit(centre_CD[aisle_P] + 0.4 * rng.normal(size=(PRODUCTS, DIM)))
    queries_QD = unit(rng.normal(size=(QUERIES, DIM)))
    product_N, query_N = (grid.ravel() for grid in np.indices((PRODUCTS, QUERIES)))
    cosine_N = (products_PD[product_N] * queries_QD[query_N]).sum(axis=1)
    grade_N = np.digitize(cosine_N, np.quantile(cosine_N, [0.7, 0.9])).astype(np.int8)
    after = VectorPair("after", products_PD, queries_QD)
    noise = rng.normal(size=(PRODUCTS + QUERIES, 4))
    before = VectorPair("before", unit(noise[:PRODUCTS]), unit(noise[PRODUCTS:]))
    return before, after, ProbeLabels([f"aisle {a}" for a in aisle_P], product_N, query_N, grade_N)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).map(
        lambda pairs: np.array(pairs)
    )
)
def test_macro_f1_and_recall_equal_scikit_learn(pairs_N2: np.ndarray) -> None:
    true_N, predicted_N = pairs_N2.T
    confusion_CC = confusion_matrix(true_N, predicted_N, labels=range(4))
    for true in range(4):
        for predicted in range(4):
            assert confusion_CC[true, predicted] == sum((true_N == true) & (predicted_N == predicted))
    assert macro_f1(confusion_CC) == pytest.approx(f1_score(true_N, predicted_N, average="macro"))
    expected_C = recall_score(true_N, predicted_N, average=None, labels=range(4), zero_division=np.nan)
    np.testing.assert_allclose(recalls(confusion_CC), expected_C)


def test_a_constant_answer_to_three_balanced_classes_has_macro_f1_of_a_sixth() -> None:
    confusion_CC = confusion_matrix(np.array([0, 1, 2]), np.zeros(3, int), labels=range(3))
    assert macro_f1(confusion_CC) == pytest.approx((2 * 1 / (1 + 3) + 0 + 0) / 3)
    np.testing.assert_array_equal(recalls(confusion_CC), [1, 0, 0])


def test_auc_of_grades_equals_scikit_learn_with_ties_and_is_none_without_a_grade() -> None:
    rng = np.random.default_rng(0)
    cosine_N, grade_N = rng.integers(0, 6, 200) / 6, rng.integers(0, 2, 200) * 2
    assert grade_auc(cosine_N, grade_N, high=2, low=0) == pytest.approx(roc_auc_score(grade_N == 2, cosine_N))
    assert grade_auc(cosine_N, grade_N, high=2, low=1) is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(5, 60), min_size=1, max_size=5), st.integers(0, 100))
def test_a_split_is_disjoint_complete_and_within_one_row_of_its_share_in_every_class(
    sizes: list[int], seed: int
) -> None:
    class_N = np.repeat(np.arange(len(sizes)), sizes)
    split = split_rows(class_N, rng=np.random.default_rng(seed))
    parts = (split.train_M, split.validation_M, split.test_M)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(class_N)))
    for label, size in enumerate(sizes):
        rows = [int((class_N[part] == label).sum()) for part in parts]
        np.testing.assert_allclose(rows, [0.72 * size, 0.08 * size, 0.2 * size], atol=1.0)
        assert rows[2] >= 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=5, max_size=80), st.integers(0, 100)
)
def test_rows_of_one_group_are_never_in_two_parts(rows: list[tuple[int, int]], seed: int) -> None:
    class_N, group_N = np.array(rows).T
    split = split_rows(class_N, group_N=group_N, rng=np.random.default_rng(seed))
    groups = [set(group_N[part]) for part in (split.train_M, split.validation_M, split.test_M)]
    assert sum(map(len, groups)) == len(set(group_N))


def test_a_split_is_that_of_its_seed() -> None:
    class_N = np.arange(100) % 3
    first, same, other = (split_rows(class_N, rng=np.random.default_rng(seed)).test_M for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert set(first) != set(other)


def test_pair_features_are_the_two_vectors_then_distance_and_product() -> None:
    product_ND, query_ND = np.array([[0.6, 0.8]], np.float32), np.array([[1.0, 0.0]], np.float32)
    expected = [0.6, 0.8, 1, 0, 0.4, 0.8, 0.6, 0]
    interactions_NF = pair_features(product_ND, query_ND, features="interactions")
    np.testing.assert_allclose(interactions_NF, [expected], atol=1e-6)
    np.testing.assert_allclose(pair_features(product_ND, query_ND, features="concat"), [expected[:4]])


def test_cosines_do_not_depend_on_chunks_or_lengths_and_are_zero_for_missing_vectors(
    world: tuple[VectorPair, VectorPair, ProbeLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, after, labels = world
    whole_N = cosines(after, labels.product_N, labels.query_N)
    monkeypatch.setattr("embeddings.evaluation.probes.CHUNK_PAIRS", 7)
    longer = VectorPair("longer", 3 * after.products_PD, after.queries_QD)
    three_sums = float32_error(3 * after.queries_QD.shape[1])  # the product and both lengths
    np.testing.assert_allclose(
        cosines(longer, labels.product_N, labels.query_N), whole_N, rtol=0, atol=three_sums
    )
    missing = VectorPair("missing", 0 * after.products_PD, after.queries_QD)
    np.testing.assert_array_equal(cosines(missing, labels.product_N, labels.query_N), 0)


@pytest.mark.parametrize("hidden_dim", [None, 16])
def test_predictions_do_not_depend_on_scale_and_offset_of_features_nor_on_the_global_generator(
    hidden_dim: int | None,
) -> None:
    rng = np.random.default_rng(0)
    class_N = np.arange(300) % 3
    features_NF = (np.eye(3)[class_N] + rng.normal(size=(300, 3))).astype(np.float32)

    def predicted(features_NF: np.ndarray) -> np.ndarray:
        train, validation = (features_NF[:200], class_N[:200]), (features_NF[200:240], class_N[200:240])
        return fit_and_predict(
            train, validation, features_NF[240:], classes=3, hidden_dim=hidden_dim, config=QUICK, seed=3
        ).predicted_M

    first_M = predicted(features_NF)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(first_M, predicted(features_NF))
    assert torch.equal(state, torch.get_rng_state())
    # Powers of two, so that standardising rounds alike.
    assert (first_M == predicted(features_NF * 64 + 8)).mean() > 0.98
    constant_NF = np.concatenate([features_NF, np.full((300, 1), 0.1, np.float32)], axis=1)
    assert (predicted(constant_NF) == class_N[240:]).mean() > 0.5


def test_dropout_drops_its_share_keeps_the_mean_and_rests_in_evaluation() -> None:
    dropout = ByteDropout(0.25, rng=np.random.default_rng(0))
    ones_BF = torch.ones(200, 200)
    dropped_BF = dropout(ones_BF)
    assert dropped_BF.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped_BF == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropout.eval()(ones_BF), ones_BF)


def test_the_aisle_probe_finds_aisles_that_vectors_show_and_none_in_noise(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    found = aisle_probe(*world, config=QUICK)
    assert found.after.macro_f1_S.mean() > 0.9
    assert found.before.macro_f1_S.mean() < 0.6
    assert found.difference.low is not None
    assert found.majority_macro_f1 == pytest.approx(1 / 6)
    assert found.rows.test == 12
    assert int(found.after.confusion_CC.sum()) == 2 * 12


def test_two_vectors_side_by_side_cannot_be_compared_by_a_linear_layer_but_their_product_can(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    before, after, labels = world
    side_by_side = relevance_probe(before, after, labels, config=QUICK)
    compared = relevance_probe(before, after, labels, features="interactions", config=QUICK)
    assert compared.after.macro_f1_S.mean() > side_by_side.after.macro_f1_S.mean() + 0.2
    assert compared.after.macro_f1_S.mean() > compared.before.macro_f1_S.mean() + 0.3


def test_half_of_the_irrelevant_pairs_take_part_and_no_more_than_the_limit(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    _, after, labels = world
    one_epoch = QUICK.model_copy(update={"max_epochs": 1})
    found = relevance_probe(after, after, labels, config=one_epoch)
    rows = found.rows.train + found.rows.validation + found.rows.test
    irrelevant = int((labels.grade_N == 0).sum())
    assert rows == pytest.approx(len(labels.grade_N) - irrelevant / 2, rel=0.03)
    limited = relevance_probe(after, after, labels, config=one_epoch.model_copy(update={"max_pairs": 500}))
    assert limited.rows.train + limited.rows.validation + limited.rows.test == 500


@pytest.mark.parametrize("unseen_queries", [False, True])
def test_no_pair_and_with_unseen_queries_no_query_is_both_learned_and_tested(
    world: tuple[VectorPair, VectorPair, ProbeLabels], monkeypatch: pytest.MonkeyPatch, unseen_queries: bool
) -> None:
    _, after, labels = world
    twice = ProbeLabels(
        labels.aisles, *(np.tile(x, 2) for x in (labels.product_N, labels.query_N, labels.grade_N))
    )
    parts: list[list[np.ndarray]] = []

    def spy(train, validation, test_MF, **rest):
        parts.append([train[0], validation[0], test_MF])
        return fit_and_predict(train, validation, test_MF, **rest)

    monkeypatch.setattr("embeddings.evaluation.probes.fit_and_predict", spy)
    one_epoch = QUICK.model_copy(update={"max_epochs": 1})
    relevance_probe(after, after, twice, unseen_queries=unseen_queries, config=one_epoch)
    assert len(parts) == 4
    first = DIM if unseen_queries else 0
    for part in parts:
        train, validation, test = ({row[first:].tobytes() for row in rows_MF} for rows_MF in part)
        assert train.isdisjoint(validation)
        assert (train | validation).isdisjoint(test)


def test_products_of_one_group_stay_on_one_side(
    world: tuple[VectorPair, VectorPair, ProbeLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, after, labels = world
    # Variants three apart share their aisle: 30 groups of two.
    group_P = np.arange(PRODUCTS) % 3 + 3 * (np.arange(PRODUCTS) // 6)
    grouped = ProbeLabels(labels.aisles, labels.product_N, labels.query_N, labels.grade_N, group_P)
    group_of = {row.tobytes(): group for row, group in zip(after.products_PD, group_P, strict=True)}
    sides: list[tuple[set[int], set[int]]] = []

    def spy(train, validation, test_MF, **rest):
        learned = np.concatenate([train[0], validation[0]])
        sides.append(tuple({group_of[row.tobytes()] for row in rows} for rows in (learned, test_MF)))
        return fit_and_predict(train, validation, test_MF, **rest)

    monkeypatch.setattr("embeddings.evaluation.probes.fit_and_predict", spy)
    aisle_probe(after, after, grouped, config=QUICK)
    assert sides
    for learned, tested in sides:
        assert learned.isdisjoint(tested)


def test_equal_encoders_give_equal_results_and_a_difference_of_zero(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    _, after, labels = world
    few = QUICK.model_copy(update={"max_epochs": 2})
    report = run_probes(after, after, labels, config=few)
    for found in report.probes.values():
        assert found.before == found.after
        assert limits_of(found) == (0.0, 0.0, 0.0)


def test_the_report_is_json_and_a_table_with_every_probe(
    world: tuple[VectorPair, VectorPair, ProbeLabels], tmp_path: Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    report = run_probes(
        *world, config=QUICK.model_copy(update={"max_epochs": 2}), progress=lambda *call: calls.append(call)
    )
    report.write(tmp_path / "probes.json")
    written = json.loads((tmp_path / "probes.json").read_text())
    assert ProbeReport.model_validate(written) == report
    assert set(written["probes"]) == {
        "aisle",
        "relevance",
        "relevance_interactions",
        "relevance_unseen_queries",
        "relevance_interactions_unseen_queries",
    }
    relevance = written["probes"]["relevance"]
    assert relevance["classes"] == ["irrelevant", "moderate", "high"]
    per_seed = relevance["after"]["macro_f1_per_seed"]
    assert relevance["after"]["macro_f1"] == pytest.approx(sum(per_seed) / 2)
    assert relevance["after"]["macro_f1_sd"] == pytest.approx(abs(per_seed[0] - per_seed[1]) / 2**0.5)
    assert np.array(relevance["after"]["confusion"]).sum() == 2 * relevance["rows"]["test"]
    assert written["after"]["auc_high_vs_irrelevant"] == 1, "the grades were set by these cosines"
    markdown = to_markdown(report)
    assert markdown.count("| before | after |") == 6
    assert {call[0] for call in calls} == set(written["probes"])
    assert calls[-1][1] == calls[-1][2] == 4


def test_the_interval_widens_the_variance_by_the_share_of_test_rows(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    found = aisle_probe(*world, config=QUICK)
    difference_S = found.after.macro_f1_S - found.before.macro_f1_S
    mean, low, high = limits_of(found)
    # Student's t at 0.975 with one degree of freedom is 12.7062; 1/2 + 12/48 = 0.75.
    assert mean == pytest.approx(difference_S.mean())
    assert high - mean == pytest.approx(12.7062 * (0.75 * difference_S.var(ddof=1)) ** 0.5, rel=1e-4)
    assert mean - low == pytest.approx(high - mean)


def test_rare_classes_are_left_out_and_counted(world: tuple[VectorPair, VectorPair, ProbeLabels]) -> None:
    before, after, labels = world
    aisles = ["rare" if p < 4 else None if p == 4 else labels.aisles[p] for p in range(PRODUCTS)]
    changed = ProbeLabels(aisles, labels.product_N, labels.query_N, labels.grade_N)
    found = aisle_probe(before, after, changed, config=QUICK)
    assert found.classes == ("aisle 0", "aisle 1", "aisle 2")
    assert found.left_out == {"rare": 4}
    assert sum(found.support) == PRODUCTS - 5


def test_restricting_labels_keeps_the_pairs_of_the_queries_and_all_aisles(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    labels = world[2]
    only_queries = labels.restricted_to(np.arange(QUERIES) < 10)
    assert only_queries.query_N.max() == 9
    assert only_queries.aisles == labels.aisles
    assert len(only_queries.grade_N) == 10 * PRODUCTS


def test_vectors_of_tables_follow_the_order_asked_for_and_unknown_ids_get_zeros(tmp_path: Path) -> None:
    vectors_ND = unit(np.random.default_rng(0).normal(size=(2, 4))).astype(np.float16)
    tables = [
        EmbeddingTable.write(
            tmp_path / kind, ids=ids, vectors_ND=vectors_ND, encoder_id="x", kind=kind, normalised=True
        )
        for kind, ids in (("product", pa.array([7, 9])), ("query", pa.array(["a", "b"])))
    ]
    pair = VectorPair.from_tables("x", *tables, product_ids=pa.array([9, 8, 7]), query_texts=pa.array(["b"]))
    np.testing.assert_array_equal(
        pair.products_PD, np.stack([vectors_ND[1], 0 * vectors_ND[0], vectors_ND[0]])
    )
    np.testing.assert_array_equal(pair.queries_QD, vectors_ND[1:])
    assert pair.products_PD.dtype == np.float32


def test_zero_vectors_are_counted_where_labels_use_them(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    _, after, labels = world
    products_PD, queries_QD = after.products_PD.copy(), after.queries_QD.copy()
    products_PD[:2] = 0
    queries_QD[[0, -1]] = 0
    first_queries = labels.restricted_to(np.arange(QUERIES) < 20)
    few = QUICK.model_copy(update={"max_epochs": 1})
    report = run_probes(VectorPair("holes", products_PD, queries_QD), after, first_queries, config=few)
    assert (report.before.zero_products, report.before.zero_queries) == (2, 1)
    assert (report.after.zero_products, report.after.zero_queries) == (0, 0)


def test_a_probe_that_the_labels_do_not_allow_is_left_out_with_the_reason(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    before, after, labels = world
    one_aisle = replace(labels, aisles=["one"] * PRODUCTS)
    few = QUICK.model_copy(update={"max_epochs": 1})
    report = run_probes(before, after, one_aisle, config=few)
    assert "aisle" not in report.probes
    assert "relevance" in report.probes
    assert "aisle probe needs two classes" in report.left_out["aisle"]


def test_what_does_not_fit_is_refused_with_a_sentence(
    world: tuple[VectorPair, VectorPair, ProbeLabels],
) -> None:
    before, after, labels = world
    product_N, query_N, grade_N = labels.product_N, labels.query_N, labels.grade_N
    for wrong, sentence in (
        (ProbeLabels(labels.aisles[1:], product_N, query_N, grade_N), "one aisle"),
        (ProbeLabels(labels.aisles, product_N, query_N, grade_N[1:]), "a grade, got"),
        (ProbeLabels(labels.aisles, product_N + 1, query_N, grade_N), "product rows .* 1 ... 60"),
        (ProbeLabels(labels.aisles, product_N, query_N - 1, grade_N), "query rows .* -1 ... 38"),
        (ProbeLabels(labels.aisles, product_N, query_N, grade_N + 1), "grades must be 0, 1 or 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_probes(before, after, wrong, config=QUICK)
    one_query = labels.restricted_to(np.arange(QUERIES) == 0)
    with pytest.raises(ValueError, match="needs some of each"):
        relevance_probe(before, after, one_query, unseen_queries=True, config=QUICK)
    with pytest.raises(ValueError, match="NaN"):
        VectorPair("broken", np.full((2, 4), np.nan, np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="one space"):
        VectorPair("mixed", np.zeros((2, 4), np.float32), np.zeros((2, 8), np.float32))


@pytest.mark.parametrize(
    "nonsense", [{"seeds": (1, 1)}, {"seeds": ()}, {"dropout": 1.0}, {"epochs": 3}, {"max_pairs": 0}]
)
def test_a_nonsensical_setting_is_refused(nonsense: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(nonsense))):
        ProbeConfig(**nonsense)


@settings(deadline=None, max_examples=5)
@given(st.integers(1, 200))
def test_one_seed_gives_no_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = VectorPair(
        "x", rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(1, 4)).astype(np.float32)
    )
    empty = np.array([], np.int64)
    labels = ProbeLabels(["a", "b"] * 10, empty, empty, empty)
    config = ProbeConfig(seeds=(seed,), hidden_dim=2, max_epochs=1)
    found = aisle_probe(vectors, vectors, labels, config=config)
    assert limits_of(found) == (0.0, None, None)
