"""Small requests do not wait for large ones, and nobody waits beyond the budget."""

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

from features.online.request import ScoreRequest
from serving.servers.endpoint import Answer, Body, Endpoint
from serving.servers.fastapi import lanes as lanes_module
from serving.servers.fastapi.lanes import BODIES_BYTES, Lanes
from serving.wire import arrow_codec, json_codec
from serving.wire.body_weight import LARGE_BYTES, LARGE_CANDIDATES, is_large
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer


def request_of(count: int) -> ScoreRequest:
    return ScoreRequest(user_id=1, query="q, q [x]", candidates=list(range(10**6, 10**6 + count)))


SMALL, LARGE = (Body(json_codec.encode_request(request_of(count))) for count in (20, 10_000))


class Gate:
    """Answers by the stand-in; a large body waits until it is let through."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(stand_in_scorer())
        self.open = threading.Event()
        self.answered: list[int] = []

    def answer(self, bodies: list[Body]) -> list[Answer]:
        if is_large(bodies[0].content):
            self.open.wait(60)
        self.answered.append(len(bodies[0].content))
        return self.endpoint.answer(bodies)

    def shed_counts(self) -> dict[str, float]:
        series = self.endpoint.measures().series()
        shed = {label: value for (name, label, *_), value in series.items() if name == "dashclip_shed_total"}
        return {label: value for label, value in shed.items() if value}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def lanes(gate: Gate) -> Iterator[Lanes]:
    lanes = Lanes(gate.answer, gate.endpoint.shed)
    yield lanes
    gate.open.set()
    lanes.shutdown()


@pytest.mark.parametrize(
    ("count", "large"), [(1, False), (LARGE_CANDIDATES, False), (LARGE_CANDIDATES + 1, True), (10_000, True)]
)
def test_a_large_request_is_told_by_its_ids_without_decoding(count: int, large: bool) -> None:
    assert is_large(json_codec.encode_request(request_of(count))) == large


def test_live_columns_make_a_request_heavier_but_their_commas_are_no_candidates() -> None:
    columns = {f"column_{i}": [1.25] * 100 for i in range(20)}
    request = ScoreRequest(user_id=1, query="q", candidates=list(range(100)), candidate_columns=columns)
    body = json_codec.encode_request(request)
    assert body.count(b",") > 4 * LARGE_CANDIDATES
    assert not is_large(body)
    assert is_large(body + b" " * LARGE_BYTES)


@pytest.mark.parametrize(("count", "large"), [(20, False), (10_000, True)])
def test_an_arrow_body_is_told_by_its_size(count: int, large: bool) -> None:
    assert is_large(arrow_codec.encode_request(request_of(count))) == large


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 5_000, b'"candidates"' * 200, b"\xff" * 3_000])
def test_any_bytes_have_a_lane(body: bytes) -> None:
    assert is_large(body) in (True, False)


def test_small_requests_pass_large_ones(gate: Gate, lanes: Lanes) -> None:
    async def ask() -> tuple[list[Answer], list[Answer]]:
        large = [asyncio.create_task(lanes.answer(LARGE)) for _ in range(3)]
        await asyncio.sleep(0)
        small = [await lanes.answer(SMALL) for _ in range(5)]
        assert not any(task.done() for task in large)
        gate.open.set()
        return small, list(await asyncio.gather(*large))

    small, large = asyncio.run(ask())
    assert [answer.status for answer in small + large] == [200] * 8
    assert len(json.loads(large[0].content)["scores"]) == 10_000
    assert gate.answered == [len(SMALL.content)] * 5 + [len(LARGE.content)] * 3


def test_who_has_waited_for_the_budget_is_told_to_come_back_and_is_not_scored(
    gate: Gate, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "BUDGET_S", 0.2)

    async def ask() -> list[Answer]:
        return list(await asyncio.gather(*(lanes.answer(LARGE) for _ in range(3))))

    answers = asyncio.run(ask())
    assert [(answer.status, answer.retry_after_s) for answer in answers] == [(503, 1)] * 3
    gate.open.set()
    lanes.shutdown()
    assert len(gate.answered) == 1, "the one that had begun"
    assert gate.shed_counts() == {"too_slow": 3}
    assert lanes.large.expected_wait_s == 0, "nobody is left in the lane"


def test_who_would_wait_longer_than_the_budget_is_told_at_once(gate: Gate, lanes: Lanes) -> None:
    lanes.large._mean_s = lanes_module.BUDGET_S / 2 + 0.001

    async def ask() -> list[Answer]:
        waiting = [asyncio.create_task(lanes.answer(LARGE)) for _ in range(2)]
        await asyncio.sleep(0)
        third = await lanes.answer(LARGE)
        small = await lanes.answer(SMALL)
        gate.open.set()
        return [third, small, *await asyncio.gather(*waiting)]

    answers = asyncio.run(ask())
    assert [answer.status for answer in answers] == [503, 200, 200, 200]
    assert answers[0].retry_after_s == 3  # two of a little more than a second each
    assert gate.shed_counts() == {"queue_full": 1}


def test_a_lane_learns_how_long_its_requests_take(gate: Gate, lanes: Lanes) -> None:
    threading.Timer(0.3, gate.open.set).start()
    asyncio.run(lanes.answer(LARGE))
    assert 0.2 < lanes.large._mean_s < 60
    assert lanes.small._mean_s == 0


def test_bodies_are_kept_up_to_the_budget_of_memory(gate: Gate, lanes: Lanes) -> None:
    assert lanes.take(BODIES_BYTES)
    assert not lanes.take(1)
    lanes.release(1)
    lanes.release(BODIES_BYTES)
    assert lanes.take(BODIES_BYTES)
    assert lanes.shed_for_memory().status == 503
    assert gate.shed_counts() == {"memory": 1}


@pytest.fixture
def batches(gate: Gate) -> Iterator[tuple[Lanes, list[int]]]:
    """Lanes that take up to three at once, and how many they took each time; the first waits for the gate."""
    taken: list[int] = []

    def answer(bodies: list[Body]) -> list[Answer]:
        taken.append(len(bodies))
        if len(taken) == 1:
            gate.open.wait(60)
        return gate.endpoint.answer(bodies)

    lanes = Lanes(answer, gate.endpoint.shed, batch_size=3)
    yield lanes, taken
    gate.open.set()
    lanes.shutdown()


async def asked_behind_the_first(
    lanes: Lanes, taken: list[int], bodies: list[Body]
) -> "list[asyncio.Task[Answer]]":
    """The first is at work, and waits for the gate; the others wait for it."""
    tasks = [asyncio.create_task(lanes.answer(bodies[0]))]
    while not taken:
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(lanes.answer(body)) for body in bodies[1:]]
    await asyncio.sleep(0)
    assert taken == [1], "the first has not waited for others"
    return tasks


def numbered(count: int) -> Body:
    return Body(json_codec.encode_request(request_of(count)))


def test_those_who_wait_are_answered_at_once_and_each_gets_its_own_answer(
    gate: Gate, batches: tuple[Lanes, list[int]]
) -> None:
    lanes, taken = batches

    async def ask() -> list[Answer]:
        tasks = await asked_behind_the_first(lanes, taken, [numbered(count) for count in range(1, 9)])
        gate.open.set()
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(ask())
    assert [len(json.loads(answer.content)["scores"]) for answer in answers] == [*range(1, 9)]
    assert taken == [1, 3, 3, 1]
    assert lanes.small.expected_wait_s == 0


def test_a_bad_body_among_those_answered_at_once_fails_nobody_else(
    gate: Gate, batches: tuple[Lanes, list[int]]
) -> None:
    lanes, taken = batches

    async def ask() -> list[Answer]:
        bodies = [numbered(1), numbered(2), Body(b"{"), numbered(3)]
        tasks = await asked_behind_the_first(lanes, taken, bodies)
        gate.open.set()
        return list(await asyncio.gather(*tasks))

    assert [answer.status for answer in asyncio.run(ask())] == [200, 200, 400, 200]
    assert taken == [1, 3]


def test_who_gives_up_before_his_turn_is_not_scored_with_the_others(
    gate: Gate, batches: tuple[Lanes, list[int]]
) -> None:
    lanes, taken = batches

    async def ask() -> list[Answer]:
        tasks = await asked_behind_the_first(lanes, taken, [numbered(count) for count in range(1, 5)])
        tasks[2].cancel()
        await asyncio.wait(tasks[2:3])
        gate.open.set()
        return list(await asyncio.gather(tasks[0], tasks[1], tasks[3]))

    answers = asyncio.run(ask())
    assert [len(json.loads(answer.content)["scores"]) for answer in answers] == [1, 2, 4]
    assert taken == [1, 2]


def test_large_requests_are_answered_one_by_one(gate: Gate, batches: tuple[Lanes, list[int]]) -> None:
    lanes, taken = batches

    async def ask() -> list[Answer]:
        tasks = await asked_behind_the_first(lanes, taken, [LARGE] * 3)
        gate.open.set()
        return list(await asyncio.gather(*tasks))

    assert [answer.status for answer in asyncio.run(ask())] == [200] * 3
    assert taken == [1, 1, 1]


def test_what_goes_wrong_is_raised_to_those_who_asked(gate: Gate) -> None:
    def fails(bodies: list[Body]) -> list[Answer]:
        raise MemoryError("no more")

    lanes = Lanes(fails, gate.endpoint.shed)
    with pytest.raises(MemoryError, match="no more"):
        asyncio.run(lanes.answer(SMALL))
    lanes.shutdown()
