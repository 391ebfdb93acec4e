"""The FastAPI app answers as TorchServe's handler does: they share the endpoint."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from features.online.request import MAX_BODY_BYTES, ScoreRequest
from serving.client import ScoreClient
from tests.serving.servers.stand_in_handler import stand_in_score, stand_in_scorer

uvicorn = pytest.importorskip("uvicorn", reason="the extra `fastapi` is not installed")


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    from serving.servers.fastapi_app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(stand_in_scorer()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("body_format", ["json", "arrow"])
def test_the_client_gets_scores(root: str, body_format: str) -> None:
    with ScoreClient(f"{root}/score", body_format=body_format) as client:  # type: ignore[arg-type]
        reply = client.score(ScoreRequest(user_id=1, query="q", candidates=[101, 7]))
    assert reply.scores_N.tolist() == pytest.approx([stand_in_score(101), stand_in_score(7)])


def test_a_bad_and_a_too_large_body_are_the_clients_fault(root: str) -> None:
    for body, status in ((b"{", 400), (b" " * (MAX_BODY_BYTES + 1), 413)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(f"{root}/score", data=body))
        assert error.value.code == status
        assert json.loads(error.value.read())["error"]["field"] == "body"


def test_health_and_metrics_say_what_is_served(root: str) -> None:
    assert json.loads(urllib.request.urlopen(f"{root}/health").read())["model_version"] == "stand-in"
    text = urllib.request.urlopen(f"{root}/metrics").read().decode()
    assert "# TYPE dashclip_requests counter" in text
    assert 'dashclip_latency_bucket{le="+Inf"}' in text
