"""One generation opened for scoring: requests to features, to table rows, to probabilities.

Shapes: R requests of one call, N candidates in all, F dense and S sparse columns, H purchases of the longest
history, D embedding width.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from features.online.request_features import FeatureRequest, FeatureRows, OnlineFeatures
from features.online.snapshot import Snapshot
from serving.package.generations import SNAPSHOT, VECTORS, GenerationManifest
from serving.package.sealed_folder import PackageError
from serving.package.tables import ServingTable
from serving.package.vectors import ProductVectors, QueryVectors
from serving.scoring.compile import BackendChoice
from serving.scoring.query_encoder import QueryTextEncoder
from serving.scoring.ranker_scorer import Program, RankerScorer, ScoringBatch
from serving.scoring.request_ranker import RankerShape
from serving.wire.request import RequestError, ScoreRequest

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
    """

    program: Program
    shape: RankerShape
    tables: Mapping[str, ServingTable]
    context: tuple[str, ...]
    backend: BackendChoice
    encoder: QueryTextEncoder | None


@dataclass(frozen=True, eq=False)
class Scored:
    """What one request got."""

    scores_N: npt.NDArray[np.float32]
    unknown: Mapping[str, int]
    history_length: int
    dense_NF: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """One request ready for the program."""

    rows: FeatureRows
    query_D: npt.NDArray[np.float32] | None
    product_N: npt.NDArray[np.int64] | None
    history: npt.NDArray[np.int64] | None
    unknown: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)


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
        self._model = model
        self._products = products
        self._queries = queries
        self._scorer = RankerScorer(
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

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored | RequestError]:
        """One result for each request; those that cannot be scored do not hold up the others."""
        if len(requests) > 1:
            self._encode_unseen([request.query for request in requests])
        prepared = [self._try_to_prepare(request) for request in requests]
        whole = [one for one in prepared if isinstance(one, _Prepared)]
        scores = iter(self._run(whole))
        return [
            Scored(next(scores), one.unknown, len(one.rows.history), one.rows.dense_NF)
            if isinstance(one, _Prepared)
            else one
            for one in prepared
        ]

    def feature_rows(self, request: ScoreRequest) -> FeatureRows:
        """What the model reads of a request, before any vector.

        Raises:
            RequestError: a name that no feature reads, a wrong type or length.
        """
        return self.features.rows(
            FeatureRequest(
                user_id=request.user_id,
                query=request.query,
                timestamp_us=time.time_ns() // 1000 if request.timestamp_us is None else request.timestamp_us,
                products=request.candidates,
                context=request.context,
                candidate_columns=request.candidate_columns,
                history=request.history,
            )
        )

    def _try_to_prepare(self, request: ScoreRequest) -> _Prepared | RequestError:
        try:
            return self._prepare(request)
        except RequestError as error:
            return error

    def _prepare(self, request: ScoreRequest) -> _Prepared:
        rows = self.feature_rows(request)
        unknown = dict(rows.unknown)
        history = product_N = query_D = None
        if self._products is not None:
            product_N = self._products.rows(rows.product_N, request.candidates)
            unknown["product_vectors"] = int(np.count_nonzero(product_N == 0))
            history = self._products.row_P[rows.history]
        if self._queries is not None:
            query_D = self._query_vector(request.query)
            unknown["query_vectors"] = int(query_D is None and request.query is not None)
        return _Prepared(rows, query_D, product_N, history, unknown)

    def _encode_unseen(self, queries: Sequence[str | None]) -> None:
        """Encode at once what `_query_vector` will ask for one by one; the encoder remembers it."""
        if self._queries is None or self._model.encoder is None:
            return
        unseen = {query for query in queries if query is not None and self._queries.vector(query) is None}
        if len(unseen) > 1:
            self._model.encoder.embed(sorted(unseen))

    def _query_vector(self, query: str | None) -> npt.NDArray[np.float32] | None:
        assert self._queries is not None
        if query is None:
            return None
        known_D = self._queries.vector(query)
        if known_D is not None or self._model.encoder is None:
            return known_D
        made_D: npt.NDArray[np.float32] = self._model.encoder.embed([query])[0]
        return made_D if made_D.any() else None

    def _run(self, prepared: Sequence[_Prepared]) -> list[npt.NDArray[np.float32]]:
        """Scores of each, in calls of at most CALL_CANDIDATES candidates."""
        scores = [np.empty(len(one), np.float32) for one in prepared]
        call: list[tuple[int, slice]] = []
        room = CALL_CANDIDATES
        for position, one in enumerate(prepared):
            start = 0
            while start < len(one):
                if room == 0:
                    self._call(prepared, call, scores)
                    call, room = [], CALL_CANDIDATES
                end = min(len(one), start + room)
                call.append((position, slice(start, end)))
                room -= end - start
                start = end
        if call:
            self._call(prepared, call, scores)
        return scores

    def _call(
        self,
        prepared: Sequence[_Prepared],
        call: Sequence[tuple[int, slice]],
        scores: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """Score some candidates of some requests; a request cut in two is repeated, which changes nothing."""
        parts = [(prepared[position], part) for position, part in call]
        lengths = [part.stop - part.start for _, part in parts]
        score_N = self._scorer.score(
            ScoringBatch(
                request_dense_RF=np.stack([one.rows.request_dense_F for one, _ in parts]),
                request_sparse_RS=np.stack([one.rows.request_sparse_S for one, _ in parts]),
                candidate_dense_NF=np.concatenate([one.rows.candidate_dense_NF[part] for one, part in parts]),
                candidate_sparse_NS=np.concatenate(
                    [one.rows.candidate_sparse_NS[part] for one, part in parts]
                ),
                request_of_N=np.repeat(np.arange(len(parts)), lengths),
                query_RD=self._queries_of(parts),
                history_RH=_padded([one.history for one, _ in parts if one.history is not None]),
                product_N=_joined([one.product_N[part] for one, part in parts if one.product_N is not None]),
            )
        )
        end = 0
        for (position, part), length in zip(call, lengths, strict=True):
            start, end = end, end + length
            scores[position][part] = score_N[start:end]

    def _queries_of(self, parts: Sequence[tuple[_Prepared, slice]]) -> npt.NDArray[np.float32] | None:
        if self._queries is None:
            return None
        query_RD = np.zeros((len(parts), self._queries.dim), np.float32)
        for request, (one, _) in enumerate(parts):
            if one.query_D is not None:
                query_RD[request] = one.query_D
        return query_RD


def _padded(histories: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64] | None:
    """[R, H], 0 where a history is shorter than the longest one."""
    if not histories:
        return None
    padded_RH = np.zeros((len(histories), max(1, *map(len, histories))), np.int64)
    for request, history in enumerate(histories):
        padded_RH[request, : len(history)] = history
    return padded_RH


def _joined(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64] | None:
    return np.concatenate(parts) if parts else None
