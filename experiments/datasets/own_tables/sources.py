"""Finding and reading a table in the formats that people have: CSV, TSV, JSON lines, Parquet, packed or not.

Text formats are read as text alone, so nothing is guessed: an id `007` stays what it is, and
`experiments.datasets.own_tables.columns` says what each column means. Parquet keeps its types. A folder is
one table of all its files, with subfolders, whose Hive partitions are columns.

Fields of CSV are quoted by ", an empty one is null, the first line of every file names the columns.
"""

import csv
import gzip
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from features.inputs.plain_types import sql_name
from features.inputs.table_folders import files_in, partition_of
from features.inputs.table_specs import TableName
from features.inputs.tables import InputError, escape_glob, open_files, sql_text

Format = Literal["csv", "jsonl", "parquet"]
#: The ending of a file, without .gz, tells its format.
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = ",;\t|"
#: What the first column is called if the header does not: pandas leaves the name of its row numbers blank.
_UNNAMED = "index"
_NAMES = ", ".join(FORMATS)


@dataclass(frozen=True)
class Source:
    """One table as it arrives: columns by name with their DuckDB types, and a subquery of all its rows."""

    place: Path
    columns: Mapping[str, str]
    scan_sql: str


def find_source(root: Path, name: str) -> Path | None:
    """The file or folder of a table: `name` itself, or with any known ending; None without one.

    Raises:
        InputError: there are several.
    """
    own = root / name
    endings = [f"{ending}{packed}" for ending in FORMATS for packed in ("", ".gz")]
    found = [path for path in (own, *(root / f"{name}{ending}" for ending in endings)) if path.exists()]
    if len(found) > 1:
        raise InputError(
            f"{root} holds {' and '.join(path.name for path in found)}; keep the one that is the {name} "
            f"table, or name it in the mapping ({name}.file)"
        )
    return found[0] if found else None


def is_table_file(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    return Path(path.name.lower().removesuffix(".gz")).suffix in FORMATS


def read_source(
    connection: duckdb.DuckDBPyConnection,
    table: TableName,
    place: Path,
    *,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Source:
    """The columns of a file or of a folder of files, and how to read them.

    Raises:
        InputError: no files, files of several formats or of none that is known, a header that does not name
            its columns, or a file that is not whole.
    """
    files = files_in(place) if place.is_dir() else [place]
    if not files:
        raise InputError(f"{place} holds no files; put those of the {table} table into it")
    formats = {path: _format(path) for path in files}
    for path, kind in formats.items():
        if kind != formats[files[0]]:
            raise InputError(
                f"{place} holds files of several formats, such as {files[0].name} and {path.name}, but it is "
                "one table; write all of them in one format"
            )
    folder = place if place.is_dir() else None
    kind = formats[files[0]]
    if kind == "parquet":
        stored = open_files(table, files, folder=folder, own_names=True)
        scan = stored.scan_sql()
        rows = connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()
        return Source(place, {row[0]: row[1] for row in rows}, scan)
    parts = {path: _partition(path, folder) for path in files}
    if kind == "csv":
        heads = {path: _header(path, delimiter, encoding) for path in files}
        readers = {
            path: csv_sql([path], mark, names, encoding=encoding) for path, (mark, names) in heads.items()
        }
        return _texts(place, {path: names for path, (_, names) in heads.items()}, readers, parts)
    keys = {path: _json_keys(connection, path) for path in files}
    return _texts(place, keys, {path: _json_sql(path, names) for path, names in keys.items()}, parts)


@contextmanager
def sentences_of(table: str) -> Iterator[None]:
    """Turn what DuckDB says of a file that it cannot read into one sentence.

    Raises:
        InputError: inside the block, when it does.
    """
    try:
        yield
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException):
        raise  # a mistake in our SQL, not in the data
    except duckdb.Error as error:
        raise InputError(f"{table}: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    line = re.search(r"CSV Error on Line: (\d+)", message)
    file = re.search(r"^\s*file = (.*)$", message, re.MULTILINE)
    columns = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if line is None:
        return f"reading it broke off ({message.splitlines()[0]}); is the file whole?"
    where = f"{file.group(1)} line {line.group(1)}" if file else f"line {line.group(1)}"
    if columns:
        return (
            f"{where} has {columns.group(2)} fields, but the first line names {columns.group(1)}; correct "
            "it, or name the right delimiter in the mapping"
        )
    if "not utf-8" in message or "unicode" in message.lower():
        return f"{where} is not UTF-8; name the encoding in the mapping (encoding = 'latin-1' or 'utf-16')"
    first = next((text for text in message.splitlines()[2:] if text.strip()), message)
    return f"{where} cannot be read ({first.strip()}); correct it"


def _format(path: Path) -> Format:
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if not is_table_file(path) or (FORMATS[ending] == "parquet" and path.name.lower().endswith(".gz")):
        raise InputError(
            f"{path} is of no known format; its name must end in one of {_NAMES} (text with .gz)"
        )
    return FORMATS[ending]


def _partition(path: Path, folder: Path | None) -> dict[str, str | None]:
    return partition_of(path, folder) if folder is not None else {}


def _header(path: Path, delimiter: str | None, encoding: str) -> tuple[str, list[str]]:
    """What parts the fields of a file, and the names in its first line."""
    try:
        packed = path.name.lower().endswith(".gz")
        name = "utf-8-sig" if encoding == "utf-8" else encoding
        with (
            gzip.open(path, "rt", encoding=name, newline="")
            if packed
            else path.open(encoding=name, newline="") as text
        ):
            start = text.readline()
            mark = delimiter or _delimiter(
                path, re.sub(r'"[^"]*"', "", start)
            )  # what is quoted parts nothing
            names = next(csv.reader(itertools.chain([start], text), delimiter=mark), [])
    except (EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); write it again") from error
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is not {encoding}; name its encoding in the mapping (encoding = 'latin-1' or 'utf-16')"
        ) from None
    if not any(names):
        raise InputError(f"{path} is empty; its first line must name the columns")
    if not names[0].strip():
        names[0] = _UNNAMED
    blank = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if blank:
        raise InputError(f"{path} line 1: field {blank[0]} of the header is empty; name every column")
    folded = [name.casefold() for name in names]
    twice = next((name for name in names if folded.count(name.casefold()) > 1), None)
    if twice is not None:
        raise InputError(f"{path} line 1: more than one column is named {twice!r}; rename one")
    return mark, names


def _delimiter(path: Path, header: str) -> str:
    if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    return max(_DELIMITERS, key=header.count)  # the first of them where there is none


def csv_sql(
    paths: Sequence[Path],
    delimiter: str,
    names: Sequence[str],
    *,
    encoding: str = "utf-8",
    header: bool = True,
) -> str:
    """A DuckDB source of the rows of files that have these columns, all of them text.

    Args:
        header: the first line of each file names the columns.
    """
    columns = ", ".join(f"{sql_text(name)}: 'VARCHAR'" for name in names)
    return (
        f"read_csv([{', '.join(map(_path_sql, paths))}], auto_detect = false, header = {header}, "
        f"delim = {sql_text(delimiter)}, quote = '\"', escape = '\"', nullstr = '', encoding = '{encoding}', "
        f"columns = {{{columns}}}, hive_partitioning = false)"
    )


def _json_keys(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """Every key of any record, in the order of their first occurrence."""
    scan = (
        f"read_json([{_path_sql(path)}], format = 'newline_delimited', maximum_depth = 1, sample_size = -1, "
        "hive_partitioning = false)"
    )
    with sentences_of(str(path)):
        found = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
    if found == ["json"]:
        raise InputError(f'{path} holds no records; every line must be an object, {{"key": value, ...}}')
    return found


def _json_sql(path: Path, names: Sequence[str]) -> str:
    """Values as text: a string without its quotes, else as JSON writes it."""
    columns = ", ".join(f"{sql_text(name)}: 'JSON'" for name in names)
    values = ", ".join(f"{sql_name(name)} ->> '$' AS {sql_name(name)}" for name in names)
    return (
        f"(SELECT {values} FROM read_json([{_path_sql(path)}], format = 'newline_delimited', "
        f"columns = {{{columns}}}, hive_partitioning = false))"
    )


def _path_sql(path: Path) -> str:
    return sql_text(escape_glob(str(path)))


def _texts(
    place: Path,
    names: Mapping[Path, Sequence[str]],
    readers: Mapping[Path, str],
    partitions: Mapping[Path, Mapping[str, str | None]],
) -> Source:
    """All files one after the other; a column that one lacks is null there, or what its path tells."""
    every: dict[str, str] = {}
    for path, found in names.items():
        for name in (*found, *partitions[path]):
            known = every.setdefault(name.casefold(), name)
            if known != name:
                raise InputError(
                    f"{path} has a column {name!r}, which differs from {known!r} of another file in case "
                    "alone; rename one"
                )
    scans = []
    for path, reader in readers.items():
        values = []
        for name in every.values():
            told = partitions[path].get(name)
            constant = "NULL" if told is None else sql_text(told)
            own = sql_name(name) if name in names[path] else f"CAST({constant} AS VARCHAR)"
            values.append(f"{own} AS {sql_name(name)}")
        scans.append(f"SELECT {', '.join(values)} FROM {reader}")
    return Source(place, dict.fromkeys(every.values(), "VARCHAR"), f"({' UNION ALL '.join(scans)})")
