"""Live counts on disk: one file for each window and worker, a bounded number of them.

    STATE/drift/2026-11-30.<worker>.safetensors        a day, UTC
                2026-11-30T07.<worker>.safetensors     an hour

Counts of all workers add up. Files hold counts only: no ids, no queries.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from features.artifacts import atomic_write_bytes
from serving.drift.tally import Tally
from serving.package.training_record import TrainingRecord

#: Of the live counts, within a server's folder.
DRIFT_FOLDER = "drift"
Kind = Literal["hour", "day"]
KINDS: tuple[Kind, ...] = ("hour", "day")
#: Windows of each kind that stay.
KEPT: dict[Kind, int] = {"hour": 48, "day": 35}
#: Workers that die and are replaced leave a file each: beyond so many the oldest windows go first.
MOST_FILES = 2_000
_SUFFIX = ".safetensors"
_FORMATS: dict[Kind, str] = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d"}
_LENGTHS: dict[Kind, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
#: After its end a window still changes: workers write their counts from time to time.
_GRACE = timedelta(minutes=2)
_ARRAYS = {"requests": "requests_G", "candidates": "candidates_G", "counts": "counts_GB", "sums": "sums_C"}


def window_at(kind: Kind, time_s: float) -> str:
    """The name of the window that a moment lies in: 2026-11-30T07, 2026-11-30."""
    return datetime.fromtimestamp(time_s, UTC).strftime(_FORMATS[kind])


def kind_of(window: str) -> Kind:
    """Hour or day."""
    return "hour" if "T" in window else "day"


def is_over(window: str, time_s: float) -> bool:
    """Whether a window has ended, and all workers have had time to write what they counted in it."""
    kind = kind_of(window)
    start = datetime.strptime(window, _FORMATS[kind]).replace(tzinfo=UTC)
    return datetime.fromtimestamp(time_s, UTC) >= start + _LENGTHS[kind] + _GRACE


def record_digest(record: TrainingRecord) -> str:
    """Counts in other bins cannot be added or compared; this tells."""
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:16]


def write_counts(folder: Path, window: str, worker: str, tally: Tally, *, about: dict[str, str]) -> None:
    """Replace the file of one window and worker."""
    arrays = {name: getattr(tally, attribute) for name, attribute in _ARRAYS.items()}
    atomic_write_bytes(folder / f"{window}.{worker}{_SUFFIX}", save(arrays, metadata=about))


def remove_old(folder: Path) -> None:
    """Keep the newest windows of each kind, and not too many files."""
    paths = _files(folder)
    kept = []
    for kind in KINDS:
        windows = sorted({window_of(path) for path in paths if kind_of(window_of(path)) == kind})
        kept += windows[-KEPT[kind] :]
    stay = [path for path in paths if window_of(path) in kept]
    stay.sort(key=lambda path: (kind_of(window_of(path)) == "day", window_of(path)))
    stay = stay[-MOST_FILES:]
    for path in set(paths) - set(stay):
        path.unlink(missing_ok=True)


def begin_counts(folder: Path) -> None:
    """Make the folder of a server that starts; what it holds stays: a day is longer than a run may be.

    But for `worker-*.json`, which counted candidates since the start of a worker: nothing could use them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("worker-*.json"):
        path.unlink(missing_ok=True)


@dataclass
class Counted:
    """What a folder of counts holds.

    Attributes:
        windows: by name, of all workers together.
        of_others: files of other models, or of the same with another training record.
        of_earlier_version: files that counted candidates only.
    """

    windows: dict[str, Tally] = field(default_factory=dict)
    of_others: int = 0
    of_earlier_version: int = 0


def read_counts(
    folder: Path, record: TrainingRecord, *, model_version: str, windows: Iterable[str] | None = None
) -> Counted:
    """The sum over all workers of one model: of `windows`, of all if None.

    Raises:
        ValueError: a file is damaged.
    """
    wanted = None if windows is None else set(windows)
    about = about_counts(record, model_version)
    counted = Counted(of_earlier_version=len(list(folder.glob("worker-*.json"))))
    for path in _files(folder):
        window = window_of(path)
        if wanted is not None and window not in wanted:
            continue
        try:
            with safe_open(path, framework="numpy") as opened:
                if opened.metadata() != about:
                    counted.of_others += 1
                    continue
                arrays = {name: opened.get_tensor(name) for name in _ARRAYS}
            tally = Tally(record.columns)
            for name, attribute in _ARRAYS.items():
                if arrays[name].shape != getattr(tally, attribute).shape:
                    raise ValueError(f"{name} is {arrays[name].shape}")
                setattr(tally, attribute, arrays[name])
        except FileNotFoundError:
            continue  # its time was up
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is not a file of live counts ({error}); delete it") from None
        if window in counted.windows:
            counted.windows[window].merge(tally)
        else:
            counted.windows[window] = tally
    return counted


def windows_on_disk(folder: Path) -> list[str]:
    """Names of the windows that have files, days first, each kind in order of time."""
    found = {window_of(path) for path in _files(folder)}
    return sorted(found, key=lambda window: (kind_of(window) == "hour", window))


def about_counts(record: TrainingRecord, model_version: str) -> dict[str, str]:
    """What a file says of itself; only equal ones add up."""
    return {"format": "1", "model_version": model_version, "record": record_digest(record)}


def window_of(path: Path) -> str:
    """The window of a file."""
    return path.name.split(".", 1)[0]


def _files(folder: Path) -> list[Path]:
    """Files of counts, also of windows whose names nobody here gives: those are left alone."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        window = window_of(path)
        try:
            datetime.strptime(window, _FORMATS[kind_of(window)])
        except ValueError:
            continue
        found.append(path)
    return found
