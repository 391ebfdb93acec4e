"""Whole experiments with something planted: the decision must name it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from experiments.abtest.analysis import analyse_folder, misrouted_units, sample_ratio_p
from experiments.abtest.decision import latency_ratio
from experiments.abtest.estimates import aggregated, columns_of, estimate
from experiments.abtest.experiment_log import DayLatency, ExperimentLog, write_experiment
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult
from serving.scoring.routing import assign
from tests.experiments.abtest.worlds import FIRST_DAY, described, simulated_unit_days

DAYS = 6


def latencies(rng: np.random.Generator, *, factor: float = 1.0, days: int = DAYS) -> pa.Table:
    """Each variant has 400 requests a day; days differ in load, the challenger by a factor."""
    rows: dict[str, list[Any]] = {"variant": [], "day": [], "ms": []}
    for day in range(days):
        load = np.exp(rng.normal(0, 0.3))
        for variant, slower in (("champion", 1.0), ("challenger", factor)):
            rows["variant"] += [variant] * 400
            rows["day"] += [FIRST_DAY + timedelta(days=day)] * 400
            rows["ms"] += list(load * slower * rng.lognormal(2.5, 0.1, 400))
    return pa.table(rows)


def analysed(
    folder: Path,
    table: pa.Table,
    *,
    latency: pa.Table | None = None,
    slices: pa.Table | None = None,
    **said: Any,
) -> AbtestResult:
    write_experiment(
        folder / "e", described(planned_days=DAYS, **said), table, latency=latency, slices=slices
    )
    return analyse_folder(folder / "e")


def world(seed: int, **changes: Any) -> pa.Table:
    return simulated_unit_days(np.random.default_rng(seed), **({"units": 2000, "days": DAYS} | changes))


def test_a_better_challenger_is_shipped(tmp_path: Path) -> None:
    result = analysed(
        tmp_path,
        world(0, lift=0.2),
        latency=latencies(np.random.default_rng(0)),
        true_lift={"ctr": 0.2},
    )
    assert result.decision.verdict == "ship"
    assert result.decision.sentence.startswith("The challenger is better: CTR +")
    assert result.decision.limits == "one look"
    ctr = result.metrics["ctr"]
    assert ctr.low < 0.2 < ctr.high
    assert ctr.true_lift == 0.2
    assert (result.simulated, result.days, result.consumers) == (True, DAYS, sum(result.units.values()))
    assert ctr.cuped_narrowing < 0.9
    assert ctr.low > ctr.sequential_low
    assert result.metrics["conversion_rate"].low < 0 < result.metrics["conversion_rate"].high


def test_a_worse_challenger_is_called_worse(tmp_path: Path) -> None:
    result = analysed(tmp_path, world(1, lift=-0.2))
    assert result.decision.verdict == "stop"
    assert result.decision.sentence.startswith("The challenger is worse: CTR -")
    assert any("Revenue a user is worse" in note for note in result.decision.notes)


def test_no_difference_is_no_reason_to_ship_or_stop(tmp_path: Path) -> None:
    result = analysed(tmp_path, world(2))
    assert result.decision.verdict == "go on"
    assert "not told apart" in result.decision.sentence
    assert "the planned days are over" in result.decision.sentence


def test_a_split_of_48_to_52_is_an_alarm_even_if_the_challenger_looks_better(tmp_path: Path) -> None:
    result = analysed(tmp_path, world(3, units=10_000, days=1, lift=0.3, treatment_share=0.48, visits=1))
    assert result.srm_p < 0.001
    assert result.decision.verdict == "invalid"
    assert "Sample ratio mismatch" in result.decision.sentence
    assert "48.0 %" in result.decision.sentence


def test_the_sample_ratio_is_held_against_the_planned_one() -> None:
    planned = described(shares={"champion": 0.76, "challenger": 0.2, "holdout": 0.04})
    assert sample_ratio_p({"champion": 7600, "challenger": 2000}, planned) > 0.9
    assert sample_ratio_p({"champion": 4800, "challenger": 4800}, planned) < 1e-9


def test_a_slow_challenger_is_stopped_though_it_is_better(tmp_path: Path) -> None:
    slow = latencies(np.random.default_rng(4), factor=1.3)
    result = analysed(tmp_path, world(4, lift=0.2), latency=slow)
    assert result.decision.verdict == "stop"
    assert "latency rose by 29" in result.decision.sentence
    assert [rail.state for rail in result.guardrails] == ["kept", "kept", "broken"]


def test_a_little_slower_than_allowed_is_not_settled_by_noise(tmp_path: Path) -> None:
    noisy = latencies(np.random.default_rng(5), factor=1.11)
    result = analysed(tmp_path, world(4, lift=0.2), latency=noisy)
    assert result.decision.verdict == "go on"
    assert "The challenger is better" in result.decision.sentence
    assert "not settled yet" in result.decision.sentence


def test_the_load_of_a_day_does_not_count_as_latency_of_a_variant() -> None:
    days = [
        DayLatency(FIRST_DAY, control, factor * control, 9, 9)
        for control, factor in ((10.0, 1.2), (80.0, 1.2), (20.0, 1.2))
    ]
    ratio = latency_ratio(days)
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))
    one = latency_ratio(days[:1])
    assert (one.mean, one.low) == (pytest.approx(1.2), None)


def test_a_challenger_that_fails_more_searches_is_stopped(tmp_path: Path) -> None:
    table = world(6, lift=0.2)
    failed = pc.and_(pc.equal(table["variant"], "challenger"), pc.greater(table["searches"], 1))
    at = table.schema.get_field_index("errors")
    table = table.set_column(at, "errors", pc.cast(failed, pa.int64()))
    result = analysed(tmp_path, table)
    assert result.decision.verdict == "stop"
    assert "failed searches rose" in result.decision.sentence


def test_lost_revenue_stops_what_clicks_alone_would_ship(tmp_path: Path) -> None:
    table = world(7, lift=0.2)
    factor = pc.if_else(pc.equal(table["variant"], "challenger"), 0.5, 1.0)
    at = table.schema.get_field_index("revenue")
    table = table.set_column(at, "revenue", pc.multiply(table["revenue"], factor))
    result = analysed(tmp_path, table)
    assert result.decision.verdict == "stop"
    assert "Revenue a user fell by" in result.decision.sentence


def test_the_metric_that_decides_stands_alone_and_the_others_are_adjusted_together(tmp_path: Path) -> None:
    metrics = analysed(tmp_path, world(13, lift=0.1)).metrics
    assert metrics["ctr"].p_adjusted == metrics["ctr"].p
    others = sorted((found.p, found.p_adjusted) for name, found in metrics.items() if name != "ctr")
    factor = sum(1 / rank for rank in range(1, 6))
    assert others[-1][1] == pytest.approx(min(1.0, factor * others[-1][0]))
    assert others[0][1] <= min(1.0, 5 * factor * others[0][0]) + 1e-12


def test_before_the_planned_end_the_limits_for_all_looks_decide(tmp_path: Path) -> None:
    early = analysed(tmp_path, world(0, lift=0.065, units=6000))
    ctr = early.metrics["ctr"]
    assert ctr.sequential_low < 0 < ctr.low  # one look would ship it
    again = analysed(tmp_path / "2", world(0, lift=0.065, units=6000))
    assert again.decision.verdict == "ship"
    write_experiment(tmp_path / "f", described(planned_days=DAYS + 4), world(0, lift=0.065, units=6000))
    result = analyse_folder(tmp_path / "f")
    assert result.decision.verdict == "go on"
    assert result.decision.limits == "all looks"


def test_units_that_saw_another_variant_than_their_hash_gives_make_it_invalid(tmp_path: Path) -> None:
    table = world(8, lift=0.2)
    shares = {"champion": 0.5, "challenger": 0.5}
    drawn = pa.array([assign(unit, "s", shares) for unit in table["unit"].to_pylist()])
    at = table.schema.get_field_index("variant")
    right = table.set_column(at, "variant", drawn)
    write_experiment(tmp_path / "e", described(salt="s"), right)
    assert misrouted_units(ExperimentLog.open(tmp_path / "e")) == 0
    one = table["unit"][0].as_py()
    moved = [
        ("champion" if variant == "challenger" else "challenger") if unit == one else variant
        for unit, variant in zip(right["unit"].to_pylist(), drawn.to_pylist(), strict=True)
    ]
    result = analysed(tmp_path, right.set_column(at, "variant", pa.array(moved)), salt="s")
    assert (result.misrouted, result.decision.verdict) == (1, "invalid")


def test_columns_that_a_log_lacks_are_left_out_and_named(tmp_path: Path) -> None:
    table = world(9, before=False).select(["unit", "variant", "day", "impressions", "clicks"])
    result = analysed(tmp_path, table)
    assert list(result.metrics) == ["ctr"]
    assert not result.metrics["ctr"].cuped
    assert result.guardrails == []
    assert "Not measured, so not guarded: revenue, failed searches, latency." in result.decision.notes
    with pytest.raises(ValueError, match="Revenue a user decides, but it cannot be measured"):
        analysed(tmp_path, table, primary="revenue")


def test_the_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = analysed(tmp_path, world(10))
    result.write(tmp_path / "result.json")
    assert AbtestResult.model_validate_json((tmp_path / "result.json").read_bytes()) == result


def test_the_last_day_so_far_is_the_whole_experiment(tmp_path: Path) -> None:
    result = analysed(tmp_path, world(11))
    last = next(row for row in result.daily[::-1] if row.metric == "ctr")
    ctr = result.metrics["ctr"]
    assert (last.so_far.lift, last.so_far.low, last.so_far.high) == (ctr.lift, ctr.low, ctr.high)
    assert last.so_far_sequential.low == ctr.sequential_low


def test_looking_daily_errs_in_a_plain_interval_and_not_in_a_sequential_one() -> None:
    """200 experiments without a difference, of users who come back for 15 days, looked at every evening."""
    rng = np.random.default_rng(12)
    units, days, runs = 160, 15, 200
    wrong = {"plain": 0, "sequential": 0}
    names = columns_of(METRICS["ctr"], adjusted=False)
    for _ in range(runs):
        treated_U = rng.permutation(units) < units // 2
        ctr_U = 0.15 * np.exp(rng.normal(0, 0.5, units))
        first_U = rng.integers(0, days // 2, units)  # users enter one by one
        sums = {name: np.zeros(units) for name in names}
        plain = sequential = False
        for day in range(days):
            came_U = (rng.random(units) < 0.5) & (first_U <= day)
            shown_U = came_U * (1 + rng.poisson(8, units))
            sums["impressions"] += shown_U
            sums["clicks"] += rng.binomial(shown_U, np.minimum(ctr_U, 1))
            if (
                min((sums["impressions"][treated_U] > 0).sum(), (sums["impressions"][~treated_U] > 0).sum())
                < 20
            ):
                continue
            control, treatment = (
                aggregated({name: values[arm_U & (sums["impressions"] > 0)] for name, values in sums.items()})
                for arm_U in (~treated_U, treated_U)
            )
            found = estimate(METRICS["ctr"], control, treatment, adjusted=False)
            plain |= found.lift.excludes_zero
            sequential |= found.sequential.excludes_zero
        wrong["plain"] += plain
        wrong["sequential"] += sequential
    assert wrong["plain"] / runs > 0.10
    assert wrong["sequential"] / runs <= 0.05
