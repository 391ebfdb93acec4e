"""TorchServe told to end resets every connection, whatever it is answering; so first it is emptied.

The workers are told by a file, DRAINING, in the state folder: probes then say 503, so that balancers leave,
and new requests get 503 with Retry-After at once. Clients that obey are gone a moment later, and what the
workers had begun is answered.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from features.artifacts import atomic_write_bytes
from serving.servers.background import DRAINING, WORKERS_FOLDER

#: How long `dashclip stop` and SIGTERM wait for requests that are under way.
DRAIN_S = 10.0
#: Without a request for so long nobody waits for an answer.
_QUIET_S = 0.5
_LOOK_S = 0.1


def drain(state: Path, pids: Callable[[], Sequence[int]], *, timeout_s: float = DRAIN_S) -> bool:
    """Have the workers refuse new requests, and wait until none is under way.

    Args:
        pids: the workers that live.

    Returns:
        Whether that is so; False if somebody still asks after `timeout_s`.
    """
    atomic_write_bytes(state / DRAINING, b"")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if all(_is_quiet(_said_by(state, pid)) for pid in pids()):
            return True
        time.sleep(_LOOK_S)
    return False


def _is_quiet(said: dict[str, Any]) -> bool:
    """Whether a worker refuses what comes, and nothing came for a while."""
    asked_s_ago = said.get("asked_s_ago")
    return bool(said.get("draining")) and (asked_s_ago is None or asked_s_ago >= _QUIET_S)


def _said_by(state: Path, pid: int) -> dict[str, Any]:
    try:
        return dict(json.loads((state / WORKERS_FOLDER / f"worker-{pid}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
