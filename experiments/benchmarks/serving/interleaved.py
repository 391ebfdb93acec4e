"""Ways to do the same thing, timed in turns: a busy moment does not fall on one of them alone.

Beside each latency stands what the kernel did to the thread meanwhile, since a tail has one of few causes: a
page that came from the disk, a neighbour that took the processor, or the way itself.
"""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

#: Does the thing for one request, by number.
Way = Callable[[int], Any]
Asked = TypeVar("Asked")
Floats = NDArray[np.float64]
#: Counts of one thread are Linux's; elsewhere those of the process.
_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


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


#: Of `Round.counts_K4`, in this order.
COUNTED = ("minor_faults", "major_faults", "voluntary_switches", "involuntary_switches")


@dataclass(frozen=True, eq=False)
class Round:
    """The requests of one way in one turn.

    Attributes:
        latency_ms: of each.
        counts_K4: what the kernel counted for the thread during each, in the order of `COUNTED`.
        stolen_s: what the host took from all processors of this machine in that turn.
    """

    latency_ms: Floats
    counts_K4: NDArray[np.int64]
    stolen_s: float


def disturbances(rounds: Sequence[Round]) -> dict[str, float | None]:
    """What the kernel did per request, and how long requests took that it left alone.

    `undisturbed_p99_ms` is of requests without a switch to another process and without a read of the disk;
    `slowest_disturbed_share` is how many of the slowest hundredth had one or the other.
    """
    latency_ms = np.concatenate([one.latency_ms for one in rounds])
    counts_K4 = np.concatenate([one.counts_K4 for one in rounds])
    disturbed_K = (counts_K4[:, 1] > 0) | (counts_K4[:, 3] > 0)
    calm_ms = latency_ms[~disturbed_K]
    slowest = np.argsort(latency_ms)[-max(1, len(latency_ms) // 100) :]
    per_request = dict(zip(COUNTED, counts_K4.mean(axis=0).tolist(), strict=True))
    return {
        **{f"{name}_per_request": value for name, value in per_request.items()},
        "stolen_ms_per_request": 1e3 * sum(one.stolen_s for one in rounds) / len(latency_ms),
        "undisturbed_p50_ms": float(np.quantile(calm_ms, 0.5)) if len(calm_ms) else None,
        "undisturbed_p99_ms": float(np.quantile(calm_ms, 0.99)) if len(calm_ms) else None,
        "slowest_disturbed_share": float(disturbed_K[slowest].mean()),
    }


def in_turn(work: Callable[[Asked], Any], asked: Sequence[Asked]) -> Way:
    """Does the work for one after the other, and for the first again after the last."""
    return lambda number: work(asked[number % len(asked)])


def time_ways(
    ways: Mapping[str, Way], *, rounds: int, seconds: float, at_least: int = 20
) -> dict[str, list[Round]]:
    """Each round of each way.

    Args:
        seconds: of a round of one way. One more round goes first, to warm up.
        at_least: requests of a round, however long they take.
    """
    measured: dict[str, list[Round]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            one = time_requests(way, seconds=seconds if turn else seconds / 2, at_least=at_least)
            if turn:
                measured[name].append(one)
    return measured


def time_requests(way: Way, *, seconds: float = 0.0, at_least: int = 20) -> Round:
    """One round of one way: for so long, and so many requests, whatever takes longer."""
    latencies: list[float] = []
    counts: list[tuple[int, ...]] = []
    stolen_s = _stolen_s()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(latencies) < at_least:
        counted = _counted()
        before = time.perf_counter()
        way(len(latencies))
        latencies.append(1e3 * (time.perf_counter() - before))
        counts.append(tuple(now - was for now, was in zip(_counted(), counted, strict=True)))
    return Round(np.array(latencies), np.array(counts, np.int64), _stolen_s() - stolen_s)


def _counted() -> tuple[int, int, int, int]:
    """What the kernel has counted for this thread, in the order of `COUNTED`."""
    used = resource.getrusage(_THREAD)
    return used.ru_minflt, used.ru_majflt, used.ru_nvcsw, used.ru_nivcsw


def _stolen_s() -> float:
    """What a host has taken from this virtual machine so far; 0 where the system does not say."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
