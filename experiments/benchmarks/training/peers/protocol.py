"""What every runner measures and prints, so that the numbers of all trainers mean the same.

Only NumPy, scikit-learn and the standard library are imported here: this runs in the peers' environments too.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

EMBEDDING_DIM = 16
CROSS_LAYERS = 3
DEEP_WIDTHS = (512, 256, 128)
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Request:
    """What a runner is asked to do.

    `data` holds `<train>.npz`, `test.npz` and `table_rows.json` for the peers, a feature set for ours.
    """

    data: Path
    train: str
    batch_size: int
    step_batches: int
    seed: int
    precision: str
    threads: int


@dataclass(frozen=True)
class Cost:
    """Processor time (user + system, all threads, children included) and wall time of a number of rows."""

    rows: int
    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Outcome:
    """One run of one trainer.

    `loop` is its own training loop over one epoch with its own batching; `step` repeats the training step on
    batches that lie ready as tensors. `auc` is that of the test rows after the epoch. `profile` is ours
    alone: what `step_profile.profile_steps` gives, and what reading an epoch costs.
    """

    loop: Cost
    step: Cost
    auc: float
    parameters: int
    precision: str
    versions: dict[str, str]
    profile: dict[str, Any] | None = None


def read_request() -> Request:
    """Parse the runner's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--step-batches", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return Request(**vars(parser.parse_args()))


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """All columns of an `.npz` file in memory."""
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def read_table_rows(folder: Path) -> dict[str, int]:
    """Embedding-table rows of each id column, in column order."""
    table_rows: dict[str, int] = json.loads((folder / "table_rows.json").read_text(encoding="utf-8"))
    return table_rows


def measure(rows: int, work: Callable[[], object]) -> Cost:
    """Run `work` once and charge its cost to `rows` rows."""
    cpu_s, wall_s = _cpu_seconds(), time.perf_counter()
    work()
    return Cost(rows=rows, cpu_s=_cpu_seconds() - cpu_s, wall_s=time.perf_counter() - wall_s)


def auc_of(clicked_N: NDArray[Any], scores_N: NDArray[Any]) -> float:
    """Exact ROC-AUC; 0.5 when the scores say nothing."""
    return float(roc_auc_score(clicked_N, scores_N))


def report(
    loop: Cost,
    step: Cost,
    auc: float,
    model: Any,
    libraries: Iterable[str],
    *,
    precision: str = "float32",
    profile: dict[str, Any] | None = None,
) -> None:
    """Print the outcome as the last line of standard output, with the versions of `libraries`."""
    outcome = Outcome(
        loop=loop,
        step=step,
        auc=auc,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        precision=precision,
        versions={name: version(name) for name in libraries},
        profile=profile,
    )
    print(json.dumps(asdict(outcome)), flush=True)


def _cpu_seconds() -> float:
    """User and system seconds of this process and of its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
