"""Played again with other luck: estimates around the truth, and intervals that hold it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult
from experiments.abtest.simulated.coverage import (
    COVERAGE,
    REPETITIONS,
    Coverage,
    Share,
    experiment_in,
    measure_coverage,
)
from experiments.abtest.simulated.repetition import CUPED, PLAIN, SEQUENTIAL, Judged
from experiments.abtest.simulated.run import run_experiment
from experiments.cli import app
from experiments.marketplace.generate import generate, make_world
from tests.experiments.abtest.simulated.test_run import CONFIG, KnownPolicy, settings_of

pytest.importorskip("tea_tasting", reason="the extra `abtest` is not installed")
REPEATS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coverage")
    generate(CONFIG, folder / "data")
    world = make_world(CONFIG)
    settings = settings_of(folder / "data", days=2, searches_per_day=500, explore=0.0)
    run_experiment(settings, folder / "out", lambda name, _: KnownPolicy(world, settings.model_dump()[name]))
    return folder / "out"


@pytest.fixture(scope="module")
def covered(run: Path) -> Coverage:
    return measure_coverage(run, repeats=REPEATS)


def test_intervals_hold_the_true_lift_about_as_often_as_they_say(covered: Coverage) -> None:
    assert covered.metrics.keys() == METRICS.keys()
    for name, found in covered.metrics.items():
        # Of 40 repetitions at 95 %, fewer than 32 is one in ten thousand.
        assert found.repeats == REPEATS
        for way, one in found.ways.items():
            assert one.last_day.share >= 0.8, (name, way)
            assert one.every_day.share <= one.last_day.share
            assert one.last_day.low <= one.last_day.share <= one.last_day.high
        assert found.ways[SEQUENTIAL].every_day.share >= 0.8
        assert found.held == found.ways[found.reported].last_day.share


def test_estimates_lie_around_the_true_lift(covered: Coverage) -> None:
    for name in ("ctr", "relevance", "revenue_per_impression"):
        found = covered.metrics[name]
        assert found.bias_error is not None
        assert abs(found.estimated - found.true_lift) < 4 * found.bias_error + 0.02 * abs(found.true_lift)
        assert found.true_lift > 0.1
    # The interval is no trivial one: it says that the challenger is better.
    relevance = covered.metrics["relevance"]
    assert (relevance.ways[PLAIN].width or 1) < relevance.true_lift


def test_what_was_before_narrows_the_metrics_that_have_it_and_is_no_way_for_the_others(
    covered: Coverage,
) -> None:
    for name, found in covered.metrics.items():
        known = name in ("ctr", "conversions", "conversion_rate")
        assert (CUPED in found.ways) == known
        assert found.reported == (CUPED if known else PLAIN)
        assert (found.cuped_width is not None) == known
    ctr = covered.metrics["ctr"]
    assert ctr.cuped_width is not None
    assert ctr.cuped_narrower is not None
    assert 0.5 < ctr.cuped_width < 1.05
    assert 0 < ctr.cuped_narrower.share < 1  # one day of clicks, hardly explained by the weeks before


def test_all_looks_ask_for_a_wider_interval_than_one(covered: Coverage) -> None:
    for name in ("relevance", "revenue_per_impression"):  # the others may have no upper end in so few days
        found = covered.metrics[name]
        one, every = found.ways[found.reported].width, found.ways[SEQUENTIAL].width
        assert one is not None
        assert every is not None
        assert every > one


def test_a_stopped_call_goes_on_and_ends_as_if_it_had_not_been_stopped(run: Path, covered: Coverage) -> None:
    lines = (run / REPETITIONS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["repeat"] for line in lines] == list(range(REPEATS))
    # A kill in the middle of a line, and a number that does not follow.
    kept = "\n".join(lines[:30])
    (run / REPETITIONS).write_text(f"{kept}\n{lines[30][:40]}", encoding="utf-8")
    played: list[int] = []
    again = measure_coverage(run, repeats=REPEATS, progress=lambda stage, done, total: played.append(done))
    assert played == list(range(30, REPEATS + 1))
    assert again.metrics == covered.metrics
    assert again.consumers == covered.consumers
    fewer = measure_coverage(run, repeats=3)
    assert fewer.repeats == fewer.metrics["ctr"].repeats == 3
    assert len((run / REPETITIONS).read_text(encoding="utf-8").splitlines()) == REPEATS


def test_exact_binomial_limits_of_190_in_200() -> None:
    found = Share.of([True] * 190 + [False] * 10)
    assert found.share == 0.95
    assert (found.low, found.high) == pytest.approx((0.91, 0.976), abs=5e-4)


def test_an_interval_without_an_end_holds_all_that_lies_there() -> None:
    assert Judged(None, 0.1, 0.2, -5.0, every_day=True).holds
    assert not Judged(0.0, 0.1, None, -5.0, every_day=True).holds
    assert Judged(None, 0.1, 0.2, 0.0, every_day=True).width is None


def test_a_run_that_is_not_finished_is_refused(run: Path, tmp_path: Path) -> None:
    longer = tmp_path / "out"
    longer.mkdir()
    said = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (longer / "run.json").write_text(json.dumps(said | {"days": 5}), encoding="utf-8")
    with pytest.raises(ValueError, match="not finished"):
        measure_coverage(longer, repeats=2)
    assert not (longer / COVERAGE).exists()


def test_the_command_puts_the_coverage_into_the_result_of_the_run(run: Path, covered: Coverage) -> None:
    before = CliRunner().invoke(app, ["abtest", "report", str(run)])
    assert before.exit_code == 0, before.output
    assert AbtestResult.model_validate_json((run / "result.json").read_bytes()).coverage is None
    ran = CliRunner().invoke(app, ["abtest", "coverage", str(run), "--repeats", str(REPEATS)])
    assert ran.exit_code == 0, ran.output
    for written in (COVERAGE, "coverage.md", "result.json", "report.html"):
        assert (run / written).is_file()
    content = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert content["simulated"] is True
    assert content["days"] == 2
    assert content["consumers"] > 100
    assert 0 <= content["srm_p"] <= 1
    assert content["metrics"].keys() == METRICS.keys()
    for name, metric in content["metrics"].items():
        assert {"lift", "low", "high", "true_lift"} <= metric.keys()
        assert metric["true_lift"] is not None
        assert metric["coverage"] == covered.metrics[name].held
    assert content["coverage"] == covered.metrics["ctr"].held
    assert Coverage.model_validate_json((run / COVERAGE).read_bytes()).metrics == covered.metrics
    assert f"{100 * content['coverage']:.1f} %" in (run / "report.md").read_text(encoding="utf-8")
    assert experiment_in(run / "experiment") == (run / "experiment", None)
