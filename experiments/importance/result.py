"""What `importance.json` holds: one typed tree, written by the measurement and read by every report.

Importance is positive where a feature is useful, whatever the metric:

- permutation and ablation, metric "auc": AUC as it is minus AUC without the feature's information;
- permutation and ablation, metric "logloss": LogLoss without it minus LogLoss as it is, in nats;
- integrated_gradients, metric "logit": mean absolute attribution of a row, in logits.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from features.artifacts import atomic_write_bytes

Method = Literal["permutation", "ablation", "integrated_gradients"]
Metric = Literal["auc", "logloss", "logit"]

METHOD_TITLES: dict[Method, str] = {
    "permutation": "Permutation",
    "ablation": "Ablation",
    "integrated_gradients": "Integrated gradients",
}
METHODS = tuple(METHOD_TITLES)
#: The metric of each method that its ranking is read from, and by which methods are compared.
RANKED_BY: dict[Method, Metric] = {
    "permutation": "auc",
    "ablation": "auc",
    "integrated_gradients": "logit",
}
#: The slice of every row.
ALL = "all"
#: Where the entries go in the text of the file.
_ENTRIES = "<entries>"


def methods_named(names: str) -> tuple[Method, ...]:
    """The methods in a list separated by commas, in their usual order.

    Raises:
        ValueError: one is unknown, or none is named.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = sorted(set(asked) - set(METHODS))
    if unknown or not asked:
        raise ValueError(f"methods must be among {', '.join(METHODS)}, got {names!r}")
    return tuple(method for method in METHODS if method in asked)


class ImportanceFileError(ValueError):
    """An importance.json that is missing or is none; the message says what to do."""


class Record(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(Record):
    """Mean and sample standard deviation over runs; no sd for a single run."""

    mean: float
    sd: float | None


class FeatureImportance(Record):
    """Importance of one feature or group by one method, metric and slice.

    Attributes:
        members: of a group, the names of its features; of a feature, its columns; given where `slice` is all.
        mean: over runs (and within a run over repeats).
        sd: over runs; over the repeats where there is a single run.
        low, high: 95 % Student-t interval of the mean over the same; None for a single value.
        runs: how many runs the mean is over.
    """

    name: str
    kind: Literal["feature", "group"]
    members: tuple[str, ...]
    method: Method
    metric: Metric
    slice: str
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    runs: int


class MethodAgreement(Record):
    """Rank correlation of two methods over features; `low` to `high` is that of Spearman's."""

    a: Method
    b: Method
    kendall: float
    spearman: float
    low: float | None
    high: float | None
    #: How many of the ten leading features of the one are among the ten of the other.
    top_10_shared: int | None = None


class SeedAgreement(Record):
    """Mean Spearman correlation of the rankings of two seeds, over all pairs of runs."""

    spearman: float
    low: float | None
    high: float | None


class Agreement(Record):
    """Whether methods, and seeds, rank the features alike; `sentence` says it in words."""

    methods: tuple[MethodAgreement, ...] = ()
    seeds: dict[Method, SeedAgreement] = {}
    sentence: str = ""


class CorrelatedPair(Record):
    """Two features that say much the same: AUC lost by permuting each alone, and both together."""

    a: str
    b: str
    correlation: float
    single_a: float
    single_b: float
    joint: float
    sentence: str


class ConvergenceDelta(Record):
    """How far a row's attributions are from adding up to its logit minus the baseline logit, in logits."""

    mean: float
    largest: float
    steps: int


class SelectionSide(Record):
    """A model with all features, or with those that were kept; means over the retrained seeds."""

    features: int
    auc: float
    logloss: float
    parameters: int
    megabytes: float
    #: Median time to score 100 rows that are in memory, in milliseconds, one thread.
    latency_ms: float


class Selection(Record):
    """What retraining without the features below a threshold changed."""

    threshold: float
    #: Days on which importance was measured to choose; never those that AUC is reported on.
    chosen_on: str
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    before: SelectionSide
    after: SelectionSide
    auc_difference: float
    auc_low: float | None
    auc_high: float | None
    seeds: tuple[int, ...]
    sentence: str


class SliceRows(Record):
    """Size of a slice, and the base metrics on it (of a run, or their mean); None where one is undefined."""

    rows: int
    clicks: int
    auc: float | None
    logloss: float | None


class ImportanceReport(Record):
    """Everything in importance.json."""

    metric: Literal["auc"] = "auc"
    command: str
    commit: str | None
    created: str
    simulated: bool
    constructed: bool = False
    data: str
    split: str
    variant: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    repeats: int
    permutation_seed: int
    rows: int
    clicks: int
    base: dict[str, Spread]
    slices: dict[str, SliceRows]
    features: tuple[FeatureImportance, ...]
    #: What a feature is replaced by when it is ablated, in words, by name of the feature.
    baselines: dict[str, str] = {}
    agreement: Agreement = Agreement()
    correlated_pairs: tuple[CorrelatedPair, ...] = ()
    convergence_delta: ConvergenceDelta | None = None
    speedup_to_naive: float | None = None
    #: How `speedup_to_naive` was measured: seconds of both, rows, features, largest difference.
    speedup: dict[str, Any] | None = None
    selection: Selection | None = None
    #: What the reader should know, each a sentence.
    notes: tuple[str, ...] = ()
    environment: dict[str, Any] = {}

    def ranked(
        self,
        *,
        method: Method = "permutation",
        metric: Metric | None = None,
        kind: Literal["feature", "group"] = "feature",
        slice: str = ALL,
    ) -> list[FeatureImportance]:
        """Entries of one method, metric (its usual one if None), kind and slice, the most important first."""
        wanted = (method, metric or RANKED_BY[method], kind, slice)
        chosen = [e for e in self.features if (e.method, e.metric, e.kind, e.slice) == wanted]
        return sorted(chosen, key=lambda entry: (-entry.mean, entry.name))

    def write(self, path: Path) -> None:
        """Replace `path` by this report. Entries of features are a line each: there are thousands."""
        content = self.model_dump(mode="json")
        entries = [json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in content["features"]]
        content["features"] = _ENTRIES
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        lines = "[\n    " + ",\n    ".join(entries) + "\n  ]" if entries else "[]"
        atomic_write_bytes(path, (text.replace(f'"{_ENTRIES}"', lines, 1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "ImportanceReport":
        """The report in `path`.

        Raises:
            ImportanceFileError: there is none, or the file is something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ImportanceFileError(f"{path} does not exist; `dashclip importance` writes it") from None
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"])) or "the file"
            raise ImportanceFileError(
                f"{path}: {key}: {problem['msg']}; write it again with `dashclip importance`"
            ) from None
