"""The page of a plan: how many users and days an experiment takes, and whether its tests can be trusted."""

from pathlib import Path

from experiments.abtest.aa_check import AaCheck
from experiments.abtest.metrics import METRICS
from experiments.abtest.planning import PLAN, MetricPlan, Plan
from experiments.reports.abtest import plan_plots
from experiments.reports.abtest.text import p_text, value_text
from experiments.reports.page import Absent, Grid, Plot, Section, svg_source
from experiments.reports.sections_page import write_sections_page
from experiments.reports.sections_text import sections_markdown
from experiments.statistics.cells import NONE
from features.artifacts import atomic_write_bytes
from features.inputs.origin import Origin

MARKDOWN = "plan.md"
#: Below it p-values are not taken for uniform. Low: some metric of some log is always below 0.05.
UNIFORM_LEVEL = 0.001


def plan_sentence(plan: Plan, name: str) -> str:
    """How long, for one metric: "CTR +3 %: 8 days, in which 9,120 of the needed 8,700 users come."."""
    found = plan.metrics[name]
    head = f"{METRICS[name].title} {100 * plan.lift:+.3g} %"
    chosen = found.chosen
    if found.days_needed is None:
        return (
            f"{head}: not within {chosen.days} days, in which {chosen.users:,} users come where "
            f"{chosen.needed:,} are needed; a lift of {100 * chosen.detectable:.1f} % would show"
        )
    return (
        f"{head}: {_days(found.days_needed)}, in which {chosen.users:,} users come and {chosen.needed:,} are "
        "needed"
    )


def aa_sentence(check: AaCheck) -> str:
    """Whether tests of nothing find nothing, as often as they should."""
    holds = "uniform" if check.ks_p >= UNIFORM_LEVEL else "NOT uniform: no test of this metric can be trusted"
    return (
        f"{100 * check.below_level:.1f} % of {check.rerandomisations:,} tests are below 0.05 (5 % should "
        f"be); p-values are {holds} (p = {p_text(check.ks_p)})"
    )


def plan_sections(plan: Plan) -> list[Section | Absent]:
    """All sections in the order of the page."""
    return [_duration(plan), _power(plan), _peeking(plan), _aa(plan)]


def write_plan(plan: Plan, out: Path, *, command: str) -> list[Path]:
    """Write `plan.json`, `plan.md` and `report.html` into `out`, each whole or not at all."""
    sections = plan_sections(plan)
    title = f"Planning an experiment on {plan.data}"
    lead = (
        f"A lift of {100 * plan.lift:g} % is to be found with a power of {100 * plan.power:g} % by a test at "
        f"one look (error 5 %), {100 * plan.treatment_share:g} % of the users in the experiment seeing the "
        f"challenger, {100 * plan.traffic:g} % of all users being in it."
    )
    plan.write(out / PLAN)
    kind = "**Simulated data.** " if plan.simulated else ""
    atomic_write_bytes(out / MARKDOWN, sections_markdown(sections, title=title, lead=kind + lead).encode())
    chosen = plan.metrics[plan.primary]
    page = write_sections_page(
        out,
        sections,
        title=title,
        lead=lead,
        origin=Origin(simulated=plan.simulated),
        command=command,
        rests_on=f" from the log of {plan.log_days} days; its numbers are in {PLAN}.",
        facts=(
            (str(chosen.days_needed or NONE), "days"),
            (f"{chosen.chosen.needed:,}", "users needed"),
            (f"{chosen.chosen.users:,}", f"users come in {_days(chosen.chosen.days)}"),
        ),
    )
    return [out / PLAN, out / MARKDOWN, page]


def _duration(plan: Plan) -> Section:
    found = plan.metrics[plan.primary]
    narrowing = found.chosen.cuped_narrowing
    sentences = [f"{plan_sentence(plan, name)}." for name in plan.metrics if name != plan.primary]
    if narrowing is None:
        sentences.append("Nothing is known from before the window, so CUPED has nothing to work with.")
    else:
        sentences.append(
            f"What users did in up to {plan.before_days} days before makes the limits of "
            f"{METRICS[plan.primary].title} {100 * (1 - narrowing):.1f} % narrower (CUPED)."
        )
    return Section(
        "duration",
        "Users and days",
        f"How long does it take to find a lift of {100 * plan.lift:g} %?",
        answer=f"{plan_sentence(plan, plan.primary)}.",
        origin=None,
        sentences=tuple(sentences),
        grids=tuple(_duration_grid(name, one) for name, one in plan.metrics.items()),
        plots=(
            Plot(
                f"{METRICS[plan.primary].title}: how many users come, and how many are needed",
                "Where the users that come reach those that are needed, the experiment is long enough.",
                svg_source(plan_plots.durations(found)),
            ),
        ),
        notes=(
            "Each duration is read from as many last days of the log. A conversion is a click that a "
            "purchase of the product by the same user follows within 24 hours. Revenue cannot be planned: "
            "logs do not say what ads earn.",
        ),
    )


def _duration_grid(name: str, found: MetricPlan) -> Grid:
    rows = tuple(
        (
            str(one.days),
            f"{one.users:,}",
            f"{one.needed:,}",
            f"{one.needed_without_cuped:,}",
            f"{100 * one.detectable:.1f} %",
        )
        for one in found.durations
    )
    chosen = [place for place, one in enumerate(found.durations) if one.days == found.days_needed]
    return Grid(
        f"{METRICS[name].title}, {value_text(found.mean)} on average.",
        ("Days", "Users that come", "Needed", "Needed without CUPED", "Least lift that shows"),
        rows,
        bold=frozenset((place, 0) for place in chosen),
    )


def _power(plan: Plan) -> Section:
    found = plan.metrics[plan.primary]
    at_lift = min(found.power_curve, key=lambda point: abs(point[0] - plan.lift))[1]
    return Section(
        "power",
        "Power",
        "How surely would other lifts be found?",
        answer=(
            f"In {_days(found.chosen.days)} a lift of {100 * plan.lift:g} % in {METRICS[plan.primary].title} "
            f"is found in {100 * at_lift:.0f} % of experiments."
        ),
        origin=None,
        plots=(
            Plot(
                "Power over the true lift",
                "Dotted: the lift and the power that were asked for. Metrics that cannot reach them are "
                "drawn for the longest duration.",
                svg_source(plan_plots.power_curves(plan.metrics, lift=plan.lift, power=plan.power)),
                narrow=True,
                tabulated=False,
            ),
        ),
    )


def _peeking(plan: Plan) -> Section:
    needed = plan.metrics[plan.primary].chosen.needed
    return Section(
        "peeking",
        "Looking every day",
        "What does it cost to be allowed to stop on any day?",
        answer=(
            f"{plan.sequential_factor:.1f} times as many users: {round(needed * plan.sequential_factor):,} "
            f"instead of {needed:,}."
        ),
        origin=None,
        sentences=(
            "So many are needed where the lift is the planned one; a larger one ends the experiment earlier.",
            f'In experiment.json, "planned_lift": {plan.lift:g} makes the limits for all looks narrowest '
            "where this plan ends"
            + (
                f', and "planned_days": {plan.metrics[plan.primary].days_needed} is the day on which one '
                "look decides."
                if plan.metrics[plan.primary].days_needed
                else "."
            ),
        ),
    )


def _aa(plan: Plan) -> Section | Absent:
    heading = ("aa", "A/A tests", "Does the test find something where there is nothing?")
    if not plan.aa:
        return Absent(*heading, "The log has too few users to draw from.", None)
    broken = [METRICS[name].title for name, check in plan.aa.items() if check.ks_p < UNIFORM_LEVEL]
    answer = (
        f"Yes, too often or too seldom: {', '.join(broken)}."
        if broken
        else "No more often than it should: p-values are uniform."
    )
    users = next(iter(plan.aa.values())).users
    return Section(
        *heading,
        answer=answer,
        origin=None,
        sentences=tuple(f"{METRICS[name].title}: {aa_sentence(check)}." for name, check in plan.aa.items()),
        plots=(
            Plot(
                "p-values of A/A tests",
                f"{users:,} users of the log, drawn again by the routing that serves, each time with another "
                "salt. Dashed: what each bar should be; shaded: where 95 of 100 bars lie by chance.",
                svg_source(
                    plan_plots.aa_histograms(
                        [(METRICS[name].title, check) for name, check in plan.aa.items()]
                    )
                ),
                tabulated=False,
            ),
        ),
    )


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"
