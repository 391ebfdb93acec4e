"""The tables of `gpu.json`: ranker, encoders, and where the time of both goes."""

from typing import Any

from experiments.benchmarks.result_table import ResultTable, machine_note

_STAGES = {"pretrain": "stage 1 (products)", "align": "stage 2 (tuples)", "encode": "encoding (products)"}
_SHOWN_OPERATORS = 6


def gpu_tables(result: dict[str, Any]) -> list[ResultTable]:
    """Speeds beside shares of the device's peaks, then operators."""
    return [_ranker(result), _encoders(result), _operators(result)]


def _ranker(result: dict[str, Any]) -> ResultTable:
    settings, peaks = result["settings"], result["peaks"]
    rows = tuple(
        (
            f"{run['batch_rows']:,} rows, {run['precision']}",
            f"{run['step_rows_per_s']:,.0f}",
            f"{run['loop_rows_per_s']:,.0f}",
            f"{run['step_ms']:.2f}",
            f"{100 * run['share_of_products']:.0f} %",
            f"{100 * run['share_of_copies']:.0f} %",
            f"{run['waits_per_step']:.2g}",
            "" if run["peak_mib"] is None else f"{run['peak_mib']:,.0f}",
        )
        for run in result["ranker"]
    )
    one = result["ranker"][0]
    return ResultTable(
        "Ranker with both towers",
        ("step", "rows/s", "with reading", "ms", "of products", "of copies", "waits a step", "peak MiB"),
        rows,
        (
            f"{settings['impressions']:,} generated impressions, {settings['products']:,} products and "
            f"{settings['queries']:,} queries with random vectors of {settings['vector_dim']}; "
            f"{one['mflop_per_row']:.2f} MFLOP and {one['kb_per_row']:.1f} kB a row in {one['precision']}. "
            f"Wall time of {settings['steps']} steps, one wait for the device before and after them.",
            "Shares of the measured peaks of this device: products "
            f"{peaks['float32_gflops'] / 1e3:,.3g} TFLOPS in float32, "
            f"{peaks['bfloat16_gflops'] / 1e3:,.3g} in bfloat16; copies {peaks['copy_gb_per_s']:,.0f} GB/s, "
            "counting what operators read and write as if nothing stayed in a cache; "
            f"{peaks['from_host_gb_per_s']:,.1f} GB/s from the host.",
            _where(result),
            machine_note(result),
        ),
    )


def _encoders(result: dict[str, Any]) -> ResultTable:
    rows = tuple(
        (
            f"{size}, {title}",
            f"{run['settings']['batch_rows']:,}",
            f"{step['rows_per_s']:,.0f}",
            f"{step['gflop_per_row']:.3g}",
            f"{100 * step['share_of_peak']:.0f} %",
            f"{100 * step['share_of_copies']:.0f} %",
        )
        for size, run in result["encoders"].items()
        for stage, title in _STAGES.items()
        for step in (run["eager"][stage],)
    )
    left_out = f" Left out for want of time: {', '.join(result['left_out'])}." if result["left_out"] else ""
    return ResultTable(
        "Encoders in bfloat16",
        ("what", "batch", "rows/s", "GFLOP a row", "of products", "of copies"),
        rows,
        (
            "Batches lie ready; stages 1 and 2 are whole training steps, encoding runs in float32 as "
            f"`dashclip encode run` does.{left_out} All parts took {result['seconds'] / 60:.1f} minutes.",
        ),
    )


def _operators(result: dict[str, Any]) -> ResultTable:
    profiles = {
        f"ranker, {run['batch_rows']:,} rows, {run['precision']}": run["operators"]
        for run in result["ranker"]
    }
    for size, run in result["encoders"].items():
        for stage in _STAGES:
            profiles[f"{size}, {stage}"] = run["eager"][stage]["operators"]
    rows = tuple(
        (
            name,
            ", ".join(
                f"`{operator['name'][:60]}` {100 * operator['share']:.0f} %"
                for operator in operators[:_SHOWN_OPERATORS]
            ),
        )
        for name, operators in profiles.items()
    )
    return ResultTable(
        "Where the time goes", ("step", "operators by their own time"), rows, ("Kernels, by operator.",)
    )


def _where(result: dict[str, Any]) -> str:
    if result["accelerator"]:
        return f"On {result['accelerator']}."
    return "**On the processor: this shows that the way is passable, and nothing else.**"
