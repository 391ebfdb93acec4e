"""Anybody's vectors as an EmbeddingTable, from a Parquet or .npy file, and how much of a data set it covers.

Ids that were written otherwise than those of the data match nothing: `coverage_of_data` shows it.

Shapes: N vectors, D embedding width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.embedding_table import NORM_TOLERANCE, Coverage, EmbeddingTable, EmbeddingTableError, Kind
from features.inputs.blanks import without_blanks
from features.inputs.table_specs import TABLES
from features.inputs.tables import find_table

#: Names tried for the id column when none is given, by what the vectors are of.
ID_COLUMNS: dict[Kind, tuple[str, ...]] = {"product": ("id", "product_id"), "query": ("id", "query")}
CHUNK_ROWS = 65_536
BATCH_ROWS = 1 << 20


def import_vectors(
    vectors: Path,
    folder: Path,
    *,
    kind: Kind,
    encoder_id: str,
    ids: Path | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    normalise: bool = False,
) -> EmbeddingTable:
    """Write the vectors of a file as an EmbeddingTable.

    `vectors` is a Parquet file with an id column and a column of float lists, or a .npy matrix with `ids`
    (.npy or .parquet; .txt has one string id a line). float16 and float32 stay, float64 becomes float32.
    `normalise` divides each vector by its norm, zeros stay zeros. Without it the manifest says whether the
    vectors happen to be normalised.

    Raises:
        EmbeddingTableError: a file or column is unreadable, lists differ in length, ids and vectors differ in
            number, a vector is beyond the reach of float32, or what `EmbeddingTable.write` refuses.
    """
    if vectors.suffix == ".npy":
        if ids is None:
            raise EmbeddingTableError(f"{vectors} holds no ids; give the file that does with --ids")
        vectors_ND, id_array = _read_matrix(vectors), _read_id_file(ids, kind, id_column)
    elif vectors.suffix == ".parquet":
        if ids is not None:
            raise EmbeddingTableError(f"--ids belongs to .npy vectors; {vectors} has its own id column")
        vectors_ND, id_array = _read_parquet(vectors, kind, id_column, vector_column)
    else:
        raise EmbeddingTableError(f"vectors must be a .parquet or .npy file, got {vectors}")
    if normalise or vectors_ND.dtype not in (np.float16, np.float32):
        vectors_ND = _as_stored(vectors_ND, id_array, normalise=normalise)
    return EmbeddingTable.write(
        folder,
        ids=without_blanks(id_array),
        vectors_ND=vectors_ND,
        encoder_id=encoder_id,
        kind=kind,
        normalised=normalise or _is_normalised(vectors_ND),
    )


def coverage_of_data(table: EmbeddingTable, data: Path) -> dict[str, Coverage]:
    """How many rows of each input table have a vector, by "table.column"; absent columns are left out.

    Rows count, not distinct ids: a missing head product weighs as much as its traffic.

    Raises:
        EmbeddingTableError: the ids of the data are strings and those of the table integers, or vice versa.
    """
    column = "product_id" if table.manifest.kind == "product" else "query"
    found: dict[str, Coverage] = {}
    for name in TABLES:
        rows = find_table(data, name)
        if rows is None or column not in rows.schema.names:
            continue
        known = missing = 0
        for batch in rows.to_batches(columns=[column], batch_size=BATCH_ROWS):
            part = table.coverage(batch.column(column))
            known, missing = known + part.known, missing + part.missing
        found[f"{name}.{column}"] = Coverage(known=known, missing=missing)
    return found


def norms_of(vectors_ND: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Euclidean norm of each vector, computed in chunks; squares that exceed float64 are of no concern."""
    norm_N = np.empty(len(vectors_ND), np.float64)
    for start in range(0, len(vectors_ND), CHUNK_ROWS):
        chunk_CD = vectors_ND[start : start + CHUNK_ROWS].astype(np.float64)
        largest_C = np.abs(chunk_CD).max(axis=1, initial=0)
        scale_C = np.where((largest_C > 1e100) | (largest_C < 1e-100), largest_C, 1)
        scale_C[(scale_C == 0) | ~np.isfinite(scale_C)] = 1
        norm_C = np.linalg.norm(chunk_CD / scale_C[:, None], axis=1)
        norm_N[start : start + len(chunk_CD)] = norm_C * scale_C
    return norm_N


def _read_matrix(path: Path) -> npt.NDArray[np.floating]:
    matrix = _read_array(path)
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise EmbeddingTableError(
            f"{path} must be a matrix of floats, one row for each id, "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )
    return matrix


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise EmbeddingTableError(f"{path} is not a readable .npy file: {error}") from None
    if isinstance(array, np.ndarray):
        return array
    with array:
        raise EmbeddingTableError(
            f"{path} is an .npz archive of {', '.join(array.files) or 'nothing'}, whatever its name; save "
            "one array with numpy.save"
        )


def _read_id_file(path: Path, kind: Kind, id_column: str | None) -> pa.Array:
    if path.suffix == ".parquet":
        file = _open_parquet(path)
        return file.read(columns=[_id_column(path, file, kind, id_column)]).column(0)
    if path.suffix == ".npy":
        try:
            return pa.array(_read_array(path))
        except pa.ArrowInvalid as error:
            raise EmbeddingTableError(f"{path} must be a .npy list of integers or strings: {error}") from None
    if path.suffix == ".txt":
        return _read_lines(path)
    raise EmbeddingTableError(f"ids must be a .parquet, .npy or .txt file, got {path}")


def _read_lines(path: Path) -> pa.Array:
    """One id a line. Lines end as in any text file; U+2028 and the like may be part of an id."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise EmbeddingTableError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    ids = text.removesuffix("\n").split("\n") if text else []
    return pa.array(ids, type=pa.string())


def _read_parquet(
    path: Path, kind: Kind, id_column: str | None, vector_column: str | None
) -> tuple[npt.NDArray[np.floating], pa.ChunkedArray]:
    file = _open_parquet(path)
    id_column = _id_column(path, file, kind, id_column)
    vector_column = _vector_column(path, file, vector_column)
    ids = file.read(columns=[id_column]).column(0)
    value_type = file.schema_arrow.field(vector_column).type.value_type
    dtype: type[np.floating] = np.float16 if pa.types.is_float16(value_type) else np.float32
    if pa.types.is_float64(value_type):
        dtype = np.float64
    vectors_ND: npt.NDArray[np.floating] = np.empty((0, 0), dtype)
    filled = 0
    for batch in file.iter_batches(columns=[vector_column], batch_size=CHUNK_ROWS):
        lists = batch.column(0)
        length_B = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
        if not filled and len(length_B):
            vectors_ND = np.empty((len(ids), max(int(length_B[0]), 0)), dtype)
        wrong_B = np.flatnonzero((length_B != vectors_ND.shape[1]) | (length_B < 0))
        if len(wrong_B):
            row = filled + int(wrong_B[0])
            length = int(length_B[wrong_B[0]])
            raise EmbeddingTableError(
                f"{path}: vectors must have one width, {vectors_ND.shape[1]} as in the first row, but that "
                f"of id {ids[row].as_py()!r} (row {row}) {'is null' if length < 0 else f'has {length}'}"
            )
        flat = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
        vectors_ND[filled : filled + len(lists)] = flat.reshape(len(lists), -1)
        filled += len(lists)
    return vectors_ND, ids


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise EmbeddingTableError(f"{path} is not a readable Parquet file: {error}") from None


def _id_column(path: Path, file: pq.ParquetFile, kind: Kind, asked: str | None) -> str:
    names = file.schema_arrow.names
    for name in (asked,) if asked else ID_COLUMNS[kind]:
        if name in names:
            return name
    raise EmbeddingTableError(
        f"{path} has no column {asked or ' or '.join(ID_COLUMNS[kind])!r} for the ids; it has "
        f"{', '.join(names)}; name the right one with --id-column"
    )


def _vector_column(path: Path, file: pq.ParquetFile, asked: str | None) -> str:
    schema = file.schema_arrow
    lists = [field.name for field in schema if _is_float_list(field.type)]
    candidates = [name for name in lists if name == asked] if asked else lists
    if len(candidates) == 1:
        return candidates[0]
    found = f"it has {', '.join(lists)}" if lists else "it has none"
    wanted = f"a column {asked!r} of float lists" if asked else "exactly one column of float lists"
    raise EmbeddingTableError(f"{path} must have {wanted}, but {found}; name one with --vector-column")


def _is_float_list(kind: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in is_list) and pa.types.is_floating(kind.value_type)


def _as_stored(
    vectors_ND: npt.NDArray[np.floating], ids: pa.Array | pa.ChunkedArray, *, normalise: bool
) -> npt.NDArray[np.floating]:
    """float16 stays, others become float32, after the division by their norm where asked for.

    Raises:
        EmbeddingTableError: float32 cannot hold a vector: it would become infinite or lose its direction.
    """
    stored_ND = np.empty(vectors_ND.shape, np.float16 if vectors_ND.dtype == np.float16 else np.float32)
    for start in range(0, len(vectors_ND), CHUNK_ROWS):
        chunk_CD = vectors_ND[start : start + CHUNK_ROWS].astype(np.float64)
        norm_C = wanted_C = norms_of(chunk_CD)
        finite_C = np.isfinite(chunk_CD).all(axis=1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if normalise:
                chunk_CD /= np.where(norm_C == 0, 1, norm_C)[:, None]
                wanted_C = (norm_C != 0).astype(np.float64)
            stored_CD = chunk_CD.astype(stored_ND.dtype)
            close_C = np.abs(norms_of(stored_CD) - wanted_C) <= NORM_TOLERANCE * wanted_C
        lost_C = finite_C & ~close_C
        if lost_C.any():
            row = int(np.flatnonzero(lost_C)[0])
            raise EmbeddingTableError(
                f"the vector of id {ids[start + row].as_py()!r} (row {start + row}) has norm "
                f"{norm_C[row]:.3g}, which float32 cannot hold; scale the vectors, or normalise them "
                "(--normalise)"
            )
        stored_ND[start : start + len(stored_CD)] = stored_CD
    return stored_ND


def _is_normalised(vectors_ND: npt.NDArray[np.floating]) -> bool:
    """Whether every vector has norm 1 or is zeros, and at least one has norm 1."""
    if vectors_ND.ndim != 2:
        return False
    norm_N = norms_of(vectors_ND)
    nonzero_N = norm_N[norm_N != 0]
    return bool(len(nonzero_N) and (np.abs(nonzero_N - 1) <= NORM_TOLERANCE).all())
