"""Serving, measured in one run: what embeddings add, what fetching them would cost, all ways to serve.

In-process ways and servers are measured in turns, a round each. What cannot be measured here (no Redis, no
java, no trained run) is left out of the numbers and named in `skipped`.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments.benchmarks.serving import packages as serving_packages
from experiments.benchmarks.serving.accuracy import compare_types
from experiments.benchmarks.serving.fetch import fetch_ways, fill, fill_purchases, redis_server
from experiments.benchmarks.serving.interleaved import (
    Round,
    SkippedError,
    Timing,
    disturbances,
    in_turn,
    time_ways,
)
from experiments.benchmarks.serving.memory import measure_extra_worker, measure_start, measure_tables
from experiments.benchmarks.serving.packages import DCN, QUICK_SIZES, SIZES, SMALL, TWO_TOWERS, PackageSizes
from experiments.benchmarks.serving.servers import (
    BEFORE,
    FASTAPI,
    NOOP,
    SETTINGS,
    Server,
    measure_servers,
    servers,
    worker_memory,
)
from experiments.benchmarks.serving.ways import InProcess, OnnxRuntime
from experiments.runtime.environment import describe_machine
from features.online.request import ScoreRequest
from features.progress import Progress
from serving.wire.json_codec import encode_request

LIBRARIES = ("torch", "torchserve", "fastapi", "uvicorn", "onnxruntime", "redis", "pyarrow", "numpy")
#: Candidates that the single numbers are of.
MAIN = 100
_STEPS = 26
#: How long the processor is watched, before and after, for what others do with it.
_LOOK_S = 2.0
#: Different requests of one size.
_REQUESTS = 50
#: Requests of a round in process: the p99 of fewer is the slowest of them.
_P99 = 100


@dataclass(frozen=True)
class ServingBenchmark:
    """What is measured, and for how long.

    Attributes:
        seconds: of one round of one way in process.
        server_seconds: of one round of one server.
        replayed: logged requests for the accuracy of 8 bits; None for the whole test week.
    """

    sizes: PackageSizes = SIZES
    candidates: tuple[int, ...] = (1, 20, 100, 300)
    rounds: int = 6
    seconds: float = 0.25
    server_rounds: int = 4
    server_seconds: float = 0.4
    start_repeats: int = 3
    replayed: int | None = 4_000


QUICK = ServingBenchmark(
    sizes=QUICK_SIZES,
    rounds=1,
    seconds=0.05,
    server_rounds=1,
    server_seconds=0.1,
    start_repeats=1,
    replayed=50,
)


def run_serving_benchmark(
    benchmark: ServingBenchmark,
    *,
    work: Path,
    packages: Path | None = None,
    run: Path,
    before: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure everything.

    Args:
        work: scratch folder; the caller removes it.
        packages: where packages of these sizes are, or are to stay; in `work` if None.
        run: a trained run for the accuracy of 8-bit vectors.
        before: an earlier checkout, whose servers are measured beside these, in turns.
    """
    torch.set_num_threads(1)
    done = 0

    def report(stage: str) -> None:
        nonlocal done
        progress(stage, min(done, _STEPS), _STEPS)
        done += 1

    work.mkdir(parents=True, exist_ok=True)
    load = {"before": psutil.getloadavg()[0]}
    found = serving_packages.make_packages(
        packages or work / "packages", benchmark.sizes, progress=lambda stage, *_: report(stage)
    )
    small = found.pop(SMALL)
    foreign_shares = [psutil.cpu_percent(interval=_LOOK_S) / 100]
    requests = {
        count: serving_packages.requests_of(benchmark.sizes, count, count=_REQUESTS)
        for count in benchmark.candidates
    }
    recorded = work / "requests.jsonl"
    recorded.write_bytes(b"\n".join(encode_request(request) for request in requests[MAIN]))
    skipped: dict[str, str] = {}
    in_process = _in_process(benchmark, found, requests, work, skipped, report)
    fetch = _fetch(benchmark, found[TWO_TOWERS], requests, skipped, report)
    report("starting workers")
    start = measure_start(found[TWO_TOWERS], requests=recorded, repeats=benchmark.start_repeats)
    report("memory of workers")
    memory = measure_extra_worker(found[TWO_TOWERS], small, requests=recorded)
    report("tables in memory and not")
    residency = measure_tables(found[TWO_TOWERS], requests=recorded)
    served = measure_end_to_end(
        benchmark, found[TWO_TOWERS], requests, work, before=before, skipped=skipped, report=report
    )
    accuracy = None
    try:
        accuracy = compare_types(run, work, limit=benchmark.replayed, progress=report)
    except SkippedError as error:
        skipped["accuracy of 8 bits"] = str(error)
    bytes_of = {name: InProcess(package).table_bytes() for name, package in found.items()}
    load["measuring"] = psutil.getloadavg()[0]
    foreign_shares.append(psutil.cpu_percent(interval=_LOOK_S) / 100)
    report("done")
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**vars(benchmark), "sizes": vars(benchmark.sizes)},
        "foreign_cpu_share": max(foreign_shares),
        "load_average": load,
        "in_process": in_process,
        "fetch": fetch,
        "start": start,
        "memory": {**memory, "table_bytes": bytes_of[TWO_TOWERS]},
        "residency": residency,
        **served,
        "int8": {"bytes": bytes_of, "accuracy": accuracy},
        "skipped": skipped,
        "machine": describe_machine(LIBRARIES),
    }
    return {**headline(result), "commit": result["machine"]["commit"], **result}


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that others read, at 100 candidates where they are single; None where not measured."""
    in_process = result["in_process"]

    def added(part: str, key: str) -> dict[str, float | None]:
        rows = in_process[part]
        pairs = {count: (two.get(key), rows[DCN][count].get(key)) for count, two in rows[TWO_TOWERS].items()}
        return {
            count: None if two is None or one is None else two - one for count, (two, one) in pairs.items()
        }

    def served(server: str, key: str, form: str = "arrow") -> float | None:
        wanted = (server, form, MAIN, 1)
        for row in result["servers"]:
            if (row["server"], row["format"], row["candidates"], row["clients"]) == wanted:
                return float(row[key])
        return None

    rates = {
        row["title"]: row["requests_per_s"]
        for row in result["servers"]
        if (row["format"], row["candidates"], row["clients"]) == ("arrow", 20, 8)
    }
    ours = {one.title for one in SETTINGS.values() if one.scores}
    main = {part: in_process[part][TWO_TOWERS][str(MAIN)] for part in ("predictor", "model")}

    fetch = result["fetch"]
    memory = result["memory"]
    table_mib = sum(memory["table_bytes"].values()) / 2**20
    onnx = in_process["model"].get("onnxruntime")
    return {
        "added_p50_ms": added("predictor", "p50_ms"),
        "added_p99_ms": added("predictor", "p99_ms"),
        "added_undisturbed_p99_ms": added("predictor", "undisturbed_p99_ms"),
        "predictor_without_model_p50_ms": main["predictor"]["p50_ms"] - main["model"]["p50_ms"],
        "major_faults_per_request": main["predictor"].get("major_faults_per_request"),
        "model_p50_ms": {count: row["p50_ms"] for count, row in in_process["model"][TWO_TOWERS].items()},
        "model_p99_ms": {count: row["p99_ms"] for count, row in in_process["model"][TWO_TOWERS].items()},
        "end_to_end_p50_ms": served("w1", "p50_ms"),
        "end_to_end_p99_ms": served("w1", "p99_ms"),
        "noop_p50_ms": served(NOOP, "p50_ms"),
        "noop_p99_ms": served(NOOP, "p99_ms"),
        "answers_per_s_8_clients_20": max((rates[title] for title in rates if title in ours), default=None),
        "answers_per_s_8_clients_20_by_server": rates,
        "fetch_p99_over_fused_p99": {
            count: row["mget"]["p99_ms"] / row["fused"]["p99_ms"] for count, row in fetch.items()
        },
        "extra_worker_pss_share": memory["extra_mib_of_tables"] / table_mib,
        "extra_worker_pss_share_in_total": memory["extra_mib"] / table_mib,
        "fastapi_p50_ms": served(FASTAPI, "p50_ms"),
        "fastapi_p99_ms": served(FASTAPI, "p99_ms"),
        "onnxruntime_p50_ms": onnx[str(MAIN)]["p50_ms"] if onnx else None,
        "json_vs_arrow": {
            f"{key.removesuffix('_ms')}_{form}_ms": served("w1", key, form)
            for key in ("p50_ms", "p99_ms")
            for form in ("json", "arrow")
        },
    }


def _in_process(
    benchmark: ServingBenchmark,
    packages: dict[str, Path],
    requests: dict[int, list[ScoreRequest]],
    work: Path,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Timings by part ("predictor", "model"), way and number of candidates."""
    opened = {name: InProcess(package) for name, package in packages.items()}
    found: dict[str, dict[str, dict[str, Any]]] = {"predictor": {}, "model": {}}
    report("exporting to ONNX")
    onnx = None
    try:
        onnx = OnnxRuntime(opened[TWO_TOWERS], work)
    except ImportError as error:
        skipped["ONNX Runtime"] = str(error)
    for count, asked in requests.items():
        report(f"in process, {count} candidates")
        prepared = {name: [one.prepare(request) for request in asked] for name, one in opened.items()}
        ways = {("predictor", name): in_turn(one.predictor.score, asked) for name, one in opened.items()}
        ways |= {("model", name): in_turn(one.score_model, prepared[name]) for name, one in opened.items()}
        if onnx is not None:
            ways["model", "onnxruntime"] = onnx.way(prepared[TWO_TOWERS])
        named = {"|".join(key): way for key, way in ways.items()}
        measured = time_ways(named, rounds=benchmark.rounds, seconds=benchmark.seconds, at_least=_P99)
        for (part, name), measured_rounds in zip(ways, measured.values(), strict=True):
            found[part].setdefault(name, {})[str(count)] = _described(measured_rounds)
    return found


def _described(rounds: Sequence[Round]) -> dict[str, Any]:
    return {**vars(Timing.of([one.latency_ms for one in rounds])), **disturbances(rounds)}


def _fetch(
    benchmark: ServingBenchmark,
    package: Path,
    requests: dict[int, list[ScoreRequest]],
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Timings by number of candidates and way; empty if Redis is not there."""
    found: dict[str, dict[str, Any]] = {}
    opened = InProcess(package)
    try:
        report("filling Redis")
        with redis_server() as client:
            fill(client, opened)
            for count, asked in requests.items():
                prepared = [opened.prepare(request) for request in asked]
                fill_purchases(client, prepared)
                report(f"fetching, {count} candidates")
                ways = {
                    "fused": in_turn(opened.score_fused, prepared),
                    **fetch_ways(client, opened, prepared),
                }
                measured = time_ways(ways, rounds=benchmark.rounds, seconds=benchmark.seconds)
                found[str(count)] = {name: _described(one) for name, one in measured.items()}
    except SkippedError as error:
        skipped["feature fetching"] = str(error)
    return found


def measure_end_to_end(
    benchmark: ServingBenchmark,
    package: Path,
    requests: dict[int, list[ScoreRequest]],
    work: Path,
    *,
    before: Path | None,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Rows of all servers, their start-up seconds and the memory of their workers."""
    settings = {**SETTINGS, **(BEFORE if before is not None else {})}
    stores = work / "stores"
    shutil.rmtree(stores, ignore_errors=True)
    with servers(
        package.absolute(),
        stores.absolute(),
        list(settings),
        noop_candidates=MAIN,
        before=before,
        progress=report,
    ) as started:
        running = {name: server for name, server in started.items() if isinstance(server, Server)}
        skipped.update({settings[name].title: why for name, why in started.items() if isinstance(why, str)})
        rows = measure_servers(
            running,
            requests,
            rounds=benchmark.server_rounds,
            seconds=benchmark.server_seconds,
            failed=skipped,
            progress=report,
        )
        return {
            "servers": rows,
            "server_start_s": {name: server.start_s for name, server in running.items()},
            "worker_pss_mib": worker_memory(running),
        }
