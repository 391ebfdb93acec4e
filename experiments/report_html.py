"""The report as one self-contained HTML page: no script, no network, plots as embedded SVG."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from experiments import plots
from experiments.report_tables import (
    PAPER,
    compares_with_paper,
    findings,
    gap_sentences,
    number,
    pair_rows,
    rows_of_slice,
)
from experiments.table2 import Table2

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Plot:
    """A plot with its heading, what to look for, and a text for those who cannot see it."""

    heading: str
    caption: str
    source: str


def to_html(table: Table2) -> str:
    """The whole page. It names simulated data as such before any number."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    everything = table.slices["all"]
    return environment.get_template("report.html").render(
        record=table.results.record,
        data=_text(table.results.record.data),
        everything=everything,
        table=table,
        number=number,
        findings=findings(table),
        gaps=gap_sentences(table),
        rows=rows_of_slice(table, "all"),
        slices=[
            (facts, rows_of_slice(table, key), key in PAPER)
            for key, facts in table.slices.items()
            if key != "all"
        ],
        pairs=pair_rows(table),
        paper=compares_with_paper(table),
        plots=_plots(table),
        undefined=_undefined(table),
        commits=sorted({str(found) for found in _recorded(table, "commit")}) or ["not recorded"],
        machines=sorted({str(found) for found in _recorded(table, "cpu")}),
        environment=_environment(table),
    )


def _plots(table: Table2) -> list[Plot]:
    found = []
    if len(table.variants) > 1 and table.baseline in table.variants:
        found.append(
            Plot(
                "How much each variant gains, and for whom",
                "AUC difference to the baseline in each slice. Thick line: 95 % interval over seeds "
                "(training noise). Thin line: 95 % interval over users (test-sample noise). Right of the "
                "vertical line is better than the baseline.",
                _source(plots.forest(table)),
            )
        )
    found.append(
        Plot(
            "AUC by slice",
            "Mean over seeds, bars start at chance (0.5), whiskers are one standard deviation over seeds. A "
            "black line marks the best reachable AUC where it is known. Slices differ in difficulty: compare "
            "bars within a slice.",
            _source(plots.slice_bars(table)),
        )
    )
    found.append(
        Plot(
            "Calibration",
            "Observed against predicted CTR in ten bins of equal row count, all seeds pooled. On the dashed "
            "line a prediction of 10 % is clicked one time in ten; below it the model promises too much.",
            _source(plots.calibration(table)),
        )
    )
    learning = plots.learning_curves(table)
    if learning:
        found.append(
            Plot(
                "Learning curves",
                "AUC on the validation days while training: each seed thin, the mean of all seeds thick "
                "(only where every seed was evaluated). The test days are never looked at while training.",
                _source(learning),
            )
        )
    return found


def _source(svg: str) -> str:
    """An image element cannot share names with another, as inline SVGs of one page would."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _undefined(table: Table2) -> list[str]:
    """Each undefined metric once, with the slice and the reason."""
    first = next(iter(table.variants.values()))
    return [
        f"{table.slices[key].title}: {reason}."
        for key, found in first.slices.items()
        for metric, reason in found.undefined.items()
        if metric in ("auc", "calibration") or (metric == "gauc_user" and "auc" not in found.undefined)
    ]


def _recorded(table: Table2, key: str) -> list[Any]:
    runs = [run for by_seed in table.results.runs.values() for run in by_seed.values()]
    return [run.environment[key] for run in runs if run.environment.get(key)]


def _environment(table: Table2) -> str:
    packages: dict[str, str] = next(iter(_recorded(table, "packages")), {})
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _text(value: str | dict[str, Any] | None) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
