"""Writes a generation: a snapshot, vectors, and the scores that recorded requests must get from them.

Each part is new or that of the generation before, whose files are linked rather than copied. For packaging
and refreshing; a worker does not import this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings.embedding_table import EmbeddingTable
from features.columns.id_map import IdMap
from features.feature_set import FeatureSet
from features.online.build_snapshot import build_snapshot
from features.online.snapshot import Snapshot
from features.progress import Progress, silent
from serving.package.generations import SNAPSHOT, VECTORS, GenerationManifest, VectorRecord, generation_folder
from serving.package.manifest import SCHEMA, EntityKind, PackageManifest
from serving.package.sealed_folder import PackageError
from serving.package.tables import TableDtype, open_table, write_table
from serving.package.vectors import (
    IDS,
    PROJECTIONS,
    ROWS,
    TABLE,
    SourceVectors,
    find_any,
    link_folder,
    write_product_rows,
    write_vectors,
)
from serving.packaging.from_ranker import product_projections
from serving.scoring.request_ranker import RequestRanker


@dataclass(frozen=True)
class SnapshotSource:
    """The log to make a snapshot of, and the moment of it."""

    log: Path
    as_of_us: int


def fill_generation(
    folder: Path,
    package: Path,
    manifest: PackageManifest,
    module: RequestRanker,
    *,
    name: str,
    based_on: str | None,
    snapshot: SnapshotSource | None,
    vectors: Mapping[EntityKind, SourceVectors],
    progress: Progress = silent,
) -> GenerationManifest:
    """Fill an empty folder with snapshot and vectors; recorded scores and the seal are the caller's.

    Args:
        module: the model, uncompiled: says what its first layer makes of product vectors.
        based_on: the live generation; what is not given comes from it.
        snapshot: None keeps that of `based_on`.
        vectors: new ones, by kind; the others are those of `based_on`.

    Raises:
        PackageError: the vectors are not of the encoder or the width that the model was trained with.
    """
    for kind, source in vectors.items():
        check_source(manifest, kind, source)
    before = generation_folder(package, based_on) if based_on else None
    if snapshot is not None:
        feature_set = FeatureSet.open(package / SCHEMA, verify=False)
        build_snapshot(
            snapshot.log, feature_set, folder / SNAPSHOT, as_of_us=snapshot.as_of_us, progress=progress
        )
    else:
        assert before is not None, "the first generation has a snapshot of its own"
        link_folder(before / SNAPSHOT, folder / SNAPSHOT)
    opened = Snapshot.open(folder / SNAPSHOT, verify=False)
    catalogue = {"product": opened.products.ids(), "query": opened.queries.ids()}
    return GenerationManifest(
        name=name,
        based_on=based_on,
        created=datetime.now(UTC),
        as_of=opened.manifest.as_of,
        schema_fingerprint=opened.manifest.schema_fingerprint,
        counts={"users": len(opened.users), "products": len(opened.products), "queries": len(opened.queries)},
        vectors={
            kind: _fill_vectors(
                folder / VECTORS / kind,
                kind,
                vectors.get(kind),
                before / VECTORS / kind if before else None,
                module,
                dtype=stored_dtype(manifest.tables, kind),
                wanted=catalogue[kind],
            )
            for kind in manifest.vectors
        },
        files={},
    )


def check_source(manifest: PackageManifest, kind: EntityKind, source: SourceVectors) -> None:
    """Refuse vectors of another kind of space: the model would read them as noise.

    Raises:
        PackageError: the model reads no such vectors, or they are of another encoder or width.
    """
    wanted = manifest.vectors.get(kind)
    if wanted is None:
        raise PackageError(f"{manifest.model_version} reads no {kind} vectors; leave `--{kind}-table` out")
    if wanted.trained and source.encoder_id != wanted.encoder_id:
        raise PackageError(
            f"the {kind} vectors of {manifest.model_version} were trained with it: others would be noise to "
            f"it; leave `--{kind}-table` out, or train again and make a new package"
        )
    if source.encoder_id != wanted.encoder_id:
        raise PackageError(
            f"the {kind} vectors are of encoder {source.encoder_id}, but {manifest.model_version} was "
            f"trained with {wanted.encoder_id}; encode with that one, or train again and make a new package"
        )
    if source.dim != wanted.dim:
        raise PackageError(
            f"the {kind} vectors are {source.dim} wide, but {manifest.model_version} was trained with "
            f"{wanted.dim}; write the table with that width"
        )


def stored_dtype(tables: TableDtype, kind: EntityKind) -> TableDtype:
    """Only product vectors are many enough to be worth 8 bits; a request reads one query vector."""
    return "float16" if kind == "query" and tables == "int8" else tables


def vectors_of_table(table: EmbeddingTable, *, kind: EntityKind) -> SourceVectors:
    """An embedding table as a source.

    Raises:
        PackageError: it is of the other kind; products and queries of one encoder have the same encoder id.
    """
    if table.manifest.kind != kind:
        raise PackageError(
            f"{table.folder} holds {table.manifest.kind} vectors, not {kind} vectors; give the other table"
        )
    return SourceVectors(
        ids=table.ids,
        vectors_MD=table.vectors_ND,
        encoder_id=table.manifest.encoder_id,
        created=table.manifest.created.isoformat(),
    )


def _fill_vectors(
    folder: Path,
    kind: EntityKind,
    source: SourceVectors | None,
    before: Path | None,
    module: RequestRanker,
    *,
    dtype: TableDtype,
    wanted: pa.Array,
) -> VectorRecord:
    if source is not None:
        write_vectors(folder, source, dtype=dtype)
        if kind == "product" and module.shape.projected:
            served = open_table(folder / TABLE)
            projections = product_projections(module, served.lookup(np.arange(served.rows)))
            write_table(folder / PROJECTIONS, projections, dtype="float16")
        about = {"encoder_id": source.encoder_id, "dim": source.dim, "created": source.created}
    else:
        assert before is not None, "the first generation has vectors of its own"
        link_folder(before, folder, but=(ROWS,))
        record = GenerationManifest.read(before.parent.parent).vectors[kind]
        about = {"encoder_id": record.encoder_id, "dim": record.dim, "created": record.created}
    ids = IdMap.open(folder / IDS)
    position_M = find_any(ids, wanted)
    if kind == "product":
        write_product_rows(folder, position_M + 1)
    missing = int(np.count_nonzero(position_M < 0))
    if missing == len(wanted) > 0:
        raise PackageError(
            f"none of the {len(wanted):,} {kind} ids of the log has a vector; the table was made from "
            "another catalogue"
        )
    return VectorRecord.model_validate({**about, "dtype": dtype, "count": len(ids), "missing": missing})
