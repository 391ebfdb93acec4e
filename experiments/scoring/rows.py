"""A table of rows to score, from Parquet, CSV or TSV, and the scored table written the same way."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from features.artifacts import replaced_file

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: Path, *, needs: tuple[str, ...]) -> pa.Table:
    """The rows of a file, by its ending.

    Raises:
        ValueError: the ending is of another kind, the file is damaged or empty, or a column is missing.
    """
    _check_ending(path)
    try:
        if path.suffix in _SEPARATORS:
            parsed = csv.ParseOptions(delimiter=_SEPARATORS[path.suffix])
            rows = csv.read_csv(path, parse_options=parsed)
        else:
            rows = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    missing = [name for name in needs if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{path} needs the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has "
            f"{', '.join(rows.column_names)}"
        )
    if not len(rows):
        raise ValueError(f"{path} has no rows")
    return rows


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
