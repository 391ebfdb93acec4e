"""What the whole way costs at each size, as tables and as a picture."""

from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.result_table import ResultTable, machine_note

_NONE = "-"
#: Assumed, not any provider's: a virtual CPU, which is one hardware thread.
VCPU_HOUR_DOLLARS = 0.04
#: Steps that a shop with a log of its own has not, or that do not grow with the log.
_NOT_OF_A_LOG = ("generate", "embed lsa", "package", "one request")


def scale_tables(result: dict[str, Any]) -> list[ResultTable]:
    """CPU seconds, peak memory, rates and disk of each step at each size."""
    sizes = list(result["sizes"].values())
    steps = list(dict.fromkeys(name for size in sizes for name in size["steps"]))
    millions = [f"{size['impressions'] / 1e6:.3g} M" for size in sizes]

    def grid(figures: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (name, *(_figure(size["steps"].get(name), figure) for figure in figures for size in sizes))
            for name in steps
        )

    def heads(*figures: str) -> tuple[str, ...]:
        return ("step", *(f"{figure}, {size}" for figure in figures for size in millions))

    whole = [set(size["steps"]) == set(steps) for size in sizes]
    seconds = [f"{_sum(size, 'cpu_s'):,.0f}" for size in sizes]
    peaks = [f"{max(step['peak_mib'] for step in size['steps'].values()):,.0f}" for size in sizes]
    totals = [
        of_size if is_whole else _NONE
        for figures in (seconds, peaks)
        for of_size, is_whole in zip(figures, whole, strict=True)
    ]
    total = ("all steps", *totals)
    settings = result["settings"]
    logs = "; ".join(
        f"{size['impressions']:,} impressions, {size['users']:,} users, {size['purchases']:,} purchases"
        for size in sizes
    )
    shop = sizes[-1]
    aucs = "; ".join(
        f"{millions[place]}: " + ", ".join(f"{name} {auc:.4f}" for name, auc in size["test_auc"].items())
        for place, size in enumerate(sizes)
        if size["test_auc"]
    )
    notes = (
        f"Simulated. {logs}. One shop: {shop['products']:,} products, {shop['queries']:,} queries, "
        f"{shop['labels']:,} grades. One thread, memory limit of validation and features "
        f"{settings['memory_limit']}, batches of {settings['batch_size']:,}, one epoch.",
        "The last training writes table 2, too, as the last part of a sweep does; then it is written alone.",
        f"Test AUC (simulated): {aucs}.",
        _commits(sizes, millions),
        machine_note(result),
    )
    largest = sizes[-1]
    rates = []
    for name in steps:
        if name in _NOT_OF_A_LOG or name not in largest["steps"] or _repeats(name, result):
            continue
        by_size = [_a_million(size, name) for size in sizes]
        hours = largest["steps"][name]["cpu_s"] / largest["impressions"] * 1e9 / 3600
        rates.append((name, *by_size, f"{hours:.1f}", f"{hours * VCPU_HOUR_DOLLARS:.2f}"))
    disk = tuple(row for row in grid(("disk_mib", "scratch_mib")) if set(row[1:]) - {_NONE, "0"})
    return [
        ResultTable(
            "From the log to a served request",
            heads("CPU s", "peak MiB"),
            (*grid(("cpu_s", "peak_mib")), total),
            notes,
        ),
        ResultTable(
            "What a million impressions cost, and 10^9",
            ("step", *(f"CPU s a million, {size}" for size in millions), "CPU hours for 10^9", "dollars"),
            tuple(rates),
            (
                f"The last two columns take the rate of {millions[-1]} as it is, and "
                f"{VCPU_HOUR_DOLLARS} dollars a CPU hour, an assumed price; nothing of 10^9 rows was run.",
            ),
        ),
        ResultTable(
            "What the steps write",
            heads("MiB", "more in between"),
            disk,
            ("The folder that a step leaves, and how much more lay there at the most while it ran.",),
        ),
    ]


def scale_png(result: dict[str, Any]) -> bytes:
    """CPU seconds and peak memory of each step, trainings of the first seed, on logarithmic axes."""
    import matplotlib
    from matplotlib.figure import Figure

    from experiments.reports.plot_style import COLOURS, MARKERS, STYLE, WIDTH_INCHES, png_of

    sizes = list(result["sizes"].values())
    names = dict.fromkeys(name for size in sizes for name in size["steps"])
    steps = [name for name in names if not _repeats(name, result)]
    panels = (("cpu_s", "CPU seconds on one thread"), ("peak_mib", "Peak memory, MiB"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 5), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
            for place, name in enumerate(steps):
                found = [size for size in sizes if name in size["steps"]]
                axes.loglog(
                    [size["impressions"] for size in found],
                    [size["steps"][name][key] for size in found],
                    marker=MARKERS[place % len(MARKERS)],
                    color=COLOURS[place % len(COLOURS)],
                    linestyle="-" if place < len(COLOURS) else "--",
                    label=name,
                )
            axes.set_title(title)
            axes.set_xlabel("impressions")
            axes.grid(visible=True, which="major", alpha=0.3)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        return png_of(figure)


def _figure(step: dict[str, Any] | None, figure: str) -> str:
    return _NONE if step is None else f"{step[figure]:,.0f}"


def _repeats(step: str, result: dict[str, Any]) -> bool:
    """Whether a step trains what was trained with an earlier seed."""
    first = result["settings"]["training_seeds"][0]
    return step.startswith("train ") and not step.endswith(f"seed {first}")


def _a_million(size: dict[str, Any], name: str) -> str:
    step = size["steps"].get(name)
    return _NONE if step is None else f"{step['cpu_s'] / size['impressions'] * 1e6:.1f}"


def _sum(size: dict[str, Any], figure: str) -> float:
    return sum(float(step[figure]) for step in size["steps"].values())


def _commits(sizes: Sequence[dict[str, Any]], millions: Sequence[str]) -> str:
    """Which commit measured what, in the order of the steps."""
    by_size = []
    for size, title in zip(sizes, millions, strict=True):
        of_commit: dict[str, list[str]] = {}
        for name, step in size["steps"].items():
            of_commit.setdefault(step["commit"], []).append(name)
        if len(of_commit) == 1:
            by_size.append(f"{title} at {next(iter(of_commit))}")
        else:
            parts = (f"{', '.join(names)} at {found}" for found, names in of_commit.items())
            by_size.append(f"{title}: {'; '.join(parts)}")
    return f"Commits: {'. '.join(by_size)}."
