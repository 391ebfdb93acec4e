"""A soak: hours of mixed load on TorchServe while workers are killed, generations and packages change.

Every reply is compared with what its package and generation must give.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from experiments.serving_checks.fuzz import ALLOWED, FuzzResult, fuzz_bodies, run_fuzz
from experiments.serving_checks.hostile_arrow import hostile_stream
from experiments.serving_checks.loadtest import BAD_BODIES
from experiments.serving_checks.soak_counts import LOST, Failure, SoakPlan, SoakResult
from experiments.serving_checks.soak_requests import Asked, Expectations
from features.online.request import ScoreRequest
from serving.client import ClientError, ScoreClient
from serving.packaging.as_of import time_us_of
from serving.scoring.predictor import Predictor
from serving.servers.torchserve.drain import DRAIN_S
from serving.servers.torchserve.server import RunningServer, stop, worker_pids
from serving.wire import arrow_codec, json_codec

_SAMPLE_S = 5.0
_TIMEOUT_S = 60.0


def run_soak(
    server: RunningServer,
    package: Path,
    store: Path,
    expectations: Expectations,
    plan: SoakPlan,
    *,
    progress: Callable[[float, SoakResult], None],
) -> SoakResult:
    """Load the server of a store for the planned time; the last generation's replies are checked, too."""
    result = SoakResult()
    stopped = threading.Event()
    start = time.monotonic()
    clients = [
        threading.Thread(
            target=_send, args=(server, expectations, plan, result, stopped, start, number), daemon=True
        )
        for number in range(plan.clients)
    ]
    for client in clients:
        client.start()
    end_s = 60 * plan.minutes
    kill_s, refresh_s, sample_s = plan.kill_every_s, plan.refresh_every_s, 0.0
    changes = []
    if plan.other_package is not None:
        changes = [(plan.deploy_at, plan.other_package), (plan.roll_back_at, package)]
    refreshing: subprocess.Popen[bytes] | None = None
    deploying: _Deploying | None = None
    while (now_s := time.monotonic() - start) < end_s or refreshing is not None or deploying is not None:
        if now_s >= kill_s and now_s < end_s and deploying is None:
            kill_s += plan.kill_every_s
            _kill_youngest(server, result, start)
        if refreshing is not None and refreshing.poll() is not None:
            _refreshed(refreshing, package, expectations, result)
            refreshing = None
        if deploying is not None and deploying.process.poll() is not None:
            package = _deployed(deploying, package, now_s, result)
            deploying = None
        idle = refreshing is None and deploying is None
        if idle and changes and now_s >= changes[0][0] * end_s:
            _, served = changes.pop(0)
            deploying = _deploy(store, served, back=not changes, now_s=now_s)
        elif idle and now_s >= refresh_s and now_s < end_s:
            turn = len(result.refreshes) + len(result.failed_refreshes)
            log, as_of = plan.refreshes[turn % len(plan.refreshes)]
            refreshing = _refresh(package, log, as_of)
            refresh_s += plan.refresh_every_s
        if now_s >= sample_s and deploying is None:  # two versions take more than one
            sample_s = now_s + _SAMPLE_S
            _sample(server, result, now_s)
        progress(min(1.0, now_s / end_s), result)
        time.sleep(0.2)
    stopped.set()
    for client in clients:
        client.join(timeout=60)
    result.seconds = time.monotonic() - start
    return result


def drain_under_load(
    server: RunningServer, store: Path, expectations: Expectations, *, clients: int = 6
) -> dict[str, Any]:
    """Stop a server while clients ask without a pause and leave when told to: nobody's answer may be lost."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def ask(number: int) -> None:
        with server.client(timeout_s=_TIMEOUT_S) as client:
            for asked in itertools.cycle(expectations.pool[number::clients]):
                try:
                    status = str(client.post(asked.body, asked.content_type)[0])
                except ClientError as error:
                    status = str(error.status or LOST)
                with lock:
                    outcomes[status] += 1
                if status != "200":
                    return

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop(store, drain_s=DRAIN_S)
    for thread in threads:
        thread.join(timeout=_TIMEOUT_S)
    told = sum(count for status, count in outcomes.items() if status not in ("200", LOST))
    return {"drain_answered": outcomes["200"], "drain_told_to_leave": told, "drain_resets": outcomes[LOST]}


def fuzz_server(
    server: RunningServer,
    requests: Sequence[ScoreRequest],
    count: int,
    *,
    threads: int = 4,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Send `count` hostile bodies; answers by status, those that are not allowed, and workers that died."""
    workers = set(worker_pids(server))
    total = FuzzResult()
    lock = threading.Lock()
    done = Counter[int]()

    def send(number: int) -> None:
        share = len(range(number, count, threads))

        def count_one(so_far: int) -> None:
            done[number] = so_far
            progress(done.total())

        with server.client(timeout_s=_TIMEOUT_S) as client:
            part = run_fuzz(client.post, fuzz_bodies(requests, number), count=share, progress=count_one)
        with lock:
            total.statuses += part.statuses
            total.faults += part.faults

    senders = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    allowed = sum(total.statuses[str(status)] for status in ALLOWED)
    return {
        "fuzzed_bodies": total.statuses.total(),
        "fuzz_statuses": dict(total.statuses),
        "fuzz_faults": total.faults,
        "fuzz_5xx": total.statuses.total() - allowed,
        "fuzz_dead_workers": len(workers - set(worker_pids(server))),
    }


def _send(
    server: RunningServer,
    expectations: Expectations,
    plan: SoakPlan,
    result: SoakResult,
    stopped: threading.Event,
    start: float,
    number: int,
) -> None:
    chance = random.Random(plan.seed * 1000 + number)
    with server.client(timeout_s=_TIMEOUT_S) as client:
        while not stopped.wait(chance.expovariate(plan.rate_per_s / plan.clients)):
            if chance.random() < plan.hostile_share:
                outcomes, body = result.hostile_outcomes, hostile_stream(chance)
                _send_wrong(client, body, arrow_codec.CONTENT_TYPE, result, outcomes, start)
                continue
            if chance.random() < plan.bad_share:
                outcomes, body = result.bad_outcomes, chance.choice(BAD_BODIES)
                _send_wrong(client, body, json_codec.CONTENT_TYPE, result, outcomes, start)
                continue
            position = chance.randrange(len(expectations.pool))
            asked: Asked = expectations.pool[position]
            sent_s = time.monotonic() - start
            status, answer, kind = _post(client, asked.body, asked.content_type)
            answered_s = time.monotonic() - start
            with result.lock:
                result.statuses[status] += 1
                result.latency_ms.append(1e3 * (answered_s - sent_s))
                if status != "200":
                    result.failures.append(Failure(sent_s, answered_s, status))
            if status == "200":
                codec = arrow_codec if kind == arrow_codec.CONTENT_TYPE else json_codec
                expectations.check(position, codec.decode_reply(answer))


def _send_wrong(
    client: ScoreClient,
    body: bytes,
    content_type: str,
    result: SoakResult,
    outcomes: Counter[str],
    start: float,
) -> None:
    """Send what is to be refused. A server error is a failure, which a kill may explain."""
    sent_s = time.monotonic() - start
    status = _post(client, body, content_type)[0]
    answered_s = time.monotonic() - start
    with result.lock:
        if status.startswith("5") or status == LOST:
            result.failures.append(Failure(sent_s, answered_s, status))
        else:
            outcomes[status] += 1


def _post(client: ScoreClient, body: bytes, content_type: str) -> tuple[str, bytes, str]:
    try:
        status, answer, kind = client.post(body, content_type)
        return str(status), answer, kind
    except ClientError as error:
        return str(error.status or LOST), b"", ""


def _kill_youngest(server: RunningServer, result: SoakResult, start: float) -> None:
    """The youngest: one worker then lives from the first request to the last, and its memory shows leaks."""
    pids = sorted(worker_pids(server), key=lambda pid: psutil.Process(pid).create_time())
    if len(pids) > 1:
        result.kills_s.append(time.monotonic() - start)
        os.kill(pids[-1], signal.SIGKILL)


def _refresh(package: Path, log: Path, as_of: str) -> subprocess.Popen[bytes]:
    time_us_of(as_of)
    command = [sys.executable, "-m", "experiments", "refresh", str(package)]
    command += ["--data", str(log), "--as-of", as_of, "--force"]  # back and forth in time
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _refreshed(
    process: subprocess.Popen[bytes], package: Path, expectations: Expectations, result: SoakResult
) -> None:
    said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    if process.returncode:
        result.failed_refreshes.append(said.strip()[-300:])
    else:
        result.refreshes.append(expectations.add(Predictor.load(package)))


@dataclass
class _Deploying:
    """A deployment under way, and the package that is served after it."""

    process: subprocess.Popen[bytes]
    package: Path
    what: str
    began_s: float


def _deploy(store: Path, package: Path, *, back: bool, now_s: float) -> _Deploying:
    what = "rollback" if back else "deploy"
    arguments = ["rollback", str(store)] if back else ["deploy", str(package), str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments, "--timeout", "300"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    return _Deploying(process, package, what, now_s)


def _deployed(deploying: _Deploying, package: Path, now_s: float, result: SoakResult) -> Path:
    """The package that is served now."""
    said = deploying.process.stderr.read().decode(errors="replace") if deploying.process.stderr else ""
    if deploying.process.returncode:
        result.failed_deployments.append(f"{deploying.what}: {said.strip()[-300:]}")
        return package
    result.deployments.append(f"{deploying.what} in {now_s - deploying.began_s:.0f} s")
    return deploying.package


def _sample(server: RunningServer, result: SoakResult, now_s: float) -> None:
    try:
        root = psutil.Process(server.pid)
        total = sum(one.memory_full_info().pss for one in (root, *root.children(recursive=True)))
        oldest = min(map(psutil.Process, worker_pids(server)), key=psutil.Process.create_time)
        oldest_mib = oldest.memory_full_info().pss / 2**20
    except (psutil.Error, ValueError):  # a worker ended between the look and the count
        return
    result.memory_s.append(round(now_s, 1))
    result.memory_mib.append(round(total / 2**20, 1))
    result.oldest_mib.setdefault(oldest.pid, []).append(round(oldest_mib, 1))
