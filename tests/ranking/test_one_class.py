"""A run is refused before it begins where nothing could be learned or measured."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.sweeps.sweep import execute_sweep
from features.columns.clock import DAY_US
from features.offline.build import build
from ranking.run import execute_run
from tests.experiments.sweeps.small_sweeps import sweep_config
from tests.features.small_logs import CONFIG, START_US, random_tables, write_tables
from tests.ranking.small_runs import run_config


def build_with_clicks(folder: Path, *, days: tuple[int, int], clicked: int) -> None:
    """`folder`/features of 8 days (5 train, 1 validates, 2 test) where these days have one class."""
    tables = random_tables(5, impressions=600)
    shown = tables["impressions"].drop_columns(["click_timestamp"])
    day_N = (shown["timestamp"].cast(pa.int64()).to_numpy() - START_US) // DAY_US
    label_N = np.where((day_N >= days[0]) & (day_N < days[1]), clicked, shown["clicked"].to_numpy())
    place = shown.schema.get_field_index("clicked")
    tables["impressions"] = shown.set_column(place, "clicked", pa.array(label_N.astype(np.int8)))
    build(write_tables(folder / "data", tables), folder / "features", CONFIG, buckets=1, threads=1)


ONE_CLASS = pytest.mark.parametrize(
    ("days", "clicked", "sentence"),
    [
        ((6, 8), 0, r"none of the \d+ test impressions .* cannot be measured on; give the test split more"),
        ((6, 8), 1, r"all of the \d+ test impressions .* were clicked"),
        ((5, 6), 0, r"none of the \d+ validation impressions \(2023-12-14 to .* used to stop training"),
        ((5, 6), 1, r"all of the \d+ validation impressions"),
    ],
)


@ONE_CLASS
def test_a_split_of_one_class_is_refused_before_training(tmp_path, days, clicked, sentence):
    build_with_clicks(tmp_path, days=days, clicked=clicked)
    config = run_config(tmp_path).model_copy(update={"product_table": None, "query_table": None})
    with pytest.raises(ValueError, match=sentence):
        execute_run(config, tmp_path / "run", environment={})
    assert not (tmp_path / "run").exists()


@ONE_CLASS
def test_a_sweep_refuses_it_before_its_first_run(tmp_path, days, clicked, sentence):
    build_with_clicks(tmp_path, days=days, clicked=clicked)
    with pytest.raises(ValueError, match=sentence):
        execute_sweep(sweep_config(tmp_path, floor="popularity"), tmp_path / "sweep", processes=1)
    assert not (tmp_path / "sweep").exists()


def test_the_command_ends_with_the_sentence_and_the_build_has_said_it(tmp_path):
    build_with_clicks(tmp_path, days=(6, 8), clicked=0)
    shown = CliRunner().invoke(app, ["features", "show", str(tmp_path / "features")])
    assert "none of the" in shown.output
    assert "no ranker can be trained" in " ".join(shown.output.split())
    (tmp_path / "run.toml").write_text(
        f'variant = "dcn"\nseed = 1\nfeatures = "{tmp_path / "features"}"\n', encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["train", str(tmp_path / "run.toml"), str(tmp_path / "run")])
    assert done.exit_code != 0
    said = str(done.exception) if isinstance(done.exception, ValueError) else done.output
    assert "test impressions" in said
    assert "cannot be measured on" in " ".join(said.split())
