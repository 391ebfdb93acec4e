"""Do requests still look like the impressions that the model was trained on?

A package carries a `TrainingRecord`: how scores and dense features were distributed over logged impressions,
in bins of equal mass. A server counts what it sees in the same bins (`LiveCounts`), and `drift_of` compares
the two by the population stability index

    PSI = sum over bins of (live - trained) ln(live / trained)

which is 0 for equal distributions; by custom, below 0.1 nothing happened and above 0.25 something did.

Shapes: N candidates, F dense columns, E interior edges of E + 1 bins.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.artifacts import atomic_write_json
from serving.package.manifest import PackageManifest
from serving.package.training_record import Distribution, TrainingRecord, count_bins

#: Of the live counts, within a server's folder.
DRIFT_FOLDER = "drift"
#: PSI from which a distribution is said to have moved, and from which to look at it.
MOVED = 0.25
LOOK = 0.1
#: Candidates below which a comparison would mostly show chance.
ENOUGH_CANDIDATES = 1_000
# An empty bin would make PSI infinite; this share is what one count in ten thousand gives.
_LEAST_SHARE = 1e-4


class LiveCounts:
    """What one worker served, in the bins of a `TrainingRecord`. Counts only: no ids, no queries.

    Features are counted on one request in `every`; scores on all.
    """

    def __init__(self, record: TrainingRecord, dense_columns: Sequence[str], *, every: int = 20) -> None:
        if list(record.features) != list(dense_columns):
            raise ValueError(
                f"the training record has the features {list(record.features)}, "
                f"the model reads {list(dense_columns)}; build the package again"
            )
        self._every = every
        self._requests = 0
        self._score_edges = np.array(record.scores.edges)
        self._feature_edges = [np.array(record.features[name].edges) for name in dense_columns]
        self._scores = np.zeros(len(self._score_edges) + 1, np.int64)
        self._features = {name: np.zeros(len(d.shares), np.int64) for name, d in record.features.items()}

    @classmethod
    def of_package(cls, manifest: PackageManifest) -> Self:
        """Empty counts for what a package records of its training."""
        return cls(manifest.training_record, manifest.dense_columns)

    def count(self, scores_N: np.ndarray, dense_NF: np.ndarray | None) -> None:
        """Add one request."""
        self._scores += count_bins(scores_N, self._score_edges)
        if dense_NF is not None and self._requests % self._every == 0:
            for column, (name, edges) in enumerate(zip(self._features, self._feature_edges, strict=True)):
                self._features[name] += count_bins(dense_NF[:, column], edges)
        self._requests += 1

    def as_json(self) -> dict[str, Any]:
        """{"requests", "scores": [counts], "features": {name: [counts]}}."""
        return {
            "requests": self._requests,
            "scores": self._scores.tolist(),
            "features": {name: counts.tolist() for name, counts in self._features.items()},
        }

    def write(self, folder: Path, *, model_version: str) -> None:
        """Replace this process's file `worker-<process id>.json` in `folder`."""
        content = {"model_version": model_version, **self.as_json()}
        atomic_write_json(folder / f"worker-{os.getpid()}.json", content)


@dataclass(frozen=True)
class Drift:
    """One distribution compared: `psi` is None where too little was seen."""

    name: str
    seen: int
    psi: float | None

    @property
    def verdict(self) -> str:
        """In words: "same", "look at it", "moved" or "too little seen"."""
        if self.psi is None:
            return "too little seen"
        return "moved" if self.psi >= MOVED else "look at it" if self.psi >= LOOK else "same"


def read_counts(folder: Path, *, model_version: str) -> dict[str, Any]:
    """The sum over all workers of one model version, in the form of `LiveCounts.as_json`; zero without files.

    Raises:
        ValueError: a file is damaged.
    """
    total: dict[str, Any] = {"requests": 0, "scores": [], "features": {}}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["model_version"] != model_version:
                continue
            total["requests"] += content["requests"]
            total["scores"] = _added(total["scores"], content["scores"])
            for name, counts in content["features"].items():
                total["features"][name] = _added(total["features"].get(name, []), counts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a file of live counts ({error}); delete it") from None
    return total


def _added(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left or [0] * len(right), right, strict=True)]


def drift_of(record: TrainingRecord, counts: dict[str, Any]) -> list[Drift]:
    """Scores first, then the features, most moved first; features without counts are left to the end."""
    features = [
        _compared(name, trained, counts["features"].get(name, []))
        for name, trained in record.features.items()
    ]
    features.sort(key=lambda drift: -1.0 if drift.psi is None else drift.psi, reverse=True)
    return [_compared("score", record.scores, counts["scores"]), *features]


def _compared(name: str, trained: Distribution, counts: Iterable[int]) -> Drift:
    counts = np.array(list(counts), np.int64)
    seen = int(counts.sum())
    if seen < ENOUGH_CANDIDATES:
        return Drift(name, seen, None)
    return Drift(name, seen, population_stability(np.array(trained.shares), counts / seen))


def population_stability(trained_E: np.ndarray, live_E: np.ndarray) -> float:
    """PSI of two lists of shares: [.5, .5] against [.25, .75] gives .25 ln 3 = 0.2747.

    Raises:
        ValueError: the lists have different lengths.
    """
    if trained_E.shape != live_E.shape:
        raise ValueError(
            f"{len(live_E)} live bins against {len(trained_E)} of training; another model's counts?"
        )
    trained_E = np.maximum(trained_E, _LEAST_SHARE)
    live_E = np.maximum(live_E, _LEAST_SHARE)
    return float(np.sum((live_E - trained_E) * np.log(live_E / trained_E)))
