"""Benchmark results as tables."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu_tables import gpu_tables
from experiments.benchmarks.result_table import ResultTable, machine_note, shared_machine
from experiments.benchmarks.scale_report import scale_tables
from experiments.benchmarks.serving.tables import serving_tables
from experiments.benchmarks.training.tables import training_tables

PARTS = ("training", "features", "loader", "scaling", "spark", "encoders", "serving")
#: Measured when it is asked for by name, since it takes hours; its tables stand in a document of their own.
SCALE = "scale"
#: Measured when it is asked for by name, where there is a GPU.
GPU = "gpu"


def read_result(results: Path, part: str) -> dict[str, Any] | None:
    """The part's JSON, or None if it was not measured.

    Raises:
        ValueError: the file is not JSON.
    """
    path = results / f"{part}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not complete JSON ({error}); measure again with `dashclip bench {part}`"
        ) from None
    return content


def tables_of(part: str, result: dict[str, Any]) -> list[ResultTable]:
    """The tables of one part."""
    return _TABLES[part](result)


def _features(result: dict[str, Any]) -> list[ResultTable]:
    settings, compared = result["settings"], result["compared"]
    rows = tuple(
        (title, *(_whole(result[name][key]) for key in ("cpu_s", "wall_s", "peak_mib")))
        for name, title in (("ours", "DashCLIP Ranker"), ("pandas", "pandas merge_asof + NumPy"))
    )
    ratio = ("ratio", f"{result['cpu_ratio_to_pandas']:.2f}", "", f"{result['memory_ratio_to_pandas']:.2f}")
    same = "identical" if result["identical"] else f"different in {', '.join(compared['differences'])}"
    return [
        ResultTable(
            "Feature build",
            ("build", "CPU seconds", "wall seconds", "peak MiB"),
            (*rows, ratio),
            (
                f"{_whole(settings['impressions'])} impressions, {_whole(settings['purchases'])} purchases, "
                f"{_whole(settings['users'])} users, one thread. {compared['columns']} columns and arrays of "
                f"{_whole(compared['rows'])} rows compared: {same}.",
                *shared_machine(result),
                machine_note(result),
            ),
        )
    ]


def _loader(result: dict[str, Any]) -> list[ResultTable]:
    ways = {
        "shuffled": "shuffled",
        "shuffled_with_history": "shuffled, with purchase histories",
        "stored_order": "stored order",
    }
    rows = tuple(
        (title, _whole(result[name]["rows_per_s"]), _whole(result[name]["rows_per_cpu_s"]))
        for name, title in ways.items()
    )
    return [
        ResultTable(
            "Loader",
            ("order", "rows/s", "rows per CPU-second"),
            rows,
            (
                f"{_whole(result['rows'])} rows of {result['columns']} feature columns, one thread, "
                f"medians over whole epochs; peak {_whole(result['peak_mib'])} MiB, libraries included.",
                *shared_machine(result),
                machine_note(result),
            ),
        )
    ]


def _scaling(result: dict[str, Any]) -> list[ResultTable]:
    first = result["rows"][0]
    rows = tuple(
        (
            f"{size / first:.0f}x",
            _whole(size),
            f"{result['build']['cpu_s'][i]:.1f}",
            _whole(result["build"]["peak_mib"][i]),
            f"{result['training']['cpu_s'][i]:.1f}",
            _whole(result["training"]["peak_mib"][i]),
        )
        for i, size in enumerate(result["rows"])
    )
    return [
        ResultTable(
            "Cost against size",
            ("size", "impressions", "build CPU s", "build peak MiB", "epoch CPU s", "epoch peak MiB"),
            rows,
            (
                f"Build limited to {result['settings']['memory_limit']}; the epoch trains a small ranker, so "
                "that reading weighs as much as it can. Start-up of the processes included.",
                machine_note(result),
            ),
        )
    ]


def _spark(result: dict[str, Any]) -> list[ResultTable]:
    spark, settings = result["spark"], result["settings"]
    rows = tuple(
        (
            title,
            f"{result[name]['cpu_s']:.1f}",
            *(_whole(result[name][key]) for key in ("wall_s", "peak_mib")),
        )
        for name, title in (("duckdb", "DuckDB, one thread"), ("spark", f"Spark, {settings['master']}"))
    )
    same = "every file the same, byte for byte" if result["identical"] else "NOT the same files"
    return [
        ResultTable(
            "Feature build by engine",
            ("engine", "CPU seconds", "wall seconds", "peak MiB"),
            rows,
            (
                f"{_whole(result['rows'])} impressions, {_whole(result['purchases'])} purchases, "
                f"{result['columns']} columns, {result['files']} files: {same}. Of Spark's CPU seconds "
                f"{spark['start_cpu_s']:.1f} passed before the first row was read; heap of Java "
                f"{settings['driver_memory']}.",
                machine_note(result),
            ),
        )
    ]


_ENCODER_STEPS = {
    "pretrain": "stage 1 step (products)",
    "pretrain_loop": "stage 1, pictures read (products)",
    "align": "stage 2 step (tuples)",
    "align_loop": "stage 2, pictures read (tuples)",
    "encode": "encoding, batches ready (products)",
    "encode_loop": "encoding a folder (products)",
}


def _encoders(result: dict[str, Any]) -> list[ResultTable]:
    """Two tables a measured setting: speeds, and the operators that take the time."""
    runs = sorted(result["runs"].items())
    tables = [
        table for name, run in runs for table in (_encoder_speed(name, run), _encoder_profile(name, run))
    ]
    if all(run["accelerator"] is None for _, run in runs):
        note = "No GPU was measured: numbers of the processor say nothing about the share of a GPU's peak."
        tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, note))
    return tables


def _encoder_speed(name: str, run: dict[str, Any]) -> ResultTable:
    modes = {mode: run[mode] for mode in ("eager", "compiled") if mode in run}
    rows = tuple(
        (
            title + (", compiled" if mode == "compiled" else ""),
            _significant(steps[stage]["rows_per_s"]),
            _significant(steps[stage]["rows_per_cpu_s"]),
            f"{steps[stage]['gflop_per_row']:.3g}",
            f"{100 * steps[stage]['share_of_peak']:.0f} %",
        )
        for stage, title in _ENCODER_STEPS.items()
        for mode, steps in modes.items()
        if stage in steps
    )
    settings = run["settings"]
    on = (
        f"{run['accelerator']}, by wall time; {_whole(run['accelerator_peak_mib'])} MiB at most."
        if run["accelerator"]
        else "one core, by processor time."
    )
    notes = [
        f"{settings['batch_rows']} rows a step, medians of {settings['schedule']['timed']} steps after "
        f"{settings['schedule']['warmup']} of warm-up; {_whole(settings['products'])} generated products. "
        f"Share of {_whole(run['peak_gflops'])} GFLOPS, the measured peak of {settings['precision']} "
        f"products on {on} Encoding runs in float32, as `dashclip encode run` does."
    ]
    if "compiled" in modes:
        seconds = ", ".join(f"{stage} {modes['compiled'][stage]['warmup_s']:.0f} s" for stage in _STAGES)
        notes.append(f"Warm-up with compilation: {seconds}.")
    if run["load_average_before"] > 0.5:
        notes.append(
            f"**The machine was shared**: its load average was {run['load_average_before']:.1f} on "
            f"{run['machine']['cores']} cores before the run, so wall times are too long, and caches and "
            "memory were shared, too. To be measured again on a quiet machine."
        )
    return ResultTable(
        f"Encoders: {name}",
        ("what", "rows/s (wall)", "rows per CPU-second", "GFLOP a row", "share of peak"),
        rows,
        (*notes, machine_note(run)),
    )


def _encoder_profile(name: str, run: dict[str, Any]) -> ResultTable:
    modes = [mode for mode in ("eager", "compiled") if mode in run]
    rows = []
    for stage in _STAGES:
        tops = [run[mode][stage]["operators"] for mode in modes]
        for rank in range(min(6, *map(len, tops))):
            cells = [
                cell
                for top in tops
                for cell in (f"`{top[rank]['name'][:60]}`", f"{100 * top[rank]['share']:.0f} %")
            ]
            rows.append((f"{stage} {rank + 1}", *cells))
    shares = ", ".join(f"{stage} {100 * run['eager'][stage]['attention_share']:.1f} %" for stage in _STAGES)
    refused = "; ".join(f"{kind}: {answer}" for kind, answer in run["attention"].items() if kind != "eager")
    columns = [column for mode in modes for column in (f"{mode}: operator", "share of time")]
    return ResultTable(
        f"Where the time goes: {name}",
        ("step, rank", *columns),
        tuple(rows),
        (
            f"Each operator's own time in {run['settings']['schedule']['profiled']} steps. Batched products "
            f"and softmax of eager attention, at least: {shares}.",
            f"Other attention that transformers was asked for: {refused}.",
        ),
    )


_STAGES = ("pretrain", "align", "encode")


_TABLES: dict[str, Callable[[dict[str, Any]], list[ResultTable]]] = {
    "training": training_tables,
    "features": _features,
    "loader": _loader,
    "scaling": _scaling,
    "spark": _spark,
    "encoders": _encoders,
    "serving": serving_tables,
    SCALE: scale_tables,
    GPU: gpu_tables,
}


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _significant(value: float) -> str:
    """Three digits at least."""
    return _whole(value) if value >= 100 else f"{value:.3g}"
