"""Small rankers with their tables, to be made into programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ranking.model import Ranker, RankerConfig, SemanticConfig
from serving.package.tables import ServingTable
from serving.packaging.from_ranker import product_projections, vectors_of
from serving.scoring.compile import compile_ranker
from serving.scoring.programs import BackendChoice, load_compiled
from serving.scoring.ranker_scorer import RankerScorer, table_inputs
from serving.scoring.request_ranker import RequestRanker
from tests.serving.small_rankers import (
    plain_tables,
    random_requests,
    request_ranker,
    small_ranker,
    written_tables,
)

CONTEXT = ("user", "query", "hour")
CONFIG = RankerConfig(embedding_dim=4, cross_layers=2, deep_widths=(8,), semantic=SemanticConfig(widths=(8,)))


@dataclass
class Packaged:
    ranker: Ranker
    module: RequestRanker
    tables: dict[str, ServingTable]
    vectors: ServingTable | None
    folder: Path
    projections: ServingTable | None = None

    @property
    def bound(self) -> dict[str, Any]:
        return {"tables": self.tables, "vectors": self.vectors, "projections": self.projections}

    @property
    def examples(self) -> list[torch.Tensor]:
        return table_inputs(self.module.shape, **self.bound)

    def compile(self, backend: str = "auto", precision: str = "float32") -> BackendChoice:
        return compile_ranker(self.module, self.examples, self.folder, backend=backend, precision=precision)

    def scorer(self) -> RankerScorer:
        compiled = load_compiled(self.folder)
        return RankerScorer(compiled.program, compiled.shape, **self.bound)

    def worst_difference(self, sizes: list[tuple[list[int], int]]) -> float:
        """Between the loaded program's probabilities and the module's."""
        mine = RankerScorer(lambda inputs: self.module(*inputs), self.module.shape, **self.bound)
        scorer, worst = self.scorer(), 0.0
        for seed, (candidates, purchases) in enumerate(sizes):
            requests = random_requests(candidates, purchases=purchases, request_columns=CONTEXT, seed=seed)
            batch = requests.scoring_batch(self.module.shape, self.ranker)
            worst = max(worst, float(np.abs(scorer.score(batch) - mine.score(batch)).max()))
        return worst


SIZES = [([1], 0), ([1], 1), ([2], 1), ([1, 1], 0), ([3, 1, 4], 3), ([60], 20)]


def packaged(
    folder: Path, config: RankerConfig = CONFIG, *, quantised: bool = False, projected: bool = False
) -> Packaged:
    ranker = small_ranker(config)
    module = request_ranker(ranker, CONTEXT, quantised=quantised, projected=projected)
    if config.semantic is None:
        return Packaged(ranker, module, *plain_tables(ranker), folder / "model")
    dtype = "int8" if quantised else "float16"
    projections = None
    if projected:
        rows = product_projections(module, vectors_of(ranker)["product"])
        projections = ServingTable(torch.from_numpy(rows), None)
    tables, vectors = written_tables(ranker, folder, vectors_dtype=dtype)
    return Packaged(ranker, module, tables, vectors, folder / "model", projections)
