"""How logs of a server end: what to show of one that does not start."""

import json
from pathlib import Path

_WORKER_END = "Backend worker process died"
_SHOWN_LINES = 12


def tail_of(path: Path) -> str:
    """How a log ends."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return "\n".join(lines[-_SHOWN_LINES:]) or "it said nothing"


def worker_ends(log: Path) -> str:
    """What the workers' log says of a worker that ended; empty if none did."""
    if not log.is_file():
        return ""
    messages = [json.loads(line)["message"] for line in log.read_text(encoding="utf-8").splitlines()]
    if not any(_WORKER_END in message for message in messages):
        return ""
    return "The worker's log ends:\n" + "\n".join(messages[-_SHOWN_LINES:])
