"""Rankers of every kind, and the same requests for torchrec and for the request ranker.

Shapes: R requests, N candidates in all, H purchases of the longest history, D width of the vectors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.batches.batch import bags, one_id_each
from ranking.embedding_collection import PooledEmbeddings, TableSpec, trainable_collection
from ranking.model import DcnRanker, Ranker, RankerConfig, RankerInputs, SemanticConfig, build_ranker
from ranking.towers import DcnTower
from serving.package.tables import ServingTable, TableDtype, open_table, write_table
from serving.packaging.from_ranker import request_ranker_of, tables_of, vectors_of
from serving.scoring.ranker_scorer import ScoringBatch
from serving.scoring.request_ranker import RankerShape, RequestRanker

DENSE = ("price", "hour", "ctr")
SPARSE_ROWS = {"user": 30, "brand": 7, "query": 12}
COLUMNS = (*DENSE, *SPARSE_ROWS)
DIM = 8
VECTOR_ROWS = 21


@st.composite
def configs(draw: st.DrawFn) -> RankerConfig:
    """Any ranker that a run can have, small."""
    widths = st.lists(st.sampled_from([4, 6]), max_size=2).map(tuple)
    entities = st.permutations(["product", "query", "history"]).flatmap(
        lambda names: st.integers(1, 3).map(lambda count: tuple(names[:count]))
    )
    tiered = st.sampled_from([("product", "history"), ("query", "history"), ("query", "product", "history")])
    histories = st.tuples(entities, st.just(0)) | st.tuples(tiered, st.sampled_from([2, 7]))
    # shuffled: the order of entities decides where a cosine lies
    similarities = st.builds(
        lambda names, initialisation: SemanticConfig(
            entities=names, initialisation=initialisation, reads="similarity"
        ),
        names=entities.filter(lambda names: len(names) > 1),
        initialisation=st.sampled_from(["pretrained", "random"]),
    )
    semantic = similarities | st.builds(
        lambda history, **rest: SemanticConfig(entities=history[0], history_tiers=history[1], **rest),
        history=histories,
        initialisation=st.sampled_from(["pretrained", "random"]),
        cross_layers=st.integers(0, 2),
        widths=st.lists(st.sampled_from([4, 6]), min_size=1, max_size=2).map(tuple),
    )
    return RankerConfig(
        embedding_dim=4,
        cross_layers=draw(st.integers(1, 3)),
        cross_rank=draw(st.sampled_from([None, 1, 3])),
        deep_widths=draw(widths),
        top_widths=draw(widths),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        semantic=draw(st.none() | semantic),
    )


def small_ranker(config: RankerConfig, *, seed: int = 0) -> Ranker:
    """An untrained ranker with no weight at zero, so that a mistake shows."""
    rng = np.random.default_rng(seed)
    vectors = {"product": rng.normal(size=(VECTOR_ROWS, DIM)), "query": rng.normal(size=(11, DIM))}
    for table in vectors.values():
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        table[0] = 0
    inputs = RankerInputs(len(DENSE), SPARSE_ROWS, {k: v.astype(np.float32) for k, v in vectors.items()})
    return with_random_weights(build_ranker(config, inputs, seed=seed), seed=seed)


def mixed_width_ranker(*, seed: int = 0) -> Ranker:
    """A baseline whose tables have different widths, which configs do not offer."""
    widths = {"user": 12, "brand": 4, "query": 8}
    tables = trainable_collection(
        [TableSpec(name, rows, widths[name], (name,)) for name, rows in SPARSE_ROWS.items()],
        learning_rate=0.1,
        init_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )
    tower = DcnTower(
        dense_features=len(DENSE),
        embedding_widths=[widths[name] for name in SPARSE_ROWS],
        cross_layers=2,
        cross_rank=None,
        deep_widths=(6,),
        dropout=0.0,
    )
    ranker = DcnRanker(
        sparse_tables=PooledEmbeddings(tables, list(SPARSE_ROWS)),
        dcn_tower=tower,
        head=torch.nn.Sequential(torch.nn.Linear(tower.width, 1)),
    )
    return with_random_weights(ranker, seed=seed)


def with_random_weights(ranker: Ranker, *, seed: int) -> Ranker:
    """Towers and trained tables drawn anew, frozen tables as they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ranker.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return ranker.eval()


def request_ranker(ranker: Ranker, request_columns: tuple[str, ...], **changes: bool) -> RequestRanker:
    return request_ranker_of(
        ranker,
        dense_columns=DENSE,
        sparse_columns=tuple(SPARSE_ROWS),
        request_columns=request_columns,
        **changes,
    )


@dataclass(frozen=True)
class Requests:
    """R requests as numbers of each column; a column of the request is equal for all its candidates."""

    request_of_N: NDArray[np.int64]
    dense_NF: NDArray[np.float32]
    sparse_NS: NDArray[np.int32]
    query_R: NDArray[np.int64]
    history_RH: NDArray[np.int64]
    product_N: NDArray[np.int64]

    def scoring_batch(self, shape: RankerShape, ranker: Ranker) -> ScoringBatch:
        """As the request ranker takes them."""
        first_R = np.searchsorted(self.request_of_N, np.arange(len(self.query_R)))
        vectors = vectors_of(ranker)
        return ScoringBatch(
            request_dense_RF=_columns(self.dense_NF[first_R], DENSE, shape.request_dense),
            request_sparse_RS=_columns(self.sparse_NS[first_R], tuple(SPARSE_ROWS), shape.request_sparse),
            candidate_dense_NF=_columns(self.dense_NF, DENSE, shape.candidate_dense),
            candidate_sparse_NS=_columns(self.sparse_NS, tuple(SPARSE_ROWS), shape.candidate_sparse),
            request_of_N=self.request_of_N,
            query_RD=vectors["query"][self.query_R] if "query" in vectors else None,
            history_RH=self.history_RH,
            product_N=self.product_N,
        )

    def offline_logits(self, ranker: Ranker) -> NDArray[np.float32]:
        """As training and evaluation compute them, one impression a candidate."""
        query_N, history_NH = self.query_R[self.request_of_N], self.history_RH[self.request_of_N]
        semantic = [self.product_N[:, None], query_N[:, None], history_NH]
        with torch.no_grad():
            logit_N = ranker(
                torch.from_numpy(self.dense_NF),
                one_id_each(list(SPARSE_ROWS), torch.from_numpy(self.sparse_NS.T.copy())),
                bags(
                    ["product", "query", "history"],
                    [torch.from_numpy(rows[rows != 0]) for rows in semantic],
                    [torch.from_numpy((rows != 0).sum(axis=1).astype(np.int32)) for rows in semantic],
                ),
            )
        return logit_N.numpy()


def random_requests(
    candidates: list[int], *, purchases: int, request_columns: tuple[str, ...] = (), seed: int = 0
) -> Requests:
    """Requests with so many candidates each; ids, products, queries and purchases may be missing (row 0)."""
    rng = np.random.default_rng(seed)
    request_of_N = np.repeat(np.arange(len(candidates)), candidates)
    first_R = np.searchsorted(request_of_N, np.arange(len(candidates)))
    dense_NF = rng.normal(size=(len(request_of_N), len(DENSE))).astype(np.float32)
    sparse_NS = rng.integers(0, list(SPARSE_ROWS.values()), size=(len(request_of_N), 3)).astype(np.int32)
    for values, names in ((dense_NF, DENSE), (sparse_NS, tuple(SPARSE_ROWS))):
        for position, name in enumerate(names):
            if name in request_columns:
                values[:, position] = values[first_R, position][request_of_N]
    rows = rng.integers(0, VECTOR_ROWS, size=(len(candidates), purchases))
    return Requests(
        request_of_N=request_of_N,
        dense_NF=dense_NF,
        sparse_NS=sparse_NS,
        query_R=rng.integers(0, 11, size=len(candidates)),
        history_RH=rows * (rng.random(rows.shape) < 0.7),
        product_N=rng.integers(0, VECTOR_ROWS, size=len(request_of_N))
        * (rng.random(len(request_of_N)) < 0.8),
    )


def plain_tables(ranker: Ranker) -> tuple[dict[str, ServingTable], ServingTable | None]:
    """The ranker's tables and product vectors in float32, not from files."""
    vectors = vectors_of(ranker).get("product")
    tables = {name: ServingTable(torch.from_numpy(t), None) for name, t in tables_of(ranker).items()}
    return tables, None if vectors is None else ServingTable(torch.from_numpy(vectors), None)


def written_tables(
    ranker: Ranker, folder: Path, *, vectors_dtype: TableDtype
) -> tuple[dict[str, ServingTable], ServingTable]:
    """The same through float16 files."""
    for name, table in tables_of(ranker).items():
        write_table(folder / f"{name}.npy", table, dtype="float16")
    write_table(folder / "vectors" / "product.npy", vectors_of(ranker)["product"], dtype=vectors_dtype)
    tables = {name: open_table(folder / f"{name}.npy") for name in SPARSE_ROWS}
    return tables, open_table(folder / "vectors" / "product.npy")


def _columns(values_XC: NDArray[np.generic], names: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray:
    return np.ascontiguousarray(values_XC[:, [names.index(name) for name in wanted]])
