"""A real FastAPI server behind a store, under load, while packages take each other's place; then stopped."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from serving.client import ScoreClient
from serving.package.parity import read_requests
from serving.servers.fastapi.running import running_fastapi
from serving.servers.torchserve.archive import find_archive
from serving.servers.torchserve.server import RunningServer
from tests.serving.servers.fastapi.test_app import free_port, scored, wait_until
from tests.serving.servers.torchserve.test_deploy_live import Load, run

pytest.importorskip("uvicorn", reason="the extra `fastapi` is not installed")
pytestmark = pytest.mark.slow


def test_packages_take_each_others_place_under_load_and_nobody_notices(
    package: Path, other_package: Path, tmp_path: Path
) -> None:
    store, port = tmp_path / "store", free_port()
    run("archive", package, store)
    command = [sys.executable, "-m", "experiments", "serve", str(store), "--fastapi", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    process = subprocess.Popen(command, env=environment, stderr=(tmp_path / "err").open("wb"))
    try:
        wait_until(lambda: scored(f"http://127.0.0.1:{port}", 1))

        def client(*, timeout_s: float) -> ScoreClient:
            return ScoreClient(f"http://127.0.0.1:{port}/score", retries=0, timeout_s=timeout_s)

        server = cast(RunningServer, SimpleNamespace(client=client))
        load = Load(server, read_requests(package), [package, other_package])
        first, second = load._expected
        with load.running():
            run("deploy", other_package, store)
            assert set(load.outcomes) == {first, second}
            load.outcomes.clear()
            wait_until(lambda: load.outcomes.total() > 20)
            assert set(load.outcomes) == {second}

            done: Any = CliRunner().invoke(app, ["deploy", str(tmp_path / "nothing"), str(store)])
            assert "opening the package: " in str(done.exception)
            run("rollback", store)
            load.outcomes.clear()
            wait_until(lambda: load.outcomes.total() > 20)
            assert set(load.outcomes) == {first}
        assert find_archive(store).package == str(package.resolve())
        assert run("stop", store).output == "stopped\n"
        assert process.wait(60) == 0
        assert running_fastapi(store) is None
        assert run("stop", store).output == f"no server runs for {store}\n"
    finally:
        process.kill()
        process.wait()
