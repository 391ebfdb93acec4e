"""The closed loop at tiny size: who learns from what, nothing from later, and the same after a stop."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experiments.abtest.loop.measures import OWN, UNIFORM
from experiments.abtest.loop.result import LoopResult
from experiments.abtest.loop.run import _Arm, run_loop
from experiments.abtest.loop.settings import ARMS, EXPLORED, GREEDY, LOGGING, WEEK_DAYS, LoopSettings
from experiments.config import load_config
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import generate
from experiments.marketplace.live.marketplace import LiveMarketplace
from experiments.reports.abtest.loop_page import loop_sentences, write_loop_report
from features.feature_set import FeatureSet
from features.schema import FeatureConfig
from ranking.run import RunConfig
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

CONFIG = MarketplaceConfig.preset("tiny", seed=7, images=False, impressions=6_000, days=14)
SEARCHES = 120
RANKER = {
    "variant": "dcn",
    "seed": 1,
    "features": "given by the loop",
    "ranker": {"embedding_dim": 4, "deep_widths": [8], "top_widths": [8], "cross_layers": 1},
    "training": {"batch_size": 256, "evaluations_per_epoch": 1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world") / "data"
    generate(CONFIG, folder)
    return folder


def settings_of(world: Path, **changes: object) -> LoopSettings:
    named = {
        "world": world,
        "ranker": RunConfig.model_validate(RANKER),
        "features": load_config(Path("marketplace_features"), FeatureConfig),
        "weeks": 2,
        "explore": 0.3,
        "searches_per_day": SEARCHES,
    }
    return LoopSettings.model_validate({**named, **changes})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[Path, LoopResult]:
    out = tmp_path_factory.mktemp("ran") / "loop"
    return out, run_loop(settings_of(world), out, command="dashclip abtest loop")


def served_ids(out: Path, arm: str, days: range) -> set[int]:
    """Impressions that an arm served on some days, from the first live one."""
    tables = [
        pq.read_table(out / arm / "days" / f"{CONFIG.days + day:05d}" / "impressions.parquet") for day in days
    ]
    return set(pa.concat_tables(tables)["impression_id"].to_pylist())


def rows_of(features: Path, split: str) -> pa.Table:
    feature_set = FeatureSet.open(features)
    names = ["impression_id", "timestamp"]
    return pa.concat_tables(pq.read_table(path, columns=names) for path in feature_set.split_files(split))


@pytest.mark.parametrize("arm", ARMS)
def test_a_week_learns_from_the_week_before_it_alone(ran: tuple[Path, LoopResult], arm: str) -> None:
    features = ran[0] / arm / "week-2" / "features"
    ids = {split: set(rows_of(features, split)["impression_id"].to_pylist()) for split in ("train", "test")}
    assert ids["train"] == served_ids(ran[0], arm, range(5))
    assert ids["test"] == served_ids(ran[0], arm, range(6, 7))
    assert ran[1].of(arm)[1].training_rows == len(ids["train"])


def test_nothing_of_a_week_is_in_the_training_that_begins_it(ran: tuple[Path, LoopResult]) -> None:
    for folder, live_days in ((ran[0] / "start", 0), (ran[0] / GREEDY / "week-2", WEEK_DAYS)):
        midnight = datetime.combine(
            CONFIG.start + timedelta(days=CONFIG.days + live_days), datetime.min.time(), UTC
        )
        features = FeatureSet.open(folder / "features")
        times = [rows_of(folder / "features", split)["timestamp"].to_pylist() for split in ("train", "test")]
        seen = max(max(of_split) for of_split in times)
        assert midnight - timedelta(days=1) < seen < midnight
        # Counters and histories see the whole log so far, and no row of what came later.
        served = served_ids(ran[0], GREEDY, range(live_days)) if live_days else set()
        logged = pq.read_metadata(settings_of_folder(ran[0]) / "impressions.parquet").num_rows
        assert features.manifest.data.impressions == logged + len(served)


def settings_of_folder(out: Path) -> Path:
    return LoopSettings.model_validate_json((out / "loop.json").read_bytes()).world


def test_all_arms_begin_with_one_ranker_and_meet_the_same_searches(ran: tuple[Path, LoopResult]) -> None:
    first = [ran[1].of(arm)[0] for arm in ARMS]
    assert first[0].measured == first[1].measured == first[2].measured
    assert not (ran[0] / GREEDY / "week-1" / "run").exists()
    second = [ran[1].of(arm)[1] for arm in ARMS]
    assert len({week.measured.value.ctr for week in second}) == 3, "they have learnt from different logs"
    day = f"days/{CONFIG.days + 8:05d}/impressions.parquet"
    asked = [pq.read_table(ran[0] / arm / day, columns=["timestamp", "user_id", "query"]) for arm in ARMS]
    distinct = [set(zip(*(column.to_pylist() for column in table.columns), strict=True)) for table in asked]
    assert distinct[0] == distinct[1] == distinct[2]


def test_propensities_are_logged_for_each_impression_and_say_who_explores(
    ran: tuple[Path, LoopResult],
) -> None:
    for arm in ARMS:
        for day in range(2 * WEEK_DAYS):
            folder = ran[0] / arm / "days" / f"{CONFIG.days + day:05d}"
            found = pq.read_table(folder / "propensities.parquet")
            shown = pq.read_table(folder / "impressions.parquet", columns=["impression_id"])
            assert found["impression_id"].equals(shown["impression_id"])
            chance_N = found["propensity"].to_numpy()
            if arm != EXPLORED:
                assert (chance_N == 1).all()
            else:
                # Greedy places have 0.7 + 0.3 / n, all others 0.3 / n.
                assert ((chance_N > 0.7) | (chance_N < 0.31)).all()
                assert 0.05 < (chance_N < 0.5).mean() < 0.5
    weeks = {arm: ran[1].of(arm) for arm in ARMS}
    assert all(week.explored == 0 for arm in (GREEDY, LOGGING) for week in weeks[arm])
    assert all(0.15 < week.explored < 0.35 for week in weeks[EXPLORED])
    assert weeks[EXPLORED][0].exposure.shown > weeks[GREEDY][0].exposure.shown


def test_a_ranker_is_measured_on_what_it_shows_and_on_uniform_slates(ran: tuple[Path, LoopResult]) -> None:
    for week in ran[1].weeks:
        assert 0 < week.measured.value.ctr < week.measured.best.ctr
        for kind in (OWN, UNIFORM):
            assert 0.3 < week.measured.traffic[kind].auc < 1
            assert week.measured.traffic[kind].calibration > 0


class Stopped(Exception):
    """What ends a run in the middle of a day."""


def test_a_loop_that_was_stopped_in_a_week_ends_as_if_it_had_not(
    tmp_path: Path, world: Path, ran: tuple[Path, LoopResult]
) -> None:
    settings, asked = settings_of(world), []

    def stop(stage: str, done: int, total: int) -> None:
        asked.append(stage)
        # Measured and a week served; measured and two days served; now in the third.
        if asked.count("requests") == 12:
            raise Stopped

    def arm(tell: object) -> _Arm:
        market = LiveMarketplace.open(world, searches_per_day=SEARCHES)
        return _Arm(settings, market, GREEDY, tmp_path, tell)  # type: ignore[arg-type]

    begun = arm(stop)
    begun.week(1)
    with pytest.raises(Stopped):
        begun.week(2)
    assert (tmp_path / GREEDY / "week-1.json").is_file()
    assert not (tmp_path / GREEDY / "week-2.json").exists()
    assert (tmp_path / GREEDY / "days" / f"{CONFIG.days + 8:05d}").is_dir()
    trained = (tmp_path / GREEDY / "week-2" / "run" / "run.json").stat().st_mtime_ns
    again = arm(lambda stage, done, total: None)
    assert [again.week(1), again.week(2)] == ran[1].of(GREEDY)
    assert (tmp_path / GREEDY / "week-2" / "run" / "run.json").stat().st_mtime_ns == trained


def test_a_finished_loop_is_read_and_not_run_again(world: Path, ran: tuple[Path, LoopResult]) -> None:
    stages: list[str] = []
    again = run_loop(settings_of(world), ran[0], progress=lambda stage, done, total: stages.append(stage))
    assert again.weeks == ran[1].weeks
    assert "requests" not in stages


def test_another_loop_in_the_same_folder_is_refused(
    tmp_path: Path, world: Path, ran: tuple[Path, LoopResult]
) -> None:
    with pytest.raises(ValueError, match=r"explore was 0\.3, now 0\.1"):
        run_loop(settings_of(world, explore=0.1), ran[0])
    (tmp_path / "something.txt").write_text("of a person")
    with pytest.raises(FileExistsError, match="choose another folder"):
        run_loop(settings_of(world), tmp_path)


def test_the_page_says_what_the_result_says(tmp_path: Path, ran: tuple[Path, LoopResult]) -> None:
    write_loop_report(ran[1], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_whole_and_self_contained(page)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**Simulated data.**" in text
    for sentence in loop_sentences(ran[1]):
        assert sentence in text
    last = ran[1].of(GREEDY)[-1]
    assert f"{100 * last.measured.value.ctr:.2f} %" in text
    assert f"{last.measured.traffic[UNIFORM].auc:.4f}" in text
    assert json.loads((ran[0] / "result.json").read_text(encoding="utf-8"))["simulated"] is True
    assert np.isfinite(last.exposure.gini)
