"""A feature set without some of its features: a manifest of its own over the same row files.

A loader reads the columns that the manifest names, so nothing is computed or copied again.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from experiments.importance.model_features import Feature, counter_sides
from features.artifacts import atomic_folder, atomic_write_json
from features.feature_set import FeatureSet, Manifest


def narrow_manifest(manifest: Manifest, dropped: Collection[Feature]) -> Manifest:
    """The manifest without the columns of `dropped`.

    Counter keys of which no column is left go from the feature config; others keep all their windows there,
    since counters are configured by key and window, not one by one.

    Raises:
        ValueError: no id feature would be left.
    """
    columns = {
        manifest.dense_columns[i] for feature in dropped for i in feature.dense
    }  # with the `_missing` companions
    ids = {manifest.sparse_columns[i].name for feature in dropped for i in feature.sparse}
    sparse_columns = tuple(column for column in manifest.sparse_columns if column.name not in ids)
    if not sparse_columns:
        raise ValueError("a ranker needs at least one id feature; keep one")
    dense_columns = tuple(name for name in manifest.dense_columns if name not in columns)
    config = manifest.config
    sides = counter_sides(config.counters)
    counters = config.counters
    if counters is not None:
        keys = tuple(
            key
            for key in counters.keys
            if any(name in sides and _key_of(name) == key for name in dense_columns)
        )
        counters = counters.model_copy(update={"keys": keys}) if keys else None
    return manifest.model_copy(
        update={
            "config": config.model_copy(
                update={
                    "dense": tuple(f for f in config.dense if f.name in dense_columns),
                    "sparse": tuple(f for f in config.sparse if f.name not in ids),
                    "counters": counters,
                }
            ),
            "dense_columns": dense_columns,
            "sparse_columns": sparse_columns,
            "transforms": {n: t for n, t in manifest.transforms.items() if n not in columns},
            "checksums": {
                name: checksum
                for name, checksum in manifest.checksums.items()
                if name not in {f"vocabularies/{dropped_id}.parquet" for dropped_id in ids}
            },
        }
    )


def _key_of(column: str) -> str:
    """The key of a counter column: `query_product_ctr_7d` is of `query_product`, not of `query`."""
    return column.rsplit("_", 2)[0]


def write_narrow(feature_set: FeatureSet, dropped: Collection[Feature], folder: Path) -> FeatureSet:
    """Write the narrowed feature set; row files are hard links where the file system allows it."""
    manifest = narrow_manifest(feature_set.manifest, dropped)
    with atomic_folder(folder, ours=lambda found: (found / "manifest.json").exists()) as temporary:
        for name in manifest.checksums:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(feature_set.folder / name, temporary / name)
            except OSError:
                shutil.copyfile(feature_set.folder / name, temporary / name)
        atomic_write_json(temporary / "manifest.json", manifest.model_dump(mode="json"))
    return FeatureSet.open(folder)
