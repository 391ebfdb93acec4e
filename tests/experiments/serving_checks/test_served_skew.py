"""What was served at the moment of the snapshot has no skew; what was stale or lacked events has."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

from experiments.cli import app
from features.columns.clock import DAY_US
from features.inputs.tables import InputTables
from features.online.request import ScoreRequest
from ranking.model import SemanticConfig
from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.measures import Measures
from tests.features.small_logs import UTC_US
from tests.serving.small_packages import AS_OF_US, package_small, train_small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("served-skew")
    train_small(folder, semantic=SemanticConfig(widths=(8,)))
    package_small(folder)
    return folder


def logged(small: Path, folder: Path, requests: list[ScoreRequest], *, package: Path | None = None) -> Path:
    predictor = Predictor.load(package or small / "package")
    settings = FeatureLogSettings(folder=folder / "log", share=1.0, limit_mb=10, key_file=folder / "key")
    settings.prepare()
    log = FeatureLog(settings, Measures())
    for number, request in enumerate(requests):
        log.saw(request, predictor.score(request), f"r{number}")
    log.close()
    clicks = pa.table(
        {
            "timestamp": pa.array([AS_OF_US + 1], pa.int64()).cast(UTC_US),
            "request_id": ["r0"],
            "product_id": requests[0].candidates[:1],
        }
    )
    pq.write_table(clicks, folder / "clicks.parquet")
    return settings.folder


def bare(small: Path, *, after_us: int, **given: object) -> list[ScoreRequest]:
    """The recorded requests with what no snapshot knows, and nothing else."""
    return [
        replace(
            request,
            timestamp_us=AS_OF_US + after_us,
            context={name: value for name, value in request.context.items() if name == "store_id"},
            candidate_columns={
                "price": request.candidate_columns["price"],
                **{name: [value] * len(request.candidates) for name, value in given.items()},
            },
            history=None,
        )
        for request in read_requests(small / "package")
    ]


def joined(
    small: Path, folder: Path, *, data: Path | None = None
) -> tuple[dict[str, dict[str, object]], Result]:
    arguments = [
        *("join-clicks", folder / "log", folder / "clicks.parquet", folder / "out"),
        *("--data", data or small / "data", "--key", folder / "key", "--package", small / "package"),
        *("--memory-limit", "200MB", "--report", folder / "report.json"),
    ]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "report.json").read_text())
    assert report["skew"]["refused"] == 0
    return {f"{one['name']}{' live' * one['live']}": one for one in report["skew"]["features"]}, done


def test_what_was_served_at_the_moment_of_the_snapshot_has_no_skew(small: Path, tmp_path: Path) -> None:
    requests = bare(small, after_us=0)
    logged(small, tmp_path, requests)
    found, done = joined(small, tmp_path)
    assert {name: one["differs"] for name, one in found.items() if one["differs"]} == {}
    assert {"price live", "price_missing live", "store live", "weight", "brand", "hour"} <= {*found}
    assert {"user_impressions_2d", "query_product_ctr_1d", "purchase history (length)"} <= {*found}
    assert "user" not in found, "the row of the user is not in the log"
    assert found["weight"]["values"] == sum(len(request.candidates) for request in requests)
    assert "1 of 1 found their impression" in done.output
    assert InputTables.open(tmp_path / "out").rows("impressions") > len(requests)


def test_a_stale_snapshot_shows_in_counters_and_in_nothing_else(small: Path, tmp_path: Path) -> None:
    logged(small, tmp_path, bare(small, after_us=DAY_US))
    found, done = joined(small, tmp_path)
    stale = {name for name, one in found.items() if one["differs"]}
    assert stale
    assert {name.split("_")[0] for name in stale} <= {"user", "query", "product", "purchase history (length)"}
    assert all("_" in name or "history" in name for name in stale), stale
    largest = max(float(found[name]["largest"] or 0) for name in stale)
    assert f"{largest:.3f}" in done.output


def test_events_that_the_served_snapshot_lacked_show_as_skew(small: Path, tmp_path: Path) -> None:
    """The tables now hold impressions of before the snapshot that it has not seen: they came late."""
    logged(small, tmp_path, bare(small, after_us=0))
    data = Path(shutil.copytree(small / "data", tmp_path / "data"))
    shown = pq.read_table(data / "impressions.parquet")
    time_us = shown["timestamp"].cast(pa.int64()).to_numpy()
    last_day = shown.filter(pa.array((time_us >= AS_OF_US - DAY_US) & (time_us < AS_OF_US)))
    ids = pa.array(np.arange(10_000, 10_000 + last_day.num_rows))
    late = last_day.set_column(0, "impression_id", ids)
    pq.write_table(pa.concat_tables([shown, late]), data / "impressions.parquet")
    found, _ = joined(small, tmp_path, data=data)
    differing = {name for name, one in found.items() if one["differs"]}
    assert {"product_impressions_1d", "product_impressions_2d"} <= differing
    assert not {"weight", "brand", "hour", "price live", "purchase history (length)"} & differing


def test_counters_and_purchases_that_requests_gave_stand_apart(small: Path, tmp_path: Path) -> None:
    requests = bare(small, after_us=0, product_impressions_1d=400.0)
    logged(small, tmp_path, [replace(requests[0], history=[]), *requests[1:]])
    found, _ = joined(small, tmp_path)
    assert found["purchase history (length) live"]["values"] == len(requests[0].candidates)
    assert found["purchase history (length)"]["differs"] == 0.0
    assert "product_impressions_1d" not in found
    assert found["product_impressions_1d live"]["differs"] == 1.0
    assert found["product_impressions_2d"]["differs"] == 0.0


def test_a_log_of_another_model_is_said(small: Path, tmp_path: Path) -> None:
    logged(small, tmp_path, bare(small, after_us=0))
    for path in (tmp_path / "log").rglob("*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("model_version")
        other = pa.array(["another"] * table.num_rows)
        pq.write_table(table.set_column(at, "model_version", other), path)
    arguments = [
        *("join-clicks", tmp_path / "log", tmp_path / "clicks.parquet", tmp_path / "out"),
        *("--data", small / "data", "--key", tmp_path / "key", "--package", small / "package"),
    ]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "only of another" in str(done.exception)
    assert pc.count(pq.read_table(tmp_path / "out" / "impressions" / "served.parquet")["clicked"]).as_py()
