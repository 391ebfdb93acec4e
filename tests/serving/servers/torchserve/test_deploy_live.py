"""A real TorchServe under load while packages take each other's place, one fails to, and it is stopped."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from experiments.cli import app
from features.online.request import ScoreRequest
from serving.client import ClientError, ScoreClient
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.torchserve.archive import find_archive
from serving.servers.torchserve.server import RunningServer, running
from tests.serving.servers.torchserve.test_server import free_ports, probe, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java"),
]


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


class Load:
    """Clients that ask without a pause, each once a request, and what came of it."""

    def __init__(self, server: RunningServer, requests: list[ScoreRequest], packages: list[Path]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._server = server
        self._requests = requests
        predictors = [Predictor.load(package) for package in packages]
        self._expected = {
            one.manifest.model_version: [one.score(request).scores_N for request in requests]
            for one in predictors
        }
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def running(self, clients: int = 3) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        with self._server.client(timeout_s=120) as client:
            while not self._stopped.is_set():
                for at, request in enumerate(self._requests):
                    outcome = self._one(client, request, at)
                    with self._lock:
                        self.outcomes[outcome] += 1
                    if outcome == "told to leave" or self._stopped.wait(0.01):
                        return

    def _one(self, client: ScoreClient, request: ScoreRequest, at: int) -> str:
        try:
            reply = client.score(request)
        except ClientError as error:
            return "told to leave" if error.status == 503 and error.retry_after_s else f"lost: {error}"
        right = np.allclose(reply.scores_N, self._expected[reply.model_version][at], rtol=0, atol=1e-5)
        return reply.model_version if right else "wrong scores"


def test_packages_take_each_others_place_under_load_and_nobody_notices(
    package: Path, other_package: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run("archive", package, store)
    run("serve", store, "--port", free_ports())
    try:
        server = running(store)
        assert server is not None
        load = Load(server, read_requests(package), [package, other_package])
        first, second = load._expected
        with load.running():
            run("deploy", other_package, store)
            assert load.outcomes[first] > 0
            load.outcomes.clear()
            wait_until(lambda: load.outcomes.total() > 20)
            assert set(load.outcomes) == {second}
            wait_until(lambda: probe(server, "/ready")[1]["model_version"] == [second])

            damaged = Path(shutil.copytree(package, tmp_path / "damaged"))
            scores = damaged / "generations" / "000001" / "parity_scores.npy"
            scores.write_bytes(scores.read_bytes()[:-4] + b"\0\0\0\0")
            done = CliRunner().invoke(app, ["deploy", str(damaged), str(store)])
            assert "opening the package: " in str(done.exception)
            assert str(other_package) in str(done.exception)
            assert find_archive(store).package == str(other_package.resolve())

            run("rollback", store)
            load.outcomes.clear()
            wait_until(lambda: load.outcomes.total() > 20)
            assert set(load.outcomes) == {first}
            run("deploy", other_package, store)
            assert set(load.outcomes) == {first, second}
            load.outcomes.clear()
            assert run("stop", store).output == "stopped\n"
        assert load.outcomes.pop("told to leave") == 3
        assert set(load.outcomes) == {second}

        run("serve", store, "--port", free_ports())  # what is deployed survives
        server = running(store)
        assert server is not None
        with server.client(timeout_s=120) as client:
            assert client.score(read_requests(package)[0]).model_version == second
        known = json.loads((store / "deployments.json").read_text())["deployments"]
        assert [one["how"] for one in known] == ["archive", "deploy", "rollback", "deploy"]
        assert "rollback" in run("rollback", store, "--history").output
    finally:
        CliRunner().invoke(app, ["stop", str(store), "--drain", "0"])
