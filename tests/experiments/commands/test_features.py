"""`dashclip features build`: which engine does the work, and what is refused before any work is done."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from features.distributed import spark_engine
from features.distributed.spark_engine import SparkEngine, SparkError
from features.feature_set import FeatureSet
from tests.features.distributed.in_process_engine import InProcessEngine
from tests.features.small_logs import random_tables, write_tables

TOML = """
[[sparse]]
name = "user"
column = "user_id"

[split]
validation_days = 1
test_days = 2
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tables(tmp_path / "data", random_tables(1))


def build(data: Path, *arguments: object):
    config = data.parent / "features.toml"
    config.write_text(TOML)
    out = data.parent / "features"
    typed = ["features", "build", data, out, "--config", config, *arguments]
    return CliRunner().invoke(app, [str(one) for one in typed])


def test_spark_builds_what_duckdb_builds(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process stands for Spark: what the command makes of its options is looked at."""
    asked: list[tuple[object, ...]] = []

    @contextmanager
    def session(master, *, driver_memory, progress):
        asked.append((master, driver_memory))
        yield InProcessEngine()

    monkeypatch.setattr(spark_engine, "require_spark", lambda: None)
    monkeypatch.setattr(SparkEngine, "local_or_cluster", session)
    manifests = []
    for engine in ("duckdb", "spark"):
        options = ["--master", "local[3]", "--memory-limit", "1GB"] if engine == "spark" else []
        result = build(data, "--engine", engine, *options)
        assert result.exit_code == 0, result.output
        manifest = FeatureSet.open(data.parent / "features").manifest
        manifests.append(manifest.model_dump(exclude={"created"}))
    assert manifests[0] == manifests[1]
    assert asked == [("local[3]", "1000m")]


def test_a_master_without_spark_is_refused(data: Path) -> None:
    result = build(data, "--master", "local[2]")
    assert isinstance(result.exception, ValueError)
    assert str(result.exception) == "--master local[2] is for --engine spark; add that, or leave it out"


def test_a_missing_pyspark_is_said_before_a_row_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "impressions.parquet").write_bytes(b"never opened")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyspark" else found(name, *rest)
    )
    result = build(data, "--engine", "spark")
    assert isinstance(result.exception, SparkError)
    assert "pip install 'dashclip-ranker[spark]'" in str(result.exception)


@pytest.mark.parametrize("engine", ["duckdb", "spark"])
def test_a_folder_of_another_kind_is_refused_before_a_row_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(spark_engine, "require_spark", lambda: None)
    (data / "impressions.parquet").write_bytes(b"never opened")
    (data.parent / "features").mkdir()
    (data.parent / "features" / "notes.txt").write_text("mine")
    result = build(data, "--engine", engine)
    assert isinstance(result.exception, FileExistsError)
    assert "holds something of another kind (notes.txt)" in str(result.exception)
