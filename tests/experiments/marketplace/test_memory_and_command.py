"""Memory does not grow with the log; the command prints what was measured."""

import json
import tracemalloc
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.commands.inputs.generate import Preset
from experiments.marketplace.config import CLICKS, Candidates, MarketplaceConfig
from experiments.marketplace.generate import generate
from experiments.marketplace.tables import RowGroupWriter


def test_row_groups_are_written_as_they_fill_up(tmp_path):
    schema = pa.schema([("x", pa.int64())])
    with RowGroupWriter(tmp_path / "x.parquet", schema) as file:
        for first in range(0, 200_000, 20_000):
            file.write({"x": np.arange(first, first + 20_000)})
    written = pq.ParquetFile(tmp_path / "x.parquet")
    groups = [written.metadata.row_group(index).num_rows for index in range(written.num_row_groups)]
    assert groups == [80_000, 80_000, 40_000]
    np.testing.assert_array_equal(written.read()["x"].to_numpy(), np.arange(200_000))


def test_memory_is_that_of_one_day_however_long_the_log(tmp_path):
    peaks = []
    for days in (20, 80):  # the same number of impressions a day
        config = MarketplaceConfig.preset(
            "tiny", images=False, days=days, impressions=300 * days, history_days=7
        )
        tracemalloc.start()
        generate(config, tmp_path / str(days))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_command_writes_a_marketplace_and_prints_the_best_reachable_auc(tmp_path):
    out = tmp_path / "market"
    result = CliRunner().invoke(app, ["generate", str(out), "--size", "tiny", "--seed", "3", "--no-images"])
    assert result.exit_code == 0, result.output
    assert "best reachable AUC" in result.output
    assert "LogLoss floor" in result.output
    assert (out / "marketplace.json").is_file()
    assert not (out / "images").exists()


def test_the_command_names_the_preset_and_says_what_decides_clicks_in_it(tmp_path):
    out = tmp_path / "market"
    asked = ["generate", str(out), "--preset", "retrieval", "--size", "tiny", "--no-images"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    for text in ("preset retrieval, size tiny", "recall of grade 2", "within slates: taste"):
        assert text in result.output
    assert json.loads((out / "marketplace.json").read_text())["config"]["candidates"] == "retrieval"


def test_the_command_offers_every_preset_and_no_other():
    assert get_args(get_args(Preset)[0]) == get_args(Candidates) == tuple(CLICKS)


def test_a_folder_that_is_no_marketplace_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"another kind \(thesis\.txt\)"):
        generate(MarketplaceConfig.preset("tiny"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
