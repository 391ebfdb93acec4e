"""Whether several hosts serve the same: what their /ready says, side by side.

A name of a generation says little between hosts, since each counts its own; fingerprints are of the files.
"""

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0
#: What must be the same everywhere, with the words for it.
COMPARED = {
    "model_version": "model versions",
    "package": "packages",
    "generation": "generations",
    "generation_files": "files of the generation",
}


@dataclass(frozen=True)
class Host:
    """One server, as it describes itself.

    Attributes:
        said: values of each fact; several while a deployment or a refresh is under way.
        why: it is not ready; empty if it is.
    """

    place: str
    said: Mapping[str, tuple[str, ...]]
    why: str = ""
    fallen_back: bool = False

    def age_hours(self, now: datetime) -> float | None:
        """Of the oldest snapshot that it serves."""
        moments = [datetime.fromisoformat(one) for one in self.said.get("as_of", ())]
        moments = [one if one.tzinfo else one.replace(tzinfo=UTC) for one in moments]
        return (now - min(moments)).total_seconds() / 3600 if moments else None


def look(place: str) -> Host:
    """What the server at a URL, or a file with the answer of its /ready, says."""
    try:
        status, text = _asked(place) if "://" in place else (200, Path(place).read_bytes())
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("its answer is no object")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Host(place, {}, f"it cannot be asked ({error})")
    facts = {name: _values(said.get(name)) for name in (*COMPARED, "as_of")}
    why = "" if said.get("ready") else str(said.get("error", f"it says so (status {status})"))
    return Host(place, facts, why, bool(said.get("fallen_back")))


def differences(hosts: Sequence[Host]) -> list[str]:
    """What is wrong with a fleet, one sentence each; nothing if all hosts are ready and serve the same."""
    found = [f"{host.place} is not ready: {host.why}" for host in hosts if host.why]
    found += [f"{host.place} has fallen back to an older generation" for host in hosts if host.fallen_back]
    asked = [host for host in hosts if any(host.said.values())]
    for name, words in COMPARED.items():
        groups: dict[tuple[str, ...], list[str]] = {}
        for host in asked:
            groups.setdefault(host.said.get(name, ()), []).append(host.place)
        if len(groups) > 1:
            sides = "; ".join(f"{_text(value)} at {', '.join(places)}" for value, places in groups.items())
            found.append(f"{words} differ: {sides}")
        elif any(len(value) > 1 for value in groups):
            found.append(f"{words} differ between workers of one host: {_text(next(iter(groups)))}")
    return found


def _asked(place: str) -> tuple[int, bytes]:
    parts = urlsplit(place)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path if parts.path not in ("", "/") else "/ready")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _values(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if one not in (None, "None"))


def _text(value: tuple[str, ...]) -> str:
    return " and ".join(value) or "nothing"
