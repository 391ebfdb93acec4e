"""`dashclip embed` from the command line: what it prints, and how it fails."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from embeddings.embedding_table import EmbeddingTable
from experiments.commands.encoders import embed

APP = typer.Typer()
APP.add_typer(embed.embed, name="embed")
APP.callback()(lambda: None)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(APP, ["embed", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    products = {"product_id": [1, 2, 3], "title": ["red tea", "green tea", None], "brand": ["a", "b", "c"]}
    pq.write_table(pa.table(products), folder / "products.parquet")
    pq.write_table(pa.table({"query": ["tea", None], "product_id": [1, 9]}), folder / "impressions.parquet")
    return folder


def test_lsa_then_show_covers_the_data(data: Path, tmp_path: Path) -> None:
    printed = run("lsa", data, tmp_path / "lsa", "--dim", 4)
    assert "3 vectors" in printed
    assert "1 are zeros" in printed, "the product without a title is counted"
    shown = run("show", tmp_path / "lsa" / "products", "--data", data)
    assert "lsa-4-seed0-title" in shown
    assert "100.00%" in shown
    assert "50.00%" in shown, "product 9 of the impressions is not in the catalogue"


def test_tfidf_writes_tables_that_show_opens(data: Path, tmp_path: Path) -> None:
    printed = run("tfidf", data, tmp_path / "tfidf", "--dim", 8)
    assert "terms reduced to 8 dimensions" in printed
    assert "1 are zeros" in printed, "the product without a title is counted"
    assert "char-tfidf-8-seed0-title" in run("show", tmp_path / "tfidf" / "queries", "--data", data)


def test_lsa_says_when_there_are_no_queries(data: Path, tmp_path: Path) -> None:
    (data / "impressions.parquet").unlink()
    assert "have no query" in run("lsa", data, tmp_path / "lsa", "--dim", 4, "--columns", "title, brand")


def test_import_prints_what_it_wrote(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.full((2, 4), 2, np.float16))
    np.save(tmp_path / "ids.npy", np.array([5, 6]))
    arguments = ["--ids", tmp_path / "ids.npy", "--kind", "product", "--encoder-id", "clip"]
    printed = run("import", tmp_path / "v.npy", tmp_path / "t", *arguments)
    assert "2 of product ids (int64)" in printed
    assert "4 x float16" in printed
    assert "norms" in printed
    assert "4 least, 4 median, 4 most" in printed


def test_show_refuses_a_data_folder_without_the_ids(data: Path, tmp_path: Path) -> None:
    run("lsa", data, tmp_path / "lsa", "--dim", 4)
    (data / "impressions.parquet").unlink()
    with pytest.raises(ValueError, match="no table with query ids"):
        run("show", tmp_path / "lsa" / "queries", "--data", data)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    arguments = ["embed", "import", "v.npy", str(tmp_path), "--kind", "shop", "--encoder-id", "x"]
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == 2
    assert "must be product or query" in result.output


def test_narrow_keeps_the_first_coordinates_of_both_tables(data: Path, tmp_path: Path) -> None:
    (data / "products.parquet").unlink()
    words = [f"{colour} {kind}" for colour in ("red", "green", "black") for kind in ("tea", "mug", "pot")]
    products = {"product_id": list(range(9)), "title": words}
    pq.write_table(pa.table(products), data / "products.parquet")
    run("lsa", data, tmp_path / "lsa", "--dim", 8)
    run("narrow", tmp_path / "lsa", tmp_path / "narrow", "--dim", 4)
    for kind in ("products", "queries"):
        wide, narrow = (EmbeddingTable.load(tmp_path / name / kind) for name in ("lsa", "narrow"))
        assert (wide.dim, narrow.dim) == (8, 4)
        assert narrow.ids.equals(wide.ids)
