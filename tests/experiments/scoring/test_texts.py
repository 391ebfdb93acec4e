"""Scored pairs and searches equal the vectors that the encoder and the tables have."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.run_folder import InputConfig
from embeddings.tables.lsa import embed_lsa
from experiments.cli import app
from experiments.encoders.pipeline import encode_tables
from experiments.scoring.texts import Hit, ProductSearch, VectorSource, hits_text, score_pairs
from tests.embeddings.small_catalog import FIRST_ID, title_of, write_small_catalog
from tests.embeddings.tables.small_tables import save_encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_small_catalog(tmp_path_factory.mktemp("small") / "data", without_image=[5])
    path = folder / "products.parquet"
    products = pq.read_table(path)
    prices = pa.array([None, *np.linspace(1, 24, len(products) - 1)])
    pq.write_table(products.append_column("price", prices), path)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "aligned", seed=0)


@pytest.fixture(scope="module")
def tables(data, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    encode_tables(data, folder, DashClipEncoder.load(encoder), inputs=InputConfig())
    return folder


PAIRS = pa.table(
    {
        "query": ["red circle", "blue square", None, "red circle", "green"],
        "product_id": [FIRST_ID + 3, FIRST_ID, FIRST_ID, 999_999, FIRST_ID + 5],
    }
)


def test_ids_of_another_type_are_read_as_those_of_the_data_or_refused(data, encoder, tables):
    texts = PAIRS.set_column(1, "product_id", PAIRS["product_id"].cast(pa.string()))
    words = PAIRS.set_column(1, "product_id", pa.array(["sku-1"] * len(PAIRS)))
    for source, folder in (
        (VectorSource.open(encoder, None), data),
        (VectorSource.open(encoder, tables), None),
    ):
        expected = score_pairs(PAIRS, source, data=folder)
        assert np.array_equal(score_pairs(texts, source, data=folder), expected, equal_nan=True)
        with pytest.raises(ValueError, match="product_id is string here, but must be int64"):
            score_pairs(words, source, data=folder)


def test_an_encoder_and_the_tables_that_it_made_give_the_same_cosines(data, encoder, tables):
    asked = VectorSource.open(encoder, tables)
    computed = score_pairs(PAIRS, VectorSource.open(encoder, None), data=data)
    looked_up = score_pairs(PAIRS, asked)
    assert np.isnan(computed).tolist() == [False, False, True, True, False], "no query, no such product"
    assert np.allclose(computed, looked_up, atol=2e-3, equal_nan=True), "tables are float16"
    vectors = DashClipEncoder.load(encoder)
    query = vectors.embed_queries(["red circle"]).numpy()[0]
    row = int(asked.products.rows_of(pa.array([FIRST_ID + 3]))[0])
    by_hand = float(query @ asked.products.vectors_ND[row])
    assert looked_up[0] == pytest.approx(by_hand, abs=2e-3)


def test_a_text_is_scored_as_a_product_without_an_image_would_be(data, encoder):
    pairs = pa.table({"query": ["green"], "text": [title_of(5)]})
    of_text = score_pairs(pairs, VectorSource.open(encoder, None))
    product = pa.table({"query": ["green"], "product_id": [FIRST_ID + 5]})
    assert of_text == pytest.approx(
        score_pairs(product, VectorSource.open(encoder, None), data=data), abs=1e-6
    )


def test_what_is_missing_is_said(data, encoder, tables, tmp_path):
    embed_lsa(data, tmp_path / "lsa", dim=8)
    lsa = VectorSource.open(None, tmp_path / "lsa")
    with pytest.raises(ValueError, match="give --encoders RUN, or product_id"):
        score_pairs(pa.table({"query": ["green"], "text": ["x"]}), lsa)
    with pytest.raises(ValueError, match="give --data FOLDER"):
        score_pairs(PAIRS, VectorSource.open(encoder, None))
    with pytest.raises(ValueError, match="say what makes the vectors"):
        VectorSource.open(None, None)
    with pytest.raises(ValueError, match="holds no encoder"):
        VectorSource.open(tmp_path, None)
    with pytest.raises(ValueError, match=r"no vector of the query .no such query.*Give --encoders"):
        ProductSearch(data, lsa).find("no such query", 3)
    with pytest.raises(ValueError, match="not of one encoder"):
        score_pairs(PAIRS, _mixed(encoder, lsa))


def _mixed(encoder, lsa):
    return VectorSource(DashClipEncoder.load(encoder), lsa.products, None)


def test_a_search_ranks_as_the_cosines_do(data, encoder, tables):
    hits = ProductSearch(data, VectorSource.open(encoder, tables)).find("red circle", 24)
    ids = pa.array([hit.product_id for hit in hits])
    pairs = pa.table({"query": ["red circle"] * len(ids), "product_id": ids})
    cosine_N = score_pairs(pairs, VectorSource.open(encoder, tables))
    assert np.all(np.diff(cosine_N) <= 1e-6)
    assert [hit.score for hit in hits] == pytest.approx(cosine_N.tolist(), abs=1e-6)
    assert {hit.product_id: hit.title for hit in hits}[FIRST_ID + 3] == title_of(3)


def test_without_vectors_the_words_decide(data):
    hits = ProductSearch(data, None).find(title_of(7), 3)
    assert (hits[0].product_id, hits[0].title) == (FIRST_ID + 7, title_of(7))
    assert len(hits) == 3


def test_hits_fit_a_terminal_and_survive_in_log_files(data, encoder):
    long = hits_text([Hit(1, "title " * 40, 2.5, 0.5), Hit(2, "short\n[red]title[/red]", None, -0.25)])
    heading, first, second = long.splitlines()
    assert len(first) == 80
    assert first.endswith("…")
    assert second == "    2 -0.250            short [red]title[/red]"
    assert heading.index("title") == second.index("short")
    done = CliRunner().invoke(
        app, ["search", str(data), "red circle", "--encoders", str(encoder), "--k", "5"]
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["1", "2", "3", "4", "5"]
    assert max(map(len, lines[-6:])) <= 80


def test_pairs_are_scored_from_csv_to_csv(data, tables, tmp_path):
    csv.write_csv(PAIRS, tmp_path / "pairs.csv")
    words = [
        "encode",
        "score",
        str(tmp_path / "pairs.csv"),
        str(tmp_path / "out.tsv"),
        "--table",
        str(tables),
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "5 pairs" in done.output
    got = csv.read_csv(tmp_path / "out.tsv", parse_options=csv.ParseOptions(delimiter="\t"))
    assert got["query"].to_pylist() == ["red circle", "blue square", "", "red circle", "green"]
    bad = CliRunner().invoke(app, [*words[:2], str(tmp_path / "pairs.json"), *words[3:]])
    assert "must end in .parquet, .csv or .tsv" in str(bad.exception)
