"""A new package beside the old one in a running TorchServe: a version of its own, checked, then the default.

Workers of the new version are started beside those of the old one, so for a while there are twice as many.
Requests name no version and get the default one, which changes between two requests; those that the old
version has begun, or that wait for it, are answered by it.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from features.artifacts import atomic_write_bytes
from features.online.request import ScoreRequest
from serving.client import ScoreClient
from serving.package.generations import current_generation
from serving.package.manifest import PackageManifest
from serving.scoring.routed_scorer import keep_routing
from serving.servers.background import WORKERS_FOLDER
from serving.servers.recorded import check_recorded
from serving.servers.torchserve.archive import RESPONSE_TIMEOUT_S, SETTINGS_NAME, Archive
from serving.servers.torchserve.files import LARGE_QUEUE, rename_version
from serving.servers.torchserve.log_ends import tail_of
from serving.servers.torchserve.management import Management, ManagementError, ModelVersion
from serving.servers.torchserve.server import EXAMPLE, WORKERS_OUTPUT, RunningServer
from serving.wire.json_codec import decode_request

_LOOK_S = 0.25
#: Whoever TorchServe gave to a worker has an answer after so long, or the worker's end.
DRAIN_S = RESPONSE_TIMEOUT_S + 1.0
#: For the old version's queue to become empty.
_QUEUE_S = 60.0
_REQUEST_S = 30.0


class TorchServeRollout:
    """The steps of a deployment, in the order of its methods; the state is TorchServe's and in the folder."""

    def __init__(
        self,
        server: RunningServer,
        state: Path,
        old: Archive,
        *,
        timeout_s: float,
        drain_s: float = DRAIN_S,
        management: Management | None = None,
    ) -> None:
        """
        Raises:
            ManagementError: nobody can manage this server.
        """
        if management is None and server.key_file is None:
            raise ManagementError(
                "the server runs without tokens, so its management is closed, and nothing can be deployed "
                "while it runs; stop it and deploy then, or serve with tokens"
            )
        self._server = server
        self._state = state
        self._old_archive = old
        self._timeout_s = timeout_s
        self._drain_s = drain_s
        self._management = management or Management(server.management_url, server.key_file or Path())
        self._urls = {old.name: server.url}
        if server.large_url is not None:
            self._urls[server.large_url.rsplit("/", 1)[1]] = server.large_url
        self._old: dict[str, ModelVersion] = {}
        self._new: dict[str, str] = {}
        self._package = Path()
        self._example: ScoreRequest | None = None

    def version_for(self, model_version: str, number: int) -> str:
        """What TorchServe will call the new version: as its model, unless that one is registered."""
        there = {one.version for name in self._urls for one in self._management.versions(name)}
        return model_version if model_version not in there else f"{model_version}-{number}"

    def start(self, archive: Archive) -> None:
        """Have its workers started; what a deployment that was killed has left is ended first."""
        for name in self._urls:
            self._old[name] = self._management.default(name)
            for one in self._management.versions(name):
                if one.version != self._old[name].version:
                    self._management.unregister(name, one.version)
        self._package, self._example = Path(archive.package), decode_request(archive.example())
        for name in self._urls:
            mine = archive if name == archive.name else _large(archive, name)
            self._new[name] = archive.version
            self._management.register(mine, name, self._old[name])

    def wait_until_ready(self) -> None:
        """Return once every worker has opened the package's current generation.

        Raises:
            ValueError: one has ended, cannot open it, or it takes too long.
        """
        deadline = time.monotonic() + self._timeout_s
        wanted = (PackageManifest.read(self._package).model_version, current_generation(self._package))
        seen: set[int] = set()
        for name, version in self._new.items():
            while True:
                now = next(one for one in self._management.versions(name) if one.version == version)
                there = {pid for pid, _ in now.workers if pid > 0}
                if gone := seen - there:
                    raise ValueError(self._ended(min(gone)))
                said = [self._said_by(pid) for pid in now.pids]
                open_now = [_opened(one, wanted) for one in said if one is not None]
                if sum(open_now) >= self._old[name].min_workers:
                    break
                seen = there
                if time.monotonic() > deadline:
                    so_many = f"{sum(open_now)} of {self._old[name].min_workers} new workers"
                    raise ValueError(f"{so_many} have opened the package in {self._timeout_s:.0f} s")
                time.sleep(_LOOK_S)
            seen = set()

    def check(self) -> int:
        """Have the new version score what its package has recorded; returns how many requests agreed.

        Raises:
            ValueError, ClientError: a request is not scored, or otherwise than recorded.
        """
        urls = {name: f"{url}/{self._new[name]}" for name, url in self._urls.items()}
        url = urls.pop(self._old_archive.name)
        with self._client(url, next(iter(urls.values()), None)) as client:
            return check_recorded(self._package, client.score)

    def shift(self) -> None:
        """Give it all requests that come from now on, and see that it answers them.

        Raises:
            ValueError, ClientError: another one does, or none.
        """
        for name, version in self._new.items():
            self._management.set_default(name, version)
        if self._default() != self._new:
            raise ValueError(f"TorchServe still gives requests to {self._default()}")
        with self._client(self._server.url, self._server.large_url) as client:
            assert self._example is not None
            reply = client.score(self._example)
        wanted = PackageManifest.read(self._package).model_version
        if reply.model_version != wanted and reply.variant is None:
            raise ValueError(f"{reply.model_version} answers after the shift, not {wanted}")

    def adopt(self, archive: Archive) -> None:
        """What the state folder says of the archive: its example, its version, its challengers."""
        atomic_write_bytes(self._state / EXAMPLE, archive.example())
        rename_version(self._state, list(self._urls), archive.version)
        keep_routing(self._state, archive.challengers())

    def shift_back(self) -> None:
        """The old version gets all requests again."""
        for name, old in self._old.items():
            self._management.set_default(name, old.version)
        self.adopt(self._old_archive)

    def withdraw(self) -> None:
        """End the new version, to which nobody is sent."""
        for name, version in self._new.items():
            if any(one.version == version for one in self._management.versions(name)):
                self._management.unregister(name, version)

    def retire_old(self) -> None:
        """Let the old version finish what it has, and end it.

        Raises:
            ManagementError, ValueError: it does not end; the new one serves all the same.
        """
        deadline = time.monotonic() + _QUEUE_S
        while any(self._waiting(name) for name in self._old):
            if time.monotonic() > deadline:
                raise ValueError(f"requests still wait for the old version after {_QUEUE_S:.0f} s")
            time.sleep(_LOOK_S)
        time.sleep(self._drain_s)
        for name, old in self._old.items():
            self._management.unregister(name, old.version)

    def _default(self) -> dict[str, str]:
        return {name: self._management.default(name).version for name in self._urls}

    def _waiting(self, name: str) -> int:
        old = self._old[name].version
        return sum(one.waiting for one in self._management.versions(name) if one.version == old)

    def _client(self, url: str, large_url: str | None) -> ScoreClient:
        return ScoreClient(
            url,
            key_file=self._server.key_file,
            management_url=self._server.management_url,
            timeout_s=_REQUEST_S,
            large_url=large_url,
        )

    def _said_by(self, pid: int) -> dict[str, Any] | None:
        try:
            said: dict[str, Any] = json.loads(
                (self._state / WORKERS_FOLDER / f"worker-{pid}.json").read_text(encoding="utf-8")
            )
            return said
        except (OSError, ValueError):  # it has only just begun
            return None

    def _ended(self, pid: int) -> str:
        return f"worker {pid} ended; the workers' log ends:\n{tail_of(self._server.logs / WORKERS_OUTPUT)}"


def _opened(said: dict[str, Any], wanted: tuple[str, str]) -> bool:
    """Whether a worker has opened the package.

    Raises:
        ValueError: it cannot.
    """
    if said.get("unavailable"):
        raise ValueError(f"a new worker cannot open the package: {said['unavailable']}")
    if said.get("refused"):
        raise ValueError(f"a new worker refuses the current generation: {said['refused']}")
    return (said.get("model_version"), said.get("generation")) == wanted


def _large(archive: Archive, name: str) -> Archive:
    """The same archive for the workers of large requests; that their queue is short it has to say itself."""
    folder = archive.path.with_name(name)
    shutil.copytree(archive.path, folder, dirs_exist_ok=True)
    settings = folder / SETTINGS_NAME
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    settings.write_text(
        yaml.safe_dump({**content, "jobQueueSize": LARGE_QUEUE}, sort_keys=False), encoding="utf-8"
    )
    return Archive(folder, name, archive.version)
