"""Tables of the training benchmark: speeds beside the peers', where a step goes, share of the limits."""

from typing import Any

from experiments.benchmarks.result_table import ResultTable, machine_note, shared_machine
from experiments.benchmarks.training.step_profile import KINDS


def training_tables(result: dict[str, Any]) -> list[ResultTable]:
    """Speed, the profile of a step, the roofline."""
    profile = [_profile(result["profile"])] if result.get("profile") else []
    threads = [_threads(result)] if result.get("threads") else []
    return [_speed(result), *profile, _roofline(result), *threads]


def _speed(result: dict[str, Any]) -> ResultTable:
    auc, settings = result["auc"], result["settings"]
    rows = []
    for name, trainer in result["trainers"].items():
        loop, step = trainer["loop_rows_per_cpu_s"], trainer["step_rows_per_cpu_s"]
        rows.append(
            (
                trainer["title"],
                f"{_whole(loop['median'])} ({_whole(loop['low'])} to {_whole(loop['high'])})",
                _whole(step["median"]),
                _whole(trainer["loop_rows_per_s"]["median"]),
                f"{auc[name]:.4f}" if name in auc else "",
                _whole(trainer["peak_mib"]),
            )
        )
    notes = [
        f"{_whole(settings['rows'])} rows, batch {_whole(settings['batch_size'])}, one thread, "
        f"{settings['rounds']} alternating rounds. "
        f"AUC after one epoch; the true click probabilities reach {auc['best_reachable']:.4f}."
    ]
    if result["ratio_to_fastest_peer"]:
        ratios = {
            result["precision"]: result["ratio_to_fastest_peer"],
            "float32": result["float32_ratio_to_fastest_peer"],
        }
        notes.append(
            "Against the fastest peer (of those in float32, in float32): "
            + ", ".join(f"{ratio:.2f}x in {precision}" for precision, ratio in ratios.items())
            + "."
        )
    if result.get("ratio_to_torcheasyrec"):
        notes.append(
            f"Against TorchEasyRec: {result['ratio_to_torcheasyrec']:.2f}x, each in its fastest precision; "
            f"{result['float32_ratio_to_torcheasyrec']:.2f}x, both in float32."
        )
    notes += shared_machine(result)
    precisions = result["precisions"]
    if precisions:
        notes.append(
            f"AUC after the same {_whole(precisions['rows'])} rows: "
            f"float32 {precisions['auc']['float32']:.4f}, "
            f"bfloat16 {precisions['auc']['bfloat16']:.4f} (difference {precisions['difference']:+.4f}); "
            "few steps of training, so this shows that they agree, not how well they rank."
        )
    columns = ("trainer", "rows per CPU-second", "step only", "rows/s (wall)", "AUC", "peak MiB")
    return ResultTable("Training speed", columns, tuple(rows), (*notes, machine_note(result)))


def _roofline(result: dict[str, Any]) -> ResultTable:
    roofline = result["roofline"]
    rows = tuple(
        (
            precision,
            f"{roofline[f'{precision}_gflops']:.1f}",
            _whole(roofline["rows_per_s"][precision]),
            f"{100 * share:.0f} %",
            f"{100 * roofline['end_to_end_share'][precision]:.0f} %",
        )
        for precision, share in roofline["step_share"].items()
    )
    return ResultTable(
        "Share of the roofline, one core",
        ("precision", "GEMM peak GFLOPS", "limit rows/s", "training step", "end to end"),
        rows,
        (
            f"{roofline['flop_per_row'] / 1e6:.2f} MFLOP and "
            f"{roofline['embedding_bytes_per_row'] / 1e3:.1f} kB of embedding rows a training row; "
            f"copies ran at {roofline['copy_gb_per_s']:.1f} GB/s.",
        ),
    )


def _threads(result: dict[str, Any]) -> ResultTable:
    """A measurement of its own may stand in for that of the run: it says so itself then."""
    measured = result["threads"]
    rows = tuple(
        (
            f"{precision}, {title}",
            *(f"{speeds[part][key]['median']:,.0f}" for key in ("one", "many")),
            f"{speeds[part]['ratio']['median']:.2f} "
            f"({speeds[part]['ratio']['low']:.2f} to {speeds[part]['ratio']['high']:.2f})",
        )
        for precision, speeds in measured["precisions"].items()
        for part, title in (("loop", "end to end"), ("step", "step only"))
        if part in speeds
    )
    note = (
        f"Wall-clock rows/s of {_whole(measured['rows'])} rows, {measured['rounds']} rounds in turn; the "
        f"ratio is that within a round. Load average before: {measured['load_average_before']:.1f}."
    )
    own = [machine_note(measured)] if "machine" in measured else []
    columns = ("what", "one thread", f"{measured['threads']} threads", "ratio")
    return ResultTable("DashCLIP Ranker on more threads", columns, rows, (note, *own))


def _profile(profiles: dict[str, Any]) -> ResultTable:
    """One column of milliseconds, share and MB for each precision."""
    precisions = sorted(profiles, key=lambda precision: precision != "float32")
    rows = [
        (
            title,
            *(
                cell
                for precision in precisions
                for kind in (profiles[precision]["kinds"][name],)
                for cell in (f"{kind['ms']:.1f}", f"{100 * kind['share']:.0f} %", _whole(kind["mb"]))
            ),
        )
        for name, title in KINDS.items()
    ]
    totals = [profiles[precision] for precision in precisions]
    rows.append(
        (
            "**a step**",
            *(
                cell
                for total in totals
                for cell in (
                    f"{total['ms']:.1f}",
                    "100 %",
                    _whole(sum(kind["mb"] for kind in total["kinds"].values())),
                )
            ),
        )
    )
    rows.append(
        (
            "limit: products + memory",
            *(
                cell
                for total in totals
                for cell in (
                    f"{total['limit_ms']['products']:.1f} + {total['limit_ms']['memory']:.1f}",
                    f"{100 * total['share_of_limit']:.0f} %",
                    "",
                )
            ),
        )
    )
    columns = [f"{precision}: {what}" for precision in precisions for what in ("ms", "share", "MB")]
    return ResultTable(
        "Where a training step goes",
        ("part", *columns),
        tuple(rows),
        (
            f"Processor time of a step of {_whole(totals[0]['rows'])} rows, by operator; MB are what "
            "operators read and write, as if nothing stayed in a cache. The limit: products at the measured "
            "peak, then the MB of all other parts at the measured speed of copies; its share is limit / step "
            "and counts memory that a cache has served.",
        ),
    )


def _whole(value: float) -> str:
    return f"{value:,.0f}"
