"""Hostile bodies against the endpoint, and what the fuzzer says of servers that are at fault."""

import os
import random
from itertools import islice

import numpy as np
import pytest

from experiments.serving_checks import fuzz
from experiments.serving_checks.fuzz import FuzzResult, fuzz_bodies, private_mib, run_fuzz
from experiments.serving_checks.hostile_arrow import buffers_of, hostile_stream
from features.online.request import RequestError, ScoreRequest
from serving.client import TOKEN_REFUSED
from serving.servers.endpoint import Body, Endpoint
from serving.wire import arrow_codec
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer

REQUEST = ScoreRequest(
    user_id=1,
    query="oat milk",
    candidates=[101, 7, 35],
    context={"device": "web"},
    candidate_columns={"price": np.array([1.0, 2.0, 3.0]), "brand": ["a", None, "b"]},
    history=[5, 6],
)


def test_the_same_seed_gives_the_same_hostile_bodies() -> None:
    first, second, other = (list(islice(fuzz_bodies([REQUEST], seed), 50)) for seed in (1, 1, 2))
    assert first == second != other


def test_hostile_bodies_are_answered_with_scores_or_a_refusal() -> None:
    endpoint = Endpoint(stand_in_scorer())

    def ask(body: bytes, content_type: str) -> tuple[int, bytes, str]:
        (answer,) = endpoint.answer([Body(body, content_type)])
        return answer.status, answer.content, answer.content_type

    result = run_fuzz(ask, fuzz_bodies([REQUEST], 7), count=2_000)
    assert result.faults == []
    assert result.statuses["200"] > 100
    assert result.statuses["400"] > 500


def test_a_server_error_a_bad_reply_and_a_lost_connection_are_faults() -> None:
    answers = iter(
        [
            (500, b"oops", "application/json"),
            (200, b"{}", "application/json"),
            (
                200,
                b'{"scores":[2.0],"order":[0],"model_version":"","generation":"","as_of":"","unknown":{}}',
                "",
            ),
            (
                200,
                b'{"scores":[0.5],"order":[3],"model_version":"","generation":"","as_of":"","unknown":{}}',
                "",
            ),
        ]
    )

    def ask(body: bytes, content_type: str) -> tuple[int, bytes, str]:
        for answer in answers:
            return answer
        raise ConnectionResetError("gone")

    result: FuzzResult = run_fuzz(ask, fuzz_bodies([REQUEST], 1), count=5)
    assert len(result.faults) == 5
    assert not result.passed
    assert result.statuses["no answer"] == 1


def test_hostile_streams_are_of_every_kind_and_each_is_refused_or_makes_little() -> None:
    chance = random.Random(3)
    refused: set[str] = set()
    for _ in range(150):
        body = hostile_stream(chance)
        try:
            arrow_codec.decode_request(body)
        except RequestError as error:
            refused.add(error.came.split(" of ")[-1] if "column of" in error.came else error.came.split()[0])
    kinds = {"string_view", "binary_view", "run_end_encoded", "dictionary", "union", "list_view"}
    assert refused >= {*kinds, "buffers"}


def test_hostile_streams_share_buffers_and_announce_more_than_they_hold() -> None:
    chance = random.Random(1)
    announced, shared = [], []
    for _ in range(100):
        body = hostile_stream(chance)
        try:
            buffers = [one for one in buffers_of(body) if one[1]]
        except RequestError:  # of a dictionary, which comes before the batch
            continue
        announced.append(sum(length for _, length in buffers) / len(body))
        shared.append(len(buffers) - len(set(buffers)))
    assert max(announced) > 1_000
    assert max(shared) >= 20


def test_a_server_that_wants_a_token_is_said_at_once_instead_of_passing_by_400s() -> None:
    def ask(body: bytes, content_type: str) -> tuple[int, bytes, str]:
        return 400, b'{"message": "%s. Token provided"}' % TOKEN_REFUSED, "application/json"

    with pytest.raises(ValueError, match="--key-file"):
        run_fuzz(ask, fuzz_bodies([REQUEST], 1), count=5)


def test_a_server_that_refuses_even_what_is_in_order_does_not_pass() -> None:
    def ask(body: bytes, content_type: str) -> tuple[int, bytes, str]:
        return 400, b"{}", "application/json"

    result = run_fuzz(ask, fuzz_bodies([REQUEST], 1), count=100)
    assert result.faults == ["no body was answered with scores, not even those in order"]


def test_a_worker_that_keeps_memory_is_a_fault_however_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "BLOCK", 5)
    seen = iter([{1: 300.0, 2: 300.0}, {1: 390.0, 2: 401.0}, {1: 395.0, 2: 420.0}])
    result = run_fuzz(
        lambda body, kind: (413, b"", ""), fuzz_bodies([REQUEST], 1), count=15, memory_mib=lambda: next(seen)
    )
    assert result.faults == ["worker 2 grew by 101 MiB within 10 bodies"]


def test_private_memory_is_of_the_processes_that_live() -> None:
    assert list(private_mib([os.getpid(), 2**22 + 1])) == [os.getpid()]
    assert private_mib([os.getpid()])[os.getpid()] > 1
