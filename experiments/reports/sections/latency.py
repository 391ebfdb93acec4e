"""Latency on the evidence page: what `make bench-serving` and `make soak` measured."""

import re
from pathlib import Path
from typing import Any

from experiments.reports.page import Grid, Plot, Section, svg_source
from experiments.reports.records import (
    ByCandidates,
    Measured,
    ServingRecord,
    SoakRecord,
    origin_of,
    read_record,
)
from experiments.reports.sections import plots as evidence_plots
from experiments.statistics import paper
from experiments.statistics.cells import number

FILE, SOAK_FILE = "serving.json", "soak.json"
TITLE = "Latency: from request to score"
QUESTION = "Can it be served within the latency budget?"
#: What is measured, for whoever wants to know it of a ranker of the sweep.
MADE_UP = (
    "It measures a made-up package on this machine, not a ranker of this sweep: `dashclip package` makes one "
    "of a run, and `dashclip loadtest` measures it where it is served."
)
#: Candidates of a request that the answer is given for.
CANDIDATES = "100"


def latency_section(sweep: Path, found: Path | None = None) -> Section | None:
    """Latency from `found`, or from the sweep folder, or from `bench/` beside it; None if not measured.

    Raises:
        EvidenceError: a file is broken.
    """
    places = [found] if found else [sweep / FILE, sweep.parent / "bench" / FILE]
    path = next((place for place in places if place.exists()), places[0])
    record = read_record(path, ServingRecord)
    if record is None:
        return None
    soak = read_record(path.with_name(SOAK_FILE), SoakRecord)
    plots = []
    if record.added_p99_ms or record.model_p50_ms or ladder(record):
        plots.append(
            Plot(
                "Where the time goes",
                f"Left: milliseconds by number of candidates of a request. Right: one request of "
                f"{CANDIDATES} candidates through each way of serving it; orange is p99.",
                svg_source(evidence_plots.latency(record.model_p50_ms, record.added_p99_ms, ladder(record))),
            )
        )
    return Section(
        anchor="latency",
        title=TITLE,
        question=QUESTION,
        answer=_answer(record),
        origin=origin_of(path, record.command, record.machine),
        sentences=(*_sentences(record), *_soak(soak)),
        grids=tuple(_grids(record)),
        plots=tuple(plots),
        notes=tuple(_notes(record, path, soak)),
    )


def ladder(record: ServingRecord) -> list[Measured]:
    """Ways to serve a request of CANDIDATES candidates, from the model alone to other servers."""
    ways: tuple[tuple[str, float | ByCandidates | None], ...] = (
        ("Model alone, p50", record.model_p50_ms),
        ("ONNX Runtime, dense part, p50", record.onnxruntime_p50_ms),
        ("TorchServe, no model, p50", record.noop_p50_ms),
        ("TorchServe, p50", record.end_to_end_p50_ms),
        ("TorchServe, p99", record.end_to_end_p99_ms),
        ("FastAPI, p50", record.fastapi_p50_ms),
        ("FastAPI, p99", record.fastapi_p99_ms),
    )
    return [Measured(title=title, value_ms=value) for title, way in ways if (value := _at(way)) is not None]


def _at(value: float | ByCandidates | None) -> float | None:
    """A measurement at CANDIDATES candidates, which a lone number is."""
    return value.get(CANDIDATES) if isinstance(value, dict) else value


def _answer(record: ServingRecord) -> str:
    added, p99 = _at(record.added_p99_ms), _at(record.end_to_end_p99_ms)
    parts = []
    if added is not None:
        verdict = "Yes" if added < paper.ADDED_P99_MS else "Not within the paper's budget"
        parts.append(
            f"{verdict}: with {CANDIDATES} candidates the embeddings add {added:.2f} ms at p99 "
            f"(the paper: under {paper.ADDED_P99_MS:.0f} ms)"
        )
    if p99 is not None:
        median = _at(record.end_to_end_p50_ms)
        half = "" if median is None else f" and half of them in {median:.1f} ms"
        parts.append(f"TorchServe answers 99 of 100 requests within {p99:.1f} ms{half}")
    return "; ".join(parts) + "." if parts else "Measured, but not at 100 candidates."


def _sentences(record: ServingRecord) -> list[str]:
    sentences = []
    ratio = _at(record.fetch_p99_over_fused_p99)
    if ratio is not None:
        sentences.append(
            f"Fetching vectors from a feature store for each request takes {ratio:.1f} times as long at p99 "
            "as having them in the model (the paper: fetching takes five times its inference budget)."
        )
    if record.extra_worker_pss_share is not None:
        sentences.append(
            f"A second worker costs {100 * record.extra_worker_pss_share:.1f} % of the tables' bytes in "
            "extra memory: workers share one copy."
        )
    return sentences


def _soak(soak: SoakRecord | None) -> list[str]:
    if soak is None:
        return []
    sentence = (
        f"Under long mixed load with bad requests, killed workers and refreshes: {soak.requests:,} requests, "
        f"{soak.wrong_scores:,} wrong scores, {soak.unexplained_5xx:,} unexplained server errors"
    )
    if soak.memory_mib_start is not None and soak.memory_mib_end is not None:
        sentence += (
            f", memory {soak.memory_mib_start:,.0f} MiB at the start, {soak.memory_mib_end:,.0f} at the end"
        )
    return [f"{sentence}."]


def _notes(record: ServingRecord, path: Path, soak: SoakRecord | None) -> list[str]:
    machine = [str(record.machine[key]) for key in ("processor", "system") if record.machine.get(key)]
    notes = [f"Measured on {', '.join(machine)}."] if machine else []
    load = record.load_average.get("measuring")
    if isinstance(load, int | float):
        notes.append(f"Load average of the machine while measuring: {load:.1f}.")
    notes.append(MADE_UP)
    if soak is None:
        notes.append(f"{path.with_name(SOAK_FILE)} does not exist: no long load was measured (make soak).")
    return notes


def _grids(record: ServingRecord) -> list[Grid]:
    by_candidates = {
        title: value
        for title, value in (
            ("Model alone, p50, ms", record.model_p50_ms),
            ("Embeddings add, p99, ms", record.added_p99_ms),
            ("Fetching over fused, p99, times", record.fetch_p99_over_fused_p99),
        )
        if value
    }
    grids = []
    if by_candidates:
        counts = sorted({count for value in by_candidates.values() for count in value}, key=_order)
        rows = tuple(
            (title, *(number(value.get(count), 2) for count in counts))
            for title, value in by_candidates.items()
        )
        grids.append(Grid("By number of candidates of a request.", ("", *counts), rows))
    others = [(found.title, number(found.value_ms, 2)) for found in ladder(record)]
    others += [(f"Bodies of requests: {name}", value) for name, value in _leaves(record.json_vs_arrow)]
    if others:
        grids.append(Grid(f"With {CANDIDATES} candidates, in ms.", ("", "ms"), tuple(others)))
    return grids


def _leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Numbers of a nested record with the way to each: {"p50": {"json": 2}} gives ("p50, json", "2.00")."""
    if isinstance(value, dict):
        return [
            leaf
            for key, inner in value.items()
            for leaf in _leaves(inner, f"{name}, {key}".removeprefix(", ").replace("_", " "))
        ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        title = name.removesuffix(" ms").replace("json", "JSON").replace("arrow", "Arrow")
        return [(title or "ratio", number(value, 2))]
    return []


def _order(count: str) -> tuple[int, str]:
    found = re.match(r"\d+", count)
    return (int(found[0]) if found else 0, count)
