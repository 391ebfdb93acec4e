"""The page of a closed loop: one self-contained HTML file, and the same words as Markdown."""

from collections.abc import Callable
from pathlib import Path

from experiments.abtest.loop.measures import OWN, TRAFFIC, UNIFORM
from experiments.abtest.loop.result import RESULT, LoopResult, Week
from experiments.abtest.loop.settings import EXPLORED, GREEDY, LOGGING
from experiments.reports.abtest.loop_plots import weeks_figure
from experiments.reports.page import Absent, Grid, Plot, Section, svg_source
from experiments.reports.plot_style import png_of, svg_of
from experiments.reports.sections_page import write_sections_page
from experiments.reports.sections_text import MARKDOWN, sections_markdown
from experiments.statistics.cells import NONE
from features.artifacts import atomic_write_bytes
from features.inputs.origin import Origin

PICTURE = "weeks.png"


def write_loop_report(result: LoopResult, out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and their plot, `weeks.png`, into `out`, each whole or not at all."""
    sections = loop_sections(result)
    atomic_write_bytes(out / PICTURE, png_of(weeks_figure(result, arms_of(result))))
    title = f"The closed loop: {result.settings.ranker.variant}, {result.settings.weeks} weeks"
    lead = (
        "Each week's ranker was trained on the log of the week before, by the policy of its arm: greedy "
        f"shows what its ranker likes; explored draws {100 * result.settings.explore:g} % of its slates; of "
        "the log policy, the one that wrote the first log, a ranker learns that nobody sees."
    )
    markdown = sections_markdown(sections, title=title, lead=f"**Simulated data.** {lead}")
    made = result.environment
    footer = f"\nMade by `{result.command}` at commit {made['commit']}, {made['created']}.\n"
    atomic_write_bytes(out / MARKDOWN, (markdown + footer).encode())
    page = write_sections_page(
        out,
        sections,
        title=title,
        lead=lead,
        origin=Origin(simulated=result.simulated),
        command=result.command or "dashclip abtest loop",
        rests_on=f"; its numbers are in {RESULT}.",
        facts=((f"{result.settings.weeks}", "weeks"), (f"{len(arms_of(result))}", "arms")),
    )
    return [out / RESULT, out / MARKDOWN, out / PICTURE, page]


def arms_of(result: LoopResult) -> list[tuple[str, str]]:
    """Names of arms and what to call them."""
    return [
        (GREEDY, "greedy"),
        (EXPLORED, f"explored, {100 * result.settings.explore:g} %"),
        (LOGGING, "log policy"),
    ]


def loop_sentences(result: LoopResult) -> list[str]:
    """What retraining on the own log did by the last week, beside what learns from the log policy's."""
    last = {arm: result.of(arm)[-1] for arm, _ in arms_of(result)}
    beside = last[LOGGING]
    sentences = []
    for arm, name in arms_of(result)[:2]:
        week = last[arm]
        ctr = week.measured.value.ctr / beside.measured.value.ctr - 1
        revenue = week.measured.value.revenue / beside.measured.value.revenue - 1
        auc = week.measured.traffic[UNIFORM].auc - beside.measured.traffic[UNIFORM].auc
        sentences.append(
            f"Week {week.week}, {name}, against a ranker that learns from the log policy: true CTR "
            f"{100 * ctr:+.1f} %, true revenue {100 * revenue:+.1f} %, AUC on uniform slates {auc:+.4f}."
        )
    greedy = last[GREEDY].measured.traffic
    sentences.append(
        f"The greedy ranker has an AUC of {greedy[OWN].auc:.4f} on what it shows itself and of "
        f"{greedy[UNIFORM].auc:.4f} on uniform slates; it promises {greedy[OWN].calibration:.2f} times the "
        f"clicks of the one and {greedy[UNIFORM].calibration:.2f} times those of the other."
    )
    sentences.append(
        "Launched products that were shown in the last week: "
        + ", ".join(f"{name} {100 * last[arm].exposure.shown:.1f} %" for arm, name in arms_of(result))
        + "; Gini of impressions: "
        + ", ".join(f"{name} {last[arm].exposure.gini:.3f}" for arm, name in arms_of(result))
        + "."
    )
    served = {arm: sum(week.served.revenue for week in result.of(arm)) for arm, _ in arms_of(result)}
    sentences.append(
        f"What exploration cost in all {result.settings.weeks} weeks: "
        f"{100 * (served[EXPLORED] / served[GREEDY] - 1):+.1f} % of the revenue to be expected."
    )
    return sentences


def loop_sections(result: LoopResult) -> list[Section | Absent]:
    """Value, bias, and what was shown."""
    sentences = loop_sentences(result)
    figure = svg_source(svg_of(weeks_figure(result, arms_of(result))))
    return [
        Section(
            "value",
            "What each week's ranker is worth",
            "Does a ranker suffer from learning what it showed itself?",
            answer=sentences[0],
            origin=None,
            sentences=(sentences[1], sentences[-1]),
            grids=(
                _grid(
                    result,
                    "True values of the week's ranker on the same searches, without exploration and without "
                    "noise; best: the true probabilities as scores. Served: all that was shown in the week.",
                    (
                        ("CTR", lambda week: f"{100 * week.measured.value.ctr:.2f} %"),
                        ("Best CTR", lambda week: f"{100 * week.measured.best.ctr:.2f} %"),
                        ("Revenue a search", lambda week: f"{week.measured.value.revenue:.4f}"),
                        ("Relevance", lambda week: f"{week.measured.value.relevance:.3f}"),
                        ("Served CTR", lambda week: f"{100 * week.served.ctr:.2f} %"),
                        ("Served revenue", lambda week: f"{week.served.revenue:.4f}"),
                    ),
                ),
            ),
            plots=(Plot("Week by week", "The first week's ranker is the same in all arms.", figure),),
        ),
        Section(
            "bias",
            "Exposure bias",
            "Does its own log say how good a ranker is?",
            answer=sentences[2],
            origin=None,
            grids=(
                _grid(
                    result,
                    "AUC to expect, and promised over true clicks, of the week's ranker at the first "
                    "position: of what it shows itself (own), of uniform slates, of what the log policy "
                    "shows (logged). Own log: AUC of the run on the last day of the log it learnt from.",
                    (
                        *((f"AUC, {kind}", _auc_of(kind)) for kind in TRAFFIC),
                        (
                            "AUC, own log",
                            lambda week: f"{week.run_auc:.4f}" if week.run_auc is not None else NONE,
                        ),
                        *((f"Promised, {kind}", _promised_of(kind)) for kind in TRAFFIC),
                    ),
                ),
            ),
        ),
        Section(
            "shown",
            "What is shown",
            "How much of the catalogue do shoppers see?",
            answer=sentences[3],
            origin=None,
            grids=(
                _grid(
                    result,
                    "Of products launched by the end of the week. By chance: impressions that had a chance "
                    "below one half to be at their position.",
                    (
                        ("Shown", lambda week: f"{100 * week.exposure.shown:.1f} %"),
                        ("Gini", lambda week: f"{week.exposure.gini:.3f}"),
                        ("By chance", lambda week: f"{100 * week.explored:.1f} %"),
                        ("Rows learnt from", lambda week: f"{week.training_rows:,}"),
                    ),
                ),
            ),
        ),
    ]


def _auc_of(kind: str) -> Callable[[Week], str]:
    return lambda week: f"{week.measured.traffic[kind].auc:.4f}"


def _promised_of(kind: str) -> Callable[[Week], str]:
    return lambda week: f"{week.measured.traffic[kind].calibration:.2f}"


def _grid(result: LoopResult, caption: str, columns: tuple[tuple[str, Callable[[Week], str]], ...]) -> Grid:
    names = dict(arms_of(result))
    return Grid(
        caption,
        ("Arm", "Week", *(title for title, _ in columns)),
        tuple(
            (names[week.arm], str(week.week), *(text_of(week) for _, text_of in columns))
            for week in result.weeks
        ),
    )
