"""Which features all candidates of a request share: they are computed, and multiplied, once.

Features of the moment, of the user and of the query always do; other columns of the impressions only if the
package says that a request gives them once (store, device): price and position differ between candidates.
"""

from collections.abc import Sequence

from features.columns.counters import counter_names
from features.feature_set import Manifest
from features.schema import CounterKey, DenseFeature, FeatureConfig, SparseFeature

#: Counters that all candidates of a request share.
REQUEST_KEYS: tuple[CounterKey, ...] = ("query", "user")
#: Impression columns that a request has as fields of their own.
REQUEST_FIELDS = ("user_id", "query")
#: What a request usually gives once, if the features read it.
USUAL_CONTEXT = ("store_id", "device")


def context_columns(config: FeatureConfig, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The impression columns that a request gives once: `wanted`, or the usual ones that features read.

    Raises:
        ValueError: no feature reads one of them, or it is a field of every request anyway.
    """
    read = impression_columns(config)
    if wanted is None:
        return tuple(name for name in USUAL_CONTEXT if name in read)
    for name in wanted:
        if name not in read:
            raise ValueError(
                f"context must name impression columns that features read, got {name!r}; "
                f"they read {', '.join(read) or 'none'}"
            )
    return tuple(dict.fromkeys(wanted))


def impression_columns(config: FeatureConfig) -> tuple[str, ...]:
    """Columns of the impressions that features read, without ids and query: what a request may carry."""
    names = [feature.column for feature in config.features if feature.source == "impressions"]
    return tuple(dict.fromkeys(name for name in names if name not in (*REQUEST_FIELDS, "product_id")))


def request_counters(config: FeatureConfig) -> tuple[str, ...]:
    """Names of the counters of query and user."""
    if config.counters is None:
        return ()
    return tuple(
        name
        for key in config.counters.keys
        if key in REQUEST_KEYS
        for window in config.counters.windows_days
        for name in counter_names(key, window)
    )


def request_columns(manifest: Manifest, context: Sequence[str]) -> tuple[str, ...]:
    """Columns of the feature set that all candidates of a request share, dense ones first."""
    config = manifest.config
    shared = {feature.name for feature in config.features if _is_shared(feature, context)}
    names = shared | {f"{name}_missing" for name in shared} | set(request_counters(config))
    columns = (*manifest.dense_columns, *(column.name for column in manifest.sparse_columns))
    return tuple(name for name in columns if name in names)


def _is_shared(feature: DenseFeature | SparseFeature, context: Sequence[str]) -> bool:
    if feature.source == "impressions":
        return feature.column in (*REQUEST_FIELDS, *context)
    return feature.source == "timestamp"
