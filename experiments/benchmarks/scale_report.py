"""What the whole way costs at each size, as tables and as a picture."""

from collections.abc import Sequence
from typing import Any

from embeddings.training.evaluation import beside_chance
from experiments.benchmarks.result_table import ResultTable, machine_note

_NONE = "-"
#: Assumed, not any provider's: a virtual CPU, which is one hardware thread.
VCPU_HOUR_DOLLARS = 0.04
#: What the rows of each training of encoders are.
_UNITS = {"text warm-up": "titles", "stage 2": "tuples"}
#: Steps that a shop with a log of its own has not, or that do not grow with the log.
_NOT_OF_A_LOG = ("generate", "embed lsa", "encode", "package", "one request")


def scale_tables(result: dict[str, Any]) -> list[ResultTable]:
    """CPU seconds, peak memory, rates and disk of each step at each size."""
    sizes = list(result["sizes"].values())
    steps = _steps(sizes)
    millions = [f"{size['impressions'] / 1e6:.3g} M" for size in sizes]

    def grid(figures: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (name, *(_figure(size["steps"].get(name), figure) for figure in figures for size in sizes))
            for name in steps
        )

    def heads(*figures: str) -> tuple[str, ...]:
        return ("step", *(f"{figure}, {size}" for figure in figures for size in millions))

    common = [name for name in steps if not _reads_encoders(name)]
    totals = [("all steps", *_total(sizes, common))]
    if any("encoders" in size for size in sizes):
        totals = [
            ("all steps without encoders", *_total(sizes, common)),
            ("all steps with encoders", *_total(sizes, steps)),
        ]
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
        if name.startswith(_NOT_OF_A_LOG) or name not in largest["steps"] or _repeats(name, result):
            continue
        by_size = [_a_million(size, name) for size in sizes]
        hours = largest["steps"][name]["cpu_s"] / largest["impressions"] * 1e9 / 3600
        rates.append((name, *by_size, f"{hours:.1f}", f"{hours * VCPU_HOUR_DOLLARS:.2f}"))
    disk = tuple(row for row in grid(("disk_mib", "scratch_mib")) if set(row[1:]) - {_NONE, "0"})
    return [
        ResultTable(
            "From the log to a served request",
            heads("CPU s", "peak MiB"),
            (*grid(("cpu_s", "peak_mib")), *totals),
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
        *(
            _encoder_table(size, title)
            for size, title in zip(sizes, millions, strict=True)
            if "encoders" in size
        ),
    ]


def _encoder_table(size: dict[str, Any], title: str) -> ResultTable:
    """What each training saw of its rows, and what a pass over all of them would cost."""
    rows = []
    for stage, found in size["encoders"].items():
        seen = found["steps"] * found["batch_size"]
        rows.append(
            (
                f"{stage}, {_UNITS[stage]}",
                f"{found['steps']:,} x {found['batch_size']:,}",
                f"{min(1.0, seen / found['rows']):.1%}",
                f"{found['rows']:,}",
                f"{found['rows_per_cpu_second']:,.0f}",
                *_hours(found["rows"], found["rows_per_cpu_second"]),
            )
        )
    if "encode run" in size["steps"]:
        vectors = size["products"] + size["queries"]
        rate = vectors / size["steps"]["encode run"]["cpu_s"]
        rows.append(
            ("encoding, vectors", _NONE, "100.0%", f"{vectors:,}", f"{rate:,.0f}", *_hours(vectors, rate))
        )
    best = "; ".join(f"{stage}: {beside_chance(found['best'])}" for stage, found in size["encoders"].items())
    return ResultTable(
        f"Encoders of the shop, measured at {title}",
        (
            "training",
            "steps",
            "seen",
            "rows of an epoch",
            "rows per CPU-second",
            "CPU hours of it",
            "dollars",
        ),
        tuple(rows),
        (
            "Rates are by processor time and count evaluations in, that of encoding its start, too. Where "
            "less than all was seen, the last two columns are a projection at this rate, and "
            f"{VCPU_HOUR_DOLLARS} dollars a CPU hour an assumed price.",
            f"Last evaluation, on titles and queries that were not trained on: {best}.",
        ),
    )


def _hours(rows: int, rate: float) -> tuple[str, str]:
    hours = rows / rate / 3600
    return f"{hours:.2f}", f"{hours * VCPU_HOUR_DOLLARS:.3f}"


def scale_png(result: dict[str, Any]) -> bytes:
    """CPU seconds and peak memory of each step, trainings of the first seed, on logarithmic axes.

    Steps taken with encoders are hollow marks without a line.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from experiments.reports.plot_style import COLOURS, MARKERS, STYLE, WIDTH_INCHES, png_of

    sizes = list(result["sizes"].values())
    steps = [name for name in _steps(sizes) if not _repeats(name, result)]
    places = {
        name: place
        for with_encoders in (False, True)
        for place, name in enumerate(name for name in steps if _reads_encoders(name) == with_encoders)
    }
    panels = (("cpu_s", "CPU seconds on one thread"), ("peak_mib", "Peak memory, MiB"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 5), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
            for name, place in places.items():
                found = [size for size in sizes if name in size["steps"]]
                axes.loglog(
                    [size["impressions"] for size in found],
                    [size["steps"][name][key] for size in found],
                    marker=MARKERS[place % len(MARKERS)],
                    color=COLOURS[place % len(COLOURS)],
                    linestyle="none" if _reads_encoders(name) else "-" if place < len(COLOURS) else "--",
                    **({"markerfacecolor": "none", "markersize": 10} if _reads_encoders(name) else {}),
                    label=name,
                )
            axes.set_title(title)
            axes.set_xlabel("impressions")
            axes.grid(visible=True, which="major", alpha=0.3)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        return png_of(figure)


def _steps(sizes: Sequence[dict[str, Any]]) -> list[str]:
    """All steps, in the order of the size that has the most."""
    fullest_first = sorted(sizes, key=lambda size: -len(size["steps"]))
    return list(dict.fromkeys(name for size in fullest_first for name in size["steps"]))


def _figure(step: dict[str, Any] | None, figure: str) -> str:
    return _NONE if step is None else f"{step[figure]:,.0f}"


def _repeats(step: str, result: dict[str, Any]) -> bool:
    """Whether a step trains what was trained with an earlier seed."""
    first = result["settings"]["training_seeds"][0]
    return step.startswith("train ") and not step.endswith(f"seed {first}")


def _a_million(size: dict[str, Any], name: str) -> str:
    step = size["steps"].get(name)
    return _NONE if step is None else f"{step['cpu_s'] / size['impressions'] * 1e6:.1f}"


def _reads_encoders(step: str) -> bool:
    """Whether a step is taken with encoders alone."""
    return "encode" in step or "_dashclip" in step


def _total(sizes: Sequence[dict[str, Any]], steps: Sequence[str]) -> list[str]:
    """CPU seconds of the steps together at each size, then their highest peaks; of whole sizes alone."""
    taken = [[size["steps"][name] for name in steps if name in size["steps"]] for size in sizes]
    seconds = [f"{sum(step['cpu_s'] for step in of_size):,.0f}" for of_size in taken]
    peaks = [f"{max((step['peak_mib'] for step in of_size), default=0):,.0f}" for of_size in taken]
    return [
        figure if len(of_size) == len(steps) else _NONE
        for figures in (seconds, peaks)
        for figure, of_size in zip(figures, taken, strict=True)
    ]


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
