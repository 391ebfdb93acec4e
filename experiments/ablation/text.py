"""The report of the ablation as text: Markdown and a terminal table."""

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.ablation.report import AblationReport, VariantResult
from experiments.ablation.run import PAIR_AUC, PAIR_F1
from experiments.reports.table1_text import metric_title
from experiments.statistics.cells import NONE, markdown_table, with_limits, with_sd
from experiments.statistics.intervals import SeedSummary

#: The metric of the tables that have room for one.
_ONE_METRIC = "ndcg"
_PAIR_TITLES = {PAIR_AUC: "AUC", PAIR_F1: "Macro F1"}


def to_markdown(report: AblationReport) -> str:
    """Metrics, differences to the default, kinds of queries, widths, validation queries, how measured."""
    metrics = report.metrics
    headings = [_heading(metric, report.k) for metric in metrics]
    kind = "SIMULATED data (generated, not real users)" if report.simulated else "Real data"
    lines = ["# Ablation of the encoders", "", f"**{kind}.** {report.description}", ""]
    lines += [f"{report.queries:,} test queries. Mean ± standard deviation over training seeds.", ""]
    lines += markdown_table(
        ["Variant", "Seeds", "Minutes", *headings],
        (
            [
                found.title,
                str(len(found.seeds)),
                f"{found.training_minutes:.1f}",
                *(_summary(found.metrics[metric]) for metric in metrics),
            ]
            for found in report.variants.values()
        ),
    )
    compared = [found for found in report.variants.values() if found.differences]
    default = report.variants.get(report.default)
    if compared and default:
        lines += ["", f'## Minus "{default.title}"', ""]
        rows = []
        for found in compared:
            differences = (found.differences[metric] for metric in metrics)
            cells = (f"{with_limits(one, 3, sign=True)} {one.verdict}" for one in differences)
            rows.append([found.title, str(found.shared_seeds), *cells])
        lines += markdown_table(["Variant", "Shared seeds", *headings], rows)
    lines += _pairs(report)
    lines += _slices(report)
    lines += _widths(report)
    lines += ["", f"## The {report.validation_queries:,} validation queries", ""]
    lines += markdown_table(
        ["Variant", *headings],
        (
            [found.title, *(_summary(found.validation.get(metric)) for metric in metrics)]
            for found in report.variants.values()
        ),
    )
    lines += ["", _how_measured()]
    if report.missing:
        lines += ["", f"Without a result: {', '.join(report.missing)}."]
    return "\n".join(lines) + "\n"


def console_table(report: AblationReport) -> Table:
    """Each variant with its metrics, and below them where they stand against the default."""
    label = "[bold]SIMULATED data[/bold]" if report.simulated else "real data"
    title = f"Ablation of the encoders: {label}, {report.queries:,} queries, against {report.default!r}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("Variant", min_width=16)
    for metric in report.metrics:
        shown.add_column(_heading(metric, report.k), justify="right")
    for found in report.variants.values():
        cells = [_console_cell(found, metric) for metric in report.metrics]
        seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
        shown.add_row(f"{escape(found.title)}\n[dim]{seeds}, {found.training_minutes:.1f} min[/dim]", *cells)
    return shown


def _console_cell(found: VariantResult, metric: str) -> str:
    summary, difference = _summary(found.metrics[metric]), found.differences.get(metric)
    if difference is None:
        return summary
    if difference.verdict == "not told apart":
        return f"{summary}\n[dim]{difference.verdict}[/dim]"
    return f"{summary}\n{difference.mean:+.3f} {difference.verdict}"


def _pairs(report: AblationReport) -> list[str]:
    """What the cosine says of single pairs; the intervals are of other queries and other trainings."""
    measured = [found for found in report.variants.values() if found.pairs]
    if not measured:
        return []
    default = report.variants[report.default].title if report.default in report.variants else report.default
    headings = ["Variant"]
    for name in measured[0].pairs:
        title = _PAIR_TITLES.get(name, name)
        headings += [title, f"{title}, seeds", f'{title} minus "{default}"']
    rows = []
    for found in measured:
        row = [found.title]
        for name, figure in found.pairs.items():
            minus = with_limits(found.pair_differences.get(name), 3, sign=True)
            row += [with_limits(figure, 3), NONE if figure.sd is None else f"± {figure.sd:.3f}", minus]
        rows.append(row)
    return [
        "",
        "## The test queries' pairs, each on its own",
        "",
        *markdown_table(headings, rows),
        "",
        "AUC of high against irrelevant pairs by the cosine, and macro F1 of the three grades by two cutoffs "
        "of it that validation queries chose. Means over seeds and their spread; in brackets 95 % intervals "
        "for the noise of training and of the test queries (resamples of whole queries, the same for all); "
        "a single seed has none.",
    ]


def _slices(report: AblationReport) -> list[str]:
    """One metric by kind of query and for held-out products."""
    first = next(iter(report.variants.values()))
    metric = next((name for name in report.metrics if name.startswith(_ONE_METRIC)), None)
    if metric is None or not first.slices:
        return []
    rows = (
        [found.title, *(_summary(found.slices.get(title, {}).get(metric)) for title in first.slices)]
        for found in report.variants.values()
    )
    heading = f"## {_heading(metric, report.k)} by kind of query, and among held-out products"
    return ["", heading, "", *markdown_table(["Variant", *first.slices], rows)]


def _widths(report: AblationReport) -> list[str]:
    """Quality against bytes: the first coordinates alone, scaled back to unit length."""
    if all(len(found.widths) < 2 for found in report.variants.values()):
        return []
    headings = (_heading(metric, report.k) for metric in report.metrics)
    rows = (
        [
            found.title,
            str(width),
            str(result.bytes_per_vector),
            *(_summary(result.metrics.get(metric)) for metric in report.metrics),
        ]
        for found in report.variants.values()
        for width, result in found.widths.items()
    )
    table = markdown_table(["Variant", "Coordinates", "Bytes", *headings], rows)
    return ["", "## The first coordinates alone", "", *table]


def _how_measured() -> str:
    return (
        "Metrics are those of table 1. Minutes: training alone, mean of the runs, each on one core; stage 1, "
        "or the warm-ups without it, counts in full for every variant that uses it, though variants share "
        "it. Differences are paired by seed; in brackets a 95 % Student-t interval over seeds, which covers "
        'the noise of training, not that of other queries. "above" and "below": the interval lies on that '
        "side of zero. Of many comparisons one in twenty does so by chance."
    )


def _heading(metric: str, k: int) -> str:
    return metric_title(metric.removesuffix(f"_at_{k}"), k)


def _summary(summary: SeedSummary | None) -> str:
    return NONE if summary is None else with_sd(summary.mean, summary.sd, 3)
