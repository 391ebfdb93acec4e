"""The report of the ablation as text: Markdown and a terminal table."""

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.ablation.report import AblationReport, VariantResult, verdict
from experiments.reports.table1_text import NONE, metric_title
from experiments.statistics.intervals import Interval, SeedSummary

#: The metric of the tables that have room for one.
_ONE_METRIC = "ndcg"


def to_markdown(report: AblationReport) -> str:
    """Metrics, differences to the default, kinds of queries, widths, validation queries, how measured."""
    metrics = report.metrics
    headings = [_heading(metric, report.k) for metric in metrics]
    kind = "SIMULATED data (generated, not real users)" if report.simulated else "Real data"
    lines = ["# Ablation of the encoders", "", f"**{kind}.** {report.description}", ""]
    lines += [f"{report.queries:,} test queries. Mean ± standard deviation over training seeds.", ""]
    lines += _header(["Variant", "Seeds", "Minutes", *headings])
    for found in report.variants.values():
        cells = [_summary(found.metrics[metric]) for metric in metrics]
        lines.append(_row([found.title, str(len(found.seeds)), f"{found.training_minutes:.1f}", *cells]))

    compared = [found for found in report.variants.values() if found.differences]
    default = report.variants.get(report.default)
    if compared and default:
        lines += ["", f'## Minus "{default.title}"', ""]
        lines += _header(["Variant", "Shared seeds", *headings])
        for found in compared:
            cells = [_difference(found.differences[metric]) for metric in metrics]
            lines.append(_row([found.title, str(found.shared_seeds), *cells]))
    lines += _slices(report)
    lines += _widths(report)
    lines += ["", f"## The {report.validation_queries:,} validation queries", ""]
    lines += _header(["Variant", *headings])
    for found in report.variants.values():
        lines.append(_row([found.title, *(_optional(found.validation.get(metric)) for metric in metrics)]))
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
    word = verdict(difference)
    if word == "not told apart":
        return f"{summary}\n[dim]{word}[/dim]"
    return f"{summary}\n{difference.mean:+.3f} {word}"


def _slices(report: AblationReport) -> list[str]:
    """One metric by kind of query and for held-out products."""
    first = next(iter(report.variants.values()))
    metric = next((name for name in report.metrics if name.startswith(_ONE_METRIC)), None)
    if metric is None or not first.slices:
        return []
    lines = ["", f"## {_heading(metric, report.k)} by kind of query, and among held-out products", ""]
    lines += _header(["Variant", *first.slices])
    for found in report.variants.values():
        cells = [_optional(found.slices.get(title, {}).get(metric)) for title in first.slices]
        lines.append(_row([found.title, *cells]))
    return lines


def _widths(report: AblationReport) -> list[str]:
    """Quality against bytes: the first coordinates alone, scaled back to unit length."""
    if all(len(found.widths) < 2 for found in report.variants.values()):
        return []
    lines = ["", "## The first coordinates alone", ""]
    lines += _header(
        ["Variant", "Coordinates", "Bytes", *(_heading(metric, report.k) for metric in report.metrics)]
    )
    for found in report.variants.values():
        for width, result in found.widths.items():
            cells = [_optional(result.metrics.get(metric)) for metric in report.metrics]
            lines.append(_row([found.title, str(width), str(result.bytes_per_vector), *cells]))
    return lines


def _how_measured() -> str:
    return (
        "Metrics are those of table 1. Minutes: training alone, mean of the runs, each on one core; stage 1 "
        "counts in full for every variant that uses it, though variants share it. Differences are paired by "
        "seed; in brackets a 95 % Student-t interval over seeds, which covers the noise of training, not "
        'that of other queries. "above" and "below": the interval lies on that side of zero. Of many '
        "comparisons one in twenty does so by chance."
    )


def _heading(metric: str, k: int) -> str:
    return metric_title(metric.removesuffix(f"_at_{k}"), k)


def _header(headings: list[str]) -> list[str]:
    return [_row(headings), f"| --- |{' ---: |' * (len(headings) - 1)}"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _summary(summary: SeedSummary) -> str:
    return f"{summary.mean:.3f}" + ("" if summary.sd is None else f" ± {summary.sd:.3f}")


def _optional(summary: SeedSummary | None) -> str:
    return NONE if summary is None else _summary(summary)


def _difference(difference: Interval) -> str:
    limits = (
        ""
        if difference.low is None or difference.high is None
        else f" ({difference.low:+.3f} … {difference.high:+.3f})"
    )
    return f"{difference.mean:+.3f}{limits} {verdict(difference)}"
