"""A virtual environment for each peer, made on first use and kept: none of them touches ours."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from features.artifacts import atomic_write_bytes
from features.progress import Progress, silent

#: All trainers run on the same torch; pip's configuration decides which build comes, as it did for ours.
TORCH_REQUIREMENT = "torch==2.13.0"


class PeerEnvironmentError(ValueError):
    """A peer could not be installed; the message ends with what pip said."""


@dataclass(frozen=True)
class Peer:
    """A trainer of others that is measured beside ours."""

    name: str
    title: str
    module: str
    #: Whether it needs an environment of its own; what is installed here already runs by our interpreter.
    isolated: bool = True

    @property
    def requirements(self) -> Path:
        """Its pinned requirements."""
        return Path(__file__).parent / f"{self.module}_requirements.txt"

    @property
    def runner(self) -> str:
        """The module that its interpreter runs."""
        return f"experiments.benchmarks.training.peers.{self.module}_runner"


PEERS = (
    Peer(name="fuxictr", title="FuxiCTR 2.3.10", module="fuxictr"),
    Peer(name="deepctr-torch", title="DeepCTR-Torch 0.3.0", module="deepctr_torch"),
    Peer(
        name="torchrec-dlrm-dcn",
        title="torchrec 1.8.0, DLRM_DCN",
        module="torchrec_dlrm_dcn",
        isolated=False,
    ),
)


def ensure_environment(peer: Peer, folder: Path, *, progress: Progress = silent) -> Path:
    """The interpreter of `peer`'s environment under `folder`, installed now unless it is there already.

    That of a peer that is not isolated is ours. A changed requirements file makes the environment anew.

    Raises:
        PeerEnvironmentError: pip failed.
    """
    if not peer.isolated:
        return Path(sys.executable)
    environment = folder / peer.name
    stamp = environment / "installed.sha256"
    wanted = hashlib.sha256(peer.requirements.read_bytes() + TORCH_REQUIREMENT.encode()).hexdigest()
    python = environment / "bin" / "python"
    if stamp.is_file() and stamp.read_text().strip() == wanted:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        ("making its environment", [sys.executable, "-m", "venv", "--clear", str(environment)]),
        ("installing torch", [*pip, TORCH_REQUIREMENT]),
        ("installing it", [*pip, TORCH_REQUIREMENT, "--requirement", str(peer.requirements)]),
    )
    try:
        for done, (what, command) in enumerate(steps):
            progress(f"{peer.title}: {what}", done, len(steps))
            _run(peer, command)
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    atomic_write_bytes(stamp, wanted.encode())
    progress(f"{peer.title}: installed", len(steps), len(steps))
    return python


def _run(peer: Peer, command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        said = finished.stderr.strip().splitlines() or ["nothing"]
        raise PeerEnvironmentError(
            f"{peer.title} could not be installed from {peer.requirements.name}; pip said: {said[-1]} "
            "(`dashclip bench training --no-peers` measures ours alone)"
        )
