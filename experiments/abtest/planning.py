"""How many users and days an experiment takes, by the log of the days before it, and whether A/A tests hold.

tea-tasting solves for users, power or lift, with the variance after CUPED. Users of a longer experiment are
more, and each is seen longer: both are read from windows of the log of each length. A test looked at every
day, by sequential intervals, takes more users; by how much does not depend on the metric.

Shapes: U users.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from scipy import stats
from tea_tasting.aggr import Aggregates

from experiments.abtest.aa_check import RERANDOMISATIONS, AaCheck, check_aa
from experiments.abtest.description import ExperimentError
from experiments.abtest.estimates import CONFIDENCE, aggregated, columns_of, tea_metric
from experiments.abtest.metrics import METRICS, Metric
from experiments.abtest.past_windows import PastWindow, open_past
from experiments.runtime.environment import environment
from experiments.statistics.power import POWER
from experiments.statistics.sequential import mixture_critical
from features.artifacts import ResultFile
from features.inputs.origin import Origin
from features.progress import Progress, silent

PLAN = "plan.json"
ALPHA = 1 - CONFIDENCE
#: What a log can plan; what ads earn is not in it.
PLANNED = ("ctr", "conversions", "conversion_rate")
#: A window with fewer users tells nothing of their variance.
LEAST_USERS = 20
#: Of the power curve: lifts up to so many times the planned one.
_CURVE = tuple(step / 10 for step in range(1, 31))


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Duration(_Row):
    """An experiment of some days: the users that come, and how many the planned lift takes.

    `detectable` is the least lift that those who come show with the planned power.
    """

    days: int
    users: int
    needed: int
    needed_without_cuped: int
    detectable: float
    cuped_narrowing: float | None


class MetricPlan(_Row):
    """A metric: its mean, each duration, and the first that is long enough; None where none is."""

    mean: float
    durations: list[Duration]
    days_needed: int | None
    #: Lift and power of the chosen duration, or of the longest.
    power_curve: list[tuple[float, float]]

    @property
    def chosen(self) -> Duration:
        """The first duration that is long enough, or the longest."""
        enough = [one for one in self.durations if one.days == self.days_needed]
        return enough[0] if enough else self.durations[-1]


class Plan(ResultFile):
    """`plan.json`."""

    simulated: bool | None
    data: str
    command: str | None
    environment: dict[str, Any]
    primary: str
    lift: float
    power: float
    treatment_share: float
    traffic: float
    log_days: int
    before_days: int
    #: How many times the users a test takes that is looked at every day.
    sequential_factor: float
    metrics: dict[str, MetricPlan]
    #: Tests without a difference, by metric.
    aa: dict[str, AaCheck]


def plan_experiment(
    data: Path,
    *,
    lift: float,
    primary: str = "ctr",
    treatment_share: float = 0.5,
    traffic: float = 1.0,
    most_days: int = 28,
    before_days: int = 28,
    rerandomisations: int = RERANDOMISATIONS,
    command: str | None = None,
    progress: Progress = silent,
) -> Plan:
    """Plan an experiment for a relative lift.

    Args:
        treatment_share: of the users in the experiment, how many see the challenger.
        traffic: share of all users that are in the experiment.
        most_days: longest experiment to think of; half of the log at most.
        before_days: days before the experiment whose behaviour is used (CUPED).

    Raises:
        ExperimentError: the log cannot tell: too short, or the metric that decides has nothing to count.
    """
    if primary not in PLANNED:
        raise ExperimentError(f"the metric that decides must be one of {', '.join(PLANNED)}, got {primary!r}")
    with open_past(data) as past:
        longest = min(most_days, past.days // 2)
        windows = []
        for days in range(1, longest + 1):
            windows.append(past.window(days, before_days=before_days))
            progress("counting past days", days, longest)
        log_days = past.days
    metrics = {}
    for name in PLANNED:
        metric = METRICS[name]
        if not all(column in windows[0].sums for column in metric.columns):
            continue
        found = _plan_metric(
            metric,
            windows,
            lift=lift,
            treatment_share=treatment_share,
            traffic=traffic,
        )
        if found is not None:
            metrics[name] = found
    if primary not in metrics:
        raise ExperimentError(
            f"{data}: {METRICS[primary].title} cannot be planned by this log, which has "
            f"{', '.join(METRICS[name].title for name in metrics) or 'no clicks in its last days'}"
        )
    return Plan(
        simulated=Origin.of(data).simulated,
        data=data.resolve().name,
        command=command,
        environment=environment(),
        primary=primary,
        lift=lift,
        power=POWER,
        treatment_share=treatment_share,
        traffic=traffic,
        log_days=log_days,
        before_days=before_days,
        sequential_factor=sequential_factor(),
        metrics=metrics,
        aa=check_aa(
            [METRICS[name] for name in metrics],
            windows[-1],
            treatment_share=treatment_share,
            rerandomisations=rerandomisations,
            progress=progress,
        ),
    )


def sequential_factor(*, power: float = POWER) -> float:
    """Users of a test by sequential intervals over those of one look, for the same power at the end.

    About 1.9 for a power of 80 %; a larger effect than planned ends it earlier.
    """
    beyond = float(stats.norm.ppf(power))
    at_one_look = (float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) + beyond) ** 2
    information = at_one_look
    for _ in range(100):  # a contraction: the critical value hardly moves
        information = (mixture_critical(information, error=ALPHA) + beyond) ** 2
    return information / at_one_look


def needed_users(metric: Metric, everyone: Aggregates, *, adjusted: bool, lift: float, ratio: float) -> int:
    """Users of both variants together that a relative lift takes, at the planned power.

    Args:
        ratio: users of the challenger over users of the control.
    """
    [found] = tea_metric(
        metric, adjusted=adjusted, alpha=ALPHA, power=POWER, rel_effect_size=lift, ratio=ratio
    ).solve_power_from_aggregates(everyone, "n_obs")
    return int(found.n_obs)


def detectable_lift(
    metric: Metric, everyone: Aggregates, *, adjusted: bool, users: int, ratio: float
) -> float:
    """The least lift that so many users show at the planned power."""
    [found] = tea_metric(
        metric, adjusted=adjusted, alpha=ALPHA, power=POWER, ratio=ratio, n_obs=users
    ).solve_power_from_aggregates(everyone, "rel_effect_size")
    return float(found.rel_effect_size)


def power_at(
    metric: Metric,
    everyone: Aggregates,
    lifts: Sequence[float],
    *,
    adjusted: bool,
    users: int,
    ratio: float,
) -> list[float]:
    """The power of a test with so many users, for each lift."""
    found = tea_metric(
        metric,
        adjusted=adjusted,
        alpha=ALPHA,
        ratio=ratio,
        n_obs=users,
        rel_effect_size=list(lifts),
    ).solve_power_from_aggregates(everyone, "power")
    return [float(one.power) for one in found]


def _plan_metric(
    metric: Metric,
    windows: Sequence[PastWindow],
    *,
    lift: float,
    treatment_share: float,
    traffic: float,
) -> MetricPlan | None:
    """None where the longest window has too few users or nothing to count."""
    ratio = treatment_share / (1 - treatment_share)
    durations, aggregates = [], []
    for window in windows:
        adjusted = window.has_past(metric)
        users = math.floor(traffic * len(window.users))
        if users < LEAST_USERS:
            continue
        everyone = aggregated({name: window.sums[name] for name in columns_of(metric, adjusted=adjusted)})
        if not _varies(metric, everyone):
            continue
        needed = needed_users(metric, everyone, adjusted=adjusted, lift=lift, ratio=ratio)
        without = needed_users(metric, everyone, adjusted=False, lift=lift, ratio=ratio)
        durations.append(
            Duration(
                days=window.days,
                users=users,
                needed=needed,
                needed_without_cuped=without,
                detectable=detectable_lift(metric, everyone, adjusted=adjusted, users=users, ratio=ratio),
                cuped_narrowing=math.sqrt(needed / without) if adjusted else None,
            )
        )
        aggregates.append((window, everyone, adjusted))
    if not durations:
        return None
    enough = [place for place, one in enumerate(durations) if one.users >= one.needed]
    place = enough[0] if enough else len(durations) - 1
    window, everyone, adjusted = aggregates[place]
    lifts = [step * lift for step in _CURVE]
    powers = power_at(metric, everyone, lifts, adjusted=adjusted, users=durations[place].users, ratio=ratio)
    return MetricPlan(
        mean=float(everyone.mean(metric.numerator) / everyone.mean(metric.denominator)),
        durations=durations,
        days_needed=durations[place].days if enough else None,
        power_curve=list(zip(lifts, powers, strict=True)),
    )


def _varies(metric: Metric, everyone: Aggregates) -> bool:
    return all(everyone.mean(name) > 0 for name in metric.columns) and (
        everyone.ratio_var(metric.numerator, metric.denominator) > 0
    )
