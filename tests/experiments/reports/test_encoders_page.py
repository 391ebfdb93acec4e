"""The evidence page of a folder that holds encoders and no sweep."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.catalog.holdout import TEST, HoldoutConfig
from embeddings.embedding_table import EmbeddingTable
from embeddings.relevance.grades import read_grades
from embeddings.tables.lsa import embed_lsa
from experiments.cli import app
from experiments.encoders.table1 import evaluate_rows
from experiments.encoders.title_to_image import TITLE
from experiments.reports.evidence import gather_encoders
from experiments.reports.inputs.page import is_data_folder
from experiments.reports.page import Absent, Section
from experiments.reports.sections.examples import GRADES, examples_section
from experiments.reports.sections.training import training_section
from tests.embeddings.small_catalog import FIRST_ID, title_of, write_small_catalog
from tests.experiments.encoders.test_table1 import MEASURE, shop, vector_row
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

CHANCE = {"contrastive_loss_at_chance": 4.16, "image_finds_title_at_chance": 0.016}


def write_training(folder: Path, stage: str, *, found: float = 0.8, loss: float = 0.5) -> None:
    best = {"loss": loss, "contrastive_loss": loss, "image_finds_title": found, "rows": 64.0, **CHANCE}
    record: dict[str, Any] = {
        "settings": {"stage": stage},
        "counts": {"training_products": 100},
        "outcome": {
            "steps": 20,
            "best_step": 20,
            "best": best,
            "history": [{"step": 10, **best, "loss": 4.0}, {"step": 20, **best}],
            "stopped_early": False,
            "rows_per_second": 9.0,
            "rows_per_cpu_second": 9.0,
        },
    }
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stages, and title-to-image retrieval; neither table 1 nor probes."""
    write_training(tmp_path / "run" / "pretrain", "pretrain")
    write_training(tmp_path / "run" / "pretrain" / "warmup" / "image", "image_warmup", found=0.017, loss=4.2)
    table = evaluate_rows({"dashclip": vector_row(tmp_path / "tables")}, shop(), title=TITLE, **MEASURE)
    table.write(tmp_path / "run" / "title_to_image.json")
    return tmp_path / "run"


def test_the_page_shows_what_there_is_and_names_the_commands_of_the_rest(folder: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(folder)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert_whole_and_self_contained(text)
    for words in ("SIMULATED", "image warm-up has learned nothing by", "0.0170", "0.0160"):
        assert words in text
    assert "Images found for a title" in text
    for command in ("encode evaluate DATA", "encode probe DATA"):
        assert command in text
        assert command in result.output
    assert str(folder / "report.html") in result.output


def test_stages_come_in_their_order_and_measures_at_chance_stand_out(folder: Path) -> None:
    section = training_section(folder)
    assert section is not None
    assert section.answer == "Not by every measure: image warm-up has one at chance."
    (grid,) = section.grids
    assert [row[0] for row in grid.rows] == [
        "image warm-up: contrastive loss",
        "image warm-up: image finds title",
        "stage 1: contrastive loss",
        "stage 1: image finds title",
    ]
    assert grid.rows[3][2:] == ("0.8000", "0.0160")
    assert {row for row, _ in grid.bold} == {0, 1}


def test_a_broken_record_is_named_and_the_other_parts_stay(folder: Path) -> None:
    (folder / "pretrain" / "training.json").write_text("{}", encoding="utf-8")
    training, _, titles, _, _ = gather_encoders(folder)
    assert isinstance(training, Absent)
    assert "training.json cannot be shown" in training.reason
    assert isinstance(titles, Section)


def test_a_folder_with_neither_sweep_nor_encoders_says_what_either_would_have(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"neither input tables.*a sweep \(sweep.json.*\(training.json"
    ):
        gather_encoders(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured shapes, all pairs of query and product graded, one picture missing."""
    return write_small_catalog(tmp_path_factory.mktemp("shapes") / "data", without_image=[5])


def with_vectors(data: Path, folder: Path) -> Path:
    embed_lsa(data, folder / "tables", dim=8)
    return folder


def test_examples_are_the_nearest_products_with_grade_and_picture(data: Path, tmp_path: Path) -> None:
    folder = with_vectors(data, tmp_path / "run")
    section = examples_section(folder, data=data, table=None)
    assert section is not None
    graded = read_grades(data)
    roles = dict(zip(graded.queries.to_pylist(), graded.query_roles(HoldoutConfig()), strict=True))
    products, queries = (EmbeddingTable.load(folder / "tables" / kind) for kind in ("products", "queries"))
    grades = pq.read_table(data / "relevance.parquet").to_pylist()
    counts = dict.fromkeys(GRADES, 0)
    assert {gallery.heading for gallery in section.galleries} <= {q for q in roles if roles[q] == TEST}
    for gallery in section.galleries:
        [row] = queries.rows_of(pa.array([gallery.heading]))
        cosine_P = products.vectors_ND[1:].astype(float) @ queries.vectors_ND[row].astype(float)
        best = np.sort(cosine_P)[::-1][: len(gallery.tiles)]
        told = [float(tile.lines[1].removeprefix("cosine ")) for tile in gallery.tiles]
        assert told == pytest.approx(best.tolist(), abs=2e-3)
        for tile in gallery.tiles:
            product = next(n for n in range(24) if title_of(n) == tile.lines[0])
            assert (tile.picture is None) == (product == 5)
            [grade] = {
                entry["grade"]
                for entry in grades
                if (entry["query"], entry["product_id"]) == (gallery.heading, FIRST_ID + product)
            }
            assert tile.lines[2] == GRADES[grade]
            counts[grade] += 1
    assert section.answer == (
        f"Of {sum(counts.values())} products shown for {len(section.galleries)} queries, {counts[2]} were "
        f"graded highly relevant, {counts[1]} moderate, {counts[0]} irrelevant and 0 never."
    )
    assert "by default (no record" in section.sentences[0], "nobody says what was held out"


def test_what_a_training_held_out_is_where_queries_are_drawn_from(data: Path, tmp_path: Path) -> None:
    folder = with_vectors(data, tmp_path / "run")
    holdout = HoldoutConfig(seed=3, test_query_share=0.4)
    write_training(folder / "align", "align")
    path = folder / "align" / "training.json"
    record = json.loads(path.read_text())
    record["settings"]["inputs"] = {"holdout": holdout.model_dump(mode="json")}
    path.write_text(json.dumps(record))
    section = examples_section(folder, data=data, table=None)
    assert section is not None
    graded = read_grades(data)
    held_out = graded.queries.filter(pa.array(graded.query_roles(holdout) == TEST)).to_pylist()
    assert {gallery.heading for gallery in section.galleries} <= set(held_out)
    assert "whose grades stage 2 never saw" in section.sentences[0]


def test_without_queries_products_find_their_likes(data: Path, tmp_path: Path) -> None:
    folder = with_vectors(data, tmp_path / "run")
    shutil.rmtree(folder / "tables" / "queries")
    section = examples_section(folder, data=data, table=None)
    assert section is not None
    assert section.question == "Which products are near each other?"
    for gallery in section.galleries:
        assert gallery.tiles[0].lines == (gallery.heading, "this product")
        assert [tile.lines[0] for tile in gallery.tiles].count(gallery.heading) == 1


def test_a_folder_of_vectors_alone_has_a_page_and_says_what_else_it_needs(data: Path, tmp_path: Path) -> None:
    folder = with_vectors(data, tmp_path / "run")
    done = CliRunner().invoke(app, ["report", str(folder)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert f"Say where the products lie. To make it: dashclip report {folder} --data DATA" in done.output
    done = CliRunner().invoke(app, ["report", str(folder), "--data", str(data)], env={"COLUMNS": "300"})
    assert "graded highly relevant" in done.output
    assert_whole_and_self_contained((folder / "report.html").read_text(encoding="utf-8"))
    assert not is_data_folder(folder / "tables"), "its products/ holds vectors"


def test_vectors_of_other_products_are_refused_by_a_sentence(data: Path, tmp_path: Path) -> None:
    folder = with_vectors(data, tmp_path / "run")
    other = write_small_catalog(tmp_path / "other", products=8)
    products = pq.read_table(other / "products.parquet")
    moved = pa.compute.add(products["product_id"], 5_000)
    pq.write_table(products.set_column(0, "product_id", moved), other / "products.parquet")
    (other / "relevance.parquet").unlink()
    found = gather_encoders(folder, data=other)[-1]
    assert isinstance(found, Absent)
    assert "no vector of any product of" in found.reason
