"""Bodies that no client should send: damaged, absurd, hostile. A server answers each with 200, 400 or 413.

Most bodies start from a recorded request, so that the damage lies deep: in a type, a length, a number, a byte
of an Arrow buffer; some announce gigabytes. The same seed gives the same bodies.
"""

import contextlib
import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import psutil

from experiments.serving_checks.hostile_arrow import hostile_stream
from features.online.request import MAX_CANDIDATES, ScoreRequest
from serving.client import TOKEN_REFUSED
from serving.wire import arrow_codec, json_codec

#: (body, content type) to (status, answer, content type of the answer).
Ask = Callable[[bytes, str], tuple[int, bytes, str]]

ALLOWED = (200, 400, 413)
#: Bodies between two looks at the workers' memory.
BLOCK = 500
#: Private memory that a worker may gain after the first block.
GROWN_MIB = 100.0
_SHOWN = 10
#: From so many on, one that is in order must have been among them.
_ENOUGH_BODIES = 100
_CONTENT_TYPES = (json_codec.CONTENT_TYPE, arrow_codec.CONTENT_TYPE, "application/octet-stream", "text/plain")
#: Values that break what trusts its input.
_ABSURD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, -0.0, 1e308, -1e308, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1,
    "", " ", "\x00", "NaN", "💥" * 50, "é́" * 700, "x" * 20_000, "../../etc/passwd", "' OR 1=1 --", "{}",
    [], {}, [[]], [None], {"a": {"b": {}}}, [0] * 3, ["a"] * 3, [1, "a"], [1.5, 2], [True, False], [{}],
    list(range(200)), list(range(MAX_CANDIDATES + 1)), ["y" * 600], [2**63 - 1], [-1],
)  # fmt: skip


@dataclass
class FuzzResult:
    """Answers by status, and what was wrong: an answer that is not allowed, a worker that grew."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every answer was allowed."""
        return not self.faults

    def add(self, fault: str) -> None:
        """Keep a fault, if there are not many already."""
        if len(self.faults) < _SHOWN:
            self.faults.append(fault)


def fuzz_bodies(requests: Sequence[ScoreRequest], seed: int) -> Iterator[tuple[bytes, str]]:
    """Endless bodies with content types, one in ten of them unharmed."""
    chance = random.Random(seed)
    while True:
        request = chance.choice(requests)
        kind = chance.random()
        if kind < 0.1:
            codec = chance.choice((json_codec, arrow_codec))
            yield codec.encode_request(request), codec.CONTENT_TYPE
        elif kind < 0.55:
            yield _absurd_json(request, chance), json_codec.CONTENT_TYPE
        elif kind < 0.7:
            yield _damaged(json_codec.encode_request(request), chance), json_codec.CONTENT_TYPE
        elif kind < 0.9:
            yield _damaged(arrow_codec.encode_request(request), chance), arrow_codec.CONTENT_TYPE
        elif kind < 0.95:
            yield hostile_stream(chance), arrow_codec.CONTENT_TYPE
        else:
            noise = chance.randbytes(chance.choice((0, 1, 4, 100, 5_000)))
            head = chance.choice((b"", b"{", arrow_codec.FIRST_BYTES, b"[" * 2_000))
            yield head + noise, chance.choice(_CONTENT_TYPES)


def run_fuzz(
    ask: Ask,
    bodies: Iterator[tuple[bytes, str]],
    *,
    count: int,
    memory_mib: Callable[[], Mapping[int, float]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FuzzResult:
    """Ask `count` times; what is answered with scores must be readable, finite and within 0 to 1.

    `ask` may raise what a lost connection raises; that is a fault, too. So is scores for none of many bodies:
    a tenth of them are in order, so all failed for another reason.

    Args:
        memory_mib: private memory of each worker by process id, looked at after every `BLOCK` bodies; one
            that has grown by `GROWN_MIB` since the first block keeps what bodies made.

    Raises:
        ValueError: the server wants a token, so nothing would be tested.
    """
    result = FuzzResult()
    settled: dict[int, float] = {}
    for number in range(count):
        body, content_type = next(bodies)
        try:
            status, answer, kind = ask(body, content_type)
            if status == 400 and TOKEN_REFUSED in answer:
                raise ValueError(
                    f"the server refused body {number + 1} for want of a token, and nothing behind that is "
                    "tested; give --key-file (and --management-url, to renew it)"
                )
            fault = None if status in ALLOWED else answer[:200].decode(errors="replace")
            if status == 200:
                fault = _wrong_reply(answer, kind)
        except (OSError, RuntimeError) as error:
            status, fault = 0, str(error)
        result.statuses[str(status) if status else "no answer"] += 1
        if fault is not None:
            result.add(f"{status} ({fault}) for {content_type} {body[:300]!r}")
        if memory_mib is not None and (number + 1) % BLOCK == 0:
            for worker, mib in memory_mib().items():
                grown = mib - settled.setdefault(worker, mib)
                if grown > GROWN_MIB:
                    settled[worker] = mib
                    result.add(f"worker {worker} grew by {grown:,.0f} MiB within {number + 1:,} bodies")
        if progress is not None:
            progress(number + 1)
    if count >= _ENOUGH_BODIES and not result.statuses["200"]:
        result.add("no body was answered with scores, not even those in order")
    return result


def private_mib(pids: Sequence[int]) -> dict[int, float]:
    """Memory of each process that no other shares; without those that have ended."""
    found = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[pid] = psutil.Process(pid).memory_full_info().uss / 2**20
    return found


def _wrong_reply(answer: bytes, kind: str) -> str | None:
    try:
        reply = (arrow_codec if kind == arrow_codec.CONTENT_TYPE else json_codec).decode_reply(answer)
    except ValueError as error:
        return str(error)
    scores_N = reply.scores_N
    if not (np.isfinite(scores_N).all() and (scores_N >= 0).all() and (scores_N <= 1).all()):
        return "scores that are no probabilities"
    return None if sorted(reply.order_N.tolist()) == list(range(len(scores_N))) else "an order that is none"


def _absurd_json(request: ScoreRequest, chance: random.Random) -> bytes:
    """One to three places of a request's JSON replaced, removed or added."""
    fields = orjson.loads(json_codec.encode_request(request))
    for _ in range(chance.randint(1, 3)):
        parent: Any = fields
        while True:
            places = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not places:
                break
            place = chance.choice(places)
            if isinstance(parent[place], dict | list) and parent[place] and chance.random() < 0.6:
                parent = parent[place]
                continue
            action = chance.random()
            if action < 0.75:
                parent[place] = copy.deepcopy(chance.choice(_ABSURD))
            elif action < 0.9:
                del parent[place]
            elif isinstance(parent, dict):
                parent[str(chance.choice(_ABSURD))[:300]] = copy.deepcopy(chance.choice(_ABSURD))
            break
    return orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)


def _damaged(body: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled or moved."""
    damaged = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if not damaged:
            break
        start = chance.randrange(len(damaged))
        action = chance.random()
        if action < 0.5:
            damaged[start] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif action < 0.7:
            width = chance.choice((4, 8))
            number = chance.choice((-1, 0, 1, 2**31 - 1, -(2**31), chance.randrange(2**31)))
            damaged[start : start + width] = number.to_bytes(width, "little", signed=True)
        elif action < 0.8:
            del damaged[start : start + chance.randint(1, 64)]
        elif action < 0.9:
            damaged[start:start] = damaged[start : start + chance.randint(1, 64)]
        else:
            del damaged[start:]
    return bytes(damaged)
