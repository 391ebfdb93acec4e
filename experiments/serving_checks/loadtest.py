"""A load test of any scoring server, with open-loop arrivals.

Requests are due at random moments of a given rate, whether or not earlier ones are answered, and latency
counts from the moment a request was due to be sent: a server that stalls is charged for everyone who waits. A
closed loop, where each client waits for its answer, would send less just then and report a fast server.

The generator shares one event loop and sends up to a millisecond late, more on a busy machine. That is part
of the latency, too; `late_ms` says how much.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from features.online.request import ScoreRequest
from serving.client import TOKEN_REFUSED, Tokens
from serving.wire import arrow_codec, json_codec

#: Between the head of a message and its body.
HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)
_CLOSE = re.compile(rb"^connection:[ \t]*close", re.IGNORECASE | re.MULTILINE)
#: Reported percentiles.
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
#: A generator later than this at its own p99 says little about the server.
LATE_MS = 5.0
#: Sent with `bad_share`: each must be refused with 400.
BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b'{"user_id": 1, "query": "q"}',
    b'{"user_id": 1, "query": "q", "candidates": []}',
    b'{"user_id": 1.5, "query": "q", "candidates": [1]}',
    b'{"user_id": 1, "query": "q", "candidates": [1, "a"]}',
    b'{"user_id": 1, "query": "q", "candidates": [1], "context": {"no_such_column": 1}}',
    b'{"user_id": 1, "query": "q", "candidates": [1], "candidate_columns": {"no_such_column": [1, 2]}}',
    b"\xff\xff\xff\xff\x10\x00\x00\x00arrow, but not really",
)


@dataclass(frozen=True)
class LoadPlan:
    """What is sent.

    Attributes:
        bodies: sent in turn, all of one content type.
        rate_per_s: mean of the Poisson arrivals.
        connections: open at most; a request that finds none free waits, and its latency with it.
        warmup_s: sent and not counted.
        bad_share: share of requests that are malformed, in JSON.
    """

    bodies: Sequence[bytes]
    content_type: str
    rate_per_s: float
    seconds: float
    connections: int = 64
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    bad_share: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.bodies:
            raise ValueError("a load test needs at least one request")
        if not (self.rate_per_s > 0 and self.seconds > 0 and self.connections > 0):
            raise ValueError("rate, seconds and connections must be above 0")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share is {self.bad_share}; it is a share, 0 to 1")


@dataclass
class LoadResult:
    """What came back. Arrays have one entry for each counted request that got an answer to a good body.

    Attributes:
        due_s: when it was due, from the start of the counted time.
        latency_ms: from then to its last byte.
        outcomes: answers to good bodies, by status or kind of failure; "200" is the one that is wanted.
        bad_outcomes: the same for malformed bodies; "400" is wanted.
        late_ms: how late the generator sent; part of the latency.
    """

    seconds: float = 0.0
    due_s: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    bad_outcomes: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Counts, rates and percentiles, JSON-able; percentiles are None if nothing was answered."""
        latency_ms = np.array(self.latency_ms)
        answered = len(latency_ms) > 0
        return {
            "seconds": round(self.seconds, 3),
            "requests": sum(self.outcomes.values()),
            "answered_per_s": round(self.outcomes["200"] / self.seconds, 1) if self.seconds else 0.0,
            "outcomes": dict(self.outcomes),
            "bad_outcomes": dict(self.bad_outcomes),
            "latency_ms": {
                **{
                    f"p{p:g}": round(float(np.percentile(latency_ms, p)), 3) if answered else None
                    for p in PERCENTILES
                },
                "mean": round(float(latency_ms.mean()), 3) if answered else None,
                "max": round(float(latency_ms.max()), 3) if answered else None,
            },
            "generator_late_p99_ms": round(float(np.percentile(self.late_ms, 99)), 3)
            if self.late_ms
            else None,
        }


def resized(request: ScoreRequest, candidates: int) -> ScoreRequest:
    """The same request with this many candidates: its own, in turn, with their live features."""
    rows_N = np.arange(candidates) % len(request.candidates)
    columns = {
        name: values[rows_N] if isinstance(values, np.ndarray) else [values[row] for row in rows_N]
        for name, values in request.candidate_columns.items()
    }
    return replace(request, candidates=request.candidates.take(rows_N), candidate_columns=columns)


def encoded(requests: Sequence[ScoreRequest], body_format: str) -> tuple[list[bytes], str]:
    """Bodies and their content type."""
    codec = arrow_codec if body_format == "arrow" else json_codec
    return [codec.encode_request(request) for request in requests], codec.CONTENT_TYPE


def run_load(
    url: str,
    plan: LoadPlan,
    *,
    tokens: Tokens | None = None,
    progress: Callable[[float, LoadResult], None] | None = None,
) -> LoadResult:
    """Send the plan to `url` and wait for the last answer.

    Args:
        progress: told about once a second: the share that is done, and what came back so far.

    Raises:
        ValueError: `url` is not plain http.
        ConnectionError: nobody listens there.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r}: the load test speaks plain http; write http://host:port/path")
    return asyncio.run(_Load(parts.hostname, parts.port or 80, parts.path or "/", plan, tokens).run(progress))


class _Load:
    def __init__(self, host: str, port: int, path: str, plan: LoadPlan, tokens: Tokens | None) -> None:
        self._host, self._port, self._path, self._plan, self._tokens = host, port, path, plan, tokens
        self._token = tokens.current() if tokens else None
        self._renewing = asyncio.Lock()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(plan.connections)
        self._result = LoadResult()

    async def run(self, progress: Callable[[float, LoadResult], None] | None) -> LoadResult:
        try:
            self._idle.append(await asyncio.open_connection(self._host, self._port))
        except OSError as error:
            raise ConnectionError(f"nothing is listening at {self._host}:{self._port} ({error})") from None
        plan = self._plan
        random = np.random.default_rng(plan.seed)
        total_s = plan.warmup_s + plan.seconds
        gaps_s = random.exponential(1 / plan.rate_per_s, int(total_s * plan.rate_per_s * 1.5) + 50)
        due_s = np.cumsum(gaps_s)
        due_s = due_s[due_s < total_s]
        bad = random.random(len(due_s)) < plan.bad_share
        start = time.perf_counter()
        told = start
        tasks: set[asyncio.Task[None]] = set()
        for number, at_s in enumerate(due_s):
            wait_s = start + at_s - time.perf_counter()
            await asyncio.sleep(max(0.0, wait_s))
            task = asyncio.create_task(self._one(number, start, float(at_s), bad=bool(bad[number])))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if progress is not None and time.perf_counter() - told > 1:
                told = time.perf_counter()
                progress(float(at_s / total_s), self._result)
        if tasks:
            await asyncio.gather(*tasks)
        self._result.seconds = max(plan.seconds, time.perf_counter() - start - plan.warmup_s)
        for _, writer in self._idle:
            writer.close()
        return self._result

    async def _one(self, number: int, start: float, at_s: float, *, bad: bool) -> None:
        plan = self._plan
        due = start + at_s
        late_ms = (time.perf_counter() - due) * 1e3
        body = BAD_BODIES[number % len(BAD_BODIES)] if bad else plan.bodies[number % len(plan.bodies)]
        content_type = json_codec.CONTENT_TYPE if bad else plan.content_type
        try:
            async with self._slots:
                outcome = str(await asyncio.wait_for(self._exchange(body, content_type), plan.timeout_s))
        except TimeoutError:
            outcome = "timeout"
        except (OSError, EOFError, ValueError):
            outcome = "connection lost"
        if at_s < plan.warmup_s:
            return
        (self._result.bad_outcomes if bad else self._result.outcomes)[outcome] += 1
        if not bad:
            self._result.due_s.append(at_s - plan.warmup_s)
            self._result.latency_ms.append((time.perf_counter() - due) * 1e3)
            self._result.late_ms.append(late_ms)

    async def _exchange(self, body: bytes, content_type: str) -> int:
        token = self._token
        status, answer = await self._post(body, content_type, token)
        if status == 400 and self._tokens is not None and TOKEN_REFUSED in answer:
            async with self._renewing:
                if self._token == token:
                    self._token = await asyncio.to_thread(self._tokens.renewed, than=token)
            status, _ = await self._post(body, content_type, self._token)
        return status

    async def _post(self, body: bytes, content_type: str, token: str | None) -> tuple[int, bytes]:
        connection = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        reader, writer = connection
        try:
            host = f"{self._host}:{self._port}"
            writer.write(http_request(self._path, body, content_type, token=token, host=host))
            status, length, keep = parsed_head(await reader.readuntil(HEAD_END))
            answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if keep:
            self._idle.append(connection)
        else:
            writer.close()
        return status, answer


def http_request(
    path: str, body: bytes, content_type: str, *, token: str | None = None, host: str = "127.0.0.1"
) -> bytes:
    """One HTTP/1.1 request that keeps the connection."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def parsed_head(head: bytes | bytearray) -> tuple[int, int, bool]:
    """Of an answer's head: status, length of the body, and whether the connection stays.

    Raises:
        ConnectionError: it has no content-length.
    """
    length = _LENGTH.search(head)
    if length is None:
        raise ConnectionError("an answer without content-length")
    return int(head.split(None, 2)[1]), int(length[1]), _CLOSE.search(head) is None


def result_json(url: str, plan: LoadPlan, result: LoadResult, **more: Any) -> bytes:
    """The result with its plan, as indented JSON."""
    content = {
        "url": url,
        "rate_per_s": plan.rate_per_s,
        "connections": plan.connections,
        "bad_share": plan.bad_share,
        "content_type": plan.content_type,
        "body_bytes": round(float(np.mean([len(body) for body in plan.bodies]))),
        **more,
        **result.summary(),
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n"


def plot_load(result: LoadResult, path: Path, *, title: str) -> None:
    """Draw how latencies are distributed and how they went over time, as PNG (or what the suffix says).

    Raises:
        ValueError: no request was answered.
    """
    from matplotlib.figure import Figure

    if not result.latency_ms:
        raise ValueError("no request was answered, so there is nothing to plot")
    latency_ms, due_s = np.array(result.latency_ms), np.array(result.due_s)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shares, times = figure.subplots(1, 2)
    bins = np.geomspace(latency_ms.min(), latency_ms.max() * 1.001, 60)
    shares.hist(latency_ms, bins=bins, color="#4c72b0")
    for percentile, style in ((50, "-"), (99, "--"), (99.9, ":")):
        value = float(np.percentile(latency_ms, percentile))
        shares.axvline(value, color="black", linestyle=style, label=f"p{percentile:g} {value:.2f} ms")
    shares.set(xscale="log", xlabel="latency, ms", ylabel="requests", title=title)
    shares.legend()
    seconds = np.floor(due_s).astype(int)
    shown = np.unique(seconds)
    for percentile, style in ((50, "-"), (99, "--")):
        values = [float(np.percentile(latency_ms[seconds == second], percentile)) for second in shown]
        times.plot(shown, values, color="#4c72b0", linestyle=style, label=f"p{percentile} of each second")
    times.set(xlabel="seconds", ylabel="latency, ms", yscale="log")
    times.legend()
    figure.savefig(path, dpi=110)
