"""The serving benchmark: its clock, its client, its tables and the numbers that others read."""

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.serving.benchmark import headline
from experiments.benchmarks.serving.closed_loop import Target, ask
from experiments.benchmarks.serving.interleaved import COUNTED, Round, Timing, disturbances, time_ways
from experiments.benchmarks.serving.packages import DCN, PACKAGES, PackageSizes, make_packages, requests_of
from experiments.benchmarks.serving.servers import BEFORE, SETTINGS, Server, measure_servers
from experiments.benchmarks.serving.tables import serving_tables
from experiments.reports.sections.latency import ServingRecord
from experiments.serving_checks.loadtest import http_request

COUNTS = ("20", "100")


def _timing(p50_ms: float, p99_ms: float) -> dict[str, float]:
    return {
        **{"p50_ms": p50_ms, "p99_ms": p99_ms, "pooled_p99_ms": p99_ms, "quiet_p50_ms": p50_ms},
        **{f"{name}_per_request": 0.0 for name in COUNTED},
        **{"undisturbed_p50_ms": p50_ms, "undisturbed_p99_ms": p99_ms - 0.5, "slowest_disturbed_share": 0.25},
    }


def _result() -> dict[str, Any]:
    """What a run measures, in whole numbers."""
    both = {"two_towers": (2.0, 4.0), "two_towers_int8": (2.0, 4.0), DCN: (1.0, 1.5)}
    ways = {name: dict.fromkeys(COUNTS, _timing(*pair)) for name, pair in both.items()}
    models = {
        name: dict.fromkeys(COUNTS, _timing(*pair)) for name, pair in {**both, DCN: (0.75, 1.0)}.items()
    }
    models["two_towers"] = dict.fromkeys(COUNTS, _timing(1.5, 3.0))
    fetches = {"fused": 4, "mget": 6, "two_steps": 8, "gets": 40, "fetch_only": 2}
    servers = [
        {
            "server": server,
            "title": SETTINGS[server].title,
            "format": form,
            "candidates": count,
            "clients": clients,
            "requests_per_s": 400.0 if server == "noop" else 300.0,
            "cpu_ms": {"frontend": 0.25, "workers": 1.0, "client": 0.0625},
            **_timing(3.0, 5.0),
        }
        for server in ("w1", "noop", "fastapi")
        for form in (("json", "arrow") if server != "noop" else ("arrow",))
        for count in (20, 100)
        for clients in (1, 8)
    ]
    result = {
        "created": "2026-01-31T00:00:00+00:00",
        "settings": {"sizes": vars(PackageSizes()), "rounds": 6},
        "foreign_cpu_share": 0.01,
        "in_process": {"predictor": ways, "model": {**models, "onnxruntime": ways["two_towers"]}},
        "fetch": {count: {name: _timing(1.0, p99) for name, p99 in fetches.items()} for count in COUNTS},
        "start": {
            "warm": {"import_s": 1.0, "open_s": 2.0, "first_score_s": 0.1, "process_s": 3.5},
            "cold": None,
        },
        "memory": {
            "pss_mib": {"tables": [300.0, 420.0], "none": [150.0, 260.0]},
            "extra_mib": 120.0,
            "extra_mib_without_tables": 110.0,
            "extra_mib_of_tables": 10.0,
            "table_bytes": {"vectors": 190 << 20, "trained": 10 << 20},
        },
        "residency": {"mapped, cache cold": _timing(9.0, 40.0), "locked": None},
        "servers": servers,
        "server_start_s": {"w1": 3.0},
        "worker_pss_mib": {"w1": [250.0]},
        "int8": {
            "bytes": {
                name: {"vectors": size << 20, "trained": 10 << 20}
                for name, size in (("two_towers", 190), ("two_towers_int8", 140), (DCN, 0))
            },
            "accuracy": None,
        },
        "skipped": {"accuracy of 8 bits": "there is no run"},
        "machine": {
            "processor": "Example CPU",
            "instructions": ["avx2"],
            "cores": 2,
            "memory_gib": 24.0,
            "system": "Linux x86_64",
            "libraries": {"torch": "2.13.0"},
            "commit": "0123456789",
            "date": "2026-01-31",
        },
        "command": "dashclip bench serving",
    }
    return {**headline(result), "commit": "0123456789", **result}


def test_what_the_embeddings_add_is_the_difference_to_the_dcn_package() -> None:
    found = _result()
    assert found["added_p99_ms"] == {"20": 2.5, "100": 2.5}
    assert found["added_p50_ms"]["100"] == 1.0


def test_what_the_predictor_adds_to_the_model_and_the_disk_to_a_request_are_single_numbers() -> None:
    found = _result()
    assert found["predictor_without_model_p50_ms"] == 0.5
    assert found["major_faults_per_request"] == 0.0


def test_the_extra_worker_is_charged_for_its_tables_and_its_total_is_told_as_well() -> None:
    found = _result()
    assert found["extra_worker_pss_share"] == pytest.approx(10 / 200)
    assert found["extra_worker_pss_share_in_total"] == pytest.approx(120 / 200)


def test_fetching_is_compared_by_its_p99() -> None:
    assert _result()["fetch_p99_over_fused_p99"] == {"20": 1.5, "100": 1.5}


def test_the_evidence_page_reads_the_numbers() -> None:
    record = ServingRecord.model_validate(json.loads(json.dumps(_result())))
    assert record.end_to_end_p99_ms == 5.0
    assert record.onnxruntime_p50_ms == 2.0
    assert record.json_vs_arrow["p50_json_ms"] == 3.0


def test_the_tables_show_every_server_and_what_was_skipped() -> None:
    text = "\n\n".join(table.markdown() for table in serving_tables(_result()))
    assert "| **what the embeddings add** (predictor) | +1.00 / +2.50 | +1.00 / +2.50 |" in text
    assert "| fetched: one GET a key, times the fused p99 | 10.0 | 10.0 |" in text
    assert "| FastAPI + uvicorn, 1 worker, JSON | 3.00 / 5.00 (300/s) | 3.00 / 5.00 (300/s) |" in text
    assert "| TorchServe, 1 worker, Arrow | 0.25 + 1.00 + 0.06 |" in text
    assert "| difference: what tables cost a second worker |  |  | 10.0 | 5.0 % |" in text
    assert "Not measured: accuracy of 8 bits: there is no run." in text
    assert "| DCN alone: model | 0.75 / 1.00 | 0.75 / 0.50 | 0.00 | 0.00 | 0.00 | 25 % |" in text
    assert "| tables locked | not allowed here |" in text
    assert "The machine was shared" not in text


def test_the_rate_of_answers_is_that_of_the_best_server_that_scores() -> None:
    found = _result()
    earlier = {**found["servers"][0], "title": BEFORE["w1_before"].title, "requests_per_s": 900.0}
    earlier |= {"format": "arrow", "candidates": 20, "clients": 8}
    found = headline({**found, "servers": [*found["servers"], earlier]})
    assert found["answers_per_s_8_clients_20"] == 300.0
    assert found["answers_per_s_8_clients_20_by_server"] == {
        "TorchServe, 1 worker": 300.0,
        "TorchServe, no-op handler": 400.0,
        "FastAPI + uvicorn, 1 worker": 300.0,
        "TorchServe, 1 worker, before": 900.0,
    }


def test_a_busy_machine_is_named() -> None:
    busy = _result() | {"foreign_cpu_share": 0.9}
    assert "The machine was shared" in serving_tables(busy)[0].markdown()


def test_what_was_not_measured_is_absent_and_not_zero() -> None:
    measured = _result()
    less = {**measured, "fetch": {}, "servers": []}
    less["in_process"] = {**measured["in_process"], "model": measured["in_process"]["predictor"]}
    found = headline(less)
    assert found["fetch_p99_over_fused_p99"] == {}
    assert found["noop_p50_ms"] is None
    assert found["answers_per_s_8_clients_20"] is None
    assert found["onnxruntime_p50_ms"] is None
    assert serving_tables({**less, **found})


def test_one_stalled_round_does_not_move_the_p99() -> None:
    calm = np.arange(1.0, 101.0)
    timing = Timing.of([calm, calm, calm + 1000])
    assert timing.p99_ms == np.quantile(calm, 0.99)
    assert timing.pooled_p99_ms > 1000


def test_requests_that_the_kernel_left_alone_have_a_tail_of_their_own() -> None:
    """Of 200 requests the two slowest were preempted, and one other waited for the disk."""
    latency_ms = np.concatenate([np.full(197, 1.0), [5.0, 40.0, 42.0]])
    counts_K4 = np.zeros((200, 4), np.int64)
    counts_K4[-2:, COUNTED.index("involuntary_switches")] = 1
    counts_K4[-3, COUNTED.index("major_faults")] = 3
    found = disturbances([Round(latency_ms, counts_K4, stolen_s=0.4)])
    assert found["undisturbed_p99_ms"] == 1.0
    assert found["slowest_disturbed_share"] == 1.0
    assert found["involuntary_switches_per_request"] == 0.01
    assert found["major_faults_per_request"] == 0.015
    assert found["stolen_ms_per_request"] == pytest.approx(2.0)


def test_where_every_request_was_disturbed_nothing_is_said_of_the_others() -> None:
    found = disturbances([Round(np.ones(3), np.ones((3, 4), np.int64), stolen_s=0.0)])
    assert found["undisturbed_p99_ms"] is None


def test_no_requests_have_no_latency() -> None:
    with pytest.raises(ValueError, match="no request was timed"):
        Timing.of([np.array([])])


def test_ways_take_turns() -> None:
    calls: list[str] = []
    ways = {name: lambda _, name=name: calls.append(name) for name in ("a", "b")}
    measured = time_ways(ways, rounds=2, seconds=0)
    assert [len(one.latency_ms) for one in measured["a"]] == [20, 20]
    assert measured["a"][0].counts_K4.shape == (20, len(COUNTED))
    assert "".join(calls) == 3 * (20 * "a" + 20 * "b")


def test_requests_of_one_number_of_candidates_are_the_same_every_time() -> None:
    sizes = PackageSizes(products=50, queries=20, users=10)
    first, again = (requests_of(sizes, 7, count=3) for _ in range(2))
    assert [one.candidates for one in first] == [one.candidates for one in again]
    assert {len(one.candidates) for one in first} == {7}


def test_packages_of_other_sizes_are_not_taken_for_the_asked_ones(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text(json.dumps({"products": 1}))
    with pytest.raises(ValueError, match="packages of other sizes"):
        make_packages(tmp_path, PackageSizes(), progress=lambda stage, done, total: None)


def test_packages_differ_in_tower_and_type_alone() -> None:
    assert {run for run, _ in PACKAGES.values()} == {"two_towers", DCN}
    assert PACKAGES["two_towers_int8"][1].tables == "int8"


def _serve(answers: list[bytes]) -> tuple[int, threading.Thread]:
    """A server for one connection: each request gets the next answer, in two pieces."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listening.accept()
        with listening, connection:
            for one in answers:
                while not connection.recv(1 << 16):
                    pass
                connection.sendall(one[:10])
                connection.sendall(one[10:])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return listening.getsockname()[1], thread


def test_the_client_counts_answers_by_status() -> None:
    good = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
    port, thread = _serve([good])
    request = http_request("/score", b"the end", "application/json", token="key")
    assert b"Authorization: Bearer key\r\n" in request
    answers = ask(Target("127.0.0.1", port, [request]), connections=1, seconds=0)
    thread.join(timeout=5)
    assert dict(answers.statuses) == {200: 1}
    assert len(answers.latency_ms) == 1


def test_no_request_of_the_benchmark_waits_for_an_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    create_connection = socket.create_connection

    def kept(*args: Any, **options: Any) -> socket.socket:
        connection = create_connection(*args, **options)
        opened.append(connection.dup())
        return connection

    monkeypatch.setattr(socket, "create_connection", kept)
    port, thread = _serve([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
    ask(Target("127.0.0.1", port, [b"POST / HTTP/1.1\r\n\r\n"]), connections=1, seconds=0)
    thread.join()
    assert [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in opened] == [1]
    opened[0].close()


def test_an_answer_without_a_length_is_refused() -> None:
    port, thread = _serve([b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nabc"])
    target = Target("127.0.0.1", port, [http_request("/", b"end", "text/plain")])
    with pytest.raises(ConnectionError, match="without content-length"):
        ask(target, connections=1, seconds=0)
    thread.join(timeout=5)


def test_a_server_that_fails_is_named_and_has_no_rows() -> None:
    port, thread = _serve([b"HTTP/1.1 503 Busy\r\ncontent-length: 3\r\n\r\nend"])
    server = Server("127.0.0.1", port, "/score", 1.0, lambda: [])
    requests = {1: requests_of(PackageSizes(), 1, count=1)}
    failed: dict[str, str] = {}
    rows = measure_servers(
        {"w2": server}, requests, rounds=1, seconds=0, failed=failed, progress=lambda stage: None
    )
    assert rows == []
    assert list(failed) == ["TorchServe, 2 workers"]
    thread.join(timeout=5)


class _Fine(BaseHTTPRequestHandler):
    """Answers whatever comes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def test_the_processor_time_of_a_request_is_told_by_who_spent_it() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Fine) as standing_in:
        threading.Thread(target=standing_in.serve_forever, daemon=True).start()
        pids = [os.getpid()]
        server = Server(
            "127.0.0.1", standing_in.server_port, "/", 1.0, lambda: pids, frontend_pids=lambda: 2 * pids
        )
        rows = measure_servers(
            {"w2": server},
            {1: requests_of(PackageSizes(), 1, count=1)},
            rounds=1,
            seconds=0.05,
            failed={},
            progress=lambda stage: None,
        )
        standing_in.shutdown()
    assert [row["clients"] for row in rows] == [1, 8]
    for row in rows:
        assert row["cpu_ms"].keys() == {"frontend", "workers", "client"}
        assert row["cpu_ms"]["frontend"] == pytest.approx(2 * row["cpu_ms"]["workers"])
