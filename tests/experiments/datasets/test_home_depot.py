"""Home Depot: published files become tables, and vectors are measured on queries never trained on."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embeddings.catalog.holdout import HoldoutConfig, query_roles
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.lexical import char_tfidf_scores, token_overlap
from experiments.cli import app
from experiments.datasets.encoder_runs import write_results
from experiments.datasets.home_depot import COLUMNS, derive_aisles, grade_of, import_home_depot
from experiments.datasets.home_depot_relevance import (
    OVERLAP,
    HomeDepotResults,
    Vectors,
    evaluate_home_depot,
    to_markdown,
)
from experiments.encoders.pair_measures import PairTest
from features.inputs.tables import InputError
from features.inputs.validation import validate
from ranking.metrics import roc_auc

#: id, product_uid, product_title, search_term, relevance
ROWS = [
    (3, 100002, "BEHR Premium DeckOver 1-gal. Wood Coating", "deck over", "3.0"),
    (2, 100001, 'Simpson "Strong-Tie" 12-Gauge Angle, Zinc', "l bracket", "2.5"),
    (9, 100002, "BEHR Premium DeckOver 1 gal.", "paint", "2.33"),
    (16, 100005, "Delta Vero 1-Handle Shower Faucet", "deck over", "1.67"),
    (17, 100005, "Delta Vero 1-Handle Shower Faucet", "faucet °", "1.75"),
]


def published(folder, rows=ROWS, *, name="relevance.csv", columns=("id", *COLUMNS), encoding="utf-8"):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    content = text.getvalue().encode(encoding)
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_grades_are_cut_at_the_two_limits():
    assert [grade_of(mean) for mean in (1, 1.67, 1.75, 2.33, 2.5, 3)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("relevance.csv.gz", "utf-8"),
        ("relevance.csv", "utf-8"),
        ("train.csv", "latin-1"),
        ("train.csv.gz", "latin-1"),
    ],
)
def test_every_published_layout_gives_the_same_tables(tmp_path, name, encoding):
    source = published(tmp_path / "source", name=name, encoding=encoding)
    summary = import_home_depot(source.parent, tmp_path / "out")
    relevance = pq.read_table(tmp_path / "out" / "relevance.parquet").to_pylist()
    products = pq.read_table(tmp_path / "out" / "products.parquet").to_pylist()
    assert [(row["query"], row["product_id"], row["grade"]) for row in relevance] == [
        ("deck over", 100002, 2),
        ("l bracket", 100001, 2),
        ("paint", 100002, 1),
        ("deck over", 100005, 0),
        ("faucet °", 100005, 1),
    ]
    assert {row["source"] for row in relevance} == {"human"}
    assert [(row["product_id"], row["title"]) for row in products] == [
        (100001, 'Simpson "Strong-Tie" 12-Gauge Angle, Zinc'),
        (100002, "BEHR Premium DeckOver 1-gal. Wood Coating"),
        (100005, "Delta Vero 1-Handle Shower Faucet"),
    ]
    assert (summary.queries, summary.products, summary.pairs) == (4, 3, 5)
    assert (summary.irrelevant, summary.moderate, summary.high, summary.several_titles) == (1, 2, 2, 1)


def test_the_file_itself_may_be_given(tmp_path):
    assert import_home_depot(published(tmp_path / "source"), tmp_path / "out").pairs == len(ROWS)


def test_the_import_says_what_the_data_set_lacks_and_that_aisles_are_derived(tmp_path):
    import_home_depot(published(tmp_path / "source"), tmp_path / "out")
    description = json.loads((tmp_path / "out" / "source.json").read_text())
    assert description["absent"] == ["images", "impressions", "purchases"]
    assert "not in the data set" in description["aisle"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "products.parquet",
        "relevance.parquet",
        "source.json",
    ]


def test_the_import_is_valid_without_logs(tmp_path):
    import_home_depot(published(tmp_path / "source"), tmp_path / "out")
    report = validate(tmp_path / "out")
    assert not report.failures
    assert {name: finding.quarantined for name, finding in report.tables.items()} == {
        "products": 0,
        "relevance": 0,
    }
    assert any("no impressions table" in absence for absence in report.absences)


def test_a_repeated_pair_is_counted_and_keeps_its_first_grade(tmp_path):
    rows = [*ROWS, (99, 100002, ROWS[0][2], "deck over", "1.0")]
    summary = import_home_depot(published(tmp_path / "source", rows), tmp_path / "out")
    first = pq.read_table(tmp_path / "out" / "relevance.parquet").to_pylist()[0]
    assert (summary.repeated_pairs, summary.pairs, first["grade"]) == (1, len(ROWS), 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((1, "x1", "title", "query", "2.0"), "line 7: product_uid must be a whole number, not 'x1'"),
        ((1, 5, "title", "query", "3.5"), "line 7: relevance must be a mean grade from 1 to 3, not '3.5'"),
        ((1, 5, "title", "query", "nan"), "line 7: relevance must be a mean grade from 1 to 3, not 'nan'"),
        ((1, 5, "title", " ", "2.0"), "line 7: the search term is empty"),
        ((1, 5, "title"), "line 7: the search term is empty"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_written(tmp_path, row, said):
    source = published(tmp_path / "source", [*ROWS, row])
    with pytest.raises(InputError, match=said):
        import_home_depot(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_column_file_or_half_a_download_is_named(tmp_path):
    with pytest.raises(InputError, match=r"neither relevance\.csv"):
        import_home_depot(tmp_path, tmp_path / "out")
    source = published(tmp_path / "columns", [], columns=("id", "product_uid", "search_term", "relevance"))
    with pytest.raises(InputError, match="product_title is not in it"):
        import_home_depot(source, tmp_path / "out")
    half = published(tmp_path / "half", name="relevance.csv.gz")
    half.write_bytes(half.read_bytes()[:-12])
    with pytest.raises(InputError, match="cannot be read to its end"):
        import_home_depot(half, tmp_path / "out")
    with pytest.raises(InputError, match="holds no graded pair"):
        import_home_depot(published(tmp_path / "empty", []), tmp_path / "out")


def test_only_an_older_import_is_replaced(tmp_path):
    source = published(tmp_path / "source")
    import_home_depot(source, tmp_path / "out")
    import_home_depot(source, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="another kind"):
        import_home_depot(source, tmp_path / "mine")
    with pytest.raises(ValueError, match="would replace the input"):
        import_home_depot(source, tmp_path / "source")


def test_aisles_put_titles_of_one_kind_together_and_are_named_by_their_words():
    kinds = {"faucet": "chrome kitchen faucet", "hammer": "steel claw hammer", "rug": "woven area rug"}
    titles = [f"{kind} {number}" for kind in kinds.values() for number in range(40)]
    aisles = derive_aisles(titles)
    by_kind = {
        kind: {aisle for title, aisle in zip(titles, aisles, strict=True) if kind in title} for kind in kinds
    }
    assert all(kind in aisle for kind, found in by_kind.items() for aisle in found)
    assert aisles == derive_aisles(titles)


def test_the_command_prints_a_summary(tmp_path):
    published(tmp_path / "source")
    arguments = ["import", "home-depot", str(tmp_path / "source"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "graded pairs" in result.output
    assert "no images, impressions or purchases" in result.output


def test_overlap_counts_the_query_words_that_the_title_contains():
    assert token_overlap("deck over", "BEHR DeckOver Coating") == 1
    assert token_overlap("Deck paint", "BEHR DeckOver Coating") == 0.5
    assert token_overlap("  ", "BEHR") == 0


# ---- the evaluation

QUERIES = [f"query {number}" for number in range(120)]
HOLDOUT = HoldoutConfig(test_query_share=0.3, validation_query_share=0.2)


def graded(folder, generator):
    """Every query grades six products, two of each grade; the title of a high product names its query."""
    folder.mkdir()
    products, pairs = [], []
    for number, query in enumerate(QUERIES):
        for place in range(6):
            product, grade = number * 6 + place, place // 2
            title = f"thing {query}" if grade == 2 else f"thing {product}"
            products.append({"product_id": product, "title": title, "aisle": "a"})
            pairs.append({"query": query, "product_id": product, "grade": grade, "source": "human"})
    pq.write_table(pa.Table.from_pylist(products), folder / "products.parquet")
    shuffled = [pairs[row] for row in generator.permutation(len(pairs)).tolist()]
    pq.write_table(pa.Table.from_pylist(shuffled), folder / "relevance.parquet")
    return folder


def tables(folder, generator, *, noise, dim=8):
    """Vectors whose cosine rises with the grade, but for noise."""
    query_QD = generator.normal(size=(len(QUERIES), dim))
    grade_P = np.arange(6 * len(QUERIES)) % 6 // 2
    product_PD = query_QD.repeat(6, axis=0) * (grade_P - 1)[:, None] + noise * generator.normal(
        size=(len(grade_P), dim)
    )
    return Vectors(
        EmbeddingTable.write(
            folder / "products",
            ids=pa.array(range(len(grade_P)), pa.int64()),
            vectors_ND=product_PD.astype(np.float32),
            encoder_id=f"noise {noise}",
            kind="product",
            normalised=False,
        ),
        EmbeddingTable.write(
            folder / "queries",
            ids=pa.array(QUERIES),
            vectors_ND=query_QD.astype(np.float32),
            encoder_id=f"noise {noise}",
            kind="query",
            normalised=False,
        ),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("depot"), np.random.default_rng(0)
    data = graded(folder / "tables", generator)
    vectors = {
        "noisy": tables(folder / "noisy", generator, noise=8.0),
        "clear": tables(folder / "clear", generator, noise=0.2),
    }
    return data, vectors, evaluate_home_depot(data, vectors, holdout=HOLDOUT, resamples=100)


def test_vectors_that_follow_the_grade_beat_noisy_ones_outside_the_interval(measured):
    results = measured[2]
    assert results.auc_high_vs_irrelevant["clear"].mean > 0.999
    assert results.macro_f1["clear"].mean > 0.8
    assert results.auc_differences["clear - noisy"].low > 0
    assert results.macro_f1_differences["clear - noisy"].low > 0
    assert results.macro_f1_of_cutoffs["clear"].mean > 0.9
    assert results.macro_f1_of_cutoffs_differences["clear - noisy"].low > 0
    assert results.macro_f1_of_cutoffs.keys() == results.macro_f1.keys()
    for figures in (
        results.auc_high_vs_irrelevant,
        results.macro_f1,
        results.macro_f1_of_the_score,
        results.macro_f1_of_cutoffs,
    ):
        for interval in figures.values():
            assert interval.low <= interval.mean <= interval.high


def test_only_pairs_of_test_queries_count(measured):
    data, vectors, results = measured
    roles = query_roles(QUERIES, HOLDOUT)
    assert results.queries == {
        name: int((roles == role).sum()) for role, name in enumerate(("train", "validation", "test"))
    }
    assert results.test_pairs == dict.fromkeys(
        ("irrelevant", "moderate", "high"), 2 * results.queries["test"]
    )
    pairs = PairTest.read(data, HOLDOUT).graded
    product_ND = vectors["noisy"].products.vectors_ND[1:][pairs.pairs.product_ids.to_numpy()]
    query_ND = vectors["noisy"].queries.vectors_ND[1:][
        [QUERIES.index(query) for query in pairs.pairs.queries]
    ]
    norms_N = np.linalg.norm(product_ND, axis=1) * np.linalg.norm(query_ND, axis=1)
    cosine_N = (product_ND * query_ND).sum(axis=1) / norms_N
    kept_N = (pairs.role_N == 2) & (pairs.grade_N != 1)
    expected = roc_auc(pairs.grade_N[kept_N] == 2, cosine_N[kept_N])
    assert results.auc_high_vs_irrelevant["noisy"].mean == pytest.approx(expected, abs=1e-4)


def test_the_overlap_of_titles_that_name_their_query_is_perfect(measured):
    results = measured[2]
    assert results.auc_high_vs_irrelevant[OVERLAP].mean > 0.9
    assert results.products_seen_in_training == 0
    assert results.pairs_without_vector[OVERLAP] == 0


def test_lexical_rows_score_test_pairs_as_their_scorer_does(measured):
    data, _, results = measured
    test = PairTest.read(data, HOLDOUT)
    pairs = test.graded
    kept_N = (pairs.role_N == 2) & (pairs.grade_N != 1)
    score_QP = np.stack(list(char_tfidf_scores(test.catalogue.texts, QUERIES)))
    asked_N = np.array([QUERIES.index(query) for query in pairs.pairs.queries])
    score_N = score_QP[asked_N, test.product_N]
    expected = roc_auc(pairs.grade_N[kept_N] == 2, score_N[kept_N])
    assert results.auc_high_vs_irrelevant["char_tfidf"].mean == pytest.approx(expected, abs=1e-6)
    assert list(results.encoders)[:3] == [OVERLAP, "bm25_stemmed", "char_tfidf"]
    assert "stemmed words, k1" in results.encoders["bm25_stemmed"]


def test_two_equal_encoders_differ_by_exactly_nothing(measured):
    data, vectors, _ = measured
    twins = {"one": vectors["noisy"], "two": vectors["noisy"]}
    results = evaluate_home_depot(data, twins, holdout=HOLDOUT, resamples=20)
    for differences in (results.auc_differences, results.macro_f1_differences):
        assert (differences["two - one"].mean, differences["two - one"].low) == (0, 0)


def test_pairs_without_a_vector_are_counted_and_score_zero(measured, tmp_path):
    data, vectors, _ = measured
    queries = vectors["clear"].queries
    roles = query_roles(QUERIES, HOLDOUT)
    kept = np.flatnonzero(roles != 2)
    fewer = EmbeddingTable.write(
        tmp_path / "queries",
        ids=queries.ids.take(pa.array(kept)),
        vectors_ND=np.asarray(queries.vectors_ND[1:][kept]),
        encoder_id="fewer",
        kind="query",
        normalised=False,
    )
    results = evaluate_home_depot(
        data, {"fewer": Vectors(vectors["clear"].products, fewer)}, holdout=HOLDOUT, resamples=20
    )
    assert results.pairs_without_vector["fewer"] == 6 * int((roles == 2).sum())
    assert results.auc_high_vs_irrelevant["fewer"].mean == 0.5


def test_results_are_written_for_machines_and_people(measured, tmp_path):
    write_results(tmp_path, measured[2], to_markdown(measured[2]), command="as typed")
    content = json.loads((tmp_path / "results.json").read_text())
    assert HomeDepotResults.model_validate({**content, "provenance": None}) == measured[2]
    for name in (OVERLAP, "noisy", "clear"):
        for metric in ("auc_high_vs_irrelevant", "macro_f1"):
            low, mean, high = (content[metric][name + end] for end in ("_low", "", "_high"))
            assert low <= mean <= high
    page = (tmp_path / "results.md").read_text()
    assert "| clear |" in page
    assert "| clear - noisy |" in page


def test_grades_without_both_classes_are_refused_and_those_of_unknown_products_left_out(tmp_path):
    data = graded(tmp_path / "tables", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"test queries of .* must have pairs graded high and irrelevant"):
        evaluate_home_depot(data, {}, holdout=HoldoutConfig(test_query_share=0))
    relevance = pq.read_table(data / "relevance.parquet")
    stranger = pa.table(
        {**{name: relevance[name][:1] for name in relevance.column_names}, "product_id": pa.array([-7])}
    )
    pq.write_table(pa.concat_tables([relevance, stranger]), data / "relevance.parquet")
    assert len(PairTest.read(data, HOLDOUT).graded) == len(relevance)


def test_a_grader_of_pairs_that_people_graded_changes_no_figure(measured, tmp_path):
    data, vectors, before = measured
    relevance = pq.read_table(data / "relevance.parquet")
    said = relevance.set_column(2, "grade", pa.array(2 - relevance["grade"].to_numpy()))
    said = said.set_column(3, "source", pa.array(["model_05"] * len(said)))
    (tmp_path / "more").mkdir()
    pq.write_table(pq.read_table(data / "products.parquet"), tmp_path / "more" / "products.parquet")
    pq.write_table(pa.concat_tables([said, relevance]), tmp_path / "more" / "relevance.parquet")
    after = evaluate_home_depot(tmp_path / "more", vectors, holdout=HOLDOUT, resamples=100)
    assert after == before


@given(st.lists(st.sampled_from("abc"), max_size=6), st.text(alphabet="abc ", max_size=12))
def test_overlap_is_a_share_and_does_not_depend_on_case_or_order(words, title):
    share = token_overlap(" ".join(words), title)
    assert 0 <= share <= 1
    assert share == token_overlap(" ".join(reversed(words)).upper(), title.upper())
