"""The training record of a package: made by serving, of what is no different by design."""

from pathlib import Path

import pytest

from features.online.snapshot import SnapshotManifest
from features.schema import SparseFeature
from serving.drift.watched import record_of, watched_columns
from serving.package.manifest import PackageManifest
from serving.packaging import serve_test_days
from serving.scoring.predictor import Predictor


def snapshot_of(package: Path) -> SnapshotManifest:
    return Predictor.load(package).live.features.snapshot.manifest


def test_a_package_records_what_it_answers_to_its_test_days(small_run: Path) -> None:
    manifest = PackageManifest.read(small_run / "package")
    record = manifest.training_record
    assert record is not None
    assert record.candidates >= record.requests >= 1
    by = {column.name: column.by for column in record.columns}
    assert by["score"] == "candidate"
    assert by["no purchases"] == "request"
    assert by["product unknown"] == "candidate"
    shared = [name for name in manifest.dense_columns if name in manifest.request_columns and name in by]
    assert {by[name] for name in shared} == {"request"}
    assert "hour" not in by
    for column in record.columns:
        assert sum(column.shares) == pytest.approx(1)


def test_parts_of_the_clock_and_what_has_a_serving_value_are_not_watched(small_run: Path) -> None:
    snapshot = snapshot_of(small_run / "package")
    names = {column.name for column in watched_columns(snapshot, (), ("product", "query"))}
    clock = {feature.name for feature in snapshot.config.features if feature.source == "timestamp"}
    assert not names & {*clock, *(f"{name} unknown" for name in clock)}
    sparse = next(one for one in snapshot.config.features if isinstance(one, SparseFeature))
    assert f"{sparse.name} unknown" in names
    features = tuple(
        one.model_copy(update={"serving_value": "x"}) if one is sparse else one
        for one in snapshot.config.sparse
    )
    config = snapshot.config.model_copy(update={"sparse": features})
    other = snapshot.model_copy(update={"config": config})
    left = names - {column.name for column in watched_columns(other, (), ("product", "query"))}
    assert left == {f"{sparse.name} unknown"}


def test_a_record_needs_something_that_was_served(small_run: Path) -> None:
    columns = watched_columns(snapshot_of(small_run / "package"), (), ())
    with pytest.raises(ValueError, match="at least one request"):
        record_of(columns, [], dense_columns=(), sparse_columns=())
    assert serve_test_days.RECORD_REQUESTS >= 1_000
