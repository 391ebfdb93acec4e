"""Vectors made of the simulated truth: the ceiling of what any embedding of products and queries can give.

Type, brand, variety and flags are one-hot columns, those of a query what it asks for. A random projection
takes them to D dimensions (Johnson and Lindenstrauss), so that a ranker gets what it would of an encoder that
knows every fact. Only evaluation may read the truth; a real data set has no such row.

Shapes: N products or queries, C facts, D embedding width.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings.embedding_table import EmbeddingTable
from embeddings.tables.lsa import holds_only_lsa_tables, write_both_tables
from experiments.marketplace.judgements import MarketplaceTruth
from experiments.marketplace.world.assortment import FLAGS, load_assortment
from features.artifacts import refuse_foreign_folder, refuse_to_replace_input

FloatArray = npt.NDArray[np.float32]

#: A type counts most: with it wrong, a product is irrelevant whatever its brand.
_TYPE, _BRAND, _VARIETY, _FLAG = 1.0, 0.8, 0.8, 0.4


def embed_truth(
    data: Path, folder: Path, *, dim: int = 128, seed: int = 0
) -> tuple[EmbeddingTable, EmbeddingTable | None]:
    """Write `folder`/products and `folder`/queries from `data`/truth; it appears complete or not at all.

    Raises:
        ValueError: `data` is not a simulated marketplace, or `folder` would replace it.
        FileExistsError: `folder` holds something else.
    """
    truth = MarketplaceTruth.find(data)
    if truth is None:
        raise ValueError(
            f"{data} has no truth/queries.parquet: only a simulated marketplace (`dashclip generate` without "
            "--catalogue) knows the true facts"
        )
    refuse_to_replace_input(folder, data)
    refuse_foreign_folder(folder, ours=holds_only_lsa_tables)
    products_PD, queries_QD = truth_vectors(truth, dim=dim, seed=seed)
    return write_both_tables(
        folder,
        (truth.products, products_PD),
        (truth.queries, queries_QD),
        encoder_id=f"simulated-truth-{dim}-seed{seed}",
    )


def truth_vectors(truth: MarketplaceTruth, *, dim: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Unit vectors of products and of queries in one space."""
    types = [kind.name for kind in load_assortment().types]
    place = {name: code for code, name in enumerate(types)}
    brands = 1 + max(int(truth.brand_P.max()), int(truth.brand_Q.max()), 0)
    varieties = 1 + max(int(truth.variety_P.max()), int(truth.variety_Q.max()), 0)

    def facts(
        types_N: list[list[int]],
        brand_N: npt.NDArray[np.integer],
        variety_N: npt.NDArray[np.integer],
        flags_N: npt.NDArray[np.integer],
    ) -> FloatArray:
        type_NT = np.zeros((len(brand_N), len(types)), np.float32)
        for row, found in enumerate(types_N):
            type_NT[row, found] = _TYPE / np.sqrt(len(found))
        flag_NF = (np.asarray(flags_N)[:, None] >> np.arange(len(FLAGS)) & 1).astype(np.float32)
        brand_NB, variety_NV = _one_hot(brand_N, brands), _one_hot(variety_N, varieties)
        return np.hstack([type_NT, _BRAND * brand_NB, _VARIETY * variety_NV, _FLAG * flag_NF])

    types_P = [[code] for code in truth.type_P.tolist()]
    types_Q = [[place[name] for name in names] for names in truth.types]
    product_PC = facts(types_P, truth.brand_P, truth.variety_P, truth.flags_P)
    query_QC = facts(types_Q, truth.brand_Q, truth.variety_Q, truth.flags_Q)
    projection_CD = np.random.default_rng(seed).standard_normal((product_PC.shape[1], dim)).astype(np.float32)
    return _unit(product_PC @ projection_CD), _unit(query_QC @ projection_CD)


def _one_hot(code_N: npt.NDArray[np.integer], count: int) -> FloatArray:
    """[N, count]; zeros where the code is negative, which means that there is none."""
    return (np.asarray(code_N)[:, None] == np.arange(count)).astype(np.float32)


def _unit(vectors_ND: FloatArray) -> FloatArray:
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(length_N1, 1e-12), np.float32)
