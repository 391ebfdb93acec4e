"""A package and a server are asked alike: the same scores, the same fields left out, the same nights."""

import math
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.abtest.simulated.policies import EndpointPolicy, PackagePolicy, Policy
from features.columns.clock import DAY_US, iso
from features.online.request import ScoreRequest
from ranking.model import SemanticConfig
from serving.client import ClientError
from serving.package.generations import GenerationManifest, current_generation, generation_folder
from serving.scoring.predictor import Predictor
from serving.servers.endpoint import Body, Endpoint
from tests.serving.small_packages import AS_OF_US, package_small, train_small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data and the package of a model that reads purchases, but no device."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small")
    train_small(folder, semantic=SemanticConfig(widths=(8,)))
    package_small(folder)
    return folder


def request(user: int, *, query: str = "query 1", **changes: object) -> ScoreRequest:
    fields = {
        "user_id": user,
        "query": query,
        "candidates": [0, 4, 6],
        "timestamp_us": AS_OF_US + 60_000_000,
        "context": {"device": "web", "store_id": 3},
        "candidate_columns": {"price": [1.5, 2.0, 0.7]},
        **changes,
    }
    return ScoreRequest(**fields)  # type: ignore[arg-type]


REQUESTS = [request(user) for user in (1, 11, 21)]


class _Server(ThreadingHTTPServer):
    def __init__(self, package: Path, *, frozen: bool) -> None:
        self.predictor, self.frozen = Predictor.load(package), frozen
        self.endpoint = Endpoint(self.predictor)
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        if not server.frozen:
            server.predictor.reload_if_changed(wait=True)
        content = self.rfile.read(int(self.headers["content-length"]))
        answer = server.endpoint.answer([Body(content, self.headers["content-type"])])[0]
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: tests are quiet."""


@pytest.fixture
def package(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small / "package", tmp_path / "served"))


def serve(package: Path, *, frozen: bool = False) -> Iterator[str]:
    server = _Server(package, frozen=frozen)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def url(package: Path) -> Iterator[str]:
    yield from serve(package)


@pytest.fixture
def frozen_url(package: Path) -> Iterator[str]:
    """A server that never takes up a new generation."""
    yield from serve(package, frozen=True)


def test_a_package_and_its_server_give_the_same_scores(small: Path, tmp_path: Path, url: str) -> None:
    policies: list[Policy] = [
        PackagePolicy(small / "package", tmp_path / "copy"),
        EndpointPolicy(url),
        EndpointPolicy(url, body_format="arrow", connections=2),
    ]
    found = [policy.answers(REQUESTS) for policy in policies]
    for answers, timed in zip(found, (False, True, True), strict=True):
        for answer, expected in zip(answers, found[0], strict=True):
            assert answer.failure is None
            assert answer.ms > 0 if timed else math.isnan(answer.ms)
            assert answer.reply is not None
            assert expected.reply is not None
            np.testing.assert_allclose(answer.reply.scores_N, expected.reply.scores_N, atol=1e-6)
    assert [policy.left_out for policy in policies] == [{"context.device"}] * 3


def test_a_field_that_a_model_does_read_is_never_left_out(small: Path, tmp_path: Path) -> None:
    policy = PackagePolicy(small / "package", tmp_path / "copy")
    wrong = request(1, candidate_columns={"price": [-5.0, 1.0, 1.0]})
    answers = policy.answers([REQUESTS[0], wrong, REQUESTS[1]])
    assert policy.left_out == {"context.device"}
    assert [answer.reply is None for answer in answers] == [False, True, False]
    assert "price" in (answers[1].failure or "")


def test_purchases_that_a_request_brings_are_read(small: Path, tmp_path: Path) -> None:
    policy = PackagePolicy(small / "package", tmp_path / "copy")
    without, bought = policy.answers([request(1, history=[]), request(1, history=[4, 6])])
    assert without.reply is not None
    assert bought.reply is not None
    assert (without.reply.history_length, bought.reply.history_length) == (0, 2)


def as_of(package: Path) -> str:
    return GenerationManifest.read(generation_folder(package, current_generation(package))).as_of


def test_a_night_is_in_the_copy_and_not_in_the_package(small: Path, tmp_path: Path) -> None:
    policy = PackagePolicy(small / "package", tmp_path / "copy")
    midnight_us = AS_OF_US + DAY_US // 2
    assert policy.refresh(small / "data", midnight_us, probe=REQUESTS[0])
    assert as_of(tmp_path / "copy") == iso(midnight_us)
    assert as_of(small / "package") == iso(AS_OF_US)
    reply = policy.answers(REQUESTS[:1])[0].reply
    assert reply is not None
    assert reply.as_of == iso(midnight_us)
    again = PackagePolicy(small / "package", tmp_path / "copy")
    before = current_generation(tmp_path / "copy")
    again.refresh(small / "data", midnight_us, probe=REQUESTS[0])
    assert current_generation(tmp_path / "copy") == before


def test_a_server_is_asked_again_once_it_serves_the_night(small: Path, package: Path, url: str) -> None:
    policy = EndpointPolicy(url, package=package)
    midnight_us = AS_OF_US + DAY_US // 2
    assert policy.refresh(small / "data", midnight_us, probe=REQUESTS[0])
    reply = policy.answers(REQUESTS[:1])[0].reply
    assert reply is not None
    assert reply.as_of == iso(midnight_us)
    assert not EndpointPolicy(url).refresh(small / "data", midnight_us + DAY_US, probe=REQUESTS[0])


def test_a_server_of_another_folder_is_found_out(
    small: Path, package: Path, frozen_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.abtest.simulated.policies.TAKES_UP_S", 0.3)
    policy = EndpointPolicy(frozen_url, package=package)
    with pytest.raises(ClientError, match="does it serve this folder"):
        policy.refresh(small / "data", AS_OF_US + DAY_US // 2, probe=REQUESTS[0])


def test_a_server_that_is_gone_is_a_failure_of_each_request() -> None:
    answers = EndpointPolicy("http://127.0.0.1:9/score", connections=2).answers(REQUESTS[:2])
    assert all(answer.reply is None and answer.failure for answer in answers)
