"""Lifts: against tea-tasting's own interval, a bootstrap, and by what their intervals promise."""

import math

import numpy as np
import pytest
from tea_tasting.metrics import RatioOfMeans

from experiments.abtest.estimates import aggregated, columns_of, estimate
from experiments.abtest.metrics import METRICS

Columns = dict[str, np.ndarray]


def two_arms(
    rng: np.random.Generator, *, units: int = 300, lift: float = 0.0, share: float = 0.5
) -> tuple[Columns, Columns]:
    """Impressions, clicks, orders of units that differ in activity and CTR, and what they did before."""
    arms = []
    for count, factor in ((round(units * (1 - share)), 1.0), (round(units * share), 1 + lift)):
        activity = rng.gamma(2.0, 20.0, count)
        ctr = 0.1 * np.exp(rng.normal(0, 0.6, count))
        columns: Columns = {}
        for prefix, chance in (("", ctr * factor), ("pre_", ctr)):
            shown = 1 + rng.poisson(activity)
            clicked = rng.binomial(shown, np.minimum(chance, 1.0))
            columns |= {
                f"{prefix}impressions": shown.astype(float),
                f"{prefix}clicks": clicked.astype(float),
                f"{prefix}conversions": rng.binomial(clicked, 0.3).astype(float),
            }
        arms.append(columns)
    return arms[0], arms[1]


def estimated(control: Columns, treatment: Columns, name: str = "ctr", *, adjusted: bool = True):
    wanted = columns_of(METRICS[name], adjusted=adjusted)
    arms = [aggregated({column: arm[column] for column in wanted}) for arm in (control, treatment)]
    found = estimate(METRICS[name], *arms, adjusted=adjusted)
    assert found is not None
    return found, arms


@pytest.mark.parametrize("name", ["ctr", "conversions", "conversion_rate"])
@pytest.mark.parametrize("adjusted", [True, False])
def test_means_difference_and_p_are_those_of_tea_tasting(name, adjusted):
    found, arms = estimated(*two_arms(np.random.default_rng(1), lift=0.1), name, adjusted=adjusted)
    metric = METRICS[name]
    covariates = [f"pre_{column}" for column in metric.columns] if adjusted else []
    theirs = RatioOfMeans(
        metric.numerator, metric.denominator, *[*covariates, None, None][:2], equal_var=False, use_t=True
    ).analyze_aggregates(*arms)
    assert found.control == pytest.approx(theirs.control, rel=1e-9)
    assert found.treatment == pytest.approx(theirs.treatment, rel=1e-9)
    assert found.lift.mean == pytest.approx(theirs.rel_effect_size, rel=1e-9)
    assert found.p == theirs.pvalue
    assert found.difference.low == pytest.approx(theirs.effect_size_ci_lower, rel=1e-9)
    assert found.difference.high == pytest.approx(theirs.effect_size_ci_upper, rel=1e-9)


@pytest.mark.parametrize("adjusted", [True, False])
def test_the_interval_of_the_lift_excludes_zero_exactly_where_p_is_below_the_level(adjusted):
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(300):
        found, _ = estimated(*two_arms(rng, units=60, lift=0.5), adjusted=adjusted)
        verdicts.append(found.p < 0.05)
        assert found.lift.excludes_zero == (found.p < 0.05)
    assert 30 < sum(verdicts) < 270  # both happen


def test_aggregates_of_units_without_any_count_need_no_rows():
    columns = {"clicks": np.array([1.0, 4.0]), "impressions": np.array([5.0, 9.0])}
    long = {name: np.concatenate([values, np.zeros(3)]) for name, values in columns.items()}
    short, full = aggregated(columns, zeros=3), aggregated(long)
    assert short.count() == full.count() == 5
    assert short.mean("clicks") == pytest.approx(full.mean("clicks"))
    assert short.var("clicks") == pytest.approx(np.var(long["clicks"], ddof=1))
    expected = np.cov(long["clicks"], long["impressions"])[0, 1]
    assert short.cov("clicks", "impressions") == pytest.approx(expected)


@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("lift", [0.0, 1.0])
def test_limits_are_those_of_a_bootstrap_over_units(adjusted, lift):
    """Even for a challenger that doubles the CTR, where the shared mean before the experiment matters."""
    rng = np.random.default_rng(3)
    control, treatment = two_arms(rng, units=1500, lift=lift)
    found, _ = estimated(control, treatment, adjusted=adjusted)
    drawn = []
    for _ in range(1500):
        arms = []
        for arm in (control, treatment):
            rows = rng.integers(0, len(arm["clicks"]), len(arm["clicks"]))
            arms.append({name: values[rows] for name, values in arm.items()})
        drawn.append(estimated(*arms, adjusted=adjusted)[0].lift.mean)
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert found.lift.high - found.lift.low == pytest.approx(width, rel=0.08)
    assert found.lift.low == pytest.approx(low, abs=0.08 * width)
    assert found.lift.high == pytest.approx(high, abs=0.08 * width)


@pytest.mark.parametrize("name", ["ctr", "conversions", "conversion_rate"])
def test_95_percent_intervals_hold_the_true_lift_in_95_percent_of_small_experiments(name):
    """CTR and orders rise by a tenth, the conversion rate stays; the challenger has a third of the units."""
    truth = {"ctr": 0.1, "conversions": 0.1, "conversion_rate": 0.0}[name]
    rng = np.random.default_rng(4)
    experiments = 800
    held = {"plain": 0, "sequential": 0}
    for _ in range(experiments):
        found, _ = estimated(*two_arms(rng, units=240, lift=0.1, share=1 / 3), name)
        held["plain"] += found.lift.low <= truth <= found.lift.high
        held["sequential"] += found.sequential.low <= truth <= found.sequential.high
    assert 0.93 <= held["plain"] / experiments <= 0.97
    assert held["sequential"] / experiments > 0.985


def test_cuped_narrows_by_the_root_of_what_the_past_does_not_explain():
    """Correlation c between before and during leaves sqrt(1 - c^2) of the width."""
    rng = np.random.default_rng(6)
    arms = []
    for _ in range(2):
        before = rng.normal(10, 2, 20_000)
        arms.append({"pre_conversions": before, "conversions": before + rng.normal(0, 1.5, 20_000)})
    narrow, wide = (estimated(*arms, "conversions", adjusted=adjusted)[0] for adjusted in (True, False))
    correlation = 2 / math.hypot(2, 1.5)
    factor = (narrow.lift.high - narrow.lift.low) / (wide.lift.high - wide.lift.low)
    assert factor == pytest.approx(math.sqrt(1 - correlation**2), rel=0.02)


def test_no_past_leaves_everything_as_it_is():
    control, treatment = two_arms(np.random.default_rng(7))
    for arm in (control, treatment):
        arm |= {name: np.zeros_like(values) for name, values in arm.items() if name.startswith("pre_")}
    found, _ = estimated(control, treatment)
    plain, _ = estimated(control, treatment, adjusted=False)
    assert not found.adjusted
    assert found.lift == plain.lift


def test_nothing_to_divide_by_has_no_estimate_and_a_control_of_nothing_no_lift():
    shown, none = np.array([1.0, 2.0, 3.0]), np.zeros(3)
    arms = [aggregated({"impressions": none, "clicks": none})] * 2
    assert estimate(METRICS["ctr"], *arms, adjusted=False) is None
    control = aggregated({"impressions": shown, "clicks": none})
    treatment = aggregated({"impressions": shown, "clicks": shown / 2 - 0.4})
    found = estimate(METRICS["ctr"], control, treatment, adjusted=False)
    assert found.lift is None
    assert found.difference.mean == pytest.approx(found.treatment)


def test_no_lift_is_below_minus_100_percent():
    control = aggregated({"clicks": np.tile([0.0, 1.0, 2.0, 1.0], 3), "impressions": np.full(12, 9.0)})
    treatment = aggregated({"clicks": np.eye(1, 12)[0], "impressions": np.full(12, 9.0)})
    found = estimate(METRICS["ctr"], control, treatment, adjusted=False)
    assert found.lift.low == -1.0 < found.lift.mean < found.lift.high


def test_two_variants_that_do_not_vary_differ_by_exactly_nothing():
    arms = [aggregated({"impressions": np.ones(40), "clicks": np.zeros(40)})] * 2
    found = estimate(METRICS["ctr"], *arms, adjusted=False)
    assert (found.p, found.lift) == (None, None)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)
    assert (found.sequential_difference.low, found.sequential_difference.high) == (0.0, 0.0)


def test_few_units_have_no_limits_for_all_looks():
    control, treatment = two_arms(np.random.default_rng(8), units=100)
    few = {name: values[:29] for name, values in treatment.items()}
    found, _ = estimated(control, few)
    assert (found.sequential.low, found.sequential_difference.low) == (None, None)
    assert found.lift.low is not None
    enough = {name: values[:30] for name, values in treatment.items()}
    assert estimated(control, enough)[0].sequential.low is not None
