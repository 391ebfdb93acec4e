"""The features whose importance is asked for: what a user put into the schema, and groups of them.

A feature is one entry of the schema: a dense feature with its `_missing` column, a counter, an id, an
embedding (query, product, purchase history). A similarity is no input but computed inside the ranker; it
is listed as well, and follows an embedding whenever that embedding changes. A group moves as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from features.feature_set import Manifest
from features.schema import CounterConfig, DenseFeature, SparseFeature
from ranking.model import RankerConfig

Side = Literal["query", "product", "user", "query-product", "context"]

#: The group of what comes from embedding tables: in a tower of its own, or among the DCN tower's features.
TOWER_GROUP, SIMILARITY_GROUP = "DashCLIP tower", "similarities of embeddings"
#: What the entities of `SemanticConfig` are called in reports.
ENTITY_NAMES = {"product": "product embedding", "query": "query embedding", "history": "purchase history"}
_SIDE_OF_ENTITY: dict[str, Side] = {"product": "product", "query": "query", "history": "user"}
#: By the key of a counter, and by the first word of an impressions' column: `user_id`, `user_age`, `query`.
_SIDE_OF_KEY: dict[str, Side] = {
    "query": "query",
    "product": "product",
    "user": "user",
    "query_product": "query-product",
}


@dataclass(frozen=True)
class Feature:
    """One feature, or a group that moves as one.

    Attributes:
        members: columns of a feature, features of a group.
        dense: positions among the feature set's dense columns.
        sparse: positions among its sparse columns.
        entities: positions among the ranker's entities.
        pairs: positions among the cosines of entities that move without their embeddings.
        side: whose a feature is; of no meaning for a group.
        counter: whether a feature is a counter.
    """

    name: str
    kind: Literal["feature", "group"]
    members: tuple[str, ...]
    dense: tuple[int, ...] = ()
    sparse: tuple[int, ...] = ()
    entities: tuple[int, ...] = ()
    pairs: tuple[int, ...] = ()
    side: Side = "context"
    counter: bool = False

    @property
    def key(self) -> str:
        """Unique among features and groups."""
        return f"{self.kind}:{self.name}"


def features_of(manifest: Manifest, config: RankerConfig) -> list[Feature]:
    """Every feature that the ranker reads: embeddings, similarities, dense, counters, ids."""
    return [*_semantic(config), *_dense(manifest), *_sparse(manifest)]


def groups_of(manifest: Manifest, config: RankerConfig) -> list[Feature]:
    """Groups with at least two members: sides, context, counters by key and together, towers."""
    features = features_of(manifest, config)
    inputs = [feature for feature in features if not feature.pairs]
    counters = [feature for feature in inputs if feature.counter]
    of_tables = [feature for feature in features if feature.entities or feature.pairs]
    has_tower = config.semantic is None or config.semantic.reads == "vectors"

    def of_side(name: Side, among: Iterable[Feature] = inputs) -> list[Feature]:
        return [feature for feature in among if feature.side == name]

    candidates = {
        "query side": of_side("query"),
        "product side": of_side("product"),
        "user side": of_side("user"),
        "context": of_side("context"),
        "similarities": [feature for feature in features if feature.pairs],
        "counters": counters,
        "query counters": of_side("query", counters),
        "product counters": of_side("product", counters),
        "user counters": of_side("user", counters),
        "query-product counters": of_side("query-product", counters),
        "ids": [feature for feature in inputs if feature.sparse],
        "DCN tower": [feature for feature in inputs if not (feature.entities and has_tower)],
        TOWER_GROUP if has_tower else SIMILARITY_GROUP: of_tables,
    }
    return [joined(name, members) for name, members in candidates.items() if len(members) > 1]


def joined(name: str, members: Iterable[Feature]) -> Feature:
    """The members as one group."""
    members = list(members)
    positions: dict[str, Any] = {
        kind: tuple(sorted({i for member in members for i in getattr(member, kind)}))
        for kind in ("dense", "sparse", "entities", "pairs")
    }
    return Feature(name, "group", tuple(member.name for member in members), **positions)


def _single(name: str, side: Side, **inputs: Any) -> Feature:
    return Feature(name, "feature", (name,), side=side, **inputs)


def _semantic(config: RankerConfig) -> list[Feature]:
    if config.semantic is None:
        return []
    entities = config.semantic.entities
    embeddings = [
        _single(ENTITY_NAMES[entity], _SIDE_OF_ENTITY[entity], entities=(i,))
        for i, entity in enumerate(entities)
    ]
    pairs = enumerate(combinations(entities, 2))
    return [*embeddings, *(_single(f"similarity {a}-{b}", "context", pairs=(i,)) for i, (a, b) in pairs)]


def _dense(manifest: Manifest) -> list[Feature]:
    position = {name: i for i, name in enumerate(manifest.dense_columns)}
    features, used = [], set[str]()
    for feature in manifest.config.dense:
        columns = [name for name in (feature.name, f"{feature.name}_missing") if name in position]
        if not columns:
            continue
        used.update(columns)
        dense = tuple(position[name] for name in columns)
        side = side_of_column(feature)
        features.append(Feature(feature.name, "feature", tuple(columns), dense=dense, side=side))
    sides = counter_sides(manifest.config.counters)
    for name, i in position.items():
        if name not in used:
            side = sides.get(name, "context")
            features.append(_single(name, side, dense=(i,), counter=name in sides))
    return features


def counter_sides(counters: CounterConfig | None) -> dict[str, Side]:
    """Which side each counter column is of, by its name."""
    if counters is None:
        return {}
    return {
        f"{key}_{kind}_{days}d": _SIDE_OF_KEY[key]
        for key in counters.keys
        for days in counters.windows_days
        for kind in ("impressions", "clicks", "ctr")
    }


def _sparse(manifest: Manifest) -> list[Feature]:
    side_of = {feature.name: side_of_column(feature) for feature in manifest.config.sparse}
    columns = enumerate(manifest.sparse_columns)
    return [_single(column.name, side_of[column.name], sparse=(i,)) for i, column in columns]


def side_of_column(feature: DenseFeature | SparseFeature) -> Side:
    """Whose an entry is: a product attribute is the product's, `user_age` the user's, the device nobody's."""
    if feature.source == "products":
        return "product"
    if feature.source == "timestamp":
        return "context"
    return _SIDE_OF_KEY.get(feature.column.split("_")[0], "context")
