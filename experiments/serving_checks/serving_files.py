"""What the serving commands do with packages and stores, without the terminal."""

from pathlib import Path

from features.online.request import ScoreRequest
from serving.package.manifest import PackageManifest
from serving.package.parity import read_requests
from serving.servers.archive import Archive, build_archive
from serving.servers.torchserve import DRIFT_FOLDER, SERVER_FOLDER
from serving.wire.json_codec import encode_request

_EXAMPLE_CANDIDATES = 5


def archive_package(package: Path, store: Path, *, name: str, embed: bool) -> Archive:
    """Add a package to a store, with an example request from its parity record.

    Raises:
        PackageError: not a package.
        ArchiveError: the archive does not answer.
    """
    manifest = PackageManifest.read(package)
    return build_archive(
        package,
        store,
        version=torchserve_version(manifest.model_version),
        example=encode_request(example_request(package)),
        name=name,
        embed=embed,
        settings={"drift_counts": str((store / SERVER_FOLDER / DRIFT_FOLDER).resolve())},
    )


def example_request(package: Path) -> ScoreRequest:
    """A short request that the package knows: one of its recorded ones, without the live features."""
    recorded = read_requests(package)[0]
    return ScoreRequest(
        user_id=recorded.user_id,
        query=recorded.query,
        candidates=recorded.candidates.slice(0, _EXAMPLE_CANDIDATES),
    )


def torchserve_version(model_version: str) -> str:
    """A version that can stand in a URL: other characters than letters, digits, dot, - and _ become -."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in model_version)
