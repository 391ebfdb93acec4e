"""Predicted impressions: those of the test days exactly as the run predicted them, later ones as if built."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.scoring.impressions import predict_impressions
from experiments.sweeps.sweep import plan
from features.offline.build import build
from features.schema import SplitConfig
from ranking.prediction import predict
from ranking.run import execute_run, load_run
from tests.experiments.sweeps.small_sweeps import sweep_config, write_inputs
from tests.features.small_logs import CONFIG, UTC_US, write_tables


@dataclass(frozen=True)
class Trained:
    """A run on a log of 8 days, 2 of them test days, and what it predicted there."""

    folder: Path
    data: Path
    log: pa.Table
    test: pa.Table

    def probabilities(self, ids: pa.Array) -> np.ndarray:
        row_N = pc.index_in(ids, self.test["impression_id"].combine_chunks()).to_numpy(zero_copy_only=False)
        logit_N = self.test["logit"].to_numpy()[row_N.astype(int)].astype(np.float64)
        return 1 / (1 + np.exp(-logit_N))

    def asked(self, rows: int | None = None) -> pa.Table:
        """Logged impressions of the test split, in an order of their own."""
        ids = self.test["impression_id"].combine_chunks()
        mask = pc.is_in(self.log["impression_id"], ids)
        return self.log.filter(mask).take(pa.array(np.random.default_rng(0).permutation(len(ids))[:rows]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    runs = plan(sweep_config(folder), folder / "runs")
    run = next(run for run in runs if run.config.variant == "dcn_p_sim_history")
    execute_run(run.config, run.folder, environment={})
    test = pq.read_table(run.folder / "predictions" / "test.parquet")
    return Trained(run.folder, folder / "data", pq.read_table(folder / "data" / "impressions.parquet"), test)


def test_impressions_of_the_test_split_get_exactly_the_predictions_of_the_run(trained):
    for rows in (None, 7):
        asked = trained.asked(rows)
        got = predict_impressions(trained.folder, asked)
        assert np.array_equal(got, trained.probabilities(asked["impression_id"].combine_chunks()))


def withheld(trained: Trained, folder: Path) -> tuple[Path, pa.Table]:
    """The log without its test impressions of the last day, and these."""
    ids = trained.test["impression_id"].combine_chunks()
    last_us = pc.max(trained.log["timestamp"].cast(pa.int64())).as_py() - 86_400_000_000
    late = pc.and_(
        pc.is_in(trained.log["impression_id"], ids),
        pc.greater(trained.log["timestamp"].cast(pa.int64()), last_us),
    )
    tables = {name: pq.read_table(trained.data / f"{name}.parquet") for name in ("products", "purchases")}
    data = write_tables(folder, tables | {"impressions": trained.log.filter(pc.invert(late))})
    return data, trained.log.filter(late)


def test_impressions_beside_the_log_get_what_the_run_predicted_with_them_in_it(trained, tmp_path):
    data, asked = withheld(trained, tmp_path / "data")
    # Another id, else they would be looked up in the run's own feature set.
    renamed = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    assert asked.column_names[0] == "impression_id"
    got = predict_impressions(trained.folder, renamed, data=data)
    expected = trained.probabilities(asked["impression_id"].combine_chunks())
    assert 0 < len(asked) < len(trained.test)
    assert np.array_equal(got, expected)


def test_nanoseconds_of_a_moment_are_cut_off(trained, tmp_path):
    data, asked = withheld(trained, tmp_path / "data")
    renamed = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    nanoseconds = pc.add(pc.multiply(renamed["timestamp"].cast(pa.int64()), 1_000), 999)
    fine = renamed.set_column(
        renamed.column_names.index("timestamp"), "timestamp", nanoseconds.cast(pa.timestamp("ns", tz="UTC"))
    )
    got = predict_impressions(trained.folder, fine, data=data)
    assert np.array_equal(got, predict_impressions(trained.folder, renamed, data=data))


def test_without_clicks_nobody_clicked_what_is_asked_for(trained, tmp_path):
    data, asked = withheld(trained, tmp_path / "data")
    renamed = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    blind = predict_impressions(
        trained.folder, renamed.drop_columns(["clicked", "click_timestamp"]), data=data
    )
    nobody = renamed.set_column(
        renamed.schema.get_field_index("clicked"), "clicked", pa.array(np.zeros(len(asked), np.int8))
    ).drop_columns(["click_timestamp"])
    assert np.array_equal(blind, predict_impressions(trained.folder, nobody, data=data))
    assert not np.array_equal(blind, predict_impressions(trained.folder, renamed, data=data))


def test_later_days_are_scored_as_a_longer_test(trained, tmp_path):
    """Against a feature set built by hand with as many more test days."""
    asked = trained.asked(20)
    later = pa.array(asked["timestamp"].cast(pa.int64()).to_numpy() + 3 * 86_400_000_000, UTC_US)
    asked = asked.set_column(asked.schema.get_field_index("timestamp"), "timestamp", later)
    asked = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    asked = asked.drop_columns(["click_timestamp"])
    got = predict_impressions(trained.folder, asked)
    tables = {name: pq.read_table(trained.data / f"{name}.parquet") for name in ("products", "purchases")}
    whole = pa.concat_tables([trained.log, asked], promote_options="default")
    data = write_tables(tmp_path / "data", tables | {"impressions": whole})
    last_day, end_day = (
        pc.max(rows["timestamp"].cast(pa.int64())).as_py() // 86_400_000_000 for rows in (asked, trained.log)
    )
    days = 2 + last_day - end_day
    split = SplitConfig(validation_days=2, test_days=days)
    build(data, tmp_path / "features", CONFIG.model_copy(update={"split": split}), threads=1)
    run = load_run(trained.folder, features=tmp_path / "features")
    _, logit_M = predict(run.ranker, run.loader("test"), device=torch.device("cpu"))
    ids = pa.concat_tables(pq.read_table(path) for path in run.feature_set.split_files("test"))[
        "impression_id"
    ]
    row_N = pc.index_in(asked["impression_id"].combine_chunks(), ids.combine_chunks()).to_numpy()
    assert np.array_equal(got, 1 / (1 + np.exp(-logit_M[row_N].astype(np.float64))))


def test_earlier_impressions_are_refused(trained):
    asked = trained.asked(3)
    early = pa.array(asked["timestamp"].cast(pa.int64()).to_numpy() - 4 * 86_400_000_000, UTC_US)
    asked = asked.set_column(asked.schema.get_field_index("timestamp"), "timestamp", early)
    asked = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    with pytest.raises(ValueError, match="give impressions from that day on"):
        predict_impressions(trained.folder, asked)


def test_another_log_is_refused(trained, tmp_path):
    data, asked = withheld(trained, tmp_path / "data")
    log = pq.read_table(data / "impressions.parquet")
    price = pc.multiply(log["price"], 2.0)
    pq.write_table(
        log.set_column(log.schema.get_field_index("price"), "price", price), data / "impressions.parquet"
    )
    renamed = asked.set_column(0, "impression_id", pc.add(asked["impression_id"], 100_000))
    with pytest.raises(ValueError, match="the log differs from the one"):
        predict_impressions(trained.folder, renamed, data=data)


def test_a_column_that_features_read_may_not_be_left_out(trained):
    asked = trained.asked(3).set_column(0, "impression_id", pa.array([900_001, 900_002, 900_003]))
    with pytest.raises(ValueError, match="reads the column 'store_id'"):
        predict_impressions(trained.folder, asked.drop_columns(["store_id"]))


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        (
            "timestamp",
            pa.array([0, 0], pa.timestamp("us")),
            "timestamp is timestamp.* need their offset from UTC",
        ),
        ("timestamp", pa.array([None, None], UTC_US), "2 of 2 impressions have no timestamp"),
        ("product_id", pa.array([999_999, 999_998]), "2 impressions name a product that .* such as 999999"),
        ("product_id", pa.array(["sku-1", "sku-2"]), "product_id is string here, but must be int64"),
        ("impression_id", pa.array([None, 1]), "1 of 2 impressions have no impression_id"),
        ("clicked", pa.array([0, 2]), "clicked must be 0 or 1, got 2"),
        (
            "click_timestamp",
            pa.array([None, 1], UTC_US),
            "1 impressions were clicked before they were shown, such as 900002",
        ),
    ],
)
def test_what_the_log_may_not_hold_is_refused_by_its_column(trained, column, values, sentence):
    """The folder in which both are put together is gone when the user reads of it."""
    asked = trained.asked(2).set_column(0, "impression_id", pa.array([900_001, 900_002]))
    changed = asked.set_column(asked.schema.get_field_index(column), column, values)
    with pytest.raises(ValueError, match=sentence):
        predict_impressions(trained.folder, changed)


def test_the_command_reads_and_writes_csv(trained, tmp_path):
    import pyarrow.csv as csv

    asked = trained.asked(5)
    csv.write_csv(asked, tmp_path / "asked.csv")
    words = ["predict", str(trained.folder), str(tmp_path / "asked.csv"), str(tmp_path / "out.csv")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "5 impressions" in done.output
    got = csv.read_csv(tmp_path / "out.csv")
    assert got["impression_id"].to_pylist() == asked["impression_id"].to_pylist()
    assert np.allclose(
        got["probability"].to_numpy(), trained.probabilities(asked["impression_id"].combine_chunks())
    )
