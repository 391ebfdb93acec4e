"""Table 1 from rows to JSON and text, on a shop whose answers are obvious."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.judgements import Judgements
from embeddings.evaluation.lexical import bm25_scores, char_tfidf_scores
from embeddings.evaluation.retrieval import METRICS, bootstrap, retrieval_metrics
from embeddings.evaluation.search import top_rows
from experiments.encoders.retrieval_rows import (
    FusionRow,
    LexicalRow,
    Missing,
    RandomRow,
    VectorRow,
    lexical_rows,
)
from experiments.encoders.table1 import Table1, evaluate_rows, metric_key
from experiments.reports.table1_text import console_table, to_markdown
from experiments.statistics.intervals import Interval

K = 3
NOUNS = ("oat milk", "green tea", "rye bread", "dish soap")
TITLES = [f"{noun} {number}" for noun in NOUNS for number in range(5)]
PRODUCT_IDS = pa.array([900 - row for row in range(20)])
MEASURE = {"simulated": True, "description": "A shop.", "k": K, "resamples": 60}


def shop(*, complete: bool = True) -> Judgements:
    """A query for each noun, highly relevant to its five products; the next noun is moderately so."""
    pairs = [(noun, row, 2) for noun in range(4) for row in range(5 * noun, 5 * noun + 5)]
    pairs += [(noun, 5 * ((noun + 1) % 4), 1) for noun in range(4)]
    if not complete:
        pairs += [(noun, 5 * ((noun + 2) % 4), 0) for noun in range(4)]
    query_J, product_J, grade_J = np.array(pairs).T
    return Judgements.from_pairs(
        queries=pa.array(NOUNS),
        products=PRODUCT_IDS,
        query_J=query_J,
        product_J=product_J,
        grade_J=grade_J,
        complete=complete,
    )


def vector_row(folder: Path, *, noise: float = 0.0, leave_out: int = 0) -> VectorRow:
    """One axis for each noun. The tables are in another order than the shop."""
    generator = np.random.default_rng(1)
    vectors_ND = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    vectors_ND += noise * generator.normal(size=vectors_ND.shape).astype(np.float32)
    order = generator.permutation(20)[leave_out:]
    products = EmbeddingTable.write(
        folder / "products",
        ids=PRODUCT_IDS.take(pa.array(order)),
        vectors_ND=vectors_ND[order],
        encoder_id="axes",
        kind="product",
        normalised=False,
    )
    queries = EmbeddingTable.write(
        folder / "queries",
        ids=pa.array(NOUNS[::-1]),
        vectors_ND=np.eye(4, dtype=np.float32)[::-1],
        encoder_id="axes",
        kind="query",
        normalised=True,
    )
    return VectorRow(products, queries)


@pytest.fixture
def rows(tmp_path: Path) -> dict:
    return {
        "random": RandomRow(),
        "bm25": LexicalRow(PRODUCT_IDS, TITLES, bm25_scores),
        "noisy_axes": vector_row(tmp_path / "noisy", noise=1.5),
        "dashclip": vector_row(tmp_path / "exact"),
    }


def means(estimates: dict) -> list[float]:
    return [estimates[metric_key(metric, K)].mean for metric in METRICS]


def test_rows_that_know_the_answer_reach_the_best_possible(rows):
    found = evaluate_rows(rows, shop(), **MEASURE)
    assert (found.queries, found.products) == (4, 20)
    for name in ("bm25", "dashclip"):
        assert means(found.rows[name]) == list(found.best_possible.values()) == [1, 3 / 5, 1, 1, 1]
    for name in ("random", "noisy_axes"):
        assert all(
            mean < best for mean, best in zip(means(found.rows[name])[:4], [1, 0.6, 1, 1], strict=True)
        )


def test_each_number_is_the_bootstrap_of_the_row_alone(rows):
    table = evaluate_rows(rows, shop(), seed=4, **MEASURE)
    ranked = rows["random"].ranking(shop(), K)
    expected = bootstrap(retrieval_metrics(ranked, shop(), K), n=60, seed=4)
    assert table.rows["random"] == {
        metric_key(metric, K): Interval(found.mean, found.low, found.high)
        for metric, found in expected.items()
    }


def test_differences_are_the_candidate_minus_the_others(rows):
    found = evaluate_rows(rows, shop(), **MEASURE)
    assert set(found.differences) == {"random", "bm25", "noisy_axes"}
    for name, estimates in found.differences.items():
        for metric in (metric_key(metric, K) for metric in METRICS):
            expected = found.rows["dashclip"][metric].mean - found.rows[name][metric].mean
            assert estimates[metric].mean == pytest.approx(expected)
    assert evaluate_rows(rows, shop(), candidate="stage1", **MEASURE).differences == {}


def test_rows_are_found_by_id_whatever_the_order_of_products(rows):
    judgements = shop()
    order = np.random.default_rng(3).permutation(20)
    place = np.argsort(order)
    shuffled = Judgements.from_pairs(
        queries=judgements.queries,
        products=PRODUCT_IDS.take(pa.array(order)),
        query_J=judgements.query_J,
        product_J=place[judgements.product_J],
        grade_J=judgements.grade_J,
        complete=True,
    )
    for name in ("noisy_axes", "bm25"):
        one, other = rows[name].ranking(judgements, 5), rows[name].ranking(shuffled, 5)
        grades = [j.grades_of(r).tolist() for j, r in ((judgements, one), (shuffled, other))]
        assert grades[0] == grades[1]


def test_a_slice_of_queries_has_the_numbers_of_those_queries_alone(rows):
    mask_Q = np.array([True, False, False, True])
    masks = {"soap and milk": mask_Q, "nothing": np.zeros(4, bool)}
    table = evaluate_rows(rows, shop(), query_slices=masks, **MEASURE)
    assert list(table.slices) == ["soap and milk"]
    alone = evaluate_rows(
        {name: rows[name] for name in ("bm25", "dashclip")}, shop().select_queries(mask_Q), **MEASURE
    )
    for name in ("bm25", "dashclip"):
        assert table.slices["soap and milk"].rows[name] == alone.rows[name]


def test_a_slice_of_products_lets_only_these_compete(rows):
    mask_P = np.arange(20) % 5 == 0  # one product of each noun
    found = evaluate_rows(rows, shop(), product_slices={"new": mask_P}, **MEASURE).slices["new"]
    assert (found.queries, found.products) == (4, 4)
    assert found.rows["dashclip"]["recall_at_3"].mean == 1
    assert found.rows["dashclip"]["precision_at_3"].mean == pytest.approx(1 / 3)


def test_the_judged_pool_ranks_what_was_judged(rows):
    judgements = shop(complete=False)
    found = evaluate_rows(rows, judgements, pool="judged", **(MEASURE | {"k": 7}))
    # Seven products were judged for each query, so all rows find all five that are highly relevant.
    assert {found.rows[name]["recall_at_7"].mean for name in rows} == {1.0}
    assert found.rows["dashclip"]["ndcg_at_7"].mean > found.rows["random"]["ndcg_at_7"].mean
    assert found.rows["bm25"]["mrr"].mean == 1


def test_what_a_row_does_not_know_is_counted(tmp_path):
    row = vector_row(tmp_path, leave_out=3)
    judgements = shop().select_queries(np.array([True, True, True, False]))
    table = evaluate_rows(
        {"x": row, "bm25": LexicalRow(PRODUCT_IDS, [None, *TITLES[1:]], bm25_scores)}, judgements, **MEASURE
    )
    assert table.missing == {"x": Missing(products=3, queries=0), "bm25": Missing(products=1, queries=0)}
    assert "- x knows nothing of 3 products and 0 queries." in to_markdown(table)


def test_random_is_as_good_as_chance_and_differs_by_seed():
    judgements = Judgements.from_pairs(
        queries=pa.array([str(query) for query in range(2000)]),
        products=pa.array(np.arange(50)),
        query_J=np.repeat(np.arange(2000), 5),
        product_J=np.tile(np.arange(5), 2000),
        grade_J=np.full(10_000, 2),
        complete=True,
    )
    found = retrieval_metrics(RandomRow(0).ranking(judgements, 10), judgements, 10)
    assert found["precision"].mean() == pytest.approx(0.1, abs=0.01)
    assert found["recall"].mean() == pytest.approx(0.2, abs=0.02)
    one, same, other = (RandomRow(seed).ranking(judgements, 10) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert all(len(set(row)) == 10 for row in one.tolist())


def test_bm25_takes_its_word_statistics_from_all_titles(rows):
    everything = rows["bm25"].ranking(shop(), 20)
    expected = [top_rows(scores, 20) for scores in bm25_scores(TITLES, NOUNS)]
    np.testing.assert_array_equal(everything, expected)
    few = shop().select_products(np.arange(20) >= 15)
    assert rows["bm25"].ranking(few, 2).tolist() == [[0, 1]] * 4


def test_the_json_has_the_promised_names_and_no_nan(rows, tmp_path):
    nothing_to_find = {"none wanted": np.arange(20) == 19}
    table = evaluate_rows(rows, shop(), product_slices=nothing_to_find, **MEASURE)
    table.write(tmp_path / "table1.json")
    content = json.loads((tmp_path / "table1.json").read_text())
    assert Table1.model_validate(content) == table
    assert (content["queries"], content["k"], content["simulated"]) == (4, 3, True)
    assert list(content["rows"]) == list(rows)
    names = ("graded_rel", "recall_at_3", "precision_at_3", "ndcg_at_3", "mrr")
    expected = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    for row in (*content["rows"].values(), *content["differences"].values()):
        assert list(row) == expected
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in names)
    part = content["slices"]["none wanted"]
    assert part["queries_with_value"] == dict(zip(names, [4, 1, 4, 1, 1], strict=True))
    assert part["rows"]["dashclip"]["recall_at_3_low"] is None


def test_markdown_and_terminal_show_every_row_and_say_what_is_simulated(rows):
    masks = {"odd | even": np.array([True, False, True, False])}
    table = evaluate_rows(rows, shop(), query_slices=masks, **MEASURE)
    text = to_markdown(table)
    assert "**SIMULATED data (generated, not real users).** A shop." in text
    assert "| DashCLIP | 1.000 (1.000 … 1.000) | 0.600 (0.600 … 0.600) |" in text
    assert "| Row | Graded Rel | Recall@3 | Precision@3 | nDCG@3 | MRR@3 |" in text
    assert "## DashCLIP minus each other row" in text
    assert "2 queries, 20 products" in text
    assert "| DashCLIP | 0.667 | 0.743 | 0.515 |" in text, "the paper's row"
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5, 7}
    console = Console(width=100, record=True, file=StringIO())
    console.print(console_table(table))
    shown = console.export_text()
    for title in ("Random", "BM25", "noisy axes", "DashCLIP", "best possible", "SIMULATED", "…"):
        assert title in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 100


@pytest.mark.parametrize("width", [80, 100, 160])
def test_names_of_rows_stay_whole_on_a_narrow_terminal(rows, width):
    names = {"noisy_axes": "off_the_shelf_clip_text", "dashclip": "dashclip"}
    renamed = {names.get(name, name): row for name, row in rows.items()}
    console = Console(width=width, record=True, file=StringIO())
    console.print(console_table(evaluate_rows(renamed, shop(), **MEASURE)))
    shown = console.export_text()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    for text in ("off the shelf clip text", "DashCLIP", "best possible", "Graded Rel", "Precision", "MRR"):
        assert text in shown
    row = shown[shown.index("DashCLIP") :].splitlines()[0].split()
    assert len(row) == 1 + 5, "every metric is there"


def test_progress_ends_with_all_rows_done(rows):
    seen = []
    evaluate_rows(rows, shop(), progress=lambda *step: seen.append(step), **MEASURE)
    assert seen[0] == ("rank with random", 0, 4)
    assert seen[-1] == ("done", 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "judged"}, "use the pool 'catalogue'"),
        ({"pool": "all"}, "pool must be one of catalogue, judged, got 'all'"),
        ({"query_slices": {"all": np.ones(4, bool)}}, "none of them 'all'"),
        (
            {"query_slices": {"x": np.ones(4, bool)}, "product_slices": {"x": np.ones(20, bool)}},
            "slices must have different names",
        ),
        ({"query_slices": {"x": np.ones(5, bool)}}, "boolean mask over the 4 queries, got bool of shape"),
        ({"product_slices": {"x": np.arange(20)}}, "boolean mask over the 20 products, got int64"),
    ],
)
def test_what_cannot_be_measured_is_refused(rows, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_rows(rows, shop(), **(MEASURE | change))


def test_no_queries_at_all_are_refused(rows):
    with pytest.raises(ValueError, match="at least one query"):
        evaluate_rows(rows, shop().select_queries(np.zeros(4, bool)), **MEASURE)


def test_tables_that_do_not_belong_together_are_refused(tmp_path):
    row = vector_row(tmp_path)
    with pytest.raises(ValueError, match="a product table and a query table of one width"):
        VectorRow(row.queries, row.products)


def test_a_product_without_a_title_entry_is_named():
    with pytest.raises(ValueError, match="1 are not among their products, 900 for one"):
        LexicalRow(PRODUCT_IDS[1:], TITLES[1:], bm25_scores).ranking(shop(), K)


@pytest.mark.parametrize("complete", [True, False])
def test_fusion_adds_reciprocal_places(tmp_path, complete):
    parts = (
        vector_row(tmp_path, noise=1.5),
        LexicalRow(PRODUCT_IDS, TITLES, char_tfidf_scores),
    )
    judgements, fusion = shop(complete=complete), FusionRow(parts)
    if complete:
        whole = [part.ranking(judgements, 20).tolist() for part in parts]
        for query, fused in enumerate(fusion.ranking(judgements, 20).tolist()):
            score = [
                sum(1 / (61 + ranked[query].index(product)) for ranked in whole) for product in range(20)
            ]
            assert fused == sorted(range(20), key=lambda product: (-round(score[product], 12), product))
        return
    fused_J = fusion.pair_scores(judgements)
    for query in range(4):
        pairs = slice(judgements.start_Q[query], judgements.start_Q[query + 1])
        expected = np.zeros(pairs.stop - pairs.start)
        for part in parts:
            score = part.pair_scores(judgements)[pairs].tolist()
            order = sorted(range(len(score)), key=lambda pair: (-score[pair], pair))
            expected += [1 / (61 + order.index(pair)) for pair in range(len(score))]
        np.testing.assert_allclose(fused_J[pairs], expected)


def test_fusion_knows_what_any_of_its_rows_knows():
    known = LexicalRow(PRODUCT_IDS, TITLES, bm25_scores)
    blank = LexicalRow(PRODUCT_IDS, [None] * 20, bm25_scores)
    assert FusionRow((blank, known)).missing(shop()) == Missing(products=0, queries=0)
    assert FusionRow((blank, blank)).missing(shop()) == Missing(products=20, queries=0)


def test_lexical_rows_are_bm25_its_tuned_stems_ngrams_and_their_fusion():
    rows = lexical_rows(PRODUCT_IDS, TITLES, shop(), pool="catalogue", k=K)
    assert list(rows) == ["bm25", "bm25_stemmed", "char_tfidf", "fusion"]
    assert rows["fusion"].rows == (rows["bm25_stemmed"], rows["char_tfidf"])
    assert rows["bm25_stemmed"].scorer.keywords["language"] == "english"
    untuned = lexical_rows(
        PRODUCT_IDS, TITLES, shop().select_queries(np.zeros(4, bool)), pool="catalogue", k=K
    )
    assert untuned["bm25_stemmed"].scorer.keywords == {"language": "english"}


def test_bm25_is_tuned_on_the_judgements_given():
    titles = ["milk milk oat rye tea bread soap dish green one two", "milk", *TITLES[2:]]
    for good in (0, 1):
        judgements = Judgements.from_pairs(
            queries=pa.array(["milk"]),
            products=PRODUCT_IDS,
            query_J=[0],
            product_J=[good],
            grade_J=[2],
            complete=True,
        )
        rows = lexical_rows(PRODUCT_IDS, titles, judgements, pool="catalogue", k=1)
        assert rows["bm25_stemmed"].ranking(judgements, 1).tolist() == [[good]]
