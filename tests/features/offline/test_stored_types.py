"""However the tables are stored, the features are those of the same rows in plain types."""

import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features.feature_set import FeatureSet, Manifest
from features.inputs.tables import InputTables
from features.inputs.validation import check_or_raise, validate
from features.offline.build import build
from features.online.build_snapshot import build_snapshot
from features.online.snapshot import SnapshotManifest
from tests.features.small_logs import CONFIG, START_US, random_tables, write_tables
from tests.features.stored_types import TIMES, plain_tables, stored_as, write_as_others_would

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def built(data: Path, out: Path) -> Manifest:
    return build(data, out, CONFIG, buckets=2, threads=1)


def snapshot(data: Path, feature_set: Path, out: Path) -> SnapshotManifest:
    as_of_us = START_US + 5 * 86_400_000_000
    return build_snapshot(data, FeatureSet.open(feature_set), out, as_of_us=as_of_us).manifest


@pytest.fixture(scope="module", params=[False, True], ids=["numbered", "text ids"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables in plain types and their features."""
    folder = tmp_path_factory.mktemp("plain")
    data = write_tables(folder / "data", plain_tables(1, text_ids=request.param))
    built(data, folder / "features")
    return folder


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(draw=st.integers(0, 10**6))
def test_all_types_that_validate_accepts_give_the_same_bytes(plain: Path, draw: int) -> None:
    tables = InputTables.open(plain / "data").tables
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        data = write_as_others_would(
            home / "data", {table: tables[table].to_table() for table in tables}, random.Random(draw)
        )
        report = validate(data, clean=home / "clean", quarantine=home / "aside", threads=1, now=NOW)
        assert report.passed
        assert {found.quarantined for found in report.tables.values()} == {0}
        check_or_raise(InputTables.open(data), threads=1, now=NOW)
        found, expected = built(data, home / "features"), FeatureSet.open(plain / "features").manifest
        assert found.checksums == expected.checksums
        assert found.data == expected.data
        again = snapshot(data, plain / "features", home / "snapshot")
        assert again.checksums == snapshot(plain / "data", plain / "features", home / "expected").checksums
        for table, clean in InputTables.open(home / "clean").tables.items():
            rows = clean.to_table(tables[table].schema.names).to_pylist()
            assert rows == tables[table].to_table().to_pylist()


@pytest.mark.parametrize(
    ("table", "column"),
    [("impressions", "timestamp"), ("impressions", "click_timestamp"), ("purchases", "timestamp")],
)
@pytest.mark.parametrize("kind", TIMES[1:], ids=str)
def test_nanoseconds_and_zones_are_the_same_moments(
    tmp_path: Path, small: Manifest, table: str, column: str, kind: pa.DataType
) -> None:
    tables = random_tables(1)
    place = tables[table].schema.get_field_index(column)
    stored = stored_as(tables[table].column(place).combine_chunks(), kind)
    tables[table] = tables[table].set_column(place, column, stored)
    data = write_tables(tmp_path / "data", tables)
    check_or_raise(InputTables.open(data), threads=1, now=NOW)
    assert built(data, tmp_path / "found").checksums == small.checksums


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("small")
    return built(write_tables(folder / "data", random_tables(1)), folder / "features")
