"""Criteo-shaped rows with a planted click model, for comparing training speed.

13 numbers and 26 Zipf-distributed ids of 10 to 1,000,000 distinct values; the click probability is a logistic
function of all of them and of 16 products of pairs, and about 31 % of the rows are clicked. The same rows are
written twice: as a feature set (Parquet, for our loader) and as `.npz` (for the peers).

Shapes: N rows, F numbers (13), S id features (26).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from experiments.benchmarks.features.feature_logs import draw, zipf
from features.artifacts import atomic_write_json
from features.feature_set import LogSummary, Manifest, SparseColumn, SplitSummary
from features.progress import Progress, silent
from features.schema import DenseFeature, FeatureConfig, SparseFeature

NUM_DENSE = 13
NUM_SPARSE = 26
#: Distinct ids of each feature, from a device type to a user.
VOCABULARY_SIZES = tuple(int(size) for size in np.geomspace(10, 1_000_000, NUM_SPARSE).round())
#: Small vocabularies are more skewed than large ones.
ZIPF_EXPONENTS = tuple(float(exponent) for exponent in np.linspace(1.15, 0.9, NUM_SPARSE))
NUM_INTERACTIONS = 16
CLICKED_SHARE = 0.31
#: Rows 0 (missing) and 1 (out of vocabulary) precede the ids in every embedding table.
FIRST_ID_ROW = 2
DENSE_COLUMNS = tuple(f"number_{position:02d}" for position in range(NUM_DENSE))
SPARSE_COLUMNS = tuple(f"id_{position:02d}" for position in range(NUM_SPARSE))
TABLE_ROWS = tuple(size + FIRST_ID_ROW for size in VOCABULARY_SIZES)


@dataclass(frozen=True)
class CriteoLikeRows:
    """Generated rows; `ids_NS` holds embedding-table rows, frequent ids first."""

    dense_NF: NDArray[np.float32]
    ids_NS: NDArray[np.int32]
    clicked_N: NDArray[np.int8]
    probability_N: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.clicked_N)


def draw_rows(num_rows: int, *, seed: int, progress: Progress = silent) -> CriteoLikeRows:
    """Draw `num_rows` rows of the planted model.

    The expected share of clicked rows is 31 % whatever the seed: the intercept is solved for it.
    """
    if num_rows < 1:
        raise ValueError(f"the number of rows must be positive, but {num_rows} was asked for")
    generator = np.random.default_rng(seed)
    dense_NF = generator.standard_normal((num_rows, NUM_DENSE), dtype=np.float32)
    logit_N = dense_NF.astype(np.float64) @ generator.normal(0.0, 0.25, NUM_DENSE)
    ids_NS = np.empty((num_rows, NUM_SPARSE), dtype=np.int32)
    factor_NS = np.empty((num_rows, NUM_SPARSE), dtype=np.float32)
    for feature, (size, exponent) in enumerate(zip(VOCABULARY_SIZES, ZIPF_EXPONENTS, strict=True)):
        ranks_N = draw(zipf(size, exponent), num_rows, generator)
        ids_NS[:, feature] = ranks_N + FIRST_ID_ROW
        logit_N += generator.normal(0.0, 0.35, size)[ranks_N]
        factor_NS[:, feature] = generator.normal(0.0, 1.0, size)[ranks_N]
        progress("drawing Criteo-like rows", feature + 1, NUM_SPARSE)
    for _ in range(NUM_INTERACTIONS):
        left, right = generator.choice(NUM_SPARSE, 2, replace=False)
        logit_N += 0.25 * factor_NS[:, left] * factor_NS[:, right]
    probability_N = 1.0 / (1.0 + np.exp(-(logit_N + _intercept(logit_N, CLICKED_SHARE))))
    clicked_N = (generator.random(num_rows) < probability_N).astype(np.int8)
    return CriteoLikeRows(dense_NF, ids_NS, clicked_N, probability_N)


@dataclass(frozen=True)
class TrainingParts:
    """Leading rows of the training part under several names: runs of different lengths on the same rows."""

    lengths: dict[str, int]
    #: The rows after this one are the test rows of every run.
    first_test_row: int

    def slices(self, num_rows: int) -> dict[str, slice]:
        """Rows of each part, with "test" last."""
        parts = {name: slice(0, min(length, self.first_test_row)) for name, length in self.lengths.items()}
        return {**parts, "test": slice(self.first_test_row, num_rows)}


def write_peer_arrays(rows: CriteoLikeRows, parts: TrainingParts, folder: Path) -> None:
    """Write `<part>.npz` with one array a column, and `table_rows.json`: what the peers read."""
    for name, part in parts.slices(len(rows)).items():
        columns: dict[str, NDArray[np.generic]] = {"clicked": rows.clicked_N[part].astype(np.float32)}
        columns |= {column: rows.dense_NF[part, i] for i, column in enumerate(DENSE_COLUMNS)}
        columns |= {column: rows.ids_NS[part, i] for i, column in enumerate(SPARSE_COLUMNS)}
        np.savez(folder / f"{name}.npz", **columns)  # type: ignore[arg-type]
    atomic_write_json(folder / "table_rows.json", dict(zip(SPARSE_COLUMNS, TABLE_ROWS, strict=True)))


def write_feature_set(rows: CriteoLikeRows, parts: TrainingParts, folder: Path) -> None:
    """Write the same parts as a feature set without history or counters."""
    splits = {}
    for name, part in parts.slices(len(rows)).items():
        path = folder / f"{name}.parquet"
        pq.write_table(
            _row_table(rows, part), path, row_group_size=65_536, compression="zstd", use_dictionary=False
        )
        clicked = rows.clicked_N[part]
        splits[name] = SplitSummary(
            rows=len(clicked), clicked=int(clicked.sum()), start="", end="", files=(path.name,)
        )
    manifest = Manifest(
        config=FeatureConfig(
            dense=tuple(DenseFeature(name=name, column=name) for name in DENSE_COLUMNS),
            sparse=tuple(SparseFeature(name=name, column=name, oov_rows=1) for name in SPARSE_COLUMNS),
            counters=None,
            history=None,
        ),
        dense_columns=DENSE_COLUMNS,
        sparse_columns=tuple(
            SparseColumn(name=name, rows=table_rows, oov_rows=1)
            for name, table_rows in zip(SPARSE_COLUMNS, TABLE_ROWS, strict=True)
        ),
        num_products=0,
        num_queries=0,
        num_users=0,
        splits=splits,
        transforms={},
        counter_prior_ctr=None,
        oov_share={},
        missing_share={},
        empty_history_share={},
        events=0,
        checksums={},
        data=LogSummary(
            impressions=len(rows),
            purchases=0,
            products=0,
            unused_impressions=0,
            clicks_counted_from="impression_timestamp",
            clicks_without_time=0,
            absences=("products", "purchases", "queries"),
        ),
        created=datetime.now(UTC).isoformat(),
    )
    atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def _row_table(rows: CriteoLikeRows, part: slice) -> pa.Table:
    clicked_N = rows.clicked_N[part]
    nothing_N = np.zeros(len(clicked_N), np.int32)
    columns: dict[str, NDArray[np.generic]] = {
        "impression_id": np.arange(len(clicked_N), dtype=np.int64),
        "clicked": clicked_N,
        "product_index": nothing_N,
        "query_index": nothing_N - 1,
        "user_index": nothing_N,
        "history_start": nothing_N,
        "history_end": nothing_N,
    }
    columns |= {name: rows.dense_NF[part, i] for i, name in enumerate(DENSE_COLUMNS)}
    columns |= {name: rows.ids_NS[part, i] for i, name in enumerate(SPARSE_COLUMNS)}
    return pa.table(columns)


def _intercept(logit_N: NDArray[np.float64], share: float) -> float:
    """The constant that makes the mean of sigmoid(logit + constant) equal `share`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.mean(1.0 / (1.0 + np.exp(-(logit_N + middle)))) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
