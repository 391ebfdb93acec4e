"""What to do with a challenger: ship it, stop, go on, or trust nothing that was measured.

The order of the questions is fixed: was the experiment what it was meant to be (sample ratio, routing)? Is
something broken that must not break? Does the metric that decides say that it is better, or worse?

Before the planned end the limits for all looks are read, and those for one look at the end of a plan alone:
an experiment that is looked at until it pleases would otherwise please too often.
"""

import math
from collections.abc import Mapping, Sequence

from experiments.abtest.description import Allowed, Description
from experiments.abtest.estimates import Estimate
from experiments.abtest.experiment_log import DayLatency
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import Decision, Guardrail, Limited, MetricResult, State, Verdict
from experiments.statistics.intervals import Interval, paired_difference, surely_negative, surely_positive

#: Below it, units were not drawn as planned. Small: it is looked at every day, and a false alarm is dear.
SRM_LEVEL = 0.001
#: Of the interval of latency over days, which has no sequential form here: stricter than usual instead.
LATENCY_CONFIDENCE = 0.99


def at_one_look(description: Description, days: int) -> bool:
    """Whether this is the planned end, where the limits for one look hold."""
    return description.planned_days == days


def guardrails(
    revenue: MetricResult | None,
    errors: Estimate | None,
    latency: Sequence[DayLatency],
    *,
    allowed: Allowed,
    one_look: bool,
) -> list[Guardrail]:
    """All that were measured."""
    found = []
    if revenue is not None and revenue.lift is not None:
        lift = revenue if one_look else revenue.sequential
        found.append(
            _guardrail(
                "revenue",
                "Revenue a user",
                revenue.control,
                revenue.treatment,
                # How much worse: a loss of revenue is a lift with its sign turned.
                Interval(-revenue.lift, _turned(lift.high), _turned(lift.low)),
                allowed.revenue_loss,
                unit="share",
            )
        )
    if errors is not None:
        found.append(
            _guardrail(
                "error_share",
                "Failed searches",
                errors.control,
                errors.treatment,
                errors.difference if one_look else errors.sequential_difference,
                allowed.error_share,
                unit="points",
            )
        )
    if latency:
        ratio = latency_ratio(latency)
        weights = [day.control_requests + day.treatment_requests for day in latency]
        found.append(
            _guardrail(
                "latency_p99",
                "Latency (99th percentile, ms)",
                _mean([day.control_ms for day in latency], weights),
                _mean([day.treatment_ms for day in latency], weights),
                Interval(ratio.mean - 1, _less_one(ratio.low), _less_one(ratio.high)),
                allowed.latency_p99,
                unit="share",
            )
        )
    return found


def latency_ratio(latency: Sequence[DayLatency]) -> Interval:
    """Challenger's 99th percentile over the control's: geometric mean over days, with Student-t limits.

    Requests of one minute are slow together, so a day is one observation, and both variants share its load,
    which multiplies both. A single day has no limits.
    """
    found = paired_difference(
        [math.log(day.treatment_ms) for day in latency],
        [math.log(day.control_ms) for day in latency],
        confidence=LATENCY_CONFIDENCE,
    )
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Interval(math.exp(found.mean), low, high)


def decide(
    description: Description,
    metrics: Mapping[str, MetricResult],
    rails: Sequence[Guardrail],
    *,
    srm_p: float,
    units: Mapping[str, int],
    misrouted: int | None,
    days: int,
) -> Decision:
    """One verdict and its sentence; `notes` name what else is to be known before anything is done."""
    one_look = at_one_look(description, days)
    primary = metrics[description.primary]
    reason: tuple[Verdict, str]
    if srm_p < SRM_LEVEL:
        reason = ("invalid", _sample_ratio_sentence(description, units, srm_p))
    elif misrouted:
        reason = (
            "invalid",
            f"{misrouted:,} users saw another variant than the hash of their name gives. Find out what "
            "routed them before reading any number.",
        )
    else:
        title = METRICS[description.primary].title
        reason = _judged(title, primary if one_look else primary.sequential, rails, over=one_look)
    return Decision(
        verdict=reason[0],
        sentence=reason[1][:1].upper() + reason[1][1:],
        limits="one look" if one_look else "all looks",
        notes=tuple(_notes(description, metrics, rails, days)),
    )


def _judged(title: str, shown: Limited, rails: Sequence[Guardrail], *, over: bool) -> tuple[Verdict, str]:
    """Of a valid experiment; `over` if its plan is at its end."""
    found = f"{title} {lift_text(shown)}"
    broken = [rail.sentence for rail in rails if rail.state == "broken"]
    unsettled = [rail.sentence for rail in rails if rail.state == "open"]
    if surely_negative(shown):
        return "stop", f"The challenger is worse: {'; '.join([found, *broken])}."
    if broken:
        return "stop", f"{'; '.join(broken)}."
    if not surely_positive(shown):
        end = "; the planned days are over, so plan a longer experiment or give it up" if over else ""
        return "go on", f"The challenger is not told apart from the control: {found}{end}."
    if unsettled:
        return "go on", f"The challenger is better: {found}. But not settled yet: {'; '.join(unsettled)}."
    held = "every guardrail holds" if rails else "no guardrail was measured"
    return "ship", f"The challenger is better: {found}, and {held}."


def lift_text(found: Limited) -> str:
    """As "+3.7 % (+1.2 … +6.3)"; without limits, and for no lift, it says so."""
    if found.lift is None:
        return "has no lift (the control has nothing to compare with)"
    mean = f"{100 * found.lift:+.1f} %"
    if found.low is None or found.high is None:
        return f"{mean} (limits unknown: too few data)"
    return f"{mean} ({100 * found.low:+.1f} … {100 * found.high:+.1f})"


def _sample_ratio_sentence(description: Description, units: Mapping[str, int], srm_p: float) -> str:
    control, treatment = units[description.control], units[description.treatment]
    return (
        f"Sample ratio mismatch: {treatment:,} of {control + treatment:,} users "
        f"({100 * treatment / (control + treatment):.1f} %) saw the challenger where "
        f"{100 * description.treatment_share:.1f} % were planned (p = {srm_p:.1g}). Who is missing differs "
        "from who is there, so no number below can be trusted until the reason is found."
    )


def _notes(
    description: Description,
    metrics: Mapping[str, MetricResult],
    rails: Sequence[Guardrail],
    days: int,
) -> list[str]:
    notes = []
    for name, found in metrics.items():
        sure = found.p_adjusted is not None and found.p_adjusted < 0.05
        if name != description.primary and sure and found.lift is not None and found.lift < 0:
            notes.append(f"{METRICS[name].title} is worse: {lift_text(found)}.")
    measured = {rail.name for rail in rails}
    lacking = [
        what
        for name, what in (
            ("revenue", "revenue"),
            ("error_share", "failed searches"),
            ("latency_p99", "latency"),
        )
        if name not in measured
    ]
    if lacking:
        notes.append(f"Not measured, so not guarded: {', '.join(lacking)}.")
    if description.planned_days is None:
        notes.append("No end was planned, so the limits for all looks count.")
    elif days < description.planned_days:
        notes.append(
            f"{days} of {description.planned_days} planned days are over, so the limits for all looks count."
        )
    elif days > description.planned_days:
        notes.append(
            f"It went on for {days - description.planned_days} days after its planned end: the limits for "
            "all looks count."
        )
    return notes


def _guardrail(
    name: str,
    title: str,
    control: float,
    treatment: float,
    worse: Interval,
    allowed: float,
    *,
    unit: str,
) -> Guardrail:
    state: State = "open"
    if worse.high is not None and worse.high <= allowed:
        state = "kept"
    elif worse.low is not None and worse.low > allowed:
        state = "broken"
    return Guardrail(
        name=name,
        title=title,
        control=control,
        treatment=treatment,
        worse=worse.mean,
        low=worse.low,
        high=worse.high,
        allowed=allowed,
        state=state,
        sentence=_rail_sentence(name, worse, allowed, state, unit=unit),
    )


#: What happened, may have happened, did not happen.
_WORSE = {
    "revenue": (
        "revenue a user fell",
        "revenue a user may have fallen",
        "revenue a user did not fall",
    ),
    "error_share": (
        "the share of failed searches rose",
        "the share of failed searches may have risen",
        "the share of failed searches did not rise",
    ),
    "latency_p99": (
        "the 99th percentile of latency rose",
        "the 99th percentile of latency may have risen",
        "the 99th percentile of latency did not rise",
    ),
}


def _rail_sentence(name: str, worse: Interval, allowed: float, state: State, *, unit: str) -> str:
    percent = "percentage points" if unit == "points" else "%"
    decimals = 2 if unit == "points" else 1

    def text(value: float) -> str:
        return f"{100 * value:.{decimals}f}"

    surely, perhaps, not_worse = _WORSE[name]
    limit = f"{text(allowed)} {percent} are allowed"
    if worse.low is None or worse.high is None:
        return f"{perhaps} by any amount (too few data for limits; {limit})"
    if state == "broken":
        return f"{surely} by {text(worse.mean)} {percent} ({text(worse.low)} … {text(worse.high)}), {limit}"
    if state == "kept":
        if worse.high <= 0:
            return f"{not_worse}, {limit}"
        return f"{perhaps} by {text(worse.high)} {percent} at most, {limit}"
    return f"{perhaps} by up to {text(worse.high)} {percent}, {limit}"


def _turned(value: float | None) -> float | None:
    return None if value is None else -value


def _less_one(value: float | None) -> float | None:
    return None if value is None else value - 1


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
