"""The features whose importance is asked for: what a user put into the schema, and groups of them.

A feature is one entry of the schema: a dense feature with its `_missing` column, a counter, an id, an
embedding (query, product, purchase history). A similarity is no input but computed inside the ranker; it
is listed as well, and follows an embedding whenever that embedding changes. A group moves as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from features.feature_set import Manifest
from features.schema import CounterConfig, DenseFeature, SparseFeature
from ranking.model import RankerConfig

Side = Literal["query", "product", "user", "query-product", "context"]

#: What the entities of `SemanticConfig` are called in reports.
ENTITY_NAMES = {"product": "product embedding", "query": "query embedding", "history": "purchase history"}
_SIDE_OF_ENTITY: dict[str, Side] = {"product": "product", "query": "query", "history": "user"}
#: Columns of the impressions whose names say whose they are: `user_id`, `user_age`, `query`.
_SIDE_OF_PREFIX: dict[str, Side] = {"query": "query", "product": "product", "user": "user"}
_SIDE_OF_COUNTER: dict[str, Side] = {
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
    """

    name: str
    kind: Literal["feature", "group"]
    members: tuple[str, ...]
    dense: tuple[int, ...] = ()
    sparse: tuple[int, ...] = ()
    entities: tuple[int, ...] = ()
    pairs: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Unique among features and groups."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class _Entry:
    feature: Feature
    side: Side
    counter: bool = False


def features_of(manifest: Manifest, config: RankerConfig) -> list[Feature]:
    """Every feature that the ranker reads: embeddings, similarities, dense, counters, ids."""
    return [entry.feature for entry in _entries(manifest, config)]


def groups_of(manifest: Manifest, config: RankerConfig) -> list[Feature]:
    """Groups with at least two members: sides, context, counters by key and together, towers."""
    entries = _entries(manifest, config)
    inputs = [entry for entry in entries if not entry.feature.pairs]

    def side(name: Side) -> list[Feature]:
        return [entry.feature for entry in inputs if entry.side == name]

    def counters(*names: Side) -> list[Feature]:
        return [entry.feature for entry in inputs if entry.counter and entry.side in names]

    semantic = [entry.feature for entry in entries if entry.feature.entities or entry.feature.pairs]
    candidates = {
        "query side": side("query"),
        "product side": side("product"),
        "user side": side("user"),
        "context": side("context"),
        "similarities": [entry.feature for entry in entries if entry.feature.pairs],
        "counters": counters(*_SIDE_OF_COUNTER.values()),
        "query counters": counters("query"),
        "product counters": counters("product"),
        "user counters": counters("user"),
        "query-product counters": counters("query-product"),
        "ids": [entry.feature for entry in inputs if entry.feature.sparse],
        "DCN tower": [entry.feature for entry in inputs if not entry.feature.entities],
        "DashCLIP tower": semantic,
    }
    return [joined(name, members) for name, members in candidates.items() if len(members) > 1]


def joined(name: str, members: Iterable[Feature]) -> Feature:
    """The members as one group."""
    members = list(members)
    return Feature(
        name=name,
        kind="group",
        members=tuple(member.name for member in members),
        dense=tuple(sorted({i for member in members for i in member.dense})),
        sparse=tuple(sorted({i for member in members for i in member.sparse})),
        entities=tuple(sorted({i for member in members for i in member.entities})),
        pairs=tuple(sorted({i for member in members for i in member.pairs})),
    )


def _entries(manifest: Manifest, config: RankerConfig) -> list[_Entry]:
    return [*_semantic(config), *_dense(manifest), *_sparse(manifest)]


def _semantic(config: RankerConfig) -> list[_Entry]:
    if config.semantic is None:
        return []
    entities = config.semantic.entities
    entries = [
        _Entry(
            Feature(ENTITY_NAMES[entity], "feature", (ENTITY_NAMES[entity],), entities=(i,)),
            _SIDE_OF_ENTITY[entity],
        )
        for i, entity in enumerate(entities)
    ]
    for i, (a, b) in enumerate(combinations(entities, 2)):
        name = f"similarity {a}-{b}"
        entries.append(_Entry(Feature(name, "feature", (name,), pairs=(i,)), "context"))
    return entries


def _dense(manifest: Manifest) -> list[_Entry]:
    position = {name: i for i, name in enumerate(manifest.dense_columns)}
    entries, used = [], set[str]()
    for feature in manifest.config.dense:
        columns = [name for name in (feature.name, f"{feature.name}_missing") if name in position]
        if not columns:
            continue
        used.update(columns)
        dense = tuple(position[name] for name in columns)
        entries.append(
            _Entry(Feature(feature.name, "feature", tuple(columns), dense=dense), side_of_column(feature))
        )
    sides = counter_sides(manifest.config.counters)
    for name, i in position.items():
        if name not in used:
            entries.append(
                _Entry(
                    Feature(name, "feature", (name,), dense=(i,)), sides.get(name, "context"), name in sides
                )
            )
    return entries


def counter_sides(counters: CounterConfig | None) -> dict[str, Side]:
    """Which side each counter column is of, by its name."""
    if counters is None:
        return {}
    return {
        f"{key}_{kind}_{days}d": _SIDE_OF_COUNTER[key]
        for key in counters.keys
        for days in counters.windows_days
        for kind in ("impressions", "clicks", "ctr")
    }


def _sparse(manifest: Manifest) -> list[_Entry]:
    side_of = {feature.name: side_of_column(feature) for feature in manifest.config.sparse}
    return [
        _Entry(Feature(column.name, "feature", (column.name,), sparse=(i,)), side_of[column.name])
        for i, column in enumerate(manifest.sparse_columns)
    ]


def side_of_column(feature: DenseFeature | SparseFeature) -> Side:
    """Whose an entry is: a product attribute is the product's, `user_age` the user's, the device nobody's."""
    if feature.source == "products":
        return "product"
    if feature.source == "timestamp":
        return "context"
    return _SIDE_OF_PREFIX.get(feature.column.split("_")[0], "context")
