"""Permutation and ablation: what the exact metric loses when a feature's information is taken away.

A permuted feature takes the values of other rows, an ablated one those of a missing feature. Both run over
all rows in mini-batches; AUC and LogLoss are taken of the whole slice, never averaged over batches.

Permutations are a function of (seed, repeat, cells) alone. Every feature of a repeat is moved by the same
one: features are compared under the same chance, and a joint permutation of two is the permutation of each.

Shapes: N rows, B rows of a batch, F features, A alternatives (permutations, or the missing values).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.importance.methods.shared_forward import TILE_ROWS, SharedForward
from experiments.importance.methods.tower_inputs import InputLayout, TowerInputs
from experiments.importance.model_features import Feature
from experiments.importance.result import Record, SliceRows
from experiments.importance.slices import Mask
from experiments.importance.split_rows import Rows, SplitRows
from features.progress import Progress, silent
from ranking.metrics import UndefinedMetricError, log_loss, roc_auc


def row_permutation(
    rows: int,
    *,
    seed: int,
    repeat: int,
    cells_N: NDArray[np.integer] | None = None,
    name: str = "all",
) -> Rows:
    """Where each row takes its values from: row i those of row `result[i]`.

    Args:
        cells_N: rows change places only with rows of the same cell. A cell of one row keeps its own.
        name: of the partition into cells, so that partitions are permuted independently.
    """
    rng = np.random.default_rng([seed, repeat, zlib.crc32(name.encode())])
    if cells_N is None:
        return rng.permutation(rows)
    result = np.empty(rows, np.int64)
    by_cell = np.argsort(cells_N, kind="stable")
    result[by_cell] = np.lexsort((rng.random(rows), cells_N))
    return result


Logits = NDArray[np.float32]

#: Rows whose embeddings are looked up at once, by default.
BATCH_ROWS = 4 * TILE_ROWS
#: Logits of all features and alternatives that are kept at once; more features take several passes.
_LOGIT_BYTES = 512 * 2**20


#: Of a feature key, slice and metric, one value an alternative.
Values = dict[str, dict[str, dict[str, list[float]]]]


class Measured(Record):
    """Importance, positive where a feature is useful, and what the slices have as they are."""

    base: dict[str, SliceRows]
    values: Values


def slice_metrics(clicked_N: NDArray[np.int8], logit_N: Logits) -> SliceRows:
    """Exact metrics of the rows given."""
    rows, clicks = len(clicked_N), int(clicked_N.sum())
    try:
        auc: float | None = float(roc_auc(clicked_N, logit_N))
    except UndefinedMetricError:
        auc = None
    logloss = log_loss(clicked_N, logit_N) if rows else None
    return SliceRows(rows=rows, clicks=clicks, auc=auc, logloss=logloss)


def measure_exchanges(
    layout: InputLayout,
    rows: SplitRows,
    features: Sequence[Feature],
    *,
    permutations: Sequence[Rows] | None,
    missing_columns: Sequence[int] = (),
    masks: Mapping[str, Mask],
    batch_rows: int = BATCH_ROWS,
    logit_bytes: int = _LOGIT_BYTES,
    progress: Progress = silent,
    stage: str = "permutation",
) -> Measured:
    """Importance of every feature in every slice of `masks`.

    Args:
        permutations: where rows take a feature's values from, one array a repeat; None exchanges them
            once, for what a ranker is given when the feature is missing (`InputLayout.missing`).
        missing_columns: dense columns that are 1 when their feature is missing.
        batch_rows: rows looked up at once, rounded up to whole tiles: it changes memory, never a bit.
        logit_bytes: memory for logits. Embeddings take that of a batch, columns are memory-mapped.
    """
    forward = SharedForward(layout)
    clicked_N = rows.flags["clicked"]
    alternatives = 1 if permutations is None else len(permutations)
    at_once = max(1, logit_bytes // (4 * alternatives * max(1, len(rows))))
    base: dict[str, SliceRows] = {}
    values: Values = {}
    for first in range(0, max(1, len(features)), at_once):
        chunk = features[first : first + at_once]

        def advance(done: int, first: int = first, size: int = len(chunk)) -> None:
            progress(stage, first * len(rows) + done * size, max(1, len(features)) * len(rows))

        base_N, logit_FAN = exchanged_logits(
            forward,
            rows,
            chunk,
            permutations=permutations,
            missing_columns=missing_columns,
            batch_rows=batch_rows,
            advance=advance,
        )
        base = base or {name: slice_metrics(clicked_N[mask], base_N[mask]) for name, mask in masks.items()}
        for feature, logit_AN in zip(chunk, logit_FAN, strict=True):
            values[feature.key] = {
                name: _losses(base[name], clicked_N[mask], logit_AN[:, mask]) for name, mask in masks.items()
            }
    return Measured(base=base, values=values)


def exchanged_logits(
    forward: SharedForward,
    rows: SplitRows,
    features: Sequence[Feature],
    *,
    permutations: Sequence[Rows] | None,
    missing_columns: Sequence[int] = (),
    batch_rows: int = BATCH_ROWS,
    advance: Callable[[int], None] | None = None,
) -> tuple[Logits, NDArray[np.float32]]:
    """Logits [N] as they are, and [F, A, N] with each feature exchanged under each alternative.

    Raises:
        ValueError: a logit of the model as it is, is not finite.
    """
    layout, count = forward.layout, len(rows)
    columns = [layout.columns(feature) for feature in features]
    alternatives = 1 if permutations is None else len(permutations)
    base_N = np.empty(count, np.float32)
    logit_FAN = np.empty((len(features), alternatives, count), np.float32)
    batch_rows = -(-batch_rows // TILE_ROWS) * TILE_ROWS
    for first in range(0, count, batch_rows):
        row_B = np.arange(first, min(first + batch_rows, count))
        inputs = layout.inputs(rows, row_B)
        others: list[TowerInputs]
        if permutations is None:
            others = [layout.missing(len(row_B), missing_columns=missing_columns)]
        else:
            others = [layout.inputs(rows, permutation[row_B]) for permutation in permutations]
        for start in range(0, len(row_B), TILE_ROWS):
            end = min(start + TILE_ROWS, len(row_B))
            state = forward.state(inputs.rows(start, end))
            tile = slice(first + start, first + end)
            base_N[tile] = state.logit_B.numpy()
            if not np.isfinite(base_N[tile]).all():
                raise ValueError(
                    f"the model's logit of row {tile.start + int(np.argmin(np.isfinite(base_N[tile])))} of "
                    "the split is not finite; importance of such a model means nothing: train it again"
                )
            for a, other in enumerate(others):
                other_tile = other.rows(start, end)
                for f, feature_columns in enumerate(columns):
                    logit_FAN[f, a, tile] = forward.exchanged(state, other_tile, feature_columns).numpy()
            if advance:
                advance(tile.stop)
    return base_N, logit_FAN


def _losses(
    base: SliceRows, clicked_N: NDArray[np.int8], logit_AN: NDArray[np.float32]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"auc": [], "logloss": []}
    for logit_N in logit_AN:
        without = slice_metrics(clicked_N, logit_N)
        if base.auc is not None and without.auc is not None:
            found["auc"].append(base.auc - without.auc)
        if base.logloss is not None and without.logloss is not None:
            found["logloss"].append(without.logloss - base.logloss)
    return found
