"""Spans of requests: what they say, whose trace they continue, and that nothing is paid without them."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.servers.endpoint import Body, Endpoint
from serving.servers.torchserve.files import ServerSettings
from serving.servers.trace_settings import TRACES_NAME, TraceSettings, open_traces
from serving.servers.tracing import SentTraces
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-1] + "0"


def body(candidates: list[int], **more: Any) -> Body:
    content = json.dumps({"user_id": "a user", "query": "a query", "candidates": candidates}).encode()
    return Body(content, **more)


def traced(bodies: list[Body], *, share: float = 1.0) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    traces = SentTraces(SimpleSpanProcessor(exporter), share=share)
    endpoint = Endpoint(stand_in_scorer(), traces=traces)
    endpoint.answer(bodies)
    endpoint.close()
    return list(exporter.get_finished_spans())


def test_a_request_has_a_span_with_three_parts_one_after_the_other() -> None:
    spans = {span.name: span for span in traced([body([101, 7], request_id="one")])}
    whole = spans["dashclip.request"]
    parts = [spans[f"dashclip.{part}"] for part in ("decode", "score", "encode")]
    assert dict(whole.attributes or {}) == {
        "http.response.status_code": 200,
        "dashclip.batch": 1,
        "dashclip.request_id": "one",
        "dashclip.model_version": "stand-in",
        "dashclip.generation": "000001",
        "dashclip.candidates": 2,
    }
    times = [whole.start_time, *(part.end_time for part in parts)]
    assert times == [*(part.start_time for part in parts), whole.end_time]
    assert times == sorted(times)  # type: ignore[type-var]
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == whole.get_span_context().span_id


def test_a_request_continues_the_trace_of_its_traceparent_and_others_begin_one() -> None:
    spans = traced([body([1], traceparent=PARENT), body([2]), body([3], traceparent="nonsense")])
    roots = [span for span in spans if span.name == "dashclip.request"]
    continued = f"{roots[0].get_span_context().trace_id:032x}"
    assert continued == TRACE_ID
    assert roots[0].parent is not None
    assert [span.parent for span in roots[1:]] == [None, None]
    assert {dict(span.attributes or {})["dashclip.batch"] for span in roots} == {3}


def test_a_traceparent_decides_whether_it_is_sampled_and_the_share_for_the_rest() -> None:
    bodies = [body([1], traceparent=PARENT), body([2]), body([3], traceparent=NOT_SAMPLED)]
    assert len([span for span in traced(bodies, share=0) if span.name == "dashclip.request"]) == 1
    assert len([span for span in traced(bodies, share=1) if span.name == "dashclip.request"]) == 2


def test_refusals_and_faults_have_spans_with_their_status() -> None:
    spans = traced([Body(b"{"), body([13])])
    roots = [span for span in spans if span.name == "dashclip.request"]
    assert [dict(span.attributes or {})["http.response.status_code"] for span in roots] == [400, 500]
    assert [span.status.is_ok for span in roots] == [True, False]


def test_no_user_query_or_product_is_in_a_span() -> None:
    spans = traced([body([987_654], request_id="one")])
    said = " ".join(span.to_json() for span in spans)
    assert not any(word in said for word in ("a user", "a query", "987654"))


def test_a_failure_to_trace_costs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def answered(self, *_: object, **__: object) -> None:
            raise OSError("no collector")

        def close(self) -> None:
            pass

    (answer,) = Endpoint(stand_in_scorer(), traces=Broken()).answer([body([101])])
    assert answer.status == 200
    assert "tracing failed" in caplog.text


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, serving.servers.torchserve.handler, serving.servers.fastapi.app; "
        "parts = ('opentelemetry.sdk', 'opentelemetry.exporter'); "
        "print([name for name in sys.modules if name.startswith(parts)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_go_to_the_workers_and_are_taken_away_by_the_next_run(tmp_path: Path) -> None:
    settings = TraceSettings(endpoint="http://localhost:4318/v1/traces", share=0.5)
    TraceSettings.hand_over(settings, tmp_path)
    assert TraceSettings.of_server(tmp_path) == settings
    TraceSettings.hand_over(None, tmp_path)
    assert TraceSettings.of_server(tmp_path) is None
    assert not (tmp_path / TRACES_NAME).exists()
    with pytest.raises(ValueError, match="http://localhost:4318"):
        TraceSettings(endpoint="localhost:4318")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serving.servers.tracing", None)
    with pytest.raises(ValueError, match=r"dashclip-ranker\[otel\]"):
        open_traces(TraceSettings(endpoint="http://localhost:4318/v1/traces"))


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
    """A collector's URL, and the (name, trace id, attributes) of the spans that came."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    came: list[tuple[str, str, dict[str, Any]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            content = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    said = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
                    came.append((span.name, span.trace_id.hex(), said))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", came
    server.shutdown()
    server.server_close()


def test_fastapi_sends_spans_to_a_collector(collector: tuple[str, list[Any]]) -> None:
    from serving.servers.fastapi.app import create_app
    from tests.serving.servers.fastapi.test_app import root_of, served

    url, came = collector
    with served(create_app(stand_in_scorer(), traces=TraceSettings(endpoint=url, share=0))) as server:
        for headers in ({"traceparent": PARENT, "x-request-id": "one"}, {}):
            asked = urllib.request.Request(root_of(server) + "/score", body([101]).content, headers)  # type: ignore[arg-type]
            asked.add_header("content-type", "application/json")
            urllib.request.urlopen(asked, timeout=60)
    (whole,) = [one for one in came if one[0] == "dashclip.request"]
    assert whole[1] == TRACE_ID
    assert whole[2]["dashclip.request_id"] == "one"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java")
def test_torchserve_sends_spans_to_a_collector(collector: tuple[str, list[Any]], tmp_path: Path) -> None:
    from serving.servers.torchserve.archive import build_archive
    from serving.servers.torchserve.server import start, stop
    from tests.serving.servers.torchserve import stand_in_handler
    from tests.serving.servers.torchserve.test_server import free_ports

    url, came = collector
    example = body([101]).content
    assert isinstance(example, bytes)
    handler = Path(stand_in_handler.__file__)
    archive = build_archive(tmp_path, tmp_path, version="1.0", example=example, handler=handler)
    settings = ServerSettings(
        port=free_ports(), token_authorization=False, traces=TraceSettings(endpoint=url, share=0)
    )
    server = start(archive, settings)
    try:
        headers = {"content-type": "application/json", "traceparent": PARENT}
        asked = urllib.request.Request(server.url, example, headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            request_id = reply.headers["x-request-id"]
        deadline = time.monotonic() + 30
        while not came and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop(tmp_path)
    (whole,) = [one for one in came if one[0] == "dashclip.request"]
    assert (whole[1], whole[2]["dashclip.request_id"]) == (TRACE_ID, request_id)
