"""Our permutation importance against Captum's on the same rows, features and permutations.

Captum's is called as its documentation suggests for a metric: `forward_func` returns one number for the whole
set. Captum takes tensors only, so its input is a matrix of row numbers, one column a feature: a column that
moves takes its feature along, in all tensors that it consists of. Every call scores all rows with the model.

Shapes: N rows, F features (one column of row numbers each), B rows of a batch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import FeaturePermutation
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from experiments.importance.methods.perturbation import measure_exchanges, row_permutation
from experiments.importance.model_features import Feature, features_of
from experiments.importance.result import ALL
from experiments.importance.run_parts import layout_of
from experiments.importance.split_rows import Rows, SplitRows, open_split
from features.batches.batch import SEMANTIC_KEYS, one_id_each
from features.batches.pretrained_rows import SemanticRows
from features.progress import Progress, silent
from ranking.metrics import log_loss, roc_auc
from ranking.model import DcnRanker, Ranker
from ranking.run import load_run

_BATCH_ROWS = 8192  # that of the test evaluation
_WARM_UP_FEATURES = 2


def compare_with_captum(
    folder: Path, *, split: str = "test", seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """CPU seconds of both for one permutation of every feature (without groups), and the largest difference.

    Processor time, since other work on the machine does not count in it. Ours is timed before and after the
    peer and averaged, so that a machine that slows down slows both.

    Returns:
        speedup, seconds_ours, seconds_captum, features, rows, largest_difference (in AUC), threads.
    """
    run = load_run(folder)
    layout = layout_of(run)
    features = features_of(run.feature_set.manifest, run.config.ranker)
    with open_split(run.feature_set, split) as rows:
        masks = {ALL: np.ones(len(rows), dtype=bool)}
        permutation = row_permutation(len(rows), seed=seed, repeat=0)

        def ours(count: int) -> tuple[float, list[float]]:
            started = time.process_time()
            measured = measure_exchanges(
                layout, rows, features[:count], permutations=[permutation], masks=masks
            )
            seconds = time.process_time() - started
            return seconds, [measured.values[f.key][ALL]["auc"][0] for f in features[:count]]

        ours(_WARM_UP_FEATURES)
        before, values = ours(len(features))
        started = time.process_time()
        naive_F = captum_permutation(
            run.ranker,
            rows,
            features,
            semantic=run.semantic.rows if run.semantic else None,
            permutation=permutation,
            progress=progress,
        )
        captum_seconds = time.process_time() - started
        after, _ = ours(len(features))
    seconds = (before + after) / 2
    return {
        "speedup": captum_seconds / seconds,
        "seconds_ours": seconds,
        "seconds_captum": captum_seconds,
        "features": len(features),
        "rows": len(permutation),
        "repeats": 1,
        "largest_difference": float(np.abs(np.array(values) - naive_F).max()),
        "threads": torch.get_num_threads(),
    }


def captum_permutation(
    ranker: Ranker,
    rows: SplitRows,
    features: Sequence[Feature],
    *,
    semantic: SemanticRows | None,
    permutation: Rows,
    metric: str = "auc",
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """Importance [F] of features that share no input, for one permutation; positive is useful."""
    scorer = _WholeModel(ranker, rows, features, semantic)
    clicked_N = rows.flags["clicked"]
    calls = 0

    def forward(row_NF: Tensor) -> Tensor:
        nonlocal calls
        logit_N = scorer(row_NF.numpy())
        calls += 1
        progress("Captum's FeaturePermutation", calls, len(features) + 1)
        value = roc_auc(clicked_N, logit_N) if metric == "auc" else -log_loss(clicked_N, logit_N)
        return torch.tensor([value], dtype=torch.float64)

    def permute(row_NF: Tensor, mask_1F: Tensor) -> Tensor:
        return torch.where(mask_1F, row_NF[torch.from_numpy(permutation)], row_NF)

    row_NF = torch.arange(len(rows))[:, None].repeat(1, len(features))
    with torch.no_grad():
        attribution_1F = FeaturePermutation(forward, perm_func=permute).attribute(row_NF)
    return attribution_1F.squeeze(0).numpy().astype(np.float64)


class _WholeModel:
    """Logits [N] of the ranker when each feature comes from the rows in its column."""

    def __init__(
        self, ranker: Ranker, rows: SplitRows, features: Sequence[Feature], semantic: SemanticRows | None
    ) -> None:
        self.ranker = ranker.eval()
        self.rows = rows
        self.semantic = None if isinstance(ranker, DcnRanker) else semantic
        self.entities = [] if isinstance(ranker, DcnRanker) else list(ranker.semantic_tables.keys)
        self.column_of_dense = {i: f for f, feature in enumerate(features) for i in feature.dense}
        self.column_of_sparse = {i: f for f, feature in enumerate(features) for i in feature.sparse}
        self.column_of_entity = {
            self.entities[i]: f for f, feature in enumerate(features) for i in feature.entities
        }
        self.column_of_pair = {i: f for f, feature in enumerate(features) for i in feature.pairs}
        self.cosines_NP: Tensor | None = None

    def __call__(self, row_NF: NDArray[np.int64]) -> NDArray[np.float32]:
        logits, cosines = [], []
        for start in range(0, len(row_NF), _BATCH_ROWS):
            end = min(start + _BATCH_ROWS, len(row_NF))
            logit_B, cosines_BP = self._batch(np.arange(start, end), row_NF[start:end])
            logits.append(logit_B)
            cosines.append(cosines_BP)
        if self.cosines_NP is None:  # Captum's first call is that of the rows as they are
            self.cosines_NP = torch.cat(cosines)
        return np.concatenate(logits)

    def _batch(self, own_B: Rows, row_BF: NDArray[np.int64]) -> tuple[NDArray[np.float32], Tensor]:
        dense_NF, sparse_NS = self.rows.dense_NF, self.rows.sparse_NS

        def source(column_of: dict[int, int], i: int) -> Rows:
            return row_BF[:, column_of[i]] if i in column_of else own_B

        dense = [dense_NF[source(self.column_of_dense, i), i] for i in range(dense_NF.shape[1])]
        sparse = [sparse_NS[source(self.column_of_sparse, i), i] for i in range(sparse_NS.shape[1])]
        dense_BF = np.stack(dense, axis=1) if dense else np.empty((len(own_B), 0), np.float32)
        moved = {i: row_BF[:, f] for i, f in self.column_of_pair.items() if (row_BF[:, f] != own_B).any()}
        with self._cosines(len(own_B), moved) as seen:
            logit_B = self.ranker(
                torch.from_numpy(dense_BF),
                one_id_each(list(self.rows.sparse_names), torch.from_numpy(np.stack(sparse))),
                self._bags(own_B, row_BF),
            )
        return logit_B.numpy(), seen[0]

    def _bags(self, own_B: Rows, row_BF: NDArray[np.int64]) -> KeyedJaggedTensor:
        if self.semantic is None:
            return self.rows.bags(own_B, None)
        source = {
            entity: row_BF[:, self.column_of_entity[entity]] if entity in self.column_of_entity else own_B
            for entity in SEMANTIC_KEYS
        }
        index_N4 = self.rows.index_N4
        return self.semantic.lookup(
            index_N4[source["product"], 0],
            index_N4[source["query"], 1],
            index_N4[source["history"], 2],
            index_N4[source["history"], 3],
        )

    @contextmanager
    def _cosines(self, count: int, moved: dict[int, Rows]) -> Iterator[list[Tensor]]:
        """See the cosines that a tower is given, and give it those of other rows where `moved`."""
        if isinstance(self.ranker, DcnRanker):
            yield [torch.empty(count, 0)]
            return
        pairs = len(self.ranker.similarities.pairs)
        seen: list[Tensor] = []

        def hook(_: nn.Module, __: tuple[list[Tensor]], similarity_BC: Tensor) -> Tensor:
            seen.append(similarity_BC[:, :pairs].clone())
            changed_BC = similarity_BC.clone()
            for i, row_B in moved.items():
                assert self.cosines_NP is not None
                changed_BC[:, i] = self.cosines_NP[torch.from_numpy(row_B), i]
            return changed_BC

        handle = self.ranker.similarities.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()
