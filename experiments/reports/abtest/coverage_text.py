"""How often intervals hold the true lift, as Markdown."""

from experiments.abtest.metrics import METRICS
from experiments.abtest.simulated.coverage import Coverage, MetricCoverage, Share
from experiments.abtest.simulated.repetition import CUPED, PLAIN, SEQUENTIAL
from experiments.reports.abtest.text import percent_text
from experiments.statistics.cells import NONE, markdown_table

#: What a 95 % interval should hold, give or take what a few hundred repetitions can tell.
ASKED = (0.93, 0.97)
COLUMNS = (
    "Metric",
    "True lift",
    "Estimated",
    "Plain",
    "CUPED",
    "One look, read every day",
    "All looks, read every day",
    "CUPED's width",
    "CUPED narrower",
)


def coverage_rows(found: Coverage) -> list[tuple[str, ...]]:
    """A row for each metric, as `COLUMNS` names it."""
    return [_row(METRICS[name].title, one) for name, one in found.metrics.items()]


def coverage_sentences(found: Coverage) -> list[str]:
    """What was repeated, and whether the intervals of one look hold as often as they should."""
    settings = found.settings
    inside = [name for name, one in found.metrics.items() if ASKED[0] <= one.held <= ASKED[1]]
    outside = [METRICS[name].title for name in found.metrics if name not in inside]
    low, high = (100 * end for end in ASKED)
    verdict = f"{len(inside)} of {len(found.metrics)} metrics lie between {low:.0f} and {high:.0f} %"
    return [
        f"{found.repeats:,} repetitions of {settings.days} days; {found.consumers:,.0f} compared consumers "
        "on average. Searches, scores and purchase histories are those of one run; who sees which variant, "
        "what is clicked and which budgets end are drawn anew.",
        f"95 % intervals at one look, as the report gives them: {verdict}"
        + (f"; not so: {', '.join(outside)}." if outside else "."),
        "Read every day, an interval counts only if it held the true lift of every day until then. Those of "
        "one look do not promise that; those of all looks do. In brackets: exact binomial 95 % limits.",
    ]


def coverage_markdown(found: Coverage) -> str:
    """`coverage.md`: sentences, then the table."""
    table = markdown_table(COLUMNS, [list(row) for row in coverage_rows(found)], text_columns=1)
    lines = ["# How often intervals hold the true lift", "", "**Simulated data.**"]
    for sentence in coverage_sentences(found):
        lines += ["", sentence]
    made = found.environment
    footer = f"Made by `{found.command}` at commit {made['commit']}, {made['created']}."
    return "\n".join([*lines, "", *table, "", footer, ""])


def share_text(found: Share) -> str:
    """As "95.2 % (93.0 … 97.1)"."""
    return f"{100 * found.share:.1f} % ({100 * found.low:.1f} … {100 * found.high:.1f})"


def _row(title: str, found: MetricCoverage) -> tuple[str, ...]:
    ways = found.ways
    bias = f" ± {200 * found.bias_error:.2f}" if found.bias_error is not None else ""
    return (
        title,
        percent_text(found.true_lift),
        percent_text(found.estimated) + bias,
        share_text(ways[PLAIN].last_day),
        share_text(ways[CUPED].last_day) if CUPED in ways else NONE,
        share_text(ways[found.reported].every_day),
        share_text(ways[SEQUENTIAL].every_day) if SEQUENTIAL in ways else NONE,
        f"{found.cuped_width:.3f} x" if found.cuped_width is not None else NONE,
        share_text(found.cuped_narrower) if found.cuped_narrower is not None else NONE,
    )
