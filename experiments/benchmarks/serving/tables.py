"""The serving benchmark as tables."""

from typing import Any

from experiments.benchmarks.result_table import ResultTable, machine_note
from experiments.benchmarks.serving.accuracy import BFLOAT16

#: Of the processor that others may use without a word.
_QUIET_SHARE = 0.1
_WAYS = {
    "two_towers": "two towers, float16 vectors",
    "two_towers_int8": "two towers, int8 vectors",
    "two_towers_projected": "two towers, float16, first layer looked up",
    "dcn": "DCN alone",
    "onnxruntime": "two towers, ONNX Runtime",
}
_FETCHES = {
    "fused": "fused: vectors in mapped tables",
    "mget": "fetched: one MGET",
    "two_steps": "fetched: GET of the purchases, then MGET",
    "gets": "fetched: one GET a key",
    "fetch_only": "the one MGET alone, without a model",
}


def serving_tables(result: dict[str, Any]) -> list[ResultTable]:
    """All tables of one run."""
    tables = [_added(result), _tail(result)]
    tables += [_residency(result)] if any(result.get("residency", {}).values()) else []
    tables += [_fetch(result)] if result["fetch"] else []
    tables += [_servers(result, clients) for clients in sorted({row["clients"] for row in result["servers"]})]
    tables += [_processor_time(result)] if any("cpu_ms" in row for row in result["servers"]) else []
    tables += [_memory(result), _start(result), _int8(result)]
    return tables


def _added(result: dict[str, Any]) -> ResultTable:
    counts = list(result["model_p50_ms"])
    rows = [
        (f"{_WAYS[name]}: {part}", *(_pair(by_count[count]) for count in counts))
        for part in ("predictor", "model")
        for name, by_count in result["in_process"][part].items()
    ]
    rows.append(
        (
            "**what the embeddings add** (predictor)",
            *(f"{result['added_p50_ms'][one]:+.2f} / {result['added_p99_ms'][one]:+.2f}" for one in counts),
        )
    )
    sizes = result["settings"]["sizes"]
    notes = [
        f"Pretrained tables of {sizes['products']:,} products and {sizes['queries']:,} queries x "
        f"{sizes['dim']}, random; about 30 purchases a user. One thread. *Model*: from rows to "
        "probabilities; *predictor*: the whole request, ids to order.",
        f"{result['settings']['rounds']} rounds in turns; p99 is the median of the rounds' p99.",
    ]
    share = result["foreign_cpu_share"]
    if share > _QUIET_SHARE:
        notes.append(
            f"**The machine was shared**: others used {100 * share:.0f} % of its "
            f"{result['machine']['cores']} cores, so times are too long. To be measured "
            "again on a quiet machine."
        )
    if result["skipped"]:
        reasons = "; ".join(f"{what}: {why}" for what, why in result["skipped"].items())
        notes.append(f"Not measured: {reasons}.")
    return ResultTable(
        "In process: ms, p50 / p99",
        ("way", *(f"N = {count}" for count in counts)),
        tuple(rows),
        (*notes, machine_note(result)),
    )


def _tail(result: dict[str, Any]) -> ResultTable:
    count = "100" if "100" in result["model_p50_ms"] else next(iter(result["model_p50_ms"]))
    rows = [
        (f"{_WAYS[name]}: {part}", *_disturbed(by_count[count]))
        for part in ("predictor", "model")
        for name, by_count in result["in_process"][part].items()
        if by_count[count].get("undisturbed_p99_ms") is not None
    ]
    return ResultTable(
        f"In process, {count} candidates: what the kernel did per request",
        _DISTURBED,
        tuple(rows),
        (
            "*Undisturbed*: requests without an involuntary switch to another process and without a major "
            "fault (a page that came from the disk). *Slowest disturbed*: how many of the slowest hundredth "
            "had one of the two.",
        ),
    )


def _residency(result: dict[str, Any]) -> ResultTable:
    rows = [
        (f"tables {name}", *_disturbed(found)) if found else (f"tables {name}", *["not allowed here"] * 6)
        for name, found in result["residency"].items()
    ]
    return ResultTable(
        "The first requests of a worker, by how its tables lie",
        _DISTURBED,
        tuple(rows),
        ("Cold: the page cache has forgotten what no process maps. Each request once, 100 candidates.",),
    )


_DISTURBED = (
    "way",
    "ms, p50 / p99",
    "undisturbed",
    "minor faults",
    "major faults",
    "involuntary switches",
    "slowest disturbed",
)


def _disturbed(found: dict[str, Any]) -> tuple[str, ...]:
    calm = [found[f"undisturbed_{quantile}_ms"] for quantile in ("p50", "p99")]
    return (
        _pair(found),
        " / ".join("–" if one is None else f"{one:.2f}" for one in calm),
        *(
            f"{found[f'{name}_per_request']:.2f}"
            for name in ("minor_faults", "major_faults", "involuntary_switches")
        ),
        f"{100 * found['slowest_disturbed_share']:.0f} %",
    )


def _fetch(result: dict[str, Any]) -> ResultTable:
    counts = list(result["fetch"])
    rows = [
        (title, *(_pair(result["fetch"][count][name]) for count in counts))
        for name, title in _FETCHES.items()
    ]
    for name in ("mget", "two_steps", "gets"):
        shares = (
            result["fetch"][one][name]["p99_ms"] / result["fetch"][one]["fused"]["p99_ms"] for one in counts
        )
        rows.append((f"{_FETCHES[name]}, times the fused p99", *(f"{share:.1f}" for share in shares)))
    return ResultTable(
        "Vectors in the model against vectors fetched for each request: ms, p50 / p99",
        ("way", *(f"N = {count}" for count in counts)),
        tuple(rows),
        (
            "Redis on loopback, vectors as float16 bytes, N candidates + purchases + query; the same "
            "compiled program and equal scores. A network between would add its round trip to "
            "each request of Redis.",
        ),
    )


def _servers(result: dict[str, Any], clients: int) -> ResultTable:
    chosen = [row for row in result["servers"] if row["clients"] == clients]
    counts = sorted({row["candidates"] for row in chosen})
    cells = {(row["title"], row["format"], row["candidates"]): row for row in chosen}
    rows = [
        (
            f"{title}, {'JSON' if form == 'json' else 'Arrow'}",
            *(
                f"{_pair(cells[title, form, count])} ({cells[title, form, count]['requests_per_s']:,.0f}/s)"
                for count in counts
            ),
        )
        for title, form in dict.fromkeys((row["title"], row["format"]) for row in chosen)
    ]
    who = "one client" if clients == 1 else f"{clients} clients"
    return ResultTable(
        f"End to end, {who}: ms, p50 / p99 (answers a second)",
        ("server, body", *(f"N = {count}" for count in counts)),
        tuple(rows),
        ("Bodies lie ready, connections stay open, client and server share the cores.",),
    )


def _processor_time(result: dict[str, Any]) -> ResultTable:
    kinds = ("frontend", "workers", "client")
    cells = {
        (row["title"], row["format"], row["clients"], row["candidates"]): " + ".join(
            f"{row['cpu_ms'][kind]:.2f}" for kind in kinds
        )
        for row in result["servers"]
        if "cpu_ms" in row
    }
    columns = sorted({key[2:] for key in cells})
    rows = [
        (
            f"{title}, {'JSON' if form == 'json' else 'Arrow'}",
            *(cells.get((title, form, *column), "–") for column in columns),
        )
        for title, form in dict.fromkeys(key[:2] for key in cells)
    ]
    return ResultTable(
        "Processor time of a request: ms of frontend + workers + client",
        ("server, body", *(f"{'1 client' if one == 1 else f'{one} clients'}, N = {n}" for one, n in columns)),
        tuple(rows),
        ("They share the cores. FastAPI has no frontend: that is the process that keeps its workers.",),
    )


def _memory(result: dict[str, Any]) -> ResultTable:
    memory = result["memory"]
    table_mib = sum(memory["table_bytes"].values()) / 2**20
    rows = [
        (
            title,
            *(f"{value:,.0f}" for value in memory["pss_mib"][mode]),
            f"{memory[key]:,.1f}",
            f"{100 * memory[key] / table_mib:.1f} %",
        )
        for title, mode, key in (
            ("worker that has read every page of every table", "tables", "extra_mib"),
            ("the same worker with tables of a few rows", "none", "extra_mib_without_tables"),
        )
    ]
    of_tables = memory["extra_mib_of_tables"]
    rows.append(("difference: what tables cost a second worker", "", "", f"{of_tables:,.1f}", _share(result)))
    workers = "; ".join(
        f"{name} {', '.join(f'{one:,.0f}' for one in found)}"
        for name, found in result["worker_pss_mib"].items()
    )
    return ResultTable(
        "Memory of one more worker: PSS, MiB",
        ("what", "one worker", "two workers", "the second adds", "of the tables' bytes"),
        tuple(rows),
        (
            f"Tables: {table_mib:,.0f} MiB. PSS counts a shared page once over all processes. The rest is "
            "Python and torch, which each process has of its own. Workers of the servers after their load: "
            f"{workers} MiB.",
        ),
    )


def _share(result: dict[str, Any]) -> str:
    return f"{100 * result['extra_worker_pss_share']:.1f} %"


def _start(result: dict[str, Any]) -> ResultTable:
    keys = ("import_s", "open_s", "first_score_s", "process_s")
    rows = [
        (f"worker, {name}", *(f"{found[key]:.2f}" for key in keys))
        for name, found in result["start"].items()
        if found
    ]
    rows += [(f"server {name}", "", "", "", f"{s:.2f}") for name, s in result["server_start_s"].items()]
    return ResultTable(
        "Start-up: seconds",
        ("what", "imports", "open and verify", "first score", "in all"),
        tuple(rows),
        ("Cold: the package's files are not in the page cache. Servers: until the first scores over HTTP.",),
    )


def _int8(result: dict[str, Any]) -> ResultTable:
    accuracy, bytes_of = result["int8"]["accuracy"], result["int8"]["bytes"]
    count = "100" if "100" in result["model_p50_ms"] else next(iter(result["model_p50_ms"]))
    rows = []
    kinds: list[tuple[str, str | None]] = [("float16", "two_towers"), ("int8", "two_towers_int8")]
    kinds += [(BFLOAT16, None)] if accuracy and BFLOAT16 in accuracy else []
    for kind, name in kinds:
        found = accuracy[kind] if accuracy else None
        rows.append(
            (
                kind,
                f"{bytes_of[name or 'two_towers']['vectors'] / 2**20:,.1f}",
                _pair(result["in_process"]["model"][name][count]) if name else "–",
                f"{found['auc']:.5f}" if found and found["auc"] is not None else "–",
                f"{found['log_loss']:.5f}" if found else "–",
                f"{found['max_difference']:.1e}" if found else "–",
                f"{100 * found['same_order']:.2f} %" if found else "–",
            )
        )
    notes = ["Query vectors stay float16: a request reads one."]
    if accuracy:
        notes.append(
            f"AUC, log loss and differences on {accuracy['impressions']:,} impressions of the run's test "
            f"week (offline AUC {accuracy['offline']['auc']:.5f}); 8 bits change the AUC by "
            f"{accuracy['auc_change']:+.5f}."
        )
    columns = ("vectors", "MiB", f"model, N = {count}", "AUC", "log loss", "largest difference", "same order")
    return ResultTable("8-bit product vectors against 16-bit", columns, tuple(rows), tuple(notes))


def _pair(timing: dict[str, Any]) -> str:
    return f"{timing['p50_ms']:.2f} / {timing['p99_ms']:.2f}"
