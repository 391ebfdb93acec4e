"""Slices: false discoveries by hand, shrinkage against slow loops, and units that never came to a slice."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.abtest.estimates import aggregated, estimate
from experiments.abtest.experiment_log import ExperimentLog, write_experiment
from experiments.abtest.metrics import METRICS
from experiments.abtest.slices import false_discovery_adjusted, shrunk_logs, slice_results
from experiments.abtest.unit_sums import UnitSums
from tests.experiments.abtest.worlds import described, simulated_unit_days


def adjusted_by_loops(p_values: list[float], *, dependent: bool) -> list[float]:
    """Benjamini and Hochberg: least p_j m / j of all ranks j from that of p on; Yekutieli: times sum 1/j."""
    count = len(p_values)
    factor = sum(1 / rank for rank in range(1, count + 1)) if dependent else 1.0
    ranked = sorted(p_values)
    found = []
    for p in p_values:
        later = [other * count / rank for rank, other in enumerate(ranked, 1) if other >= p]
        found.append(min([1.0, *(factor * value for value in later)]))
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True), st.booleans())
def test_adjusted_p_values_are_those_of_the_definition(p_values: list[float], dependent: bool) -> None:
    found = false_discovery_adjusted([None, *p_values], dependent=dependent)
    assert found[0] is None
    assert found[1:] == pytest.approx(adjusted_by_loops(p_values, dependent=dependent))


def test_shrunk_lifts_are_those_of_a_posterior_summed_over_a_grid_of_means_and_deviations() -> None:
    seen, variance = np.array([0.02, 0.15, -0.05]), np.array([0.03, 0.05, 0.04]) ** 2
    weights, values, squares, deviations = [], [], [], []
    for deviation in np.linspace(0.0005, 0.4995, 200):
        for mean in np.linspace(-0.6, 0.7, 400):
            total = variance + deviation**2
            weights.append(
                np.prod(stats.norm.pdf(seen, mean, np.sqrt(total))) * stats.norm.pdf(deviation, 0, 0.1)
            )
            drawn = variance / total
            values.append(drawn * mean + (1 - drawn) * seen)
            squares.append((1 - drawn) * variance + values[-1] ** 2)
            deviations.append(deviation)
    weights = np.array(weights) / sum(weights)
    expected = weights @ np.array(values)
    found, error, deviation, p = shrunk_logs(seen, variance)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(error, np.sqrt(weights @ np.array(squares) - expected**2), atol=4e-4)
    assert deviation == pytest.approx(weights @ np.array(deviations), abs=1e-3)
    mean = np.average(seen, weights=1 / variance)
    assert p == pytest.approx(stats.chi2.sf(np.sum((seen - mean) ** 2 / variance), 2))


def test_shrinkage_errs_less_than_the_lifts_themselves_and_its_limits_hold() -> None:
    rng = np.random.default_rng(0)
    raw, drawn, held = [], [], []
    for _ in range(400):
        true = rng.normal(0.05, 0.04, 15)
        variance = rng.uniform(0.02, 0.08, 15) ** 2
        seen = rng.normal(true, np.sqrt(variance))
        mean, error, _, _ = shrunk_logs(seen, variance)
        raw.append(np.square(seen - true).mean())
        drawn.append(np.square(mean - true).mean())
        held.append((np.abs(mean - true) <= 1.96 * error).mean())
    assert np.mean(drawn) < 0.7 * np.mean(raw)
    assert 0.92 < np.mean(held) < 0.97


def test_the_q_test_is_uniform_where_all_slices_have_one_lift() -> None:
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.02, 0.08, 12) ** 2
    p_values = [shrunk_logs(rng.normal(0.05, np.sqrt(variance)), variance)[3] for _ in range(400)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def opened(folder: Path) -> ExperimentLog:
    """Impressions fall to three aisles at random; the fourth is seen by few."""
    rng = np.random.default_rng(2)
    table = simulated_unit_days(rng, units=800, days=3, lift=0.2)
    names = rng.choice(["fruit", "bread", "milk", "rare"], table.num_rows, p=[0.5, 0.3, 0.19, 0.01])
    slices = (
        table.select(["unit", "day", "impressions", "clicks", "conversions", "revenue"])
        .append_column("kind", pa.array(["aisle"] * table.num_rows))
        .append_column("slice", pa.array(names))
    )
    write_experiment(folder / "e", described(), table, slices=slices)
    return ExperimentLog.open(folder / "e")


def test_units_that_never_came_to_a_slice_count_as_zero_there(tmp_path: Path) -> None:
    log = opened(tmp_path)
    rows, _ = slice_results(log, UnitSums.of_days(log, 0, log.days - 1))
    assert [row.name for row in rows if row.kind == "aisle" and row.metric == "ctr"][:3] == [
        "fruit",
        "bread",
        "milk",
    ]
    [found] = [row for row in rows if (row.name, row.metric) == ("bread", "revenue")]
    assert log.slices is not None
    place = log.slices.names.index(("aisle", "bread"))
    revenue_U = np.zeros(len(log.units))
    for which, unit, value in zip(
        log.slices.slice_L, log.slices.unit_L, log.slices.counts["revenue"], strict=True
    ):
        if which == place:
            revenue_U[unit] += value
    arms = [aggregated({"revenue": revenue_U[log.treated_U == treated]}) for treated in (False, True)]
    expected = estimate(METRICS["revenue"], *arms, adjusted=False)
    assert expected is not None
    assert expected.lift is not None
    assert found.lift == pytest.approx(expected.lift.mean)
    assert found.low == pytest.approx(expected.lift.low)


def test_a_slice_where_too_few_clicked_is_left_out_and_counted(tmp_path: Path) -> None:
    log = opened(tmp_path)
    rows, spreads = slice_results(log, UnitSums.of_days(log, 0, log.days - 1))
    assert {row.name for row in rows if row.kind == "aisle"} == {"fruit", "bread", "milk"}
    [aisles] = [one for one in spreads if (one.kind, one.metric) == ("aisle", "ctr")]
    assert (aisles.slices, aisles.left_out) == (3, 1)


def test_the_groups_of_a_segment_are_units_of_their_own(tmp_path: Path) -> None:
    log = opened(tmp_path)
    everyone = UnitSums.of_days(log, 0, log.days - 1)
    rows, spreads = slice_results(log, everyone)
    [found] = [row for row in rows if (row.kind, row.name, row.metric) == ("has_purchases", "yes", "ctr")]
    expected = everyone.of_units(log.segments["has_purchases"] == "yes").estimate(METRICS["ctr"])
    assert expected is not None
    assert expected.lift is not None
    assert found.lift == expected.lift.mean
    assert {(one.kind, one.metric) for one in spreads} == {
        (kind, metric) for kind in ("has_purchases", "aisle") for metric in ("ctr", "conversions", "revenue")
    }


@given(st.integers(0, 5))
def test_slices_without_any_lift_have_none(seed: int) -> None:
    assert false_discovery_adjusted([None] * (seed + 1), dependent=False) == [None] * (seed + 1)
