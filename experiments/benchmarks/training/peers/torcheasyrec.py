"""TorchEasyRec from a checkout: a copy with its protocol buffers generated, and the packages they need."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.training.peers.environments import PeerEnvironmentError
from features.artifacts import atomic_write_bytes
from features.progress import Progress, silent

RUNNER = f"{__package__}.torcheasyrec_runner"
_REQUIREMENTS = Path(__file__).with_name("torcheasyrec_requirements.txt")


def torcheasyrec_version(checkout: Path) -> str:
    """The version of a checkout.

    Raises:
        PeerEnvironmentError: the folder is no checkout of TorchEasyRec.
    """
    path = checkout / "tzrec" / "version.py"
    found = re.search(r'__version__ = "([\w.]+)"', path.read_text()) if path.is_file() else None
    if found is None:
        raise PeerEnvironmentError(
            f"{checkout} has no tzrec/version.py with a version, so it is no checkout of TorchEasyRec; clone "
            "https://github.com/alibaba/TorchEasyRec and name that folder"
        )
    return found[1]


def prepared_checkout(checkout: Path, folder: Path, *, progress: Progress = silent) -> list[Path]:
    """Folders that its runner imports from, made under `folder` unless they are there already.

    Raises:
        PeerEnvironmentError: the folder is no checkout, or pip or protoc failed.
    """
    title = f"TorchEasyRec {torcheasyrec_version(checkout)}"
    prepared, source = folder / "torcheasyrec", checkout / "tzrec"
    packages, stamp = prepared / "packages", prepared / "prepared.sha256"
    files = [_REQUIREMENTS, *sorted(path for path in source.rglob("*") if path.suffix in (".py", ".proto"))]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return [prepared, packages]
    shutil.rmtree(prepared, ignore_errors=True)
    try:
        progress(f"{title}: preparing", 0, 1)
        shutil.copytree(source, prepared / "tzrec")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
        _run(title, [*pip, "--requirement", str(_REQUIREMENTS)], folder=prepared)
        protos = sorted(str(path.relative_to(prepared)) for path in prepared.glob("tzrec/protos/**/*.proto"))
        protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *protos, "--python_out=."]
        _run(title, protoc, folder=prepared, packages=packages)
    except BaseException:
        shutil.rmtree(prepared, ignore_errors=True)
        raise
    atomic_write_bytes(stamp, wanted.encode())
    progress(f"{title}: prepared", 1, 1)
    return [prepared, packages]


def _run(title: str, command: list[str], *, folder: Path, packages: Path | None = None) -> None:
    path = {} if packages is None else {"PYTHONPATH": str(packages)}
    finished = subprocess.run(
        command, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        said = finished.stderr.strip().splitlines() or ["nothing"]
        raise PeerEnvironmentError(
            f"{title} could not be prepared; `{' '.join(command[1:4])}` said: {said[-1]} (leave out "
            "--torcheasyrec to measure without it)"
        )
