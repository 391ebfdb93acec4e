"""How the columns of a feature set are made from requests: worked out once for a snapshot.

Columns lie in two parts: those that all candidates of a request share, which are computed and multiplied
once, and those of each candidate. The time, the user and the query are always shared; other columns of the
impressions only if requests give them once (store, device): price and position differ between candidates.

Shapes: F dense and S sparse columns of a part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.columns.clock import VALUES_OF_PART
from features.columns.counters import CounterBlock, counter_names
from features.columns.transforms import Transform
from features.columns.vocabulary import OnlineVocabulary
from features.feature_set import Manifest
from features.online.snapshot import Known, Snapshot, SnapshotManifest
from features.schema import CounterKey, DenseFeature, FeatureConfig, SparseFeature

#: Impression columns that a request carries under fields of its own.
OWN_FIELDS = ("user_id", "query", "product_id")
#: Counters that all candidates of a request share.
SHARED_KEYS: tuple[CounterKey, ...] = ("query", "user")
#: What a request usually gives once, if features read it.
USUAL_CONTEXT = ("store_id", "device")

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DensePlan:
    """A dense feature that is no counter.

    Attributes:
        place: of its column in its part.
        missing_place: of its `_missing` column, None where it has none.
        input: the name under which a request may give it, None where it may not.
        product_place: its column in the snapshot's `product_dense_PD`, None where it is not of the product.
    """

    feature: DenseFeature
    transform: Transform
    place: int
    missing_place: int | None
    input: str | None
    product_place: int | None


@dataclass(frozen=True, eq=False)
class SparsePlan:
    """A sparse feature; attributes as in `DensePlan`.

    Attributes:
        known: whose table of the snapshot's `sparse` has its rows, at column `known_place`; or None.
        default_row: of the schema's `serving_value`, or row 0 for missing.
        row_of_part: row of each value of a part of the time, None where it is no such feature.
    """

    feature: SparseFeature
    vocabulary: OnlineVocabulary
    place: int
    input: str | None
    known: Known | None
    known_place: int
    default_row: int
    row_of_part: Sequence[int] | None


@dataclass(frozen=True, eq=False)
class CounterPlan:
    """The counters of one key, and which columns of their part they are."""

    key: CounterKey
    block: CounterBlock
    at: slice


@dataclass(frozen=True, eq=False)
class Part:
    """The columns that candidates share, or those that they do not.

    Attributes:
        dense_at, sparse_at: where the part's columns lie among all of the feature set.
    """

    dense_at: Int64s
    sparse_at: Int64s
    dense: tuple[DensePlan, ...]
    sparse: tuple[SparsePlan, ...]
    counters: tuple[CounterPlan, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Both parts, and what a request may give.

    Attributes:
        request_columns: names of the shared columns, dense then sparse, in the feature set's order.
        inputs: by name, whether all candidates share it.
    """

    shared: Part
    own: Part
    request_columns: tuple[str, ...]
    inputs: Mapping[str, bool]


def impression_columns(config: FeatureConfig) -> tuple[str, ...]:
    """Columns of the impressions that features read, without ids and query: what a request may carry."""
    names = [feature.column for feature in config.features if feature.source == "impressions"]
    return tuple(dict.fromkeys(name for name in names if name not in OWN_FIELDS))


def context_columns(config: FeatureConfig, wanted: Iterable[str] | None) -> tuple[str, ...]:
    """The impression columns that a request gives once: `wanted`, or the usual ones that features read.

    Raises:
        ValueError: no feature reads one of them, or it is a field of every request anyway.
    """
    readable = impression_columns(config)
    if wanted is None:
        return tuple(name for name in USUAL_CONTEXT if name in readable)
    context = tuple(dict.fromkeys(wanted))
    for name in context:
        if name not in readable:
            raise ValueError(
                f"context column {name!r} is none that features read from the impressions; "
                f"there are {', '.join(sorted(readable)) or 'none'}"
            )
    return context


def request_columns(manifest: Manifest | SnapshotManifest, context: Sequence[str]) -> tuple[str, ...]:
    """Columns of the feature set that all candidates of a request share, dense then sparse, in its order."""
    config, counters = manifest.config, manifest.config.counters
    shared = {f.name for f in config.features if _is_shared(f, context)}
    shared |= {f"{name}_missing" for name in shared}
    if counters is not None:
        keys, windows = [key for key in counters.keys if key in SHARED_KEYS], counters.windows_days
        shared |= {name for key in keys for window in windows for name in counter_names(key, window)}
    columns = (*manifest.dense_columns, *(column.name for column in manifest.sparse_columns))
    return tuple(name for name in columns if name in shared)


def _is_shared(feature: DenseFeature | SparseFeature, context: Sequence[str]) -> bool:
    if feature.source == "impressions":
        return feature.column in ("user_id", "query", *context)
    return feature.source == "timestamp"


def make_plan(snapshot: Snapshot, context: Iterable[str]) -> Plan:
    """The plan of a snapshot's schema.

    Raises:
        ValueError: a context column that no feature reads from the impressions, or a `serving_value` of
            another kind than the ids of its column.
    """
    context = context_columns(snapshot.manifest.config, context)
    shared = request_columns(snapshot.manifest, context)
    blocks = _counter_blocks(snapshot)
    return Plan(
        shared=_part(snapshot, shared, True, blocks),
        own=_part(snapshot, shared, False, blocks),
        request_columns=shared,
        inputs=_inputs(snapshot.manifest.config, context, blocks),
    )


def _counter_blocks(snapshot: Snapshot) -> dict[CounterKey, CounterBlock]:
    manifest = snapshot.manifest
    config, prior_ctr = manifest.config.counters, manifest.counter_prior_ctr
    if config is None:
        return {}
    assert prior_ctr is not None
    return {
        key: CounterBlock.of(key, config, manifest.transforms, prior_ctr=prior_ctr) for key in config.keys
    }


def _inputs(
    config: FeatureConfig, context: Sequence[str], blocks: Mapping[CounterKey, CounterBlock]
) -> dict[str, bool]:
    """A column of the impressions goes before one of the products, and both before a counter."""
    inputs = {name: key in SHARED_KEYS for key, block in blocks.items() for name in block.names}
    inputs |= {f.column: False for f in config.features if f.source == "products"}
    inputs |= {f.column: f.column in context for f in config.features if f.source == "impressions"}
    return {name: part for name, part in inputs.items() if name not in OWN_FIELDS}


def _part(
    snapshot: Snapshot, shared: Sequence[str], part: bool, blocks: Mapping[CounterKey, CounterBlock]
) -> Part:
    manifest, config = snapshot.manifest, snapshot.manifest.config
    dense_names, sparse_names = manifest.dense_columns, tuple(c.name for c in manifest.sparse_columns)
    dense_at = [i for i, name in enumerate(dense_names) if (name in shared) is part]
    sparse_at = [i for i, name in enumerate(sparse_names) if (name in shared) is part]
    dense_place = {dense_names[i]: place for place, i in enumerate(dense_at)}
    sparse_place = {sparse_names[i]: place for place, i in enumerate(sparse_at)}
    oov_rows = {column.name: column.oov_rows for column in manifest.sparse_columns}
    of_impressions = {f.column for f in config.features if f.source == "impressions"}
    return Part(
        dense_at=np.array(dense_at, np.int64),
        sparse_at=np.array(sparse_at, np.int64),
        dense=tuple(
            DensePlan(
                feature=feature,
                transform=manifest.transforms[feature.name],
                place=dense_place[feature.name],
                missing_place=dense_place.get(f"{feature.name}_missing"),
                input=_input_of(feature, of_impressions),
                product_place=_place_of(feature.name, manifest.product_dense),
            )
            for feature in config.dense
            if feature.name in dense_place
        ),
        sparse=tuple(
            _sparse_plan(
                feature,
                OnlineVocabulary(snapshot.vocabularies[feature.name], oov_rows[feature.name]),
                place=sparse_place[feature.name],
                input_=_input_of(feature, of_impressions),
                known=_known(feature.name, manifest.sparse),
            )
            for feature in config.sparse
            if feature.name in sparse_place
        ),
        counters=tuple(
            CounterPlan(key, block, _run([dense_place[name] for name in block.names]))
            for key, block in blocks.items()
            if (key in SHARED_KEYS) is part
        ),
    )


def _run(places: list[int]) -> slice:
    """Columns of one key lie side by side in a feature set, hence in a part."""
    assert places == list(range(places[0], places[0] + len(places)))
    return slice(places[0], places[0] + len(places))


def _sparse_plan(
    feature: SparseFeature,
    vocabulary: OnlineVocabulary,
    *,
    place: int,
    input_: str | None,
    known: tuple[Known | None, int],
) -> SparsePlan:
    try:
        default_row = vocabulary.row_of(feature.serving_value)
    except TypeError as error:
        raise ValueError(
            f"sparse feature {feature.name!r} has serving_value {feature.serving_value!r}, but the ids of "
            f"column {feature.column!r} are of kind {vocabulary.ids.kind}; change the schema"
        ) from error
    values = VALUES_OF_PART[feature.column] if feature.source == "timestamp" else None
    row_of_part = [vocabulary.row_of(value) for value in range(values)] if values else None
    return SparsePlan(feature, vocabulary, place, input_, *known, default_row, row_of_part)


def _input_of(feature: DenseFeature | SparseFeature, of_impressions: set[str]) -> str | None:
    if feature.source == "products":
        return None if feature.column in of_impressions else feature.column
    is_column = feature.source == "impressions" and feature.column not in OWN_FIELDS
    return feature.column if is_column else None


def _known(name: str, sparse: Mapping[Known, Sequence[str]]) -> tuple[Known | None, int]:
    for known, names in sparse.items():
        if name in names:
            return known, names.index(name)
    return None, -1


def _place_of(name: str, names: Sequence[str]) -> int | None:
    return names.index(name) if name in names else None
