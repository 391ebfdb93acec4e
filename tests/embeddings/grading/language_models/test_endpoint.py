"""The endpoint grader against a server on loopback that answers, refuses, breaks and hangs."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from embeddings.grading.language_models.endpoint import GIVE_UP_AFTER, EndpointConfig, EndpointGrader
from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import run_grader
from tests.embeddings.grading.language_models.chat_server import Reply, answer, chat_server, good

SECRET = "sk-very-secret"


def prompt(folder: Path) -> Prompt:
    (folder / "prompt.toml").write_text(TEMPLATE)
    return Prompt.read(folder / "prompt.toml")


def grader_of(url: str, folder: Path, waits: list[float] | None = None, **settings: Any) -> EndpointGrader:
    config = EndpointConfig(url=url, model="m", **({"requests_at_a_time": 1, "retries": 2} | settings))
    waits = [] if waits is None else waits
    return EndpointGrader(config, prompt(folder), SECRET, sleep=waits.append)


def some_pairs(count: int = 3) -> Pairs:
    texts = [f"q{n} tea" if n % 2 == 0 else "coffee" for n in range(count)]
    return Pairs([f"q{n} x" for n in range(count)], texts, pa.array(range(count)))


def test_log_probabilities_of_one_token_become_the_grades(tmp_path: Path) -> None:
    with chat_server(lambda body, _: good(body)) as server:
        grader = grader_of(server.url, tmp_path)
        found = grader.probabilities(some_pairs(2))
    assert found == pytest.approx(np.array([[0.05, 0.05, 0.9], [0.85, 0.05, 0.1]]), abs=1e-5)
    assert grader.grades(found).tolist() == [2, 0]
    assert (grader.tokens, grader.remarks) == (100, "")
    assert server.paths == ["/v1/chat/completions"] * 2
    body = server.requests[0]
    assert (body["max_tokens"], body["logprobs"], body["model"]) == (1, True, "m")
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("bad", "counted"),
    [
        ((500, {}, b"oops"), "status_500"),
        ((429, {"Retry-After": "7"}, b""), "status_429"),
        ((200, {}, b'{"choices": [{"mess'), "broken_reply"),
        ((200, {"Content-Length": "999"}, b"{}"), "broken_reply"),
        (None, "no_connection"),
    ],
)
def test_trouble_that_passes_is_tried_again_and_counted(tmp_path: Path, bad: Reply, counted: str) -> None:
    waits: list[float] = []
    with chat_server(lambda body, number: bad if number == 1 else good(body)) as server:
        grader = grader_of(server.url, tmp_path, waits, timeout_s=30.0)
        found = grader.probabilities(some_pairs(1))
    assert found[0, 2] == pytest.approx(0.9, abs=1e-5)
    assert grader.problems == {counted: 1}
    assert counted.replace("_", " ") in grader.remarks
    assert len(waits) == 1
    assert waits[0] >= (7 if counted == "status_429" else 0.5)


def test_waits_grow_and_end(tmp_path: Path) -> None:
    waits: list[float] = []
    with chat_server(lambda *_: (503, {}, b"")) as server:
        grader = grader_of(server.url, tmp_path, waits, retries=4)
        found = grader.probabilities(some_pairs(1))
    assert np.isnan(found).all()
    assert grader.problems == {"status_503": 5, "given_up": 1}
    for attempt, wait in enumerate(waits):
        assert 0.5 * 2**attempt <= wait <= 1.5 * 2**attempt
    assert len(waits) == 4


@pytest.mark.parametrize(
    ("reply", "counted"),
    [
        ((200, {}, answer({}, refusal="I cannot")), "refused"),
        ((200, {}, answer({"Sure": 0.9})), "unparsable"),
        ((200, {}, b"[]"), "unparsable"),
        ((400, {}, b"too long"), "status_400"),
    ],
)
def test_a_refusal_or_nonsense_is_counted_and_not_asked_again(
    tmp_path: Path, reply: Reply, counted: str
) -> None:
    with chat_server(lambda *_: reply) as server:
        grader = grader_of(server.url, tmp_path)
        found = grader.probabilities(some_pairs(2))
    assert np.isnan(found).all()
    assert grader.problems == {counted: 2}
    assert len(server.requests) == 2


def test_a_server_that_never_answers_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    never = threading.Event()
    with chat_server(lambda *_: (never.wait(20), None)[1]) as server:
        grader = grader_of(server.url, tmp_path, timeout_s=0.05, retries=0)
        with pytest.raises(GradingError, match="not one of 30") as raised:
            run_grader(some_pairs(30), tmp_path / "out", grader)
        never.set()
    assert grader.problems["timeout"] == GIVE_UP_AFTER
    assert grader.problems["not_asked"] == 30 - GIVE_UP_AFTER
    assert "timeout 20" in str(raised.value)


def test_a_wrong_secret_stops_at_once_and_is_said_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    echo = f'{{"error": "bad key {SECRET} for q0 tea"}}'.encode()
    with chat_server(lambda *_: (401, {}, echo)) as server:
        grader = grader_of(server.url, tmp_path)
        with pytest.raises(GradingError, match="status 401") as raised:
            run_grader(some_pairs(5), tmp_path / "out", grader)
    assert SECRET not in repr(grader)
    said = str(raised.value) + caplog.text
    said += "".join(p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert SECRET not in said
    assert "q0 tea" not in said


def test_a_redirect_does_not_carry_the_secret_elsewhere(tmp_path: Path) -> None:
    with chat_server(lambda body, _: good(body)) as other:
        moved = (307, {"Location": f"{other.url}/chat/completions"}, b"")
        with chat_server(lambda *_: moved) as server:
            grader = grader_of(server.url, tmp_path)
            with pytest.raises(GradingError, match="status 307"):
                grader.probabilities(some_pairs(1))
        assert other.requests == []


def test_requests_keep_the_rate(tmp_path: Path) -> None:
    waits: list[float] = []
    with chat_server(lambda body, _: good(body)) as server:
        grader = grader_of(server.url, tmp_path, waits, requests_per_minute=30)
        grader.clock = lambda: sum(waits)
        grader.probabilities(some_pairs(4))
    assert waits == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://me:secret@host/v1"])
def test_an_address_is_plain_http_without_a_secret(url: str) -> None:
    with pytest.raises(ValidationError):
        EndpointConfig(url=url, model="m")
