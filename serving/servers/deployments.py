"""What a store has served, and when: the packages that were put in place of each other.

STORE/NAME/               the archive that a server starts with: the package that is deployed now
STORE/deployments.json    who it was before, with times; a rollback goes back along it
STORE/.deployments/N/     archive of deployment N, for as long as the running server may start workers of it
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from features.artifacts import StrictModel, atomic_write_bytes, atomic_write_json
from serving.servers.torchserve.archive import Archive

HISTORY = "deployments.json"
#: Hidden, so that it is no archive of the store.
_FOLDER = ".deployments"


class DeployError(ValueError):
    """A deployment that did not come about: the step at which it ended, and why. The old one serves."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")
        self.step = step
        self.why = why


class Deployment(StrictModel):
    """One package in one store.

    Attributes:
        number: counts the deployments of a store, from 1.
        name: of the archive, part of the URL.
        challengers: packages that may get a share of the users.
        since: when it began to serve, or the archive was made.
        replaced: number of the one that it took the place of; where a rollback goes.
    """

    number: int
    name: str
    package: str
    model_version: str
    challengers: Mapping[str, str]
    since: datetime
    how: Literal["archive", "deploy", "rollback"]
    replaced: int | None


class _History(StrictModel):
    format: Literal[1] = 1
    deployments: tuple[Deployment, ...] = ()


@dataclass(frozen=True)
class Deployments:
    """The deployments of one archive, oldest first; the last one serves."""

    store: Path
    name: str
    known: tuple[Deployment, ...]

    @classmethod
    def of(cls, archive: Archive) -> "Deployments":
        """Those of an archive; what `dashclip archive` put there unrecorded is added as the last one.

        Raises:
            ValueError: the history cannot be read.
        """
        store = archive.path.parent
        everything = _read(store)
        known = tuple(one for one in everything if one.name == archive.name)
        challengers = archive.challengers()
        if not known or (known[-1].package, known[-1].challengers) != (archive.package, challengers):
            stamp = archive.path.stat().st_mtime
            made = Deployment(
                number=len(everything) + 1,
                name=archive.name,
                package=archive.package,
                model_version=archive.version,
                challengers=challengers,
                since=datetime.fromtimestamp(stamp, UTC).replace(microsecond=0),
                how="archive",
                replaced=known[-1].number if known else None,
            )
            known = (*known, made)
        return cls(store, archive.name, known)

    @property
    def current(self) -> Deployment:
        """What is deployed now."""
        return self.known[-1]

    def before(self) -> Deployment:
        """What the current one took the place of.

        Raises:
            ValueError: nothing.
        """
        for one in self.known:
            if one.number == self.current.replaced:
                return one
        raise ValueError(
            f"{self.current.package} is the first package of {self.store / self.name}; there is none to go "
            "back to"
        )

    def next(
        self,
        package: Path | str,
        model_version: str,
        challengers: Mapping[str, str],
        *,
        back_to: Deployment | None = None,
    ) -> Deployment:
        """The deployment that would take the place of the current one."""
        others = [one.number for one in _read(self.store)]
        return Deployment(
            number=max([*others, self.current.number]) + 1,
            name=self.name,
            package=str(package),
            model_version=model_version,
            challengers=dict(challengers),
            since=datetime.now(UTC).replace(microsecond=0),
            how="deploy" if back_to is None else "rollback",
            replaced=self.current.number if back_to is None else back_to.replaced,
        )

    @contextmanager
    def recorded(self, deployment: Deployment) -> Iterator[None]:
        """Write down that `deployment` serves, unless the block, which makes it so, fails."""
        path = self.store / HISTORY
        before = path.read_bytes() if path.exists() else None
        self._record(deployment)
        try:
            yield
        except BaseException:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                atomic_write_bytes(path, before)
            raise

    def _record(self, deployment: Deployment) -> None:
        known = (*self.known, deployment)
        others = tuple(one for one in _read(self.store) if one.name != self.name)
        content = _History(deployments=tuple(sorted((*others, *known), key=lambda one: one.number)))
        atomic_write_json(self.store / HISTORY, content.model_dump(mode="json"))


def deployment_folder(store: Path, number: int) -> Path:
    """A store of its own, which holds the archive of one deployment."""
    return store / _FOLDER / f"{number:06d}"


def other_folders(store: Path, number: int) -> list[Path]:
    """Those of all other deployments."""
    folders = (store / _FOLDER).glob("*")
    return [path for path in folders if path != deployment_folder(store, number)]


def _read(store: Path) -> tuple[Deployment, ...]:
    path = store / HISTORY
    try:
        return _History.model_validate_json(path.read_bytes()).deployments
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise ValueError(
            f"{path} is no history of deployments ({error.error_count()} faults); delete it to begin anew: "
            "the archive that is deployed stays"
        ) from None
