"""The table of an experiment: what is read, and what is refused."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest

from experiments.abtest.description import Description, ExperimentError
from experiments.abtest.experiment_log import ExperimentLog, write_experiment
from tests.experiments.abtest.worlds import described, simulated_unit_days

DAY_1, DAY_2 = date(2026, 3, 2), date(2026, 3, 4)


def unit_days(**changes: Any) -> pa.Table:
    return pa.table(
        {
            "unit": ["a", "b", "c", "d", "a", "h"],
            "variant": ["champion", "champion", "challenger", "challenger", "champion", "holdout"],
            "day": [DAY_1, DAY_1, DAY_1, DAY_2, DAY_2, DAY_2],
            "impressions": [3, 4, 5, 6, 7, 1],
            "clicks": [1, 0, 2, 3, 0, 1],
        }
        | changes
    )


def opened(folder: Path, table: pa.Table, **tables: pa.Table) -> ExperimentLog:
    write_experiment(folder / "e", described(), table, **tables)
    return ExperimentLog.open(folder / "e")


def test_rows_are_numbered_by_unit_and_day_and_other_variants_are_counted(tmp_path: Path) -> None:
    log = opened(tmp_path, unit_days(pre_clicks=[2, None, 1, 0, 2, 9], segment_new=[True, False] * 3))
    assert log.units == ("a", "b", "c", "d")
    assert log.treated_U.tolist() == [False, False, True, True]
    assert log.unit_N.tolist() == [0, 1, 2, 0, 3]
    assert log.day_N.tolist() == [0, 0, 0, 2, 2]
    assert (log.days, log.first_day, log.last_day) == (3, DAY_1, DAY_2)
    assert log.counts["clicks"].tolist() == [1, 0, 2, 0, 3]
    assert log.before["clicks"].tolist() == [2, 0, 1, 0]
    assert log.other_units == {"holdout": 1}
    assert log.segments["new"].tolist() == ["true", "false", "true", "false"]


def test_csv_and_parquet_give_the_same_log(tmp_path: Path) -> None:
    table = simulated_unit_days(np.random.default_rng(0), units=30, days=3)
    first = opened(tmp_path, table)
    (tmp_path / "e/unit_days.parquet").unlink()
    pcsv.write_csv(table, tmp_path / "e/unit_days.csv")
    second = ExperimentLog.open(tmp_path / "e")
    assert first.units == second.units
    assert first.counts.keys() == second.counts.keys()
    for name, values in first.counts.items():
        np.testing.assert_allclose(values, second.counts[name])


def test_slices_of_several_days_are_added_up(tmp_path: Path) -> None:
    slices = pa.table(
        {
            "unit": ["a", "a", "c", "h"],
            "day": [DAY_1, DAY_2, DAY_1, DAY_2],
            "kind": ["query"] * 4,
            "slice": ["milk", "milk", "bread", "milk"],
            "impressions": [1, 2, 3, 4],
            "clicks": [0, 1, 1, 1],
        }
    )
    found = opened(tmp_path, unit_days(), slices=slices).slices
    assert found is not None
    assert found.names == (("query", "bread"), ("query", "milk"))
    assert found.unit_L.tolist() == [2, 0]
    assert found.counts["impressions"].tolist() == [3, 3]


def test_latency_is_the_99th_percentile_of_days_with_both_variants(tmp_path: Path) -> None:
    latency = pa.table(
        {
            "variant": ["champion", "champion", "challenger", "champion", "holdout"],
            "day": [DAY_1, DAY_1, DAY_1, DAY_2, DAY_1],
            "ms": [10.0, 20.0, 30.0, 1.0, 900.0],
        }
    )
    [found] = opened(tmp_path, unit_days(), latency=latency).latency
    assert found.day == DAY_1
    assert found.control_ms == pytest.approx(19.9)
    assert (found.treatment_ms, found.control_requests, found.treatment_requests) == (30.0, 2, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clicks": [1, 0, 2, 3, -1, 1]}, "column 'clicks': 1 values such as -1 cannot be"),
        ({"clicks": [1, 0, 2, 3, None, 1]}, "column 'clicks'"),
        ({"impressions": [3.0, 4, 5, 6, float("nan"), 1]}, "such as nan"),
        ({"pre_clicks": [1, 0, 2, 3, 4, 1]}, "differs between rows of unit 'a'"),
        ({"variant": ["champion"] * 4 + ["challenger"] * 2}, "unit 'a' saw both 'challenger' and 'champion'"),
        ({"day": [DAY_1] * 6}, "unit 'a' has 2 rows on 2026-03-02"),
        ({"variant": ["champion"] * 5 + ["holdout"]}, "variant 'challenger' of experiment.json has 0 units"),
        ({"unit": ["a", "b", "c", "d", "a", None]}, "column 'unit': 1 rows are empty"),
        ({"clicks": ["one", "0", "2", "3", "0", "1"]}, "column 'clicks': not every value is a number"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        opened(tmp_path, unit_days(**changes))


def test_a_slice_of_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    slices = pa.table(
        {"unit": ["x"], "day": [DAY_1], "kind": ["query"], "slice": ["m"], "impressions": [1], "clicks": [0]}
    )
    with pytest.raises(ExperimentError, match="unit 'x' has no row in unit_days"):
        opened(tmp_path, unit_days(), slices=slices)


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no column 'clicks'"):
        opened(tmp_path, unit_days().drop_columns(["clicks"]))
    (tmp_path / "e/unit_days.parquet").unlink()
    with pytest.raises(ExperimentError, match=r"no unit_days\.parquet"):
        ExperimentLog.open(tmp_path / "e")
    with pytest.raises(ExperimentError, match=r"has no experiment\.json"):
        Description.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primary": "cttr"}, "must be one of ctr"),
        ({"shares": {"champion": 0.5, "challenger": 0.4}}, "add up to 0.9"),
        ({"shares": {"champion": 1.0}}, "no share for 'challenger'"),
        ({"treatment": "champion"}, "two variants"),
        ({"true_lift": {"clicks": 0.1}}, "not clicks"),
    ],
)
def test_a_description_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        described(**changes)
