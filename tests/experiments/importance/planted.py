"""Split rows in memory and rankers whose logit is a known function, with arithmetic that rounds nothing.

Shapes: N rows, F dense features, D width of the vectors.
"""

import numpy as np
import torch

from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.model_features import Feature
from experiments.importance.split_rows import SplitRows
from features.batches.pretrained_rows import PurchaseBags, SemanticRows
from ranking.model import RankerConfig, RankerInputs, SemanticConfig, TwoTowerRanker, build_ranker
from tests.ranking.random_batches import DIM, SPARSE_ROWS, inputs

PRODUCTS, QUERIES, USERS = 20, 10, 15
DENSE = 3
#: One feature an input of `random_batches`.
FEATURES = [
    Feature("product embedding", "feature", ("product embedding",), entities=(0,)),
    Feature("query embedding", "feature", ("query embedding",), entities=(1,)),
    Feature("purchase history", "feature", ("purchase history",), entities=(2,)),
    Feature("similarity product-query", "feature", ("similarity product-query",), pairs=(0,)),
    Feature("similarity product-history", "feature", ("similarity product-history",), pairs=(1,)),
    Feature("similarity query-history", "feature", ("similarity query-history",), pairs=(2,)),
    *(Feature(f"dense {i}", "feature", (f"dense {i}",), dense=(i,)) for i in range(DENSE)),
    *(Feature(name, "feature", (name,), sparse=(i,)) for i, name in enumerate(SPARSE_ROWS)),
]
BY_NAME = {feature.name: feature for feature in FEATURES}


def features_for(config: RankerConfig) -> list[Feature]:
    """Those of FEATURES that a ranker of this config reads, at their places in it."""
    own = [feature for feature in FEATURES if feature.dense or feature.sparse]
    if config.semantic is None:
        return own
    entities = config.semantic.entities
    pairs = len(entities) * (len(entities) - 1) // 2
    return [
        *(Feature(entity, "feature", (entity,), entities=(i,)) for i, entity in enumerate(entities)),
        *(Feature(f"similarity {i}", "feature", (f"similarity {i}",), pairs=(i,)) for i in range(pairs)),
        *own,
    ]


def split_rows(count: int, *, seed: int = 0) -> SplitRows:
    """Small integers as dense values; every tenth product, query or history is missing."""
    rng = np.random.default_rng(seed)
    start = np.sort(rng.integers(0, 60, count))
    length = np.where(rng.random(count) < 0.3, 0, rng.integers(0, 9, count))
    index = np.stack(
        [
            rng.integers(-1, PRODUCTS, count),
            rng.integers(-1, QUERIES, count),
            start,
            np.minimum(start + length, 60),
        ],
        axis=1,
    ).astype(np.int32)
    return SplitRows(
        sparse_names=tuple(SPARSE_ROWS),
        dense_NF=rng.integers(-8, 9, (count, DENSE)).astype(np.float32),
        sparse_NS=np.stack([rng.integers(0, rows, count) for rows in SPARSE_ROWS.values()], 1).astype(
            np.int32
        ),
        index_N4=index,
        flags={
            "clicked": (rng.random(count) < 0.3).astype(np.int8),
            "slice_has_purchases": (index[:, 3] > index[:, 2]).astype(np.int8),
            "slice_seen_product": (rng.random(count) < 0.8).astype(np.int8),
            "slice_query_frequency": rng.integers(0, 3, count).astype(np.int8),
        },
    )


def semantic_rows() -> SemanticRows:
    """Product and query i have row i + 1 of their table; 60 purchases of random products."""
    bought = np.random.default_rng(1).integers(0, PRODUCTS, 60).astype(np.int32)
    product_P = np.append(np.arange(1, PRODUCTS + 1), 0)
    return SemanticRows(
        product_P=product_P,
        query_Q=np.append(np.arange(1, QUERIES + 1), 0),
        purchases=PurchaseBags(bought, np.full(60, 60, np.int32), product_P, cap=5, deduplicate=False),
    )


def random_layout(config: RankerConfig, *, seed: int = 3) -> InputLayout:
    """A ranker with random weights everywhere, id embeddings included."""
    ranker = build_ranker(config, inputs(), seed=seed)
    with torch.no_grad():
        for table in ranker.sparse_tables.collection.embedding_bags.values():
            table.weight.copy_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(seed)))
    ranker.eval()
    return InputLayout(ranker, dense_features=DENSE, semantic=semantic_rows())


def planted_layout(
    *,
    dense: tuple[float, ...] = (0.0,) * DENSE,
    ids: dict[str, float] | None = None,
    cosines: tuple[float, float, float] = (0.0, 0.0, 0.0),
    product: float = 0.0,
    vectors: RankerInputs | None = None,
) -> InputLayout:
    """Logit = dense . x + ids . first entry of each id's embedding + cosines . similarities
    + product * first entry of the product's vector (scaled by the tower). Everything else weighs nothing.

    Ids' embeddings are their row number minus the middle one, so that sums of a few are exact.
    """
    config = RankerConfig(
        embedding_dim=4,
        cross_layers=1,
        deep_widths=(),
        top_widths=(),
        semantic=SemanticConfig(cross_layers=0, widths=(8,)),
    )
    ranker = build_ranker(config, vectors or inputs(), seed=0)
    assert isinstance(ranker, TwoTowerRanker)
    with torch.no_grad():
        for parameter in [*ranker.dcn_tower.parameters(), *ranker.dashclip_tower.parameters()]:
            parameter.zero_()
        head = ranker.head[0]
        head.weight.zero_()
        head.bias.zero_()
        head.weight[0, :DENSE] = torch.tensor(dense)
        for i, (name, rows) in enumerate(SPARSE_ROWS.items()):
            table = ranker.sparse_tables.collection.embedding_bags[name].weight
            table.copy_((torch.arange(rows) - rows // 2)[:, None].expand(-1, 4))
            table[0] = 0
            head.weight[0, DENSE + 4 * i] = (ids or {}).get(name, 0.0)
        first = ranker.dashclip_tower.layers[1][0]
        wanted = {3 * DIM + i: weight for i, weight in enumerate(cosines)} | {0: product}
        for unit, (column, weight) in enumerate(wanted.items()):
            for sign, at in ((1.0, 2 * unit), (-1.0, 2 * unit + 1)):  # relu(x) - relu(-x) = x
                first.weight[at, column] = sign
                head.weight[0, ranker.dcn_tower.width + at] = sign * weight
    ranker.eval()
    return InputLayout(ranker, dense_features=DENSE, semantic=semantic_rows())
