"""The importance report for people: a self-contained page, pictures and a CSV beside `importance.json`."""

import csv
import io
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

from experiments.importance.result import (
    ALL,
    METHOD_TITLES,
    METHODS,
    FeatureImportance,
    ImportanceReport,
    Method,
    Metric,
    Selection,
)
from experiments.reports.importance import plots as pictures
from experiments.reports.importance.text import (
    agreement_title,
    capital,
    feature_title,
    group_sentences,
    leading_sentences,
    methods_of,
    paper_sentence,
    slice_sentences,
    with_titles,
)
from experiments.reports.page import Grid, Origin, Plot, png_source, render
from experiments.reports.plot_style import png_of
from experiments.statistics.cells import NONE, limits, with_limits
from experiments.statistics.intervals import excludes_zero
from features.artifacts import atomic_write_bytes

FILE = "importance.json"
PAGE = "importance.html"
_CAPTIONS: dict[Method, str] = {
    "permutation": "How much AUC the model loses on the test rows when the values of a feature are shuffled "
    "among impressions, so that what the feature says is lost while its values stay real.",
    "ablation": "How much AUC the model loses when a feature is replaced by one fixed value for every row.",
    "integrated_gradients": "How much a feature moves the logit of a row, on average over rows, whether up "
    "or down. It shows what the model reads, not whether that makes it right.",
}
_CELLS: tuple[tuple[str, Method, Metric], ...] = (
    ("Permutation: AUC lost", "permutation", "auc"),
    ("Permutation: log loss added", "permutation", "logloss"),
    ("Ablation: AUC lost", "ablation", "auc"),
    ("Ablation: log loss added", "ablation", "logloss"),
    ("Integrated gradients: logits", "integrated_gradients", "logit"),
)


def write_importance_report(folder: Path) -> dict[str, Path]:
    """Read `folder/importance.json` and write `importance.html`, `.csv` and the pictures beside it.

    Returns:
        The path of each file written, by kind: "page", "csv", "bars", "agreement", "slices", "aisles"; a
        picture that the report has nothing for is not among them, and an older one of that name is removed.

    Raises:
        ImportanceFileError: the JSON is missing or is no importance report.
    """
    report = ImportanceReport.read(folder / FILE)
    contents = {
        "page": (PAGE, to_html(report).encode()),
        "csv": ("importance.csv", to_csv(report).encode()),
    }
    paths = {}
    for kind, (name, figure) in {
        "bars": ("importance.png", pictures.bars(report, "permutation")),
        "agreement": ("importance_agreement.png", pictures.agreement(report)),
        "slices": ("importance_slices.png", pictures.slice_heat(report)),
        "aisles": ("importance_aisles.png", pictures.slice_heat(report, aisles=True)),
    }.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            contents[kind] = (name, png_of(figure))
    for kind, (name, content) in contents.items():
        paths[kind] = folder / name
        atomic_write_bytes(paths[kind], content)
    return paths


def to_html(report: ImportanceReport) -> str:
    """The whole page. It names simulated data as such before any number."""
    return render(
        "importance.html",
        report=report,
        leading=leading_sentences(report),
        paper=paper_sentence(report),
        groups=group_sentences(report),
        conditional=slice_sentences(report),
        bars=[plot for method in methods_of(report) for plot in bar_plots(report, method)],
        agreement=agreement_plots(report),
        agreement_grid=_agreement_grid(report),
        slices=slice_plots(report),
        features=table(report, "feature"),
        group_table=table(report, "group"),
        pairs=pair_grid(report),
        titled=lambda sentence: capital(with_titles(report, sentence)),
        selection=_selection_grid(report.selection) if report.selection else None,
        baselines=[(feature_title(name), words) for name, words in report.baselines.items()],
        origin=origin_of(report),
    )


def origin_of(report: ImportanceReport) -> Origin:
    """Command, commit and time of the measurement."""
    commits = (report.commit,) if report.commit else ()
    return Origin(report.command, commits, datetime.fromisoformat(report.created))


def bar_plots(report: ImportanceReport, method: Method) -> list[Plot]:
    """The bars of one method; nothing without it."""
    caption = f"{_CAPTIONS[method]} Black lines: 95 % interval over {_repeated(report)}. The two panels have "
    caption += "scales of their own."
    return _plots(METHOD_TITLES[method], caption, pictures.bars(report, method))


def agreement_plots(report: ImportanceReport) -> list[Plot]:
    """Agreement of methods and seeds; nothing with one method and one seed."""
    caption = (
        "Left: each line is a feature that some method puts among its first eight; flat lines mean "
        "agreement. Right: Spearman's correlation of whole rankings, with its 95 % interval: of two "
        "methods, and of two models that differ by seed only."
    )
    return _plots("Do the methods agree?", caption, pictures.agreement(report))


def slice_plots(report: ImportanceReport) -> list[Plot]:
    """Heat maps over slices and over aisles, as far as there are any."""
    caption = (
        "AUC lost by permutation within the rows of each column, in thousandths. White and in brackets: the "
        "interval reaches zero. The number of rows stands under each column; few rows give wide intervals."
    )
    return [
        *_plots("By kind of impression", caption, pictures.slice_heat(report)),
        *_plots("By aisle", caption, pictures.slice_heat(report, aisles=True)),
    ]


def _plots(heading: str, caption: str, figure: Figure | None) -> list[Plot]:
    return [Plot(heading, caption, png_source(png_of(figure)))] if figure else []


def table(report: ImportanceReport, kind: str) -> Grid | None:
    """Every feature (or group) with every method, sorted by permutation; None if there is none."""
    found: dict[tuple[str, Method, Metric], FeatureImportance] = {
        (entry.name, entry.method, entry.metric): entry
        for entry in report.features
        if entry.kind == kind and entry.slice == ALL
    }
    shown = [cell for cell in _CELLS if any(key[1:] == cell[1:] for key in found)]
    if not shown:
        return None
    _, method, metric = shown[0]
    first = {name: entry.mean for (name, *rest), entry in found.items() if rest == [method, metric]}
    names = sorted({name for name, *_ in found}, key=lambda name: (-first.get(name, float("-inf")), name))
    rows = tuple(
        (
            feature_title(name) if kind == "feature" else name,
            *(with_limits(found.get((name, method, metric))) for _, method, metric in shown),
        )
        for name in names
    )
    bold = frozenset(
        (place, column)
        for place, name in enumerate(names)
        for column, (_, method, metric) in enumerate(shown, start=1)
        if metric != "logit" and (entry := found.get((name, method, metric))) and excludes_zero(entry)
    )
    titles = {"feature": "Feature", "group": "Group"}
    caption = "Mean and 95 % interval. Bold: the interval excludes zero."
    return Grid(caption, (titles[kind], *(title for title, *_ in shown)), rows, bold)


def pair_grid(report: ImportanceReport) -> Grid | None:
    """Correlated features: what each loses alone, and both together."""
    if not report.correlated_pairs:
        return None
    rows = tuple(
        (
            f"{feature_title(pair.a)} and {feature_title(pair.b)}",
            f"{pair.correlation:+.2f}",
            f"{pair.single_a:.4f}",
            f"{pair.single_b:.4f}",
            f"{pair.joint:.4f}",
        )
        for pair in report.correlated_pairs
    )
    columns = ("Pair", "Correlation", "First alone", "Second alone", "Both together")
    return Grid("AUC lost by permutation, alone, and both by the same shuffle.", columns, rows)


def to_csv(report: ImportanceReport) -> str:
    """Every entry of the report as one row; an absent limit is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ("kind", "method", "metric", "slice", "mean", "sd", "low", "high", "runs")
    writer.writerow(("name", "title", "members", *columns))
    order = {method: place for place, method in enumerate(METHODS)}
    for entry in sorted(
        report.features,
        key=lambda found: (found.slice != ALL, found.kind, order[found.method], found.metric, -found.mean),
    ):
        title = feature_title(entry.name) if entry.kind == "feature" else entry.name
        cells = [getattr(entry, column) for column in columns]
        writer.writerow([entry.name, title, ";".join(entry.members), *cells])
    return buffer.getvalue()


def _repeated(report: ImportanceReport) -> str:
    if len(report.runs) > 1:
        return f"{len(report.runs)} models trained with different seeds"
    return f"{report.repeats} shuffles of the values, one model"


def _agreement_grid(report: ImportanceReport) -> Grid | None:
    if not report.agreement.methods:
        return None
    rows = []
    for found in report.agreement.methods:
        shared = NONE if found.top_10_shared is None else str(found.top_10_shared)
        cells = (f"{found.spearman:.2f}", limits(found, 2), f"{found.kendall:.2f}", shared)
        rows.append((agreement_title(found), *cells))
    columns = ("Methods", "Spearman", "95 % interval", "Kendall", "Leading ten in common")
    return Grid("Rank correlation over features: 1 is the same order, 0 none.", columns, tuple(rows))


def _selection_grid(found: Selection) -> Grid:
    sides = (found.before, found.after)
    rows = (
        ("Features", *(str(side.features) for side in sides)),
        ("AUC, mean over seeds", *(f"{side.auc:.4f}" for side in sides)),
        ("Log loss, nats", *(f"{side.logloss:.4f}" for side in sides)),
        ("Parameters", *(f"{side.parameters:,}" for side in sides)),
        ("Size, MB", *(f"{side.megabytes:.1f}" for side in sides)),
        ("Time to score 100 rows, ms", *(f"{side.latency_ms:.2f}" for side in sides)),
    )
    caption = f"Retrained without features below {found.threshold:g}; chosen on the {found.chosen_on}."
    return Grid(caption, ("", "All features", "Kept features"), rows)
