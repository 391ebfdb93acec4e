"""A refresh that would make serving much poorer, older or other is refused with its numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.embedding_table import EmbeddingTable
from experiments.cli import app
from features.columns.clock import DAY_US
from features.online.plan import impression_columns
from serving.package.generations import (
    GenerationManifest,
    current_generation,
    generation_folder,
    generation_names,
)
from serving.package.parity import read_requests
from serving.package.sealed_folder import PackageError
from serving.packaging.build_generation import SnapshotSource, vectors_of_table
from serving.packaging.gate import GATE_NAME, GateError, GateLimits, without_snapshot_values
from serving.packaging.refresh import Refreshed, refresh
from serving.scoring.predictor import Predictor
from tests.serving.small_packages import AS_OF_US

ALL = (
    *("users", "products", "queries", "purchases", "pairs", "impressions"),
    *("products without a vector", "queries without a vector", "as of (us)", "age of the log (hours)"),
    *("unknown candidates", "mean score", "movement of scores"),
)


def log_with(small_run: Path, folder: Path, *, products: int | None = None, impressions: int = 10**9) -> Path:
    """A copy of the log that was cut off: fewer products, and what happened to the others."""
    log = Path(shutil.copytree(small_run / "data", folder / "cut"))
    catalogue = pq.read_table(log / "products.parquet").slice(0, products)
    pq.write_table(catalogue, log / "products.parquet")
    for name, rows in (("impressions", impressions), ("purchases", 10**9)):
        table = pq.read_table(log / f"{name}.parquet")
        known = pa.compute.is_in(table["product_id"], value_set=catalogue["product_id"].combine_chunks())
        pq.write_table(table.filter(known).slice(0, rows), log / f"{name}.parquet")
    return log


def same(small_run: Path, package: Path, **changes: object) -> Refreshed:
    fields = {"snapshot": SnapshotSource(small_run / "data", AS_OF_US), **changes}
    return refresh(package, **fields)  # type: ignore[arg-type]


def failed_in(error: GateError) -> set[str]:
    return {check.name for check in error.checks}


def test_the_same_log_passes_every_check_and_the_record_is_kept(small_run: Path, package: Path) -> None:
    done = same(small_run, package)
    assert [check.name for check in done.gate.checks] == [*ALL]
    assert all(check.passed for check in done.gate.checks)
    by_name = {check.name: check for check in done.gate.checks}
    assert by_name["movement of scores"].now == 0.0
    assert by_name["products"].before == by_name["products"].now == 7
    kept = GenerationManifest.read(generation_folder(package, "000002"))
    assert kept.gate == done.gate
    assert not done.gate.forced
    assert GenerationManifest.read(generation_folder(package, "000001")).gate is None


def test_a_truncated_log_is_refused_with_the_numbers_and_nothing_changes(
    small_run: Path, package: Path, tmp_path: Path
) -> None:
    log = log_with(small_run, tmp_path, products=4)
    with pytest.raises(GateError, match="4 products after 7, 6 to 35 may be") as caught:
        refresh(package, snapshot=SnapshotSource(log, AS_OF_US))
    assert {"products", "impressions", "unknown candidates"} <= failed_in(caught.value)
    assert "--force" in str(caught.value)
    assert (current_generation(package), generation_names(package)) == ("000001", ["000001"])


def test_force_switches_all_the_same_and_the_record_says_so(
    small_run: Path, package: Path, tmp_path: Path
) -> None:
    log = log_with(small_run, tmp_path, products=4)
    arguments = ["refresh", str(package), "--data", str(log), "--as-of", "2023-12-15T12:00"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, GateError)
    done = CliRunner().invoke(app, [*arguments, "--force"])
    assert done.exit_code == 0, done.output
    assert "forced: 4 products after 7" in " ".join(done.output.split())
    kept = GenerationManifest.read(generation_folder(package, current_generation(package))).gate
    assert kept is not None
    assert kept.forced
    assert "products" in {check.name for check in kept.checks if not check.passed}
    assert Predictor.load(package).facts()["counts"]["products"] == 4
    done = CliRunner().invoke(app, ["refresh", str(package), "--rollback"])
    assert done.exit_code == 0, done.output


def test_an_older_snapshot_is_refused(small_run: Path, package: Path) -> None:
    with pytest.raises(GateError, match=r"a snapshot of .* after one of ") as caught:
        same(small_run, package, snapshot=SnapshotSource(small_run / "data", AS_OF_US - DAY_US // 8))
    assert failed_in(caught.value) == {"as of (us)"}


def test_a_log_that_ended_long_before_its_moment_is_refused(
    small_run: Path, package: Path, tmp_path: Path
) -> None:
    late = SnapshotSource(small_run / "data", AS_OF_US + 20 * DAY_US)
    with pytest.raises(GateError, match=r"the last impression of the log is .* hours older") as caught:
        refresh(package, snapshot=late)
    assert "age of the log (hours)" in failed_in(caught.value)


def test_vectors_for_a_few_products_only_are_refused(small_run: Path, package: Path) -> None:
    source = vectors_of_table(EmbeddingTable.load(small_run / "products"), kind="product")
    few = replace(source, ids=source.ids[:3], vectors_MD=np.asarray(source.vectors_MD)[:4])
    with pytest.raises(GateError, match=r"5 products \(71\.4%\) without a vector, 43\.6% may be") as caught:
        refresh(package, vectors={"product": few})
    assert "products without a vector" in failed_in(caught.value)


def test_scores_that_move_are_refused_by_the_limits_of_the_package(small_run: Path, package: Path) -> None:
    source = vectors_of_table(EmbeddingTable.load(small_run / "products"), kind="product")
    turned_MD = np.asarray(source.vectors_MD).copy()  # row 0 is that of no product
    turned_MD[1:] = turned_MD[:0:-1]
    other = replace(source, vectors_MD=turned_MD)
    GateLimits(most_movement=0.001, most_mean_shift=10.0).write(package)
    with pytest.raises(GateError, match=r"moved by .* of the mean score, 0\.1% may be") as caught:
        refresh(package, vectors={"product": other})
    assert failed_in(caught.value) == {"movement of scores"}
    GateLimits(most_movement=10.0, most_mean_shift=1e-6).write(package)
    with pytest.raises(GateError, match="a change of ") as caught:
        refresh(package, vectors={"product": other})
    assert failed_in(caught.value) == {"mean score"}
    GateLimits(most_movement=10.0, most_mean_shift=10.0).write(package)
    done = refresh(package, vectors={"product": other})
    moved = next(check.now for check in done.gate.checks if check.name == "movement of scores")
    assert moved > 0.001


def test_scores_move_with_the_counters_of_the_log_as_live_traffic_would(
    small_run: Path, package: Path, tmp_path: Path
) -> None:
    """The recorded requests bring their counters, so their own scores hide what a poorer log does."""
    log = log_with(small_run, tmp_path, impressions=40)
    (package / GATE_NAME).write_text("least_count = 0.0\nmost_log_age_hours = 1e6\nmost_movement = 1e-9\n")
    with pytest.raises(GateError) as caught:
        refresh(package, snapshot=SnapshotSource(log, AS_OF_US))
    assert "movement of scores" in failed_in(caught.value)
    done = refresh(package, snapshot=SnapshotSource(log, AS_OF_US), force=True)
    moved = next(check.now for check in done.gate.checks if check.name == "movement of scores")
    assert moved > 10 * done.moved_mean


def test_what_a_snapshot_knows_is_taken_out_of_a_recorded_request(package: Path) -> None:
    config = Predictor.load(package).live.features.snapshot.manifest.config
    recorded = read_requests(package)[0]
    assert any("impressions_1d" in name for name in recorded.context)
    bare = without_snapshot_values(recorded, impression_columns(config), timestamp_us=AS_OF_US)
    assert {*bare.context, *bare.candidate_columns} == {"store_id", "price"}
    assert (bare.history, bare.timestamp_us) == (None, AS_OF_US)
    assert bare.candidates.equals(recorded.candidates)


def test_a_package_brings_the_limits_that_hold_without_a_file(small_run: Path, package: Path) -> None:
    assert GateLimits.of(package) == GateLimits()
    assert "least_count = 0.8" in (package / GATE_NAME).read_text()
    (package / GATE_NAME).unlink()
    assert GateLimits.of(package) == GateLimits()
    assert same(small_run, package).now.name == "000002"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("least_count = 2", "least_count"),
        ("leastcount = 0.5", "leastcount"),
        ("least_count = ", "cannot be read"),
        ('most_count = "many"', "most_count"),
    ],
)
def test_limits_that_cannot_be_used_stop_the_refresh(
    small_run: Path, package: Path, text: str, words: str
) -> None:
    (package / GATE_NAME).write_text(text)
    with pytest.raises(PackageError, match=words):
        same(small_run, package)
    assert generation_names(package) == ["000001"]


def test_the_record_is_sealed_with_its_generation(small_run: Path, package: Path) -> None:
    same(small_run, package)
    path = generation_folder(package, "000002") / "manifest.json"
    content = json.loads(path.read_text())
    content["gate"]["forced"] = True
    path.write_text(json.dumps(content, indent=2) + "\n")
    with pytest.raises(PackageError, match="has changed"):
        GenerationManifest.read(path.parent)
