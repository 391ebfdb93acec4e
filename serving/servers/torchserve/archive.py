"""A package in a TorchServe model store: as a folder that points to it, or as one .mar file that holds it.

    STORE/<name>/     (or STORE/<name>.mar)
      dashclip_handler.py     copy of `serving/servers/torchserve/handler.py`
      model-config.yaml       where the package is
      example.json            a request that it answers
      MAR-INF/MANIFEST.json   what TorchServe reads first
      package/                the package itself, in a .mar only

The folder is the default: workers map the package's files where they lie, and `dashclip refresh` reaches
them. A .mar is one file to ship; it is unpacked at each start, and a new generation needs a new archive.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from model_archiver.model_archiver_config import ModelArchiverConfig  # type: ignore[import-untyped]
from model_archiver.model_packaging_utils import ModelExportUtils  # type: ignore[import-untyped]

from features.artifacts import atomic_folder
from features.online.request import ScoreRequest
from serving.package.manifest import PackageManifest
from serving.package.parity import read_requests
from serving.scoring.routed_scorer import check_name
from serving.wire.json_codec import encode_request

HANDLER = Path(__file__).with_name("handler.py")
HANDLER_NAME = "dashclip_handler.py"
SETTINGS_NAME = "model-config.yaml"
EXAMPLE_NAME = "example.json"
PACKAGE_NAME = "package"
DEFAULT_NAME = "dashclip"
#: After which a worker that does not answer is replaced.
RESPONSE_TIMEOUT_S = 10
#: How long TorchServe replaces a worker that dies again and again (300 s by default, then never again). It
#: keeps milliseconds in 32 bits: this is the most, 24 days.
RETRY_TIMEOUT_S = 2_147_483
#: Shown of a failed check: the end of a traceback.
_SHOWN_LINES = 12
_EXAMPLE_CANDIDATES = 5


class ArchiveError(ValueError):
    """An archive that could not be built, or does not answer."""


@dataclass(frozen=True)
class Archive:
    """An entry of a model store."""

    path: Path
    name: str
    version: str

    @property
    def package(self) -> str:
        """Where its package lies; relative to the archive if it is inside."""
        return str(self._settings()["package"])

    def challengers(self) -> Mapping[str, str]:
        """Names and packages of those that get a share of the users."""
        return dict(self._settings().get("challengers", {}))

    def example(self) -> bytes:
        """The body of a request that it answers with 200."""
        return read_member(self.path, EXAMPLE_NAME)

    def _settings(self) -> Mapping[str, Any]:
        return dict(yaml.safe_load(read_member(self.path, SETTINGS_NAME))["dashclip"])


def build_archive(
    package: Path,
    store: Path,
    *,
    version: str,
    example: bytes,
    name: str = DEFAULT_NAME,
    embed: bool = False,
    embedded_manifest: PackageManifest | None = None,
    handler: Path = HANDLER,
    settings: Mapping[str, Any] | None = None,
) -> Archive:
    """Add a package to a model store; it appears there only after it answered a request in a fresh process.

    Args:
        example: body of a request that has to be answered with 200.
        embed: build a .mar with the package inside.
        embedded_manifest: of that package, instead of its own.
        handler: file with the one handler class.
        settings: more for the handler, under the key `dashclip` of model-config.yaml.

    Raises:
        ArchiveError: the name cannot be part of a URL, or the fresh process failed (in its own words).
        FileExistsError: something else has the name in the store.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name[0].isalnum():
        raise ArchiveError(f"{name!r} cannot name a model; use letters, digits, - and _")
    store.mkdir(parents=True, exist_ok=True)
    inside = {"package": PACKAGE_NAME if embed else str(package.resolve()), **(settings or {})}
    if not embed:
        with atomic_folder(store / name, ours=is_archive) as folder:
            _fill(folder, name, version=version, example=example, handler=handler, settings=inside)
            check_archive(folder, name=name, example=example)
        (store / f"{name}.mar").unlink(missing_ok=True)
        return Archive(store / name, name, version)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=store) as stage:
        folder = Path(stage) / name
        folder.mkdir()
        manifest = _fill(folder, name, version=version, example=example, handler=handler, settings=inside)
        shutil.rmtree(folder / "MAR-INF")  # the archiver writes it
        shutil.copytree(package, folder / PACKAGE_NAME)
        if embedded_manifest is not None:
            embedded_manifest.write(folder / PACKAGE_NAME)
        ModelExportUtils.archive(stage, name, str(folder), manifest, "zip-store")
        shutil.rmtree(folder)
        check_archive(Path(stage) / f"{name}.mar", name=name, example=example)
        (Path(stage) / f"{name}.mar").replace(store / f"{name}.mar")
    if is_archive(store / name):  # the other form of the same model would make the name ambiguous
        shutil.rmtree(store / name)
    return Archive(store / f"{name}.mar", name, version)


def archive_package(
    package: Path,
    store: Path,
    *,
    name: str,
    embed: bool,
    challengers: Mapping[str, Path] | None = None,
    version: str | None = None,
) -> Archive:
    """Add a package to a store, with an example request from its parity record.

    `version` is TorchServe's name of it; that of the model by default.

    Args:
        challengers: packages that may get a share of the users, by name.

    Raises:
        PackageError: not a package.
        ValueError: a challenger's name cannot be one, or challengers are to be embedded.
        ArchiveError: the archive does not answer.
    """
    manifest = PackageManifest.read(package)
    for challenger, path in (challengers or {}).items():
        check_name(challenger)
        PackageManifest.read(path)
    if embed and challengers:
        raise ValueError("a .mar holds one package; archive challengers without --embed")
    settings = {"challengers": {name: str(path.resolve()) for name, path in (challengers or {}).items()}}
    return build_archive(
        package,
        store,
        version=version or torchserve_version(manifest.model_version),
        example=encode_request(example_request(package)),
        name=name,
        embed=embed,
        # Where it was made from is nothing that travels with it: `refresh` does not reach into a .mar.
        embedded_manifest=manifest.model_copy(update={"sources": {}}),
        settings=settings if challengers else None,
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


def find_archive(store: Path, name: str | None = None) -> Archive:
    """The archive of this name, or the only one there is.

    Raises:
        ArchiveError: there is none, or several and no name.
    """
    if not store.is_dir():
        raise ArchiveError(f"{store} is not a folder; give a model store, which `dashclip archive` makes")
    entries = [path for path in sorted(store.glob("*")) if is_archive(path) or path.suffix == ".mar"]
    entries = [path for path in entries if not path.name.startswith(".") and name in (None, path.stem)]
    if not entries:
        named = f" {name!r}" if name else ""
        advice = f"build one with `dashclip archive PACKAGE {store}`"
        raise ArchiveError(f"{store} holds no archive{named}; {advice}")
    if len(entries) > 1:
        names = ", ".join(path.name for path in entries)
        raise ArchiveError(f"{store} holds several archives ({names}); name one with --name")
    return Archive(entries[0], entries[0].stem, _version_of(entries[0]))


def check_archive(archive: Path, *, name: str, example: bytes) -> None:
    """Load an archive in a fresh interpreter by TorchServe's own loader, and have it answer once.

    Raises:
        ArchiveError: it did not answer with 200; the error ends as the traceback does.
    """
    command = [sys.executable, "-m", "serving.servers.torchserve.archive_check", str(archive.resolve()), name]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, input=example, capture_output=True, cwd=elsewhere, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        raise ArchiveError("the archive does not answer in a fresh process:\n" + "\n".join(lines))


def _fill(
    folder: Path, name: str, *, version: str, example: bytes, handler: Path, settings: Mapping[str, Any]
) -> str:
    """Write everything but the package; returns the text of TorchServe's manifest."""
    shutil.copyfile(handler, folder / HANDLER_NAME)
    (folder / EXAMPLE_NAME).write_bytes(example)
    # TorchServe takes the timeout from here alone: in config.properties it has no effect.
    config = {
        "deviceType": "cpu",
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "maxRetryTimeoutInSec": RETRY_TIMEOUT_S,
        "dashclip": dict(settings),
    }
    (folder / SETTINGS_NAME).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    manifest = str(
        ModelExportUtils.generate_manifest_json(
            ModelArchiverConfig(
                model_name=name, version=version, handler=HANDLER_NAME, config_file=SETTINGS_NAME
            )
        )
    )
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(manifest, encoding="utf-8")
    return manifest


def is_archive(path: Path) -> bool:
    """Whether a folder is an archive."""
    return (path / "MAR-INF" / "MANIFEST.json").is_file()


def _version_of(path: Path) -> str:
    return str(json.loads(read_member(path, "MAR-INF/MANIFEST.json"))["model"]["modelVersion"])


def read_member(path: Path, member: str) -> bytes:
    """A file of an archive, whether that is a folder or a .mar."""
    if path.is_dir():
        return (path / member).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)
