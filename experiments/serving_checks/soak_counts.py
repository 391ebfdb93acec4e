"""What a soak plans, counts, and comes to.

A server error is explained only if its request was under way when a worker was killed, and only as many a
kill as a worker holds requests.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.serving_checks.fuzz import ALLOWED
from experiments.serving_checks.soak_requests import Expectations

LOST = "connection lost"
#: A request sent so long after a kill may still be given to the dead worker.
_NOTICED_S = 1.0
#: Of the memory of a worker, from which on its growth says something.
_ENOUGH_SAMPLES = 12


@dataclass(frozen=True)
class SoakPlan:
    """What happens, and how often.

    Attributes:
        rate_per_s: requests of all clients together, at random moments.
        refreshes: (log, as_of) of each refresh, in turn; always of the package that is served.
        other_package: deployed after `deploy_at` of the time, rolled back after `roll_back_at`.
        bad_share, hostile_share: of the requests: malformed ones, and Arrow streams that announce much.
        in_flight: requests that one worker holds at most: its batch size.
    """

    minutes: float
    refreshes: Sequence[tuple[Path, str]]
    rate_per_s: float = 100.0
    clients: int = 6
    bad_share: float = 0.01
    hostile_share: float = 0.01
    other_package: Path | None = None
    deploy_at: float = 0.35
    roll_back_at: float = 0.65
    kill_every_s: float = 60.0
    refresh_every_s: float = 300.0
    in_flight: int = 1
    seed: int = 1


@dataclass
class Failure:
    """A good request that got no scores; times are seconds of the soak."""

    sent_s: float
    answered_s: float
    outcome: str


@dataclass
class SoakResult:
    """What came back.

    Attributes:
        bad_outcomes, hostile_outcomes: answers to bad and to hostile bodies by status.
        deployments: what was done and how long it took; of a failure its words in `failed_deployments`.
        memory_s, memory_mib: PSS of the server and its workers.
        oldest_mib: PSS by process id of the workers that are never killed, while each was the oldest.
    """

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    bad_outcomes: Counter[str] = field(default_factory=Counter)
    hostile_outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    kills_s: list[float] = field(default_factory=list)
    refreshes: list[str] = field(default_factory=list)
    failed_refreshes: list[str] = field(default_factory=list)
    deployments: list[str] = field(default_factory=list)
    failed_deployments: list[str] = field(default_factory=list)
    memory_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    oldest_mib: dict[int, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def explained(failures: Sequence[Failure], kills_s: Sequence[float], *, in_flight: int) -> int:
    """How many failures the kills account for: under way at a kill, and at most `in_flight` of each."""
    left = sorted(failures, key=lambda one: one.answered_s)
    count = 0
    for kill_s in kills_s:
        caused = [one for one in left if one.sent_s <= kill_s + _NOTICED_S and one.answered_s >= kill_s]
        for one in caused[:in_flight]:
            left.remove(one)
            count += 1
    return count


def soak_summary(result: SoakResult, expectations: Expectations, plan: SoakPlan) -> dict[str, Any]:
    """The numbers of a soak, JSON-able."""
    server_errors = [one for one in result.failures if not one.outcome.startswith("4")]
    refused = len(result.failures) - len(server_errors)
    from_kills = explained(server_errors, result.kills_s, in_flight=plan.in_flight)
    wrong_bad = sum(count for status, count in result.bad_outcomes.items() if status != "400")
    tenth = max(1, len(result.memory_mib) // 10)
    settled = result.memory_mib[tenth:] or result.memory_mib
    latency_ms = np.array(result.latency_ms or [np.nan])
    return {
        "minutes": round(result.seconds / 60, 2),
        "requests": sum(result.statuses.values()) + sum(result.bad_outcomes.values()),
        "bad_requests": sum(result.bad_outcomes.values()),
        "bad_requests_not_refused_with_400": wrong_bad,
        "hostile_requests": sum(result.hostile_outcomes.values()),
        "hostile_statuses": dict(result.hostile_outcomes),
        "hostile_not_refused": sum(
            count for status, count in result.hostile_outcomes.items() if status not in map(str, ALLOWED)
        ),
        "statuses": dict(result.statuses),
        "resets": sum(one.outcome == LOST for one in result.failures),
        "wrong_scores": len(expectations.wrong),
        "first_wrong": expectations.wrong[:5],
        "unchecked_replies": len(expectations.waiting),
        "largest_difference": expectations.largest_difference,
        "replies_by_generation": dict(expectations.checked),
        "refused_good_requests": refused,
        "explained_5xx": from_kills,
        "unexplained_5xx": len(server_errors) - from_kills,
        "failures": [vars(one) for one in result.failures[:50]],
        "kills": len(result.kills_s),
        "refreshes": len(result.refreshes),
        "failed_refreshes": result.failed_refreshes,
        "deployments": result.deployments,
        "failed_deployments": result.failed_deployments,
        "memory_mib_start": _median(settled[:tenth]),
        "memory_mib_end": _median(settled[-tenth:]),
        "worker_growth": worker_growth(list(result.oldest_mib.values())),
        "latency_ms": {f"p{p:g}": float(np.percentile(latency_ms, p)) for p in (50.0, 99.0, 99.9)},
        "clients": plan.clients,
        "rate_per_s": plan.rate_per_s,
    }


def worker_growth(mib_by_worker: Sequence[Sequence[float]]) -> float | None:
    """By which share the memory of a worker grew after its warm-up, most of all; None if none lived long.

    Warm-up is the first quarter of its life; [100] * 20 + [102] * 20 gives 0.02.
    """
    grown = []
    for mib in mib_by_worker:
        settled = mib[len(mib) // 4 :]
        if len(mib) >= _ENOUGH_SAMPLES:
            few = max(3, len(settled) // 5)
            grown.append(float(np.median(settled[-few:]) / np.median(settled[:few]) - 1))
    return max(grown, default=None)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
