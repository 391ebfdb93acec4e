"""What an archive of a model store serves, for FastAPI: the store then names the package, not the command."""

from pathlib import Path

from serving.observers.assembly import open_scorer
from serving.servers.torchserve.archive import Archive
from serving.wire.reply import Scorer


def open_archived(archive: Path, *, state: Path | None, trusted_key: Path | None) -> Scorer:
    """The scorer of the package, and the challengers, that an archive points to; see `open_scorer`."""
    described = Archive(archive, archive.name, "")
    challengers = {name: Path(path) for name, path in described.challengers().items()}
    return open_scorer(Path(described.package), challengers, state=state, trusted_key=trusted_key)
