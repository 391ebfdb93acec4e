"""One trained run, measured part by part: each method, each partition into slices, each joint permutation.

Finished parts lie on disk, found again by what they depend on: a stopped measurement goes on where it was,
and one with another seed measures only that seed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.importance.methods.attribution import STEPS, integrated_gradients
from experiments.importance.methods.perturbation import (
    BATCH_ROWS,
    Measured,
    Values,
    measure_exchanges,
    row_permutation,
)
from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.model_features import Feature
from experiments.importance.result import ALL, METHODS, Method, SliceRows
from experiments.importance.slices import Mask, Partition
from experiments.importance.split_rows import Rows, SplitRows
from features.artifacts import atomic_write_json
from features.feature_set import FeatureSet
from features.progress import Progress
from ranking.run import Run, RunConfig, load_run

#: Raised when parts of older versions would mean something else.
_FORMAT = 1


class Parts:
    """Results in a folder, one JSON file each, named by the hash of their key."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result of `key`, or that of `compute`, which is stored.

        A file that is damaged or of another key is computed again.
        """
        key = {"format": _FORMAT, **key}
        if self.folder is None:
            return compute()
        text = json.dumps(key, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == json.loads(text):
                content: dict[str, Any] = stored["content"]
                return content
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        content = compute()
        atomic_write_json(path, {"key": key, "content": content})
        return content


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured.

    Attributes:
        repeats: permutations of each run.
        permutation_seed: from which they are drawn.
        split: whose rows are evaluated.
        slices: also within slices and aisles.
        slice_repeats: permutations there; fewer do, since a slice is shown beside its interval over seeds.
        pairs: so many correlated pairs are permuted together.
    """

    repeats: int = 5
    permutation_seed: int = 0
    split: str = "test"
    methods: tuple[Method, ...] = METHODS
    slices: bool = True
    slice_repeats: int = 2
    pairs: int = 10
    batch_rows: int = BATCH_ROWS

    def __post_init__(self) -> None:
        if min(self.repeats, self.slice_repeats) < 1:
            raise ValueError(
                f"repeats must be at least 1, got {self.repeats} and {self.slice_repeats} in slices"
            )
        if not self.methods:
            raise ValueError(f"methods must name at least one of {', '.join(METHODS)}")


@dataclass
class RunResult:
    """What was found for one run: base metrics by slice, and importance by method."""

    base: dict[str, SliceRows] = field(default_factory=dict)
    values: dict[Method, Values] = field(default_factory=dict)
    delta_mean: float | None = None
    delta_largest: float | None = None


@dataclass
class RunMeasurement:
    """A run and the rows it is measured on; the model is read only when a part is not there yet."""

    folder: Path
    config: RunConfig
    feature_set: FeatureSet
    rows: SplitRows
    options: MeasureOptions
    partitions: Sequence[Partition]
    parts: Parts
    tell: Progress

    def __post_init__(self) -> None:
        self.title = f"seed {self.config.seed}"
        self._layout: InputLayout | None = None
        self.key = {
            "weights": hashlib.sha256((self.folder / "best" / "checksums.json").read_bytes()).hexdigest(),
            "inputs": hashlib.sha256((self.folder / "inputs.json").read_bytes()).hexdigest(),
            "ranker": self.config.ranker.model_dump(mode="json"),
            "split": self.options.split,
            "rows": len(self.rows),
        }

    def layout(self) -> InputLayout:
        """The opened run, ready to score."""
        if self._layout is None:
            self._layout = layout_of(load_run(self.folder))
        return self._layout

    def measure(self, features: Sequence[Feature]) -> RunResult:
        """Everything that the options ask for."""
        result = RunResult()
        masks = {
            name: partition.mask(name, len(self.rows))
            for partition in self.partitions
            for name in partition.slices
        }
        if "permutation" in self.options.methods:
            for partition in self.partitions:
                self._merge(result, "permutation", self._permuted(partition, features))
        if "ablation" in self.options.methods:
            self._merge(result, "ablation", self._ablated(masks, features))
        if "integrated_gradients" in self.options.methods:
            content = self._attributed(masks, features)
            result.values["integrated_gradients"] = content["values"]
            result.delta_mean, result.delta_largest = content["delta_mean"], content["delta_largest"]
            if not result.base:
                result.base = self._ablated(masks, []).base
        self._layout = None  # one model in memory at a time
        return result

    def joint(self, groups: Sequence[Feature]) -> RunResult:
        """Importance of groups by permutation over all rows."""
        found = self._permuted(self.partitions[0], groups, stage="correlated pairs")
        self._layout = None
        return RunResult(found.base, {"permutation": found.values})

    def baseline_words(self, features: Sequence[Feature]) -> dict[str, str]:
        """What ablation puts in the place of each feature."""
        dense_columns = self.feature_set.manifest.dense_columns
        missing = {dense_columns[i] for i in missing_columns(self.feature_set)}
        return {feature.name: _baseline_words(feature, missing) for feature in features}

    def _part(
        self,
        method: Method,
        features: Sequence[Feature],
        compute: Callable[[], dict[str, Any]],
        **key: Any,
    ) -> dict[str, Any]:
        """The stored part of a method, or what `compute` returns; `key` has what it depends on besides."""
        names = [feature.key for feature in features]
        return self.parts.get({**self.key, "method": method, **key, "features": names}, compute)

    def _exchanged(
        self,
        features: Sequence[Feature],
        masks: Mapping[str, Mask],
        permutations: Sequence[Rows] | None,
        stage: str,
    ) -> dict[str, Any]:
        return measure_exchanges(
            self.layout(),
            self.rows,
            features,
            permutations=permutations,
            missing_columns=missing_columns(self.feature_set),
            masks=masks,
            batch_rows=self.options.batch_rows,
            progress=self.tell,
            stage=f"{self.title}: {stage}",
        ).model_dump()

    def _permuted(
        self, partition: Partition, features: Sequence[Feature], *, stage: str = "permutation"
    ) -> Measured:
        options, name, count = self.options, partition.name, len(self.rows)
        repeats = options.repeats if name == ALL else options.slice_repeats
        seed = options.permutation_seed

        def compute() -> dict[str, Any]:
            permutations = [
                row_permutation(count, seed=seed, repeat=repeat, cells_N=partition.cells_N, name=name)
                for repeat in range(repeats)
            ]
            masks = {slice: partition.mask(slice, count) for slice in partition.slices}
            where = "" if name == ALL else f" within {name}"
            return self._exchanged(features, masks, permutations, f"{stage}{where}")

        key = {"partition": name, "slices": partition.slices, "repeats": repeats, "seed": seed}
        return Measured.model_validate(self._part("permutation", features, compute, **key))

    def _ablated(self, masks: dict[str, Mask], features: Sequence[Feature]) -> Measured:
        def compute() -> dict[str, Any]:
            return self._exchanged(features, masks, None, "ablation")

        return Measured.model_validate(self._part("ablation", features, compute, slices=sorted(masks)))

    def _attributed(self, masks: dict[str, Mask], features: Sequence[Feature]) -> dict[str, Any]:
        def progress(_: str, done: int, total: int) -> None:
            self.tell(f"{self.title}: integrated gradients", done, total)

        def compute() -> dict[str, Any]:
            found = integrated_gradients(
                self.layout(),
                self.rows,
                features,
                missing_columns=missing_columns(self.feature_set),
                masks=masks,
                progress=progress,
            )
            values = {
                feature: {name: {"logit": [value]} for name, value in by_slice.items()}
                for feature, by_slice in found.values.items()
            }
            return {**asdict(found), "values": values}

        return self._part("integrated_gradients", features, compute, steps=STEPS, slices=sorted(masks))

    @staticmethod
    def _merge(result: RunResult, method: Method, measured: Measured) -> None:
        result.base |= measured.base
        values = result.values.setdefault(method, {})
        for feature, by_slice in measured.values.items():
            values.setdefault(feature, {}).update(by_slice)


def layout_of(run: Run) -> InputLayout:
    """Where the features of an opened run lie; its ranker is set to evaluate."""
    run.ranker.eval()
    return InputLayout(
        run.ranker,
        dense_features=len(run.feature_set.manifest.dense_columns),
        semantic=run.semantic.rows if run.semantic else None,
    )


def missing_columns(feature_set: FeatureSet) -> list[int]:
    """Positions of the dense columns that say that a feature is missing."""
    manifest = feature_set.manifest
    names = {
        f"{feature.name}_missing"
        for feature in manifest.config.dense
        if feature.name in manifest.transforms and manifest.transforms[feature.name].missing_column
    }
    return [i for i, name in enumerate(manifest.dense_columns) if name in names]


def _baseline_words(feature: Feature, missing: set[str]) -> str:
    if feature.entities:
        return "no vector: zeros, indicator 0, cosines 0"
    if feature.pairs:
        return "cosine 0"
    if feature.sparse:
        return "row 0 of its table, the missing id"
    if missing & set(feature.members):
        return "training mean, marked as missing"
    return "training mean"
