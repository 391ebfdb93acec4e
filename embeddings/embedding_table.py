"""EmbeddingTable: ids and their vectors on disk, memory-mapped on load (design section "Embeddings").

A folder with `vectors.npy` (row 0 zeros = missing), `ids.parquet` (the id at position i has row i + 1) and
`manifest.json`. The ranker takes this artifact, never an encoder.

Shapes: N rows with the missing row, D embedding width, M ids asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from features.artifacts import (
    MANIFEST,
    StrictModel,
    atomic_folder,
    checksums_of,
    json_file_has,
    read_manifest,
    verify_checksums,
)
from features.inputs.blanks import without_blanks
from features.inputs.table_specs import is_text

#: Beyond it FBGEMM's CUDA kernels return zeros without a word (pytorch/torchrec issue 3673).
MAX_DIM = 1024
#: Rows checked and written at a time, so that memory does not grow with the table.
CHUNK_ROWS = 65_536
#: How far from 1 the norm of a normalised vector may be; float16 rounding of 1024 numbers stays well below.
NORM_TOLERANCE = 2e-3

Kind = Literal["product", "query"]
VECTORS, IDS = "vectors.npy", "ids.parquet"


class EmbeddingTableError(ValueError):
    """An embedding table that cannot be written, read or joined; the message names the file or the id."""


class TableManifest(StrictModel):
    """What `manifest.json` says about a table."""

    format: Literal[1] = 1
    encoder_id: str
    kind: Kind
    dim: Annotated[int, Field(ge=4, le=MAX_DIM, multiple_of=4)]
    dtype: Literal["float16", "float32"]
    normalised: bool
    id_type: Literal["int64", "string"]
    count: Annotated[int, Field(ge=0)]
    #: Ids whose vector is all zeros: the encoder had nothing to say, so they act like missing ids.
    zero_vectors: Annotated[int, Field(ge=0)]
    created: datetime
    #: What was kept from the training of the encoder, a `HoldoutConfig`; None where no record says so.
    holdout: dict[str, bool | int | float | str] | None = None
    checksums: dict[str, str]


@dataclass(frozen=True)
class Coverage:
    """How many of some ids a table knows."""

    known: int
    missing: int

    @property
    def share(self) -> float:
        """known / (known + missing); 1.0 when nothing was asked for."""
        total = self.known + self.missing
        return self.known / total if total else 1.0


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Vectors of products or queries, found by id.

    `vectors_ND[0]` is zeros and stands for every id that the table does not know; the vector of `ids[i]`
    is `vectors_ND[i + 1]`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = EmbeddingTable.write(
    ...         Path(folder) / "products",
    ...         ids=pa.array(["milk", "bread"]),
    ...         vectors_ND=np.eye(2, 4, dtype=np.float32),
    ...         encoder_id="by hand",
    ...         kind="product",
    ...         normalised=True,
    ...     )
    ...     table.rows_of(pa.array(["bread", "caviar"])).tolist()
    [2, 0]
    """

    folder: Path
    manifest: TableManifest
    ids: pa.Array
    vectors_ND: npt.NDArray[np.floating]

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return self.manifest.dim

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def load(cls, folder: Path, *, verify: bool = True) -> Self:
        """Open a table; the vectors are memory-mapped, so several processes share one copy.

        `verify=False` skips the checksums (one read of the whole file), never the shape and type checks.

        Raises:
            EmbeddingTableError: a file is missing, truncated or changed since the table was written.
        """
        folder = Path(folder)
        manifest = read_manifest(
            folder,
            TableManifest,
            what="an embedding table",
            error=EmbeddingTableError,
            advice="`dashclip embed lsa` or `dashclip embed import` makes one",
        )
        verify_checksums(
            folder,
            {name: manifest.checksums.get(name) for name in (VECTORS, IDS)},
            error=EmbeddingTableError,
            advice="write the embedding table again",
            contents=verify,
        )
        vectors_ND = _map_vectors(folder / VECTORS)
        wanted = ((manifest.count + 1, manifest.dim), manifest.dtype)
        if (vectors_ND.shape, vectors_ND.dtype.name) != wanted:
            raise EmbeddingTableError(
                f"{folder / VECTORS} must be {wanted[1]} of shape {wanted[0]} as its manifest says, "
                f"got {vectors_ND.dtype.name} of shape {vectors_ND.shape}; write the embedding table again"
            )
        ids = _read_ids(folder / IDS)
        if (len(ids), str(ids.type)) != (manifest.count, manifest.id_type):
            raise EmbeddingTableError(
                f"{folder / IDS} must hold {manifest.count:,} {manifest.id_type} ids as its manifest says, "
                f"got {len(ids):,} of type {ids.type}; write the embedding table again"
            )
        return cls(folder=folder, manifest=manifest, ids=ids, vectors_ND=vectors_ND)

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        ids: pa.Array | pa.ChunkedArray,
        vectors_ND: npt.NDArray[np.floating],
        encoder_id: str,
        kind: Kind,
        normalised: bool,
        created: datetime | None = None,
        holdout: Mapping[str, bool | int | float | str] | None = None,
    ) -> Self:
        """Write a table and open it; the vector of `ids[i]` is `vectors_ND[i]` (no missing row: it is added).

        `normalised=True` is a claim that is checked: every vector has norm 1 or is all zeros. An existing
        table at `folder` is replaced only once the new one is complete. `holdout` goes into the manifest.

        Raises:
            EmbeddingTableError: ids are null, duplicate or neither int64 nor string; vectors are not float16
                or float32, not finite, of a width that FBGEMM cannot take, or not as normalised as claimed.
            FileExistsError: `folder` holds something other than an embedding table.
        """
        folder = Path(folder)
        ids = _canonical_ids(ids)
        _check_shape(ids, vectors_ND)
        _check_unique(ids)
        with atomic_folder(folder, ours=is_table) as temporary:
            zero_vectors = _write_vectors(temporary / VECTORS, ids, vectors_ND, normalised=normalised)
            pq.write_table(pa.table({"id": ids}), temporary / IDS, compression="zstd")
            manifest = TableManifest(
                encoder_id=encoder_id,
                kind=kind,
                dim=vectors_ND.shape[1],
                dtype=vectors_ND.dtype.name,  # type: ignore[arg-type]  # _check_shape saw to it
                normalised=normalised,
                id_type=str(ids.type),  # type: ignore[arg-type]  # _canonical_ids saw to it
                count=len(ids),
                zero_vectors=zero_vectors,
                created=created or datetime.now(UTC),
                holdout=None if holdout is None else dict(holdout),
                checksums=checksums_of(temporary, (VECTORS, IDS)),
            )
            (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return cls.load(folder, verify=False)

    def rows_of(self, ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Row of each of M ids in `vectors_ND`; 0 for ids that are null, blank or unknown.

        Hashes the whole table at every call: ask for many ids at once. Asking for `table.ids` gives 1 ... N.

        Raises:
            EmbeddingTableError: the ids are strings and the table has integers, or the other way round.
        """
        ids = without_blanks(_canonical_ids(ids, allow_null=True))
        if ids.type != self.ids.type:
            raise EmbeddingTableError(
                f"the ids of {self.folder} are {self.ids.type}, but {ids.type} ids were looked up; "
                "write the table with the id type of the data"
            )
        position_M = pc.index_in(ids, value_set=self.ids)
        return pc.add(pc.fill_null(position_M, -1), 1).to_numpy(zero_copy_only=False).astype(np.int64)

    def coverage(self, ids: pa.Array | pa.ChunkedArray) -> Coverage:
        """How many of these ids have a vector; null and blank ids are not counted at all."""
        ids = without_blanks(_canonical_ids(ids, allow_null=True)).drop_null()
        known = int(np.count_nonzero(self.rows_of(ids)))
        return Coverage(known=known, missing=len(ids) - known)


def is_table(folder: Path) -> bool:
    """Whether `EmbeddingTable.write` wrote this folder: other artifacts have a manifest.json, too."""
    return json_file_has(folder / MANIFEST, "zero_vectors")


def _canonical_ids(ids: pa.Array | pa.ChunkedArray, *, allow_null: bool = False) -> pa.Array:
    """Ids as one int64 or string array; any integer width and string encoding is accepted."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_integer(ids.type):
        try:
            ids = ids.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise EmbeddingTableError(f"ids must fit into 64-bit signed integers: {error}") from None
    elif is_text(ids.type):
        ids = ids.cast(pa.string())
    elif pa.types.is_null(ids.type) and not len(ids):
        ids = ids.cast(pa.int64())
    else:
        raise EmbeddingTableError(f"ids must be integers or strings, got {ids.type}; cast the id column")
    if ids.null_count and not allow_null:
        position = pc.index(ids.is_null(), True).as_py()
        raise EmbeddingTableError(
            f"ids must not be null or blank, but the one at position {position} is; drop that row"
        )
    return ids


def _check_shape(ids: pa.Array, vectors_ND: npt.NDArray[np.floating]) -> None:
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(ids):
        raise EmbeddingTableError(
            f"vectors must have one row for each of the {len(ids):,} ids, got shape {vectors_ND.shape}"
        )
    if vectors_ND.dtype.name not in ("float16", "float32"):
        raise EmbeddingTableError(
            f"vectors must be float16 or float32, got {vectors_ND.dtype}; convert them with .astype"
        )
    dim = vectors_ND.shape[1]
    if dim % 4 or not 4 <= dim <= MAX_DIM:
        raise EmbeddingTableError(
            f"the embedding width must be a multiple of 4 from 4 to {MAX_DIM}, as FBGEMM's kernels take no "
            f"other, got {dim}; project or zero-pad the vectors"
        )


def _check_unique(ids: pa.Array) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    first = repeated[0]
    raise EmbeddingTableError(
        f"ids must be unique, but {first['values'].as_py()!r} appears {first['counts'].as_py()} times "
        f"({len(repeated):,} ids are repeated); keep one vector for each id"
    )


def _write_vectors(
    path: Path, ids: pa.Array, vectors_ND: npt.NDArray[np.floating], *, normalised: bool
) -> int:
    """Write the missing row and all vectors, checking each; return how many vectors are all zeros."""
    rows, dim = vectors_ND.shape
    written = np.lib.format.open_memmap(path, mode="w+", dtype=vectors_ND.dtype, shape=(rows + 1, dim))
    zero_vectors = 0
    for start in range(0, rows, CHUNK_ROWS):
        chunk_CD = vectors_ND[start : start + CHUNK_ROWS]
        norm_C = np.linalg.norm(chunk_CD.astype(np.float64), axis=1)
        if not np.isfinite(norm_C).all():
            row = start + int(np.flatnonzero(~np.isfinite(norm_C))[0])
            raise EmbeddingTableError(
                f"vectors must be finite, but that of id {ids[row].as_py()!r} (position {row}) holds NaN or "
                "infinity; encode it again or leave the id out"
            )
        wrong = normalised & (norm_C != 0) & (np.abs(norm_C - 1) > NORM_TOLERANCE)
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            raise EmbeddingTableError(
                f"the vectors are said to be normalised, but that of id {ids[start + position].as_py()!r} "
                f"has norm {norm_C[position]:.4g}; divide each vector by its norm, or say normalised=False"
            )
        zero_vectors += int(np.count_nonzero(norm_C == 0))
        written[start + 1 : start + 1 + len(chunk_CD)] = chunk_CD
    written.flush()
    return zero_vectors


def _map_vectors(path: Path) -> npt.NDArray[np.floating]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise EmbeddingTableError(
            f"{path} is truncated or not a .npy file: {error}; write the table again"
        ) from None


def _read_ids(path: Path) -> pa.Array:
    try:
        column = pq.read_table(path, columns=["id"]).column("id")
    except (pa.ArrowInvalid, KeyError) as error:
        raise EmbeddingTableError(f"{path} is not a Parquet file with a column 'id': {error}") from None
    return _canonical_ids(column)
