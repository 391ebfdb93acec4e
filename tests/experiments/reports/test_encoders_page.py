"""The evidence page of a folder that holds encoders and no sweep."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.encoders.table1 import evaluate_rows
from experiments.encoders.title_to_image import TITLE
from experiments.reports.evidence import gather_encoders
from experiments.reports.page import Absent, Section
from experiments.reports.sections.training import training_section
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
    training, _, titles, _ = gather_encoders(folder)
    assert isinstance(training, Absent)
    assert "training.json cannot be shown" in training.reason
    assert isinstance(titles, Section)


def test_a_folder_with_neither_sweep_nor_encoders_says_what_either_would_have(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a sweep \(sweep.json.*\(training.json"):
        gather_encoders(tmp_path)
