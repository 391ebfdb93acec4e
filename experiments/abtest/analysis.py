"""An experiment from its log to its result: every metric, day, slice and guardrail, and the decision."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tea_tasting.aggr import Aggregates
from tea_tasting.metrics import SampleRatio

from experiments.abtest.decision import at_one_look, decide, guardrails
from experiments.abtest.description import Description
from experiments.abtest.estimates import LIFT_SCALE, Estimate
from experiments.abtest.experiment_log import ExperimentLog
from experiments.abtest.metrics import ERROR_SHARE, METRICS, Metric
from experiments.abtest.result import AbtestResult, DayResult, Limited, MetricResult
from experiments.abtest.slices import false_discovery_adjusted, slice_results
from experiments.abtest.trend import trend_of
from experiments.abtest.unit_sums import UnitSums
from experiments.runtime.environment import environment
from features.progress import Progress, silent
from serving.scoring.routing import assign


def analyse(
    log: ExperimentLog,
    *,
    name: str,
    command: str | None = None,
    coverage: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> AbtestResult:
    """Measure everything that the log has the columns for.

    Args:
        name: of the experiment, for headings.
        coverage: by metric, how often intervals of experiments like this one hold the true lift.

    Raises:
        ValueError: the metric that decides cannot be measured.
    """
    described = log.description
    scale = described.planned_lift or LIFT_SCALE
    everyone = UnitSums.of_days(log, 0, log.days - 1)
    estimates = {
        metric.name: (found, everyone.estimate(metric, adjusted=False, lift_scale=scale))
        for metric in METRICS.values()
        if (found := everyone.estimate(metric, lift_scale=scale)) is not None
    }
    if described.primary not in estimates:
        raise ValueError(
            f"{name}: {METRICS[described.primary].title} decides, but it cannot be measured; it is "
            f"{METRICS[described.primary].meaning}, and needs columns "
            f"{', '.join(METRICS[described.primary].columns)} that are not all 0"
        )
    p_values = _adjusted({name_: found.p for name_, (found, _) in estimates.items()}, described.primary)
    metrics = {
        name_: _metric_result(
            found,
            plain,
            p_values[name_],
            true_lift=(described.true_lift or {}).get(name_),
            coverage=(coverage or {}).get(name_),
        )
        for name_, (found, plain) in estimates.items()
    }
    progress("measuring the experiment", 1, 3)
    daily = _daily(log, [METRICS[name_] for name_ in metrics], scale)
    progress("measuring the experiment", 2, 3)
    slices, spreads = slice_results(log, everyone)
    units = dict(zip((described.control, described.treatment), everyone.units, strict=True))
    rails = guardrails(
        metrics.get("revenue"),
        everyone.estimate(ERROR_SHARE, adjusted=False, difference_scale=described.allowed.error_share),
        log.latency,
        allowed=described.allowed,
        one_look=at_one_look(described, log.days),
    )
    srm_p = sample_ratio_p(units, described)
    misrouted = misrouted_units(log)
    progress("measuring the experiment", 3, 3)
    return AbtestResult(
        simulated=described.simulated,
        name=name,
        command=command,
        environment=environment(),
        control=described.control,
        treatment=described.treatment,
        primary=described.primary,
        first_day=log.first_day,
        last_day=log.last_day,
        days=log.days,
        planned_days=described.planned_days,
        planned_lift=described.planned_lift,
        allowed=described.allowed,
        consumers=sum(units.values()),
        units=units | dict(log.other_units),
        planned_shares=described.shares,
        srm_p=srm_p,
        misrouted=misrouted,
        decision=decide(
            described,
            metrics,
            rails,
            srm_p=srm_p,
            units=units,
            misrouted=misrouted,
            days=log.days,
        ),
        metrics=metrics,
        guardrails=rails,
        trends={name_: trend for name_ in metrics if (trend := trend_of(log, METRICS[name_])) is not None},
        daily=daily,
        heterogeneity=spreads,
        slices=slices,
        latency_p99_ms=list(log.latency),
        coverage=(coverage or {}).get(described.primary),
    )


def analyse_folder(
    folder: Path,
    *,
    name: str | None = None,
    command: str | None = None,
    coverage: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> AbtestResult:
    """`analyse` of an experiment on disk; it has the name of its folder if none is given."""
    return analyse(
        ExperimentLog.open(folder),
        name=name or folder.resolve().name,
        command=command,
        coverage=coverage,
        progress=progress,
    )


def sample_ratio_p(units: Mapping[str, int], description: Description) -> float:
    """Probability of shares as far from the planned ones, if units were drawn as planned (exact if few)."""
    control, treatment = description.control, description.treatment
    planned = description.shares[treatment] / description.shares[control]
    found = SampleRatio(planned).analyze(
        {name: Aggregates(count_=units[name]) for name in (control, treatment)}, control, treatment
    )
    return float(found.pvalue)


def misrouted_units(log: ExperimentLog) -> int | None:
    """Units that saw another variant than `serving.scoring.routing` gives; None where no salt is known."""
    described = log.description
    if described.salt is None:
        return None
    variants = (described.control, described.treatment)
    return sum(
        assign(unit, described.salt, described.shares) != variants[int(treated)]
        for unit, treated in zip(log.units, log.treated_U, strict=True)
    )


def _adjusted(p_values: Mapping[str, float | None], primary: str) -> dict[str, float | None]:
    """The metric that decides was named beforehand and stands alone; the others are adjusted together."""
    others = [name for name in p_values if name != primary]
    adjusted = false_discovery_adjusted([p_values[name] for name in others], dependent=True)
    return {primary: p_values[primary], **dict(zip(others, adjusted, strict=True))}


def _metric_result(
    found: Estimate,
    plain: Estimate | None,
    p_adjusted: float | None,
    *,
    true_lift: float | None,
    coverage: float | None,
) -> MetricResult:
    lift, sequential = Limited.of(found.lift), Limited.of(found.sequential)
    without = Limited.of(plain.lift if plain is not None else None)
    width, width_without = _width(lift), _width(without)
    return MetricResult(
        lift=lift.lift,
        low=lift.low,
        high=lift.high,
        control=found.control,
        treatment=found.treatment,
        sequential_low=sequential.low,
        sequential_high=sequential.high,
        p=found.p,
        p_adjusted=p_adjusted,
        cuped=found.adjusted,
        without_cuped=without,
        cuped_narrowing=width / width_without if found.adjusted and width and width_without else None,
        true_lift=true_lift,
        coverage=coverage,
    )


def _width(found: Limited) -> float | None:
    return None if found.low is None or found.high is None else found.high - found.low


def _daily(log: ExperimentLog, metrics: list[Metric], scale: float) -> list[DayResult]:
    """Metrics at the end of each day; a metric that cannot be measured yet has nulls."""
    found = []
    for day in range(log.days):
        so_far, alone = UnitSums.of_days(log, 0, day), UnitSums.of_days(log, day, day)
        for metric in metrics:
            total = so_far.estimate(metric, lift_scale=scale)
            single = alone.estimate(metric, lift_scale=scale)
            found.append(
                DayResult(
                    day=log.first_day + timedelta(days=day),
                    metric=metric.name,
                    so_far=Limited.of(total.lift if total else None),
                    so_far_sequential=Limited.of(total.sequential if total else None),
                    alone=Limited.of(single.lift if single else None),
                )
            )
    return found
