"""A deployment as two processes agree on it: who deploys writes what it wants, the supervisor how far it is.

    STATE/rollout.json        the archive, and the stage that is wanted
    STATE/rollout_told.json   the stage that is reached, or why it is not

Stages: `checked` (new workers have scored the recorded requests, and wait), `serving` (they take connections
beside the old ones), `alone` (the old ones have finished and ended), `withdrawn`. No FastAPI here.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from features.artifacts import StrictModel, atomic_write_json
from serving.scoring.routed_scorer import keep_routing
from serving.servers.fastapi.running import RunningFastApi
from serving.servers.torchserve.archive import Archive

WANTED, TOLD = "rollout.json", "rollout_told.json"
Stage = Literal["checked", "serving", "alone", "withdrawn"]
_LOOK_S = 0.1
#: For what needs no worker to start.
_SOON_S = 60.0


class RolloutWanted(StrictModel):
    """What is to be reached with an archive; `run` tells two deployments of one archive apart."""

    run: str
    archive: str
    stage: Stage


class RolloutTold(StrictModel):
    """What is reached; `failed` says why nothing more will be, `compared` how many requests agreed."""

    run: str
    stage: Stage | None = None
    failed: str | None = None
    compared: int = 0


class FastApiRollout:
    """The steps of a deployment (`serving/servers/deploy.py`), as the supervisor of a server does them."""

    def __init__(self, server: RunningFastApi, state: Path, old: Archive, *, timeout_s: float) -> None:
        self._server = server
        self._state = state
        self._old = old
        self._timeout_s = timeout_s
        self._run = uuid.uuid4().hex
        self._archive = old

    def version_for(self, model_version: str, number: int) -> str:
        """What the server will call the new package: as its model."""
        return model_version

    def start(self, archive: Archive) -> None:
        """Have workers of an archive started; they take no connection yet."""
        self._archive = archive
        self._want("checked")

    def wait_until_ready(self) -> None:
        """Return once every new worker has opened the package and scored its recorded requests.

        Raises:
            ValueError: one has not, and says why, or it takes too long.
        """
        self._wait("checked", self._timeout_s)

    def check(self) -> int:
        """How many recorded requests agreed: each worker has compared them before it was ready."""
        return self._told().compared

    def shift(self) -> None:
        """Have them take connections."""
        self._want("serving")
        self._wait("serving", _SOON_S)

    def adopt(self, archive: Archive) -> None:
        """Have the routing name the archive's challengers."""
        keep_routing(self._state, archive.challengers())

    def shift_back(self) -> None:
        """The old workers have never stopped."""
        self.adopt(self._old)

    def withdraw(self) -> None:
        """End the new workers, which answer what they have begun."""
        self._want("withdrawn")
        self._wait("withdrawn", _SOON_S)

    def retire_old(self) -> None:
        """Let the old workers answer what they have begun, and end them."""
        self._want("alone")
        self._wait("alone", _SOON_S)

    def _want(self, stage: Stage) -> None:
        wanted = RolloutWanted(run=self._run, archive=os.fspath(self._archive.path.resolve()), stage=stage)
        atomic_write_json(self._state / WANTED, wanted.model_dump())

    def _wait(self, stage: Stage, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (told := self._told()).stage != stage:
            if told.failed is not None:
                raise ValueError(told.failed)
            if self._server.process() is None:
                raise ValueError("the server has ended")
            if time.monotonic() > deadline:
                raise ValueError(f"the new workers are not {stage} after {timeout_s:.0f} s")
            time.sleep(_LOOK_S)

    def _told(self) -> RolloutTold:
        try:
            told = RolloutTold.model_validate_json((self._state / TOLD).read_bytes())
        except (OSError, ValidationError):
            return RolloutTold(run=self._run)
        return told if told.run == self._run else RolloutTold(run=self._run)
