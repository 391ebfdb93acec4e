"""One generation opened for scoring: requests to features, to table rows, to probabilities.

Shapes: R requests of one call, N candidates in all, F dense and S sparse columns, H purchases of the longest
history, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from features.online.request import RequestError, ScoreRequest
from features.online.request_features import FeatureRows, OnlineFeatures
from features.online.snapshot import Snapshot
from serving.package.generations import SNAPSHOT, VECTORS, GenerationManifest
from serving.package.sealed_folder import PackageError
from serving.package.tables import ServingTable
from serving.package.vectors import ProductVectors, QueryVectors
from serving.scoring.programs import BackendChoice
from serving.scoring.query_encoder import QueryTextEncoder
from serving.scoring.ranker_scorer import Program, RankerScorer, ScoringBatch
from serving.scoring.request_ranker import RankerShape
from serving.wire.reply import ScoreReply, best_first

#: Candidates in one call of the program: its activations then stay in the cache of a core.
CALL_CANDIDATES = 2048


@dataclass(frozen=True, eq=False)
class Model:
    """What all generations share.

    Attributes:
        program: the dense part, compiled or not.
        tables: the trained table of each sparse column.
        backend: what the program is, and why.
        context: impression columns that a request gives once, for all of its candidates.
        version: as replies name the model.
    """

    program: Program
    shape: RankerShape
    tables: Mapping[str, ServingTable]
    context: tuple[str, ...]
    version: str
    backend: BackendChoice
    encoder: QueryTextEncoder | None


class LiveGeneration:
    """Scores requests with one generation. Reads only, so threads may share it."""

    def __init__(
        self,
        model: Model,
        manifest: GenerationManifest,
        features: OnlineFeatures,
        *,
        products: ProductVectors | None,
        queries: QueryVectors | None,
    ) -> None:
        self.manifest = manifest
        self.features = features
        #: Largest difference of the recorded requests' probabilities; None if they were not compared.
        self.parity_difference: float | None = None
        #: Of its files; empty while it is being written.
        self.fingerprint = ""
        self._model = model
        self.products = products
        self.queries = queries
        self.scorer = RankerScorer(
            model.program,
            model.shape,
            tables=model.tables,
            vectors=products.table if products else None,
            projections=products.projections if products else None,
        )

    @classmethod
    def open(cls, folder: Path, model: Model, manifest: GenerationManifest) -> Self:
        """Map the files of a generation, which have been checked.

        Raises:
            PackageError: its vectors are not those that the model reads.
        """
        shape = model.shape
        wanted = ({"product"} if shape.reads_products else set()) | ({"query"} & set(shape.entities))
        if set(manifest.vectors) != wanted:
            raise PackageError(
                f"{folder} holds vectors of {sorted(manifest.vectors) or 'nothing'}, the model reads "
                f"{sorted(wanted) or 'none'}; write the generation again with `dashclip refresh`"
            )
        products = ProductVectors.open(folder / VECTORS / "product") if "product" in wanted else None
        features = OnlineFeatures(
            Snapshot.open(folder / SNAPSHOT, verify=False),
            context_columns=model.context,
            product_has_vector=products.row_P[:-1] != 0 if products else None,
        )
        return cls(
            model,
            manifest,
            features,
            products=products,
            queries=QueryVectors.open(folder / VECTORS / "query") if "query" in wanted else None,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """One reply or refusal for each request: a bad one does not hold up the others."""
        if len(requests) > 1:
            self._encode_unseen([request.query for request in requests])
        prepared = [self._try_to_prepare(request) for request in requests]
        scores = iter(self._run([one[1] for one in prepared if not isinstance(one, RequestError)]))
        return [
            one if isinstance(one, RequestError) else self._reply(one[0], next(scores)) for one in prepared
        ]

    def _reply(self, rows: FeatureRows, scores_N: npt.NDArray[np.float32]) -> ScoreReply:
        return ScoreReply(
            scores_N=scores_N,
            order_N=best_first(scores_N),
            model_version=self._model.version,
            generation=self.manifest.name,
            as_of=self.manifest.as_of,
            unknown=rows.unknown,
            history_length=len(rows.history),
            rows=rows,
        )

    def _try_to_prepare(self, request: ScoreRequest) -> tuple[FeatureRows, ScoringBatch] | RequestError:
        try:
            rows = self.features.rows(request)
        except RequestError as error:
            return error
        return rows, self.batch(request, rows)

    def batch(self, request: ScoreRequest, rows: FeatureRows) -> ScoringBatch:
        """One request ready for the program; counts in `rows.unknown` what has no vector."""
        history_RH = product_N = query_RD = None
        if self.products is not None:
            product_N = self.products.rows(rows.product_N, request.candidates)
            rows.unknown["product_vectors"] = int(np.count_nonzero(product_N == 0))
            history_RH = self.products.row_P[rows.history][None]
        if self.queries is not None:
            query_D = self._query_vector(request.query)
            rows.unknown["query_vectors"] = int(query_D is None and request.query is not None)
            query_RD = np.zeros((1, self.queries.dim), np.float32) if query_D is None else query_D[None]
        return ScoringBatch(
            request_dense_RF=rows.request_dense_F[None],
            request_sparse_RS=rows.request_sparse_S[None],
            candidate_dense_NF=rows.candidate_dense_NF,
            candidate_sparse_NS=rows.candidate_sparse_NS,
            request_of_N=np.zeros(len(rows), np.int64),
            query_RD=query_RD,
            history_RH=history_RH,
            product_N=product_N,
        )

    def _encode_unseen(self, queries: Sequence[str | None]) -> None:
        """Encode at once what `_query_vector` will ask for one by one; the encoder remembers it."""
        if self.queries is None or self._model.encoder is None:
            return
        unseen = {query for query in queries if query is not None and self.queries.vector(query) is None}
        if len(unseen) > 1:
            self._model.encoder.embed(sorted(unseen))

    def _query_vector(self, query: str | None) -> npt.NDArray[np.float32] | None:
        assert self.queries is not None
        if query is None:
            return None
        known_D = self.queries.vector(query)
        if known_D is not None or self._model.encoder is None:
            return known_D
        made_D: npt.NDArray[np.float32] = self._model.encoder.embed([query])[0]
        return made_D if made_D.any() else None

    def _run(self, batches: Sequence[ScoringBatch]) -> list[npt.NDArray[np.float32]]:
        """Scores of each, in calls of at most CALL_CANDIDATES candidates.

        A request cut in two is repeated, which changes nothing.
        """
        if not batches:
            return []
        whole = ScoringBatch.joined(batches)
        if len(batches) == 1 and len(whole.request_of_N) <= CALL_CANDIDATES:
            return [self.scorer.score(whole)]
        starts = range(0, len(whole.request_of_N), CALL_CANDIDATES)
        score_N = np.concatenate(
            [self.scorer.score(whole.cut(start, start + CALL_CANDIDATES)) for start in starts]
        )
        return np.split(score_N, np.cumsum([len(batch.request_of_N) for batch in batches])[:-1])
