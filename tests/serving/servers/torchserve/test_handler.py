"""The handler as TorchServe's worker calls it, and what a worker process imports."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from ts.context import Context
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader
from ts.service import Service

from experiments.serving_checks.hostile_arrow import stream, views_of_one_text
from serving.package.signature import SigningKey
from serving.servers.measures import Series
from serving.servers.torchserve.files import metrics_text
from serving.servers.torchserve.handler import DashclipHandler, _exporter
from serving.wire import arrow_codec
from tests.serving.servers.torchserve.stand_in_handler import StandInHandler
from tests.serving.small_packages import write_keys

ROOT = Path(__file__).resolve().parents[4]
#: What a worker has no use for; each costs tens of megabytes or seconds.
NOT_IN_A_WORKER = (
    "torchrec",
    "fbgemm_gpu",
    "transformers",
    "duckdb",
    "pandas",
    "sklearn",
    "matplotlib",
    "scipy",
)


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsCacheYamlImpl:
    path = tmp_path / "metrics.yaml"
    path.write_text(metrics_text())
    cache = MetricsCacheYamlImpl(str(path))
    cache.initialize_cache()
    cache.model_name = "dashclip"
    return cache


@pytest.fixture
def service(metrics: MetricsCacheYamlImpl, tmp_path: Path) -> Iterator[Service]:
    handler = StandInHandler()
    service = Service("dashclip", str(tmp_path), None, handler.handle, None, 1, metrics_cache=metrics)
    service.context.model_yaml_config = {"dashclip": {"package": "."}}
    service.set_cl_socket(None)
    level, filters = logging.getLogger().level, list(logging.getLogger("ts.metrics.caching_metric").filters)
    handler.initialize(service.context)
    yield service
    assert handler._background is not None
    handler._background.stop()
    logging.getLogger().setLevel(level)
    logging.getLogger("ts.metrics.caching_metric").filters[:] = filters


def predict(service: Service, *requests: dict[str, bytes], kind: str = "application/json") -> Context:
    batch = [
        {
            "requestId": f"r{position}".encode(),
            "headers": [],
            "parameters": [
                {"name": name, "contentType": kind, "value": value} for name, value in request.items()
            ],
        }
        for position, request in enumerate(requests)
    ]
    service.predict(batch)
    return service.context


GOOD = {"body": b'{"user_id": 1, "query": "q", "candidates": [1]}'}


def test_each_request_of_a_batch_has_its_own_status(service: Service) -> None:
    bad = {"body": b'{"user_id": 1}'}
    context = predict(service, GOOD, bad, {"body": b"[13]"}, GOOD, {"data": GOOD["body"]})
    assert [context.get_response_status(i)[0] for i in range(5)] == [200, 400, 400, 200, 200]
    assert context.get_response_content_type(1) == "application/json"


def test_a_fault_is_logged_with_the_name_of_its_request(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    predict(service, GOOD, {"body": GOOD["body"].replace(b"1]", b"13]")})
    assert [getattr(record, "request_ids", None) for record in caplog.records] == [["r0", "r1"], ["r1"]]


def test_a_request_without_a_body_is_refused(service: Service) -> None:
    context = predict(service, {}, {'{"user_id":1': b'"query"'}, {"body": b""})
    assert [context.get_response_status(i)[0] for i in range(3)] == [400, 400, 400]


def test_an_arrow_body_that_announces_much_costs_no_more_than_it_weighs(service: Service) -> None:
    rows = 10_000
    body = stream({"product_id": pa.array(range(rows)), "note": views_of_one_text("x" * 500, rows)})
    tracemalloc.start()
    try:
        context = predict(service, {"body": body}, kind=arrow_codec.CONTENT_TYPE)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert context.get_response_status(0)[0] == 400
    assert most_bytes < 4 * len(body) < 1_000_000


def test_torchserve_finds_exactly_one_class_in_the_handler_file() -> None:
    import serving.servers.torchserve.handler

    handle, initialize = TsModelLoader()._get_class_entry_point(serving.servers.torchserve.handler)
    assert handle.__self__ is initialize.__self__


def test_counters_are_exported_as_what_they_gained(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    export = _exporter(service.context)
    first: Series = {("dashclip_requests_total", ""): 5.0, ("dashclip_unknown_total", "users"): 2.0}
    with caplog.at_level(logging.INFO, logger="ts.metrics.caching_metric"):
        export({**first, ("dashclip_snapshot_age_seconds", ""): 60.0})
        export({**first, ("dashclip_requests_total", ""): 7.0, ("dashclip_snapshot_age_seconds", ""): 61.0})
    lines = [record.getMessage() for record in caplog.records]
    values = [line.split("|")[0].removeprefix("[METRICS]") for line in lines]
    assert values == [
        "dashclip_requests_total.Count:5.0",
        "dashclip_unknown_total.Count:2.0",
        "dashclip_snapshot_age_seconds.seconds:60.0",
        "dashclip_requests_total.Count:2.0",
        "dashclip_snapshot_age_seconds.seconds:61.0",
    ]
    assert "kind:users" in lines[1]


def test_no_digit_of_a_large_sum_is_lost_however_often_it_is_exported(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    export, age = _exporter(service.context), {("dashclip_snapshot_age_seconds", ""): 60.0}
    total, exports = 123_456_789.25, 2_000
    with caplog.at_level(logging.INFO, logger="ts.metrics.caching_metric"):
        for _ in range(exports):
            total += 4e-7  # less than half of the last digit exported
            export({("dashclip_score_sum_total", ""): total, **age})
    lines = [record.getMessage().split("|")[0] for record in caplog.records]
    told = [float(line.rsplit(":", 1)[1]) for line in lines if "score_sum" in line]
    assert sum(told) == pytest.approx(total, abs=1e-6, rel=0)
    assert 0 not in told


def test_a_worker_says_nothing_per_request(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ts.metrics.caching_metric"):
        predict(service, GOOD)
    assert caplog.records == []
    assert not logging.getLogger("ts.protocol.otf_message_handler").isEnabledFor(logging.INFO)


def test_a_worker_imports_only_what_it_needs() -> None:
    code = (
        "import sys, serving.servers.torchserve.handler, serving.servers.background;"
        f"print([name for name in {NOT_IN_A_WORKER} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_client_needs_no_torch() -> None:
    code = "import sys, serving.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def real_service(metrics: MetricsCacheYamlImpl, package: Path) -> Iterator[Service]:
    """The handler as it is, on a package of one's own, not yet initialized."""
    handler = DashclipHandler()
    service = Service("dashclip", str(package), None, handler.handle, None, 1, metrics_cache=metrics)
    service.context.model_yaml_config = {"dashclip": {"package": "."}}
    service.set_cl_socket(None)
    level, filters = logging.getLogger().level, list(logging.getLogger("ts.metrics.caching_metric").filters)
    yield service
    if handler._background is not None:
        handler._background.stop()
    logging.getLogger().setLevel(level)
    logging.getLogger("ts.metrics.caching_metric").filters[:] = filters


def test_a_package_that_the_key_of_the_server_has_not_signed_gets_503_until_it_is_signed(
    real_service: Service, package: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="the extra `signing` is not installed")
    private, public = write_keys(tmp_path, "ours")
    shutil.copy(public, tmp_path / "trusted_key.pem")  # the metrics' folder is the server's
    handler = real_service._entry_point.__self__
    handler.initialize(real_service.context)
    good = {"body": (package / "parity" / "requests.jsonl").read_bytes().splitlines()[0]}
    context = predict(real_service, good)
    assert context.get_response_status(0)[0] == 503
    assert int(context.get_response_headers(0)["retry-after"]) >= 1
    SigningKey.read(private).sign_package(package)
    handler._endpoint.scorer.open()
    assert predict(real_service, good).get_response_status(0)[0] == 200
    assert handler._endpoint.scorer.facts()["signature"] == f"checked by {tmp_path / 'trusted_key.pem'}"


@pytest.mark.parametrize(("large_model", "status"), [("dashclip-large", 413), ("dashclip", 200), (None, 200)])
def test_a_worker_refuses_large_requests_if_others_are_there_for_them(
    metrics: MetricsCacheYamlImpl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_model: str | None,
    status: int,
) -> None:
    nice: list[int] = []
    monkeypatch.setattr(os, "nice", nice.append)
    if large_model:
        (tmp_path / "large_model").write_text(large_model)
    handler = StandInHandler()
    service = Service("dashclip", str(tmp_path), None, handler.handle, None, 1, metrics_cache=metrics)
    service.context.model_yaml_config = {"dashclip": {"package": "."}}
    service.set_cl_socket(None)
    handler.initialize(service.context)
    assert handler._background is not None
    handler._background.stop()
    ids = list(range(10**6, 10**6 + 2_000))
    many = {"body": json.dumps({"user_id": 1, "query": "q", "candidates": ids}).encode()}
    assert predict(service, many).get_response_status(0)[0] == status
    assert predict(service, GOOD).get_response_status(0)[0] == 200
    assert bool(nice) == (large_model == "dashclip"), "it yields the processor to the small ones"
