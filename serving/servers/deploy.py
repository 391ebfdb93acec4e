"""Put another package in place of the one that a store serves, without a lost request; or take it back.

Step by step: the package is opened, its workers start beside the old ones, are ready, score what the package
has recorded as it says, get all requests, and the store names them. A failure at any step leaves the old ones
serving. Then the old ones finish what they have, and end.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from features.artifacts import atomic_folder, file_lock
from serving.package.manifest import PackageManifest
from serving.scoring.routed_scorer import keep_routing
from serving.servers.deployments import (
    DeployError,
    Deployment,
    Deployments,
    deployment_folder,
    other_folders,
)
from serving.servers.torchserve.archive import Archive, archive_package, is_archive, torchserve_version

OPEN, START, READY, PARITY, SHIFT, RECORD = (
    "opening the package",
    "starting its workers",
    "waiting until they are ready",
    "comparing with the recorded scores",
    "giving them the requests",
    "recording it in the store",
)


class Rollout(Protocol):
    """What a running server does for a deployment; each step raises where it fails."""

    def version_for(self, model_version: str, number: int) -> str:
        """What the server will call the new package."""
        ...

    def start(self, archive: Archive) -> None:
        """Start workers of an archive beside those that serve; nobody is sent to them."""
        ...

    def wait_until_ready(self) -> None:
        """Return once they all have opened the package."""
        ...

    def check(self) -> int:
        """Have them score the recorded requests; returns how many agreed with the record."""
        ...

    def shift(self) -> None:
        """Give them all requests from now on."""
        ...

    def adopt(self, archive: Archive) -> None:
        """Change what the state folder says."""
        ...

    def shift_back(self) -> None:
        """Give the old ones all requests again."""
        ...

    def withdraw(self) -> None:
        """End the new ones."""
        ...

    def retire_old(self) -> None:
        """Let the old ones finish, and end them."""
        ...


@dataclass(frozen=True)
class Deployed:
    """What a deployment did.

    Attributes:
        compared: recorded requests that the running server scored as recorded; None if no server runs.
        left_over: why the old workers are still there; empty if they are not.
    """

    before: Deployment
    now: Deployment
    compared: int | None
    left_over: str = ""


def deploy(
    package: Path,
    archive: Archive,
    rollout: Rollout | None,
    *,
    challengers: Mapping[str, Path] | None = None,
    state: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Deployed:
    """Have a store serve `package` in place of what `archive` holds.

    Args:
        archive: of the store, as it is now.
        rollout: of the server that runs; None if none does, and the next one to start will serve it.
        challengers: packages that may get a share of the users; those of now by default.
        state: folder with the routing of a server that does not run.

    Raises:
        DeployError: a step failed; what served before serves.
    """
    with _locked(archive):
        deployments = Deployments.of(archive)
        wanted = {name: str(path.resolve()) for name, path in (challengers or {}).items()}
        if challengers is None:
            wanted = dict(deployments.current.challengers)
        now = deployments.next(package.resolve(), "", wanted)
        return _put(deployments, now, archive, rollout, state, progress)


def roll_back(
    archive: Archive,
    rollout: Rollout | None,
    *,
    state: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Deployed:
    """Have a store serve what it served before the current package; twice goes two steps back.

    Raises:
        DeployError: a step failed; what served before serves.
        ValueError: there is nothing to go back to.
    """
    with _locked(archive):
        deployments = Deployments.of(archive)
        before = deployments.before()
        if not Path(before.package).is_dir():
            raise DeployError(OPEN, f"{before.package}, which served before, is no longer there")
        now = deployments.next(before.package, before.model_version, before.challengers, back_to=before)
        return _put(deployments, now, archive, rollout, state, progress)


def _put(
    deployments: Deployments,
    now: Deployment,
    archive: Archive,
    rollout: Rollout | None,
    state: Path | None,
    progress: Callable[[str], None],
) -> Deployed:
    folder = deployment_folder(deployments.store, now.number)
    step = OPEN
    shifted = False
    compared: int | None = None
    package = Path(now.package)
    try:
        progress(step)
        now = now.model_copy(update={"model_version": PackageManifest.read(package).model_version})
        version = torchserve_version(now.model_version)
        if rollout is not None:
            version = rollout.version_for(version, now.number)
        built = archive_package(
            package,
            folder,
            name=archive.name,
            embed=False,
            challengers={name: Path(path) for name, path in now.challengers.items()},
            version=version,
        )
        if rollout is not None:
            progress(step := START)
            rollout.start(built)
            progress(step := READY)
            rollout.wait_until_ready()
            progress(step := PARITY)
            compared = rollout.check()
            progress(step := SHIFT)
            shifted = True  # perhaps in part
            rollout.shift()
        progress(step := RECORD)
        now = now.model_copy(update={"since": datetime.now(UTC).replace(microsecond=0)})
        if rollout is not None:
            rollout.adopt(built)
        elif state is not None and state.is_dir():
            keep_routing(state, now.challengers)
        with deployments.recorded(now):
            _promote(built, archive)
    except BaseException as error:
        _undo(rollout, archive, folder, shifted=shifted)
        if isinstance(error, ValueError | OSError | RuntimeError):
            raise DeployError(step, f"{error}; {deployments.current.package} is still served") from error
        raise
    left_over = ""
    if rollout is not None:
        progress("letting the old workers finish")
        try:
            rollout.retire_old()
        except (ValueError, OSError, RuntimeError) as error:
            left_over = str(error)
    if not left_over:
        for other in other_folders(deployments.store, now.number):
            shutil.rmtree(other, ignore_errors=True)
    return Deployed(deployments.current, now, compared, left_over)


def _promote(built: Archive, archive: Archive) -> None:
    """Make it what the next server of the store starts with."""
    with atomic_folder(archive.path, ours=is_archive) as folder:
        shutil.copytree(built.path, folder, dirs_exist_ok=True)


def _undo(rollout: Rollout | None, archive: Archive, folder: Path, *, shifted: bool) -> None:
    """As far as that is possible: the server may be what has failed."""
    steps: list[Callable[[], object]] = [lambda: shutil.rmtree(folder, ignore_errors=True)]
    if rollout is not None:
        steps.insert(0, rollout.withdraw)
        if shifted:
            steps.insert(0, rollout.shift_back)
    for step in steps:
        with contextlib.suppress(ValueError, OSError, RuntimeError):
            step()


@contextmanager
def _locked(archive: Archive) -> Iterator[None]:
    if archive.path.suffix == ".mar":
        raise DeployError(
            OPEN,
            f"{archive.path} holds its package, so nothing can be put in its place while it serves; "
            "`dashclip archive` without --embed makes a folder of it",
        )
    busy = DeployError(OPEN, f"another process deploys to {archive.path.parent}; wait for it, or stop it")
    with file_lock(archive.path.parent / ".deploy.lock", busy=busy):
        yield


def rollout_of(archive: Archive, state: Path | None, *, timeout_s: float) -> tuple[Path, Rollout | None]:
    """The state folder of a store's server, and the rollout of the one that runs there; None if none does.

    Raises:
        DeployError: it runs so that nothing can be deployed.
    """
    from serving.servers.fastapi.rollout import FastApiRollout
    from serving.servers.fastapi.running import fastapi_state, running_fastapi
    from serving.servers.torchserve.management import ManagementError
    from serving.servers.torchserve.rollout import TorchServeRollout
    from serving.servers.torchserve.server import running, state_folder

    place = state or archive.path.parent
    if (other := running_fastapi(place)) is not None:
        if other.archive != archive.name:
            what = other.archive or "a package; start it with the store instead"
            raise DeployError(OPEN, f"the server in {fastapi_state(place)} serves {what}")
        return fastapi_state(place), FastApiRollout(other, fastapi_state(place), archive, timeout_s=timeout_s)
    folder = state_folder(place)
    server = running(folder)
    if server is None:
        return folder, None
    if server.url.rsplit("/", 1)[1] != archive.name:
        raise DeployError(OPEN, f"the server in {folder} serves {server.url}, not {archive.name}")
    try:
        return folder, TorchServeRollout(server, folder, archive, timeout_s=timeout_s)
    except ManagementError as error:
        raise DeployError(OPEN, str(error)) from None
