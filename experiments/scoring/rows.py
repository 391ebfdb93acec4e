"""A table of rows to score, from Parquet, CSV or TSV, and the scored table written the same way."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from features.artifacts import replaced_file
from features.inputs.blanks import without_blanks

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
#: Columns of CSV that stay as they are written, as an id 007 is not 7; `ids_like` makes numbers of them.
_TEXTS = ("impression_id", "user_id", "product_id", "query", "text")


def read_rows(path: Path, *, needs: tuple[str, ...]) -> pa.Table:
    """The rows of a file, by its ending.

    Raises:
        ValueError: the ending is of another kind, the file is damaged or empty, or a column is missing.
    """
    _check_ending(path)
    try:
        if path.suffix in _SEPARATORS:
            parsed = csv.ParseOptions(delimiter=_SEPARATORS[path.suffix])
            texts = csv.ConvertOptions(column_types=dict.fromkeys(_TEXTS, pa.string()))
            rows = csv.read_csv(path, parse_options=parsed, convert_options=texts)
        else:
            rows = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}{_hint(path)}") from None
    missing = [name for name in needs if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{path} needs the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has "
            f"{', '.join(rows.column_names)}{_hint(path) if len(rows.column_names) == 1 else ''}"
        )
    if not len(rows):
        raise ValueError(f"{path} has no rows")
    return rows


def _hint(path: Path) -> str:
    mark = {".csv": "commas", ".tsv": "tabs"}.get(path.suffix)
    return f". {path.suffix} has {mark} between fields, and numbers with a point" if mark else ""


def ids_like(ids: pa.Array | pa.ChunkedArray, kind: pa.DataType, *, name: str) -> pa.Array:
    """Ids as the type of those among which they are looked up; blank ones are null.

    Raises:
        ValueError: one cannot be of that type.
    """
    ids = without_blanks(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
    if pa.types.is_integer(kind) and ids.type == pa.string():
        ids = pc.replace_substring_regex(ids, r"^(-?\d+)\.0$", r"\1")  # as pandas writes 7 beside a null
    try:
        return ids if ids.type == kind else ids.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(
            f"{name} is {ids.type} here, but must be {kind} as in the data; cast it to that"
        ) from None


def write_rows(rows: pa.Table, path: Path) -> None:
    """Write the rows as Parquet, CSV or TSV, by the ending of `path`; an older file is replaced.

    Raises:
        ValueError: the ending is of another kind.
    """
    _check_ending(path)
    with replaced_file(path) as temporary:
        if path.suffix in _SEPARATORS:
            csv.write_csv(rows, temporary, csv.WriteOptions(delimiter=_SEPARATORS[path.suffix]))
        else:
            pq.write_table(rows, temporary)


def _check_ending(path: Path) -> None:
    if path.suffix not in (".parquet", *_SEPARATORS):
        raise ValueError(f"{path} must end in .parquet, .csv or .tsv")
