"""Skew of what was served: features in a feature log against those computed offline for the same impressions.

Offline means point in time: a feature set of the joined tables is built, its rows become requests that carry
what the impressions saw, and the package reads those. Both sides are then in the package's own units.

Shapes: M compared impressions, N candidates of a request.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from experiments.serving_checks.skew import FeatureSkew
from features.columns.clock import DAY_US
from features.columns.counters import counter_names
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.offline.build import build
from features.online.plan import OWN_FIELDS
from features.online.request import RequestError
from features.progress import Progress, silent
from features.schema import FeatureConfig
from serving.feature_log.join_clicks import feature_names
from serving.feature_log.log_files import DENSE, SPARSE
from serving.package.manifest import SCHEMA
from serving.packaging.logged_requests import LoggedImpressions
from serving.scoring.predictor import Predictor


@dataclass(frozen=True)
class ServedSkew:
    """What was compared, most different first.

    Attributes:
        compared: served impressions of the package's model.
        refused: requests that the package refuses with what their impressions saw.
    """

    compared: int
    refused: int
    features: tuple[FeatureSkew, ...]


def served_skew(
    served: pa.Table,
    tables: Path,
    package: Path,
    *,
    threads: int = 1,
    memory_limit: str = "2GB",
    progress: Progress = silent,
) -> ServedSkew:
    """Compare served rows with features computed of `tables`.

    Args:
        served, tables: as `join_clicks` gives and writes them.
        package: that served them; rows of other models are left out.

    Raises:
        ValueError: no row is of this model, or no feature set can be built of the tables.
    """
    predictor = Predictor.load(package)
    version = predictor.manifest.model_version
    mine = served.filter(pc.equal(served["model_version"], version))
    if not mine.num_rows:
        versions = ", ".join(map(str, served["model_version"].unique().to_pylist()))
        raise ValueError(f"the log has nothing of {version}, the model of {package}, only of {versions}")
    schema = FeatureSet.open(package / SCHEMA, verify=False).manifest
    with tempfile.TemporaryDirectory(prefix="dashclip-skew-") as scratch:
        built = Path(scratch) / "features"
        config = _as_test_days(schema.config, mine)
        build(tables, built, config, threads=threads, memory_limit=memory_limit, progress=progress)
        logged = LoggedImpressions(
            FeatureSet.open(built, verify=False),
            InputTables.open(tables),
            context=predictor.manifest.context,
            prior_ctr=schema.counter_prior_ctr,
            progress=progress,
        )
        place = {one: row for row, one in enumerate(mine["impression_id"].to_pylist())}
        row_M = np.array([place.get(one, -1) for one in logged.rows["impression_id"].to_pylist()])
        return _compare(mine, predictor, logged, row_M, schema.config, progress)


def _compare(
    mine: pa.Table,
    predictor: Predictor,
    logged: LoggedImpressions,
    row_M: np.ndarray,
    config: FeatureConfig,
    progress: Progress,
) -> ServedSkew:
    names = feature_names(mine)
    at = {
        "dense": {name: column for column, name in enumerate(predictor.manifest.dense_columns)},
        "sparse": {name: column for column, name in enumerate(predictor.manifest.sparse_rows)},
    }
    offline: dict[tuple[str, str], list[np.ndarray]] = {one: [] for one in names}
    history: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    refused = 0
    groups = [rows_N for rows_N in logged.groups() if (row_M[rows_N] >= 0).all()]
    for number, rows_N in enumerate(groups, start=1):
        try:
            features = predictor.feature_rows(logged.request(rows_N))
        except RequestError:
            refused += 1
            continue
        rows.append(row_M[rows_N])
        history.append(np.full(len(rows_N), len(features.history)))
        for kind, name in names:
            values_NF = features.dense_NF if kind == "dense" else features.sparse_NS
            offline[kind, name].append(values_NF[:, at[kind][name]])
        progress("comparing", number, len(groups))
    if not rows:
        raise ValueError("no served impression could be compared: see the log's times and the split")
    row_K = np.concatenate(rows)
    given = _names_given(mine["given"])
    found = []
    length_K, own_K = mine["history_length"].to_numpy()[row_K], np.concatenate(history)
    given_K = mine["history_given"].to_numpy()[row_K]
    for live in (False, True):
        chosen = given_K == live
        if chosen.any():
            both = length_K[chosen], own_K[chosen]
            found.append(FeatureSkew.of("purchase history (length)", "history", *both, live=live))
    inputs = _inputs(config)
    for kind, name in names:
        seen_K = mine[(DENSE if kind == "dense" else SPARSE) + name].to_numpy()[row_K]
        made_K = np.concatenate(offline[kind, name])
        live_K = _live(inputs.get(name, name), given, config)[row_K]
        for live in (False, True):
            chosen = live_K == live
            if chosen.any():
                found.append(FeatureSkew.of(name, kind, seen_K[chosen], made_K[chosen], live=live))
    order = sorted(found, key=lambda one: (one.live, -one.differs, one.name))
    return ServedSkew(len(row_K), refused, tuple(order))


def _names_given(texts: pa.ChunkedArray) -> list[frozenset[str]]:
    """What each row's request gave a value of; a log has few such sets, and each is kept once."""
    known: dict[frozenset[str], frozenset[str]] = {}
    found = (frozenset(orjson.loads(text.as_py())) for text in texts)
    return [known.setdefault(names, names) for names in found]


def _live(column: str, given: list[frozenset[str]], config: FeatureConfig) -> np.ndarray:
    """Whether each row's value came with its request, or would have to."""
    of_impressions = {f.column for f in config.features if f.source == "impressions"} - {*OWN_FIELDS}
    if column in of_impressions:
        return np.ones(len(given), bool)
    return np.array([column in one for one in given], bool)


def _inputs(config: FeatureConfig) -> dict[str, str]:
    """The column of a request that each feature reads."""
    inputs = {f.name: f.column for f in config.features}
    inputs |= {f"{f.name}_missing": f.column for f in config.dense}
    if config.counters:
        for key in config.counters.keys:
            for window in config.counters.windows_days:
                inputs |= {name: name for name in counter_names(key, window)}
    return inputs


def _as_test_days(config: FeatureConfig, mine: pa.Table) -> FeatureConfig:
    """All served days are test days, so that all are rows of one split."""
    first, last = (pc.cast(value, pa.int64()).as_py() // DAY_US for value in _ends(mine))
    split = config.split.model_copy(
        update={
            "method": "global",
            "test_days": last - first + 1,
            "validation_days": 1,
            "burn_in_days": 0,
        }
    )
    return config.model_copy(update={"split": split})


def _ends(mine: pa.Table) -> tuple[pa.Scalar, pa.Scalar]:
    ends = pc.min_max(mine["timestamp"])
    return ends["min"], ends["max"]
