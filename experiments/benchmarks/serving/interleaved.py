"""Ways to do the same thing, timed in turns: a busy moment does not fall on one of them alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

#: Does the thing for one request, by number.
Way = Callable[[int], Any]
Asked = TypeVar("Asked")
Floats = NDArray[np.float64]


class SkippedError(Exception):
    """Something cannot be measured here; says why."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one way.

    Attributes:
        p50_ms: over all requests.
        p99_ms: median of the p99 of each round: one stall of the machine is not the software's.
        pooled_p99_ms: over all requests, stalls included.
        quiet_p50_ms: of the quietest round.
    """

    p50_ms: float
    p99_ms: float
    pooled_p99_ms: float
    quiet_p50_ms: float

    @classmethod
    def of(cls, rounds_ms: Sequence[Floats]) -> "Timing":
        """From the latencies of each round.

        Raises:
            ValueError: nothing was measured.
        """
        rounds = [one for one in rounds_ms if len(one)]
        if not rounds:
            raise ValueError("no request was timed, so there is no latency")
        every = np.concatenate(rounds)
        return cls(
            p50_ms=float(np.quantile(every, 0.5)),
            p99_ms=float(np.median([np.quantile(one, 0.99) for one in rounds])),
            pooled_p99_ms=float(np.quantile(every, 0.99)),
            quiet_p50_ms=min(float(np.quantile(one, 0.5)) for one in rounds),
        )


def in_turn(work: Callable[[Asked], Any], asked: Sequence[Asked]) -> Way:
    """Does the work for one after the other, and for the first again after the last."""
    return lambda number: work(asked[number % len(asked)])


def time_ways(ways: Mapping[str, Way], *, rounds: int, seconds: float) -> dict[str, list[Floats]]:
    """Latencies in ms of each round of each way.

    Args:
        seconds: of a round of one way; at least 20 requests are made. One more round goes first, to warm up.
    """
    rounds_ms: dict[str, list[Floats]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            measured = _round(way, seconds if turn else seconds / 2)
            if turn:
                rounds_ms[name].append(measured)
    return rounds_ms


def _round(way: Way, seconds: float) -> Floats:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    before = time.perf_counter()
    while before < end or len(latencies) < 20:
        way(len(latencies))
        after = time.perf_counter()
        latencies.append(1e3 * (after - before))
        before = after
    return np.array(latencies)
