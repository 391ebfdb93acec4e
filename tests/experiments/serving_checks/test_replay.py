"""`dashclip package`, `refresh` and `replay` from the command line, and what replay counts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.serving_checks.replay import TIE, largest_inversion, replay
from experiments.serving_checks.skew import skew
from features.columns.clock import DAY_US
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.online.build_snapshot import build_snapshot
from features.online.request import RequestError, ScoreRequest
from features.online.request_features import OnlineFeatures
from features.schema import LabelConfig
from ranking.model import SemanticConfig
from serving.package.manifest import PackageManifest
from serving.packaging.as_of import END, snapshot_source, time_us_of
from serving.packaging.logged_requests import LoggedImpressions
from serving.scoring.predictor import Predictor
from serving.wire.reply import ScoreReply, best_first
from tests.features.small_logs import START_US, random_tables, write_tables
from tests.serving.small_packages import train_small, write_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its package made by the command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("replay")
    train_small(folder, semantic=SemanticConfig(widths=(8,)))
    done = run(
        "package", folder / "run", folder / "package", "--backend", "eager", "--as-of", "2023-12-14T12:00"
    )
    assert done.exit_code == 0, done.output
    return folder


def run(*arguments: object) -> object:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def impressions(folder: Path) -> LoggedImpressions:
    return LoggedImpressions(
        FeatureSet.open(folder / "features"), InputTables.open(folder / "data"), context=("store_id",)
    )


def test_the_package_command_finds_the_log_and_says_what_it_made(folder: Path, tmp_path: Path) -> None:
    done = run(
        "package",
        folder / "run",
        tmp_path / "out",
        "--backend",
        "eager",
        "--tables",
        "int8",
        "--context",
        "none",
    )
    assert done.exit_code == 0, done.output
    manifest = PackageManifest.read(tmp_path / "out")
    assert (manifest.tables, manifest.context, manifest.backend.name) == ("int8", (), "eager")
    for words in (
        manifest.model_version,
        "scores of 64 logged requests",
        "no vector: the package has no query",
    ):
        assert words in " ".join(done.output.replace("│", " ").split())


def test_replay_of_a_package_equals_the_run(folder: Path, tmp_path: Path) -> None:
    done = run("replay", folder / "run", folder / "package", "--out", tmp_path / "replay.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "replay.json").read_text())
    assert found["max_difference"] <= 1e-3
    assert found["refused"] == 0
    assert found["impressions"] == FeatureSet.open(folder / "features").manifest.splits["test"].rows
    assert found["auc_served"] == pytest.approx(found["auc_offline"], abs=1e-3)


def test_a_served_difference_beyond_the_tolerance_ends_with_exit_code_1(folder: Path) -> None:
    done = run("replay", folder / "run", folder / "package", "--limit", 20, "--tolerance", 1e-9)
    assert done.exit_code == 1
    assert "served scores are not the offline scores" in done.output


def test_replay_from_the_snapshot_reports_every_feature(folder: Path, tmp_path: Path) -> None:
    done = run(
        "replay",
        folder / "run",
        folder / "package",
        "--from-snapshot",
        "--within-hours",
        12,
        "--out",
        tmp_path / "skew.json",
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "skew.json").read_text())
    features = FeatureSet.open(folder / "features").manifest
    names = {
        *features.dense_columns,
        *(column.name for column in features.sparse_columns),
        "purchase history",
    }
    by_name = {one["name"]: one for one in found["skew"]}
    assert set(by_name) == names
    assert by_name["price"]["differs"] == by_name["brand"]["differs"] == by_name["user"]["differs"] == 0
    assert by_name["user_impressions_2d"]["differs"] > 0  # impressions since the snapshot


def test_a_url_shows_no_features_and_no_server_is_one_sentence(folder: Path) -> None:
    done = run("replay", folder / "run", "http://127.0.0.1:9/predictions/x", "--from-snapshot")
    assert done.exit_code == 2
    done = run("replay", folder / "run", "http://127.0.0.1:9/predictions/x", "--limit", 1)
    assert isinstance(done.exception, ValueError)
    assert "does not answer" in str(done.exception)


def test_refresh_and_rollback_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(folder / "package", tmp_path / "package"))
    done = run("refresh", package, "--data", folder / "data", "--product-table", folder / "products")
    assert done.exit_code == 0, done.output
    assert "generation 000002 is live" in done.output
    assert Predictor.load(package).facts()["as_of"] > "2023-12-15"
    done = run("refresh", package, "--rollback")
    assert "generation 000001 is live again" in done.output
    other = write_vectors(
        tmp_path / "other",
        "product",
        FeatureSet.open(folder / "features").catalog_ids(),
        seed=3,
        encoder_id="other",
    )
    done = run("refresh", package, "--product-table", other)
    assert "are of encoder other" in str(done.exception)
    assert run("refresh", package, "--rollback", "--data", folder / "data").exit_code == 2


def test_a_query_table_is_not_taken_for_a_product_table(folder: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(folder / "package", tmp_path / "package"))
    done = run("refresh", package, "--product-table", folder / "queries")
    assert "holds query vectors" in str(done.exception)


def test_an_error_of_one_candidate_is_found_and_the_order_is_counted(impressions: LoggedImpressions) -> None:
    groups = impressions.groups()
    offline_M = np.linspace(0.1, 0.9, len(impressions))
    asked = iter(groups)

    def score(requests: list[ScoreRequest]) -> list[ScoreReply | RequestError]:
        replies: list[ScoreReply | RequestError] = []
        for number, _ in enumerate(requests):
            rows = next(asked)
            scores = offline_M[rows].astype(np.float32)
            if rows is groups[1]:
                scores[0] += 0.25
            if rows is groups[2]:
                replies.append(RequestError("query", "nothing", "send one"))
                continue
            replies.append(
                ScoreReply(
                    scores, best_first(scores), "model", "000001", "2024-01-01", {"users": number == 0}
                )
            )
        return replies

    found = replay(impressions, groups, offline_M, score)
    assert len(groups) == found.requests + found.refused
    assert found.refused == 1
    assert found.max_difference == pytest.approx(0.25, abs=1e-6)
    assert found.worst[0].served - found.worst[0].offline == pytest.approx(0.25, abs=1e-6)
    assert not found.holds(tolerance=1.0, same_order=0.0)  # one was refused


def test_candidates_that_are_a_tie_apart_may_be_served_in_any_order(impressions: LoggedImpressions) -> None:
    groups = [rows for rows in impressions.groups() if len(rows) > 1]

    def same_order(gap: float) -> float:
        offline_M = 0.5 + gap * np.arange(len(impressions))
        asked = iter(groups)

        def score(requests: list[ScoreRequest]) -> list[ScoreReply]:
            rising = [offline_M[next(asked)] for _ in requests]
            orders = [np.r_[best_first(scores)[:-2], best_first(scores)[:-3:-1]] for scores in rising]
            return [
                ScoreReply(scores, order, "model", "000001", "2024-01-01", {})
                for scores, order in zip(rising, orders, strict=True)
            ]

        return replay(impressions, groups, offline_M, score).same_order

    assert same_order(TIE / 2) == 1.0, "the last two are turned around, and half a tie apart"
    assert same_order(2 * TIE) == 0.0


def test_ties_may_come_in_any_order_and_an_inversion_counts_by_its_size() -> None:
    assert largest_inversion(np.array([0.5, 0.5, 0.1]), np.array([1, 0, 2])) == 0
    assert largest_inversion(np.array([0.3, 0.1, 0.2]), np.array([0, 1, 2])) == pytest.approx(0.1)
    assert largest_inversion(np.array([0.3]), np.array([0])) == 0


def test_a_snapshot_at_the_moment_of_a_request_has_no_skew(
    impressions: LoggedImpressions, folder: Path, tmp_path: Path
) -> None:
    feature_set = FeatureSet.open(folder / "features")
    rows_N = max(impressions.groups(), key=len)
    as_of_us = impressions.request(rows_N).timestamp_us
    assert as_of_us is not None
    snapshot = build_snapshot(folder / "data", feature_set, tmp_path / "snapshot", as_of_us=as_of_us)
    features = OnlineFeatures(snapshot, context_columns=("store_id",))

    found = skew(
        impressions,
        [rows_N],
        features.rows,
        dense_columns=feature_set.manifest.dense_columns,
        sparse_columns=tuple(column.name for column in feature_set.manifest.sparse_columns),
    )
    assert {one.name: one.differs for one in found if one.differs} == {}


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("1970-01-02", DAY_US),
        ("1970-01-01T01:00", DAY_US // 24),
        ("1970-01-01T01:00+01:00", 0),
        ("2023-12-09", START_US),
    ],
)
def test_moments_are_utc_unless_they_say_otherwise(text: str, expected_us: int) -> None:
    assert time_us_of(text) == expected_us


def test_a_moment_that_is_none_is_refused_with_examples() -> None:
    with pytest.raises(ValueError, match="'tomorrow' is not a date or time; write 2024-07-29"):
        time_us_of("tomorrow")


def test_the_end_of_a_log_is_after_its_last_click_or_purchase(folder: Path) -> None:
    source = snapshot_source(folder / "data", END, LabelConfig())
    assert source.as_of_us > START_US + 8 * DAY_US - 1


def test_a_click_time_of_next_year_is_not_the_end_of_the_log(tmp_path: Path) -> None:
    tables = random_tables(1)
    shown = tables["impressions"]
    at = pc.index(shown["clicked"], 1).as_py()
    click_us = shown["click_timestamp"].cast(pa.int64()).to_pylist()
    click_us[at] = START_US + 365 * DAY_US
    place = shown.schema.get_field_index("click_timestamp")
    clicks = pa.array(click_us, shown.schema.field(place).type)
    tables["impressions"] = shown.set_column(place, "click_timestamp", clicks)
    write_tables(tmp_path, tables)
    for hours in (1.0, 48.0):
        end_us = snapshot_source(tmp_path, END, LabelConfig(attribution_hours=hours)).as_of_us
        assert START_US + 8 * DAY_US <= end_us < START_US + 8 * DAY_US + hours * 3_600_000_000
