"""Played again with other luck: estimates around the truth, and intervals that hold it."""

from pathlib import Path

import pytest

from experiments.abtest.metrics import METRICS
from experiments.abtest.simulated.coverage import CUPED, PLAIN, Coverage, measure_coverage
from experiments.abtest.simulated.run import run_experiment
from experiments.marketplace.generate import generate, make_world
from tests.experiments.abtest.simulated.test_run import CONFIG, KnownPolicy, settings_of

pytest.importorskip("tea_tasting", reason="the extra `abtest` is not installed")
REPEATS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coverage")
    generate(CONFIG, folder / "data")
    world = make_world(CONFIG)
    settings = settings_of(folder / "data", days=1, searches_per_day=1000, explore=0.0)
    run_experiment(settings, folder / "out", lambda name, _: KnownPolicy(world, settings.model_dump()[name]))
    return folder / "out"


@pytest.fixture(scope="module")
def covered(run: Path) -> dict[str, Coverage]:
    return measure_coverage(run, repeats=REPEATS)


def test_intervals_hold_the_true_lift_about_as_often_as_they_say(covered: dict[str, Coverage]) -> None:
    assert covered.keys() == METRICS.keys()
    for name, found in covered.items():
        # Of 40 repetitions at 95 %, fewer than 32 is one in ten thousand.
        assert found.repeats == REPEATS
        for way in (PLAIN, CUPED):
            held = found.held[way]
            assert held is not None
            assert held >= 0.8, (name, way)


def test_estimates_lie_around_the_true_lift(covered: dict[str, Coverage]) -> None:
    for name in ("ctr", "relevance", "revenue_per_impression"):
        found = covered[name]
        assert found.estimated is not None
        assert found.true_lift is not None
        assert found.bias_error is not None
        assert abs(found.estimated - found.true_lift) < 4 * found.bias_error + 0.02 * abs(found.true_lift)
        assert found.true_lift > 0.1
    # The interval is no trivial one: it says that the challenger is better.
    width, lift = covered["relevance"].width[PLAIN], covered["relevance"].true_lift
    assert width is not None
    assert lift is not None
    assert width < lift


def test_a_repetition_is_that_of_its_number(run: Path) -> None:
    assert measure_coverage(run, repeats=3) == measure_coverage(run, repeats=3)


def test_a_run_that_is_not_finished_is_refused(run: Path, tmp_path: Path) -> None:
    longer = tmp_path / "out"
    longer.mkdir()
    said = (run / "run.json").read_text(encoding="utf-8")
    (longer / "run.json").write_text(said, encoding="utf-8")
    with pytest.raises(ValueError, match="not finished"):
        measure_coverage(longer, repeats=2)
