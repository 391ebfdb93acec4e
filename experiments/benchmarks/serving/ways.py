"""In process: what the embeddings add, what 8 bits save, and what fetching vectors costs instead.

*Model* is the compiled network with its table lookups, from rows to probabilities; *predictor* is a whole
request: ids to rows, counters, purchases, model, order.

Shapes: N candidates, H purchases, D width of the vectors.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from experiments.benchmarks.serving.interleaved import Way, in_turn
from features.online.request import ScoreRequest
from serving.package.manifest import MODEL
from serving.package.tables import ServingTable
from serving.scoring.compile import TOLERANCE
from serving.scoring.predictor import Predictor
from serving.scoring.programs import open_module
from serving.scoring.ranker_scorer import RankerScorer, ScoringBatch, table_inputs


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request as rows, and the ids whose vectors it needs.

    Attributes:
        vector_ids: of the candidates, then of the purchases; None where there is no vector.
    """

    request: ScoreRequest
    batch: ScoringBatch
    vector_ids: list[int | None]


class InProcess:
    """A package opened as servers open it, whose model is also asked alone."""

    def __init__(self, package: Path) -> None:
        self.predictor = Predictor.load(package, tables="resident")
        self.predictor.warm_up()
        self.model, self.live = self.predictor.model, self.predictor.live
        self.products, self.queries = self.live.products, self.live.queries
        self._product_ids = self.products.ids.ids() if self.products else None

    def prepare(self, request: ScoreRequest) -> Prepared:
        """The rows of a request, as the predictor finds them."""
        batch = self.live.batch(request, self.predictor.feature_rows(request))
        if self._product_ids is None:
            return Prepared(request, batch, [])
        assert batch.product_N is not None
        assert batch.history_RH is not None
        rows_K = np.concatenate([batch.product_N, batch.history_RH[0]])
        found = self._product_ids.take(pa.array(np.maximum(rows_K - 1, 0))).to_pylist()
        return Prepared(
            request, batch, [one if row else None for one, row in zip(found, rows_K, strict=True)]
        )

    def query_vector(self, query: str | None) -> NDArray[np.float32] | None:
        """[1, D] from the package's own table."""
        if self.queries is None:
            return None
        found_D = self.queries.vector(query) if query is not None else None
        return np.zeros((1, self.queries.dim), np.float32) if found_D is None else found_D[None]

    def score_model(self, one: Prepared) -> NDArray[np.float32]:
        """The model alone."""
        return self.live.scorer.score(one.batch)

    def score_fused(self, one: Prepared) -> NDArray[np.float32]:
        """The model with the search for the query's vector, which fetching has to do as well."""
        return self.live.scorer.score(replace(one.batch, query_RD=self.query_vector(one.request.query)))

    def score_fetched(
        self, one: Prepared, vectors_KD: NDArray[np.float16], query_D: NDArray[np.float16]
    ) -> NDArray[np.float32]:
        """The same program, given the vectors of this request only: row i + 1 is that of `vector_ids[i]`."""
        rows_K = np.arange(1, len(vectors_KD) + 1)
        count = len(one.batch.request_of_N)
        padded_KD = np.zeros((len(vectors_KD) + 1, vectors_KD.shape[1]), np.float16)
        padded_KD[1:] = vectors_KD
        scorer = RankerScorer(
            self.model.program,
            self.model.shape,
            tables=self.model.tables,
            vectors=ServingTable(torch.from_numpy(padded_KD), None),
        )
        return scorer.score(
            replace(
                one.batch,
                query_RD=query_D[None].astype(np.float32),
                product_N=rows_K[:count],
                history_RH=rows_K[None, count:],
            )
        )

    def table_bytes(self) -> dict[str, int]:
        """Bytes of the pretrained vectors and of the trained tables, as they lie in memory."""
        pretrained = [one.table for one in (self.products, self.queries) if one is not None]
        if self.products is not None and self.products.projections is not None:
            pretrained.append(self.products.projections)
        return {
            "vectors": sum(map(_bytes, pretrained)),
            "trained": sum(map(_bytes, self.model.tables.values())),
        }


def touch_tables(predictor: Predictor) -> list[ServingTable]:
    """Read every page of every table, the most that requests can ever map; held on to, they stay mapped."""
    vectors = (predictor.live.products, predictor.live.queries)
    tables = [*predictor.model.tables.values(), *(one.table for one in vectors if one is not None)]
    for table in tables:
        for tensor in (table.values_MD, table.scales_M2):
            if tensor is not None:
                tensor.numpy().view(np.uint8).reshape(-1)[::1024].sum()
    return tables


class OnnxRuntime:
    """The model of an opened package in ONNX Runtime, on the same tables."""

    def __init__(self, opened: InProcess, scratch: Path) -> None:
        """
        Raises:
            ImportError: onnxruntime or what exports to it is not installed.
        """
        from experiments.benchmarks.serving.onnx_ranker import export_onnx, open_onnx

        module = open_module(opened.predictor.package / MODEL, opened.model.shape)
        bound: dict[str, Any] = {
            "tables": opened.model.tables,
            "vectors": opened.products.table if opened.products else None,
        }
        path = scratch / "ranker.onnx"
        with warnings.catch_warnings():  # deprecations inside of torch
            warnings.simplefilter("ignore")
            # It warns of operators of libraries that are not here.
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            export_onnx(module, table_inputs(module.shape, **bound), path)
        self._model = opened.score_model
        self._tolerance = TOLERANCE[opened.model.backend.arithmetic]
        self._scorer = RankerScorer(open_onnx(path), module.shape, **bound)

    def way(self, prepared: Sequence[Prepared]) -> Way:
        """Scores the rows of requests.

        Raises:
            ValueError: its scores are not the model's.
        """
        difference = np.abs(self._scorer.score(prepared[0].batch) - self._model(prepared[0])).max()
        if not difference < 1e-4 + self._tolerance:
            raise ValueError(f"ONNX Runtime scores differ by {difference:.2g}")
        return in_turn(self._scorer.score, [one.batch for one in prepared])


def _bytes(table: ServingTable) -> int:
    tensors = [table.values_MD] + ([] if table.scales_M2 is None else [table.scales_M2])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
