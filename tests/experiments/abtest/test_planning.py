"""Plans: users by the closed form and by simulation, past windows by loops, uniform p-values of A/A tests."""

import datetime as dt
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from experiments.abtest import aa_check
from experiments.abtest.aa_check import check_aa
from experiments.abtest.description import ExperimentError
from experiments.abtest.estimates import aggregated, columns_of, estimate
from experiments.abtest.metrics import METRICS
from experiments.abtest.past_windows import PastWindow, open_past
from experiments.abtest.planning import (
    detectable_lift,
    needed_users,
    plan_experiment,
    power_at,
    sequential_factor,
)
from experiments.cli import app
from experiments.statistics.sequential import mixture_critical
from tests.experiments.abtest.test_estimates import Columns, two_arms
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

START = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
DAYS = 12


def write_log(folder: Path, *, users: int = 80, purchases: bool = True) -> None:
    """Users with a CTR of their own see two products on some days, and buy some of what they click."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"product_id": [1, 2], "title": ["Bread", "Milk"], "aisle": ["A", "B"]}),
        folder / "products.parquet",
    )
    rows: list[tuple[int, dt.datetime, int, int]] = []
    bought: list[tuple[int, dt.datetime, int]] = []
    for user in range(users):
        ctr = rng.beta(2, 4)
        for day in range(DAYS):
            for _ in range(rng.poisson(1.5)):
                at = START + dt.timedelta(days=day, seconds=float(rng.uniform(0, 86_000)))
                product, clicked = int(rng.integers(1, 3)), int(rng.random() < ctr)
                rows.append((user, at, product, clicked))
                if clicked and rng.random() < 0.5:
                    bought.append((user, at + dt.timedelta(hours=float(rng.uniform(0, 48))), product))
    for day in (0, DAYS - 1):  # the log has all its days
        rows.append((0, START + dt.timedelta(days=day), 1, 1))
    columns = list(zip(*rows, strict=True))
    pq.write_table(
        pa.table(
            {
                "impression_id": range(len(rows)),
                "user_id": pa.array(columns[0], pa.int64()),
                "timestamp": pa.array(columns[1], pa.timestamp("us", "UTC")),
                "product_id": columns[2],
                "clicked": pa.array(columns[3], pa.int8()),
            }
        ),
        folder / "impressions.parquet",
    )
    if purchases:
        users_of, times, products = zip(*bought, strict=True)
        pq.write_table(
            pa.table(
                {
                    "user_id": pa.array(users_of, pa.int64()),
                    "timestamp": pa.array(times, pa.timestamp("us", "UTC")),
                    "product_id": products,
                }
            ),
            folder / "purchases.parquet",
        )


def window_by_loops(folder: Path, days: int, before_days: int) -> dict[str, dict[str, float]]:
    """Sums of each user of the last days, and of those before, row by row."""
    rows = pq.read_table(folder / "impressions.parquet").to_pylist()
    bought = pq.read_table(folder / "purchases.parquet").to_pylist()
    found: dict[str, dict[str, float]] = {}
    came = set()
    for row in rows:
        day = (row["timestamp"] - START).days
        if day < DAYS - days - before_days:
            continue
        prefix = "" if day >= DAYS - days else "pre_"
        converted = row["clicked"] and any(
            one["user_id"] == row["user_id"]
            and one["product_id"] == row["product_id"]
            and 0 <= (one["timestamp"] - row["timestamp"]).total_seconds() <= 86_400
            for one in bought
        )
        name = str(row["user_id"])
        sums = found.setdefault(name, {})
        for count, value in (("impressions", 1), ("clicks", row["clicked"]), ("conversions", converted)):
            sums[prefix + count] = sums.get(prefix + count, 0) + value
        if not prefix:
            came.add(name)
    return {name: sums for name, sums in found.items() if name in came}


@pytest.mark.parametrize(("days", "before_days"), [(1, 3), (4, 28), (6, 6)])
def test_a_past_window_holds_what_a_walk_over_the_rows_finds(
    tmp_path: Path, days: int, before_days: int
) -> None:
    write_log(tmp_path, users=30)
    with open_past(tmp_path) as past:
        assert past.days == DAYS
        window = past.window(days, before_days=before_days)
    expected = window_by_loops(tmp_path, days, before_days)
    assert sorted(window.users) == sorted(expected)
    for place, user in enumerate(window.users):
        for name, values in window.sums.items():
            assert values[place] == expected[user].get(name, 0), (user, name)


def test_no_days_before_leave_nothing_to_adjust_by(tmp_path: Path) -> None:
    write_log(tmp_path, users=10)
    with open_past(tmp_path) as past:
        window = past.window(3, before_days=0)
    assert set(window.sums) == {"impressions", "clicks", "conversions"}
    assert not window.has_past(METRICS["ctr"])


def test_needed_users_are_those_of_the_closed_form() -> None:
    """(z + z')^2 var (1/q + 1/(1 - q)) / (lift mean)^2 for a share q."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2.0, 1.0, 4000)
    everyone = aggregated({"revenue": values})
    share, lift = 0.3, 0.04
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    expected = quantiles**2 * values.var(ddof=1) / (lift * values.mean()) ** 2 * (1 / share + 1 / (1 - share))
    ratio = share / (1 - share)
    found = needed_users(METRICS["revenue"], everyone, adjusted=False, lift=lift, ratio=ratio)
    assert found == pytest.approx(expected, abs=1)
    back = detectable_lift(METRICS["revenue"], everyone, adjusted=False, users=found, ratio=ratio)
    assert back == pytest.approx(lift, rel=0.002)
    [power] = power_at(METRICS["revenue"], everyone, [lift], adjusted=False, users=found, ratio=ratio)
    assert power == pytest.approx(0.8, abs=0.002)


def test_as_many_users_as_were_planned_find_the_lift_in_80_percent_of_experiments() -> None:
    """By CTR after CUPED, of users who differ in activity and CTR."""
    rng = np.random.default_rng(2)
    metric = METRICS["ctr"]
    names = columns_of(metric, adjusted=True)

    def sums(arm: Columns) -> Columns:
        return {name: arm[name] for name in names}

    past, _ = two_arms(rng, units=40_000)
    everyone = aggregated(sums(past))
    needed = needed_users(metric, everyone, adjusted=True, lift=0.1, ratio=1.0)
    assert needed < 0.6 * needed_users(metric, everyone, adjusted=False, lift=0.1, ratio=1.0)
    experiments, found = 500, 0
    for _ in range(experiments):
        arms = two_arms(rng, units=needed, lift=0.1)
        one = estimate(metric, *(aggregated(sums(arm)) for arm in arms), adjusted=True)
        assert one is not None
        assert one.p is not None
        found += one.p < 0.05
    assert 0.74 < found / experiments < 0.86


def test_a_test_that_may_stop_any_day_has_its_power_at_the_end_with_so_many_more_users() -> None:
    information = sequential_factor() * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2
    power = stats.norm.cdf(math.sqrt(information) - mixture_critical(information))
    assert power == pytest.approx(0.8, abs=1e-6)
    assert 1.8 < sequential_factor() < 2.0


def past_window(tmp_path: Path) -> PastWindow:
    write_log(tmp_path, users=300)
    with open_past(tmp_path) as past:
        return past.window(5, before_days=28)


def test_a_thousand_tests_without_a_difference_have_uniform_p_values(tmp_path: Path) -> None:
    check = check_aa([METRICS["ctr"]], past_window(tmp_path), rerandomisations=1000)["ctr"]
    assert check.rerandomisations == sum(check.histogram) == 1000
    assert check.ks_p > 0.01
    assert 0.03 < check.below_level < 0.07


def test_a_routing_that_depends_on_the_user_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = past_window(tmp_path)
    rate = window.sums["clicks"] / window.sums["impressions"]
    eager = {user for user, one in zip(window.users, rate, strict=True) if one > np.median(rate)}

    def unfair(user: str, salt: str, shares: dict[str, float]) -> str:
        drawn = fair(user, salt, shares)
        return "treatment" if user in eager and fair(user, salt + "again", shares) == "treatment" else drawn

    fair = aa_check.assign
    monkeypatch.setattr(aa_check, "assign", unfair)
    assert check_aa([METRICS["ctr"]], window, rerandomisations=100)["ctr"].ks_p < 1e-6


def test_the_first_duration_whose_users_suffice_is_planned(tmp_path: Path) -> None:
    write_log(tmp_path, users=300)
    plan = plan_experiment(tmp_path, lift=0.3, rerandomisations=20, traffic=0.9)
    ctr = plan.metrics["ctr"]
    assert [one.days for one in ctr.durations] == [1, 2, 3, 4, 5, 6]  # half of the log
    enough = [one.days for one in ctr.durations if one.users >= one.needed]
    assert ctr.days_needed == enough[0] > 1
    assert ctr.chosen.days == ctr.days_needed
    with open_past(tmp_path) as past:
        users = len(past.window(3, before_days=28).users)
    assert ctr.durations[2].users == math.floor(0.9 * users)
    assert all(one.detectable > 0 for one in ctr.durations)
    impossible = plan_experiment(tmp_path, lift=0.001, rerandomisations=20)
    assert impossible.metrics["ctr"].days_needed is None
    assert impossible.metrics["ctr"].chosen.days == 6


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    write_log(tmp_path, purchases=False)
    with pytest.raises(
        ExperimentError, match="Conversions a user cannot be planned by this log, which has CTR"
    ):
        plan_experiment(tmp_path, lift=0.3, primary="conversions", rerandomisations=20)
    (tmp_path / "impressions.parquet").unlink()
    with pytest.raises(ExperimentError, match="has no impressions"):
        plan_experiment(tmp_path, lift=0.3)


def test_the_command_writes_a_plan_whose_page_says_the_same(tmp_path: Path) -> None:
    write_log(tmp_path / "log", users=300)
    arguments = ["abtest", "plan", str(tmp_path / "log"), str(tmp_path / "out"), "--lift", "0.3"]
    ran = CliRunner().invoke(app, [*arguments, "--aa-tests", "100"])
    assert ran.exit_code == 0, ran.output
    written = json.loads((tmp_path / "out/plan.json").read_text(encoding="utf-8"))
    days = written["metrics"]["ctr"]["days_needed"]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert_whole_and_self_contained(page)
    for shown in (page, (tmp_path / "out/plan.md").read_text(encoding="utf-8"), ran.output):
        assert f"{days} days, in which" in shown
    assert page.count("<img") == 3
    refused = CliRunner().invoke(app, [*arguments, "--primary", "revenue"])
    assert "must be one of ctr, conversions, conversion_rate" in str(refused.exception)
