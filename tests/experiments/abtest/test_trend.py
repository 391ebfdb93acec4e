"""The trend of the lift: against least squares and a bootstrap of users, and a lift that fades."""

from pathlib import Path

import numpy as np
import pytest

from experiments.abtest.experiment_log import ExperimentLog, write_experiment
from experiments.abtest.metrics import METRICS
from experiments.abtest.trend import trend_of
from tests.experiments.abtest.worlds import described, simulated_unit_days


def opened(folder: Path, seed: int, **world: float) -> ExperimentLog:
    table = simulated_unit_days(np.random.default_rng(seed), **({"units": 900, "days": 6} | world))  # type: ignore[arg-type]
    write_experiment(folder / "e", described(), table)
    return ExperimentLog.open(folder / "e")


def slope_by_loops(log: ExperimentLog, weight_U: np.ndarray) -> float:
    """The line through log lifts of days, where each unit weighs what it is given."""
    lifts = []
    for day in range(log.days):
        ratios = []
        for treated in (True, False):
            rows = (log.day_N == day) & (log.treated_U[log.unit_N] == treated)
            weight_N = weight_U[log.unit_N[rows]]
            ratios.append(
                (weight_N @ log.counts["clicks"][rows]) / (weight_N @ log.counts["impressions"][rows])
            )
        lifts.append(np.log(ratios[0] / ratios[1]))
    return float(np.polyfit(np.arange(log.days), lifts, 1)[0])


def test_slope_and_limits_are_those_of_least_squares_and_a_bootstrap_over_users(tmp_path: Path) -> None:
    log = opened(tmp_path, 0, lift=0.2, heterogeneity=1.0)
    found = trend_of(log, METRICS["ctr"])
    assert found is not None
    assert found.slope == pytest.approx(slope_by_loops(log, np.ones(len(log.units))))
    rng = np.random.default_rng(1)
    drawn = [
        slope_by_loops(
            log, np.bincount(rng.integers(0, len(log.units), len(log.units)), minlength=len(log.units))
        )
        for _ in range(400)
    ]
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.12)


def test_a_lift_that_fades_has_a_falling_line_and_one_that_lasts_has_none(tmp_path: Path) -> None:
    fading = trend_of(opened(tmp_path / "1", 2, lift=0.8, unequal_days=0.0), METRICS["ctr"])
    lasting = trend_of(opened(tmp_path / "2", 3, lift=0.8), METRICS["ctr"])
    assert fading is not None
    assert lasting is not None
    assert fading.high < 0
    assert fading.low < -np.log(1.8) / 5 < fading.high
    assert lasting.low < 0 < lasting.high


def test_two_days_have_no_trend(tmp_path: Path) -> None:
    assert trend_of(opened(tmp_path, 4, days=2), METRICS["ctr"]) is None
