"""An importance report for the terminal."""

from typing import Literal

from rich.table import Table

from experiments.importance.result import FeatureImportance, ImportanceReport, Method

_SHOWN = 15
_TITLES: dict[Method, str] = {
    "permutation": "permutation, AUC",
    "ablation": "ablation, AUC",
    "integrated_gradients": "integrated gradients, logit",
}


def feature_table(report: ImportanceReport) -> Table:
    """The leading features by the first method that was measured, beside the other methods."""
    return _table(
        report, "feature", f"What AUC loses without a feature ({report.variant}, {report.split} rows)"
    )


def group_table(report: ImportanceReport) -> Table:
    """Groups, each moved as one."""
    return _table(report, "group", "Groups of features")


def _table(report: ImportanceReport, kind: Literal["feature", "group"], title: str) -> Table:
    methods = [method for method in _TITLES if _entries(report, method, kind)]
    table = Table(title=title)
    table.add_column("")
    table.add_column(kind)
    for method in methods:
        table.add_column(_TITLES[method], justify="right")
    by_name = {method: {entry.name: entry for entry in _entries(report, method, kind)} for method in methods}
    if methods:
        for place, name in enumerate(list(by_name[methods[0]])[:_SHOWN], start=1):
            cells = [_cell(by_name[method].get(name)) for method in methods]
            table.add_row(str(place), name, *cells)
    return table


def _entries(
    report: ImportanceReport, method: Method, kind: Literal["feature", "group"]
) -> list[FeatureImportance]:
    metric: Literal["auc", "logit"] = "logit" if method == "integrated_gradients" else "auc"
    return report.ranked(method=method, metric=metric, kind=kind)


def _cell(entry: FeatureImportance | None) -> str:
    if entry is None:
        return ""
    return f"{entry.mean:.4f}" if entry.sd is None else f"{entry.mean:.4f} ± {entry.sd:.4f}"


def sentences(report: ImportanceReport) -> list[str]:
    """What the tables do not say."""
    runs = len(report.runs)
    spread = f"over {runs} runs" if runs > 1 else f"over {report.repeats} permutations of one run"
    found = [f"± is the standard deviation {spread}; {report.rows:,} rows, {report.clicks:,} clicks."]
    if report.agreement.sentence:
        found.append(report.agreement.sentence)
    if report.convergence_delta:
        delta = report.convergence_delta
        found.append(
            f"Integrated gradients add up to the logit's difference from the baseline within "
            f"{delta.mean:.4f} logits on average ({delta.steps} steps)."
        )
    found += [pair.sentence for pair in report.correlated_pairs[:3]]
    if report.speedup_to_naive is not None:
        found.append(
            f"{report.speedup_to_naive:.1f} times as fast as Captum's FeaturePermutation on the same rows."
        )
    if report.selection:
        found.append(report.selection.sentence)
    return [*found, *report.notes]
