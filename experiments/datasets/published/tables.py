"""Published data sets whose files are tables: each file a view of a DuckDB session, each input table a query.

What the queries give is written by `experiments.datasets.own_tables.import_tables`, as a user's own tables
are: one way to write, to check and to describe.
"""

import gzip
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from experiments.datasets.own_tables.import_tables import ImportedTables, import_tables
from experiments.datasets.own_tables.mapping import ImportMapping
from experiments.datasets.own_tables.sources import csv_sql, read_source, sentences_of
from features.artifacts import refuse_to_replace_input
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TABLES
from features.inputs.tables import InputError, sql_text
from features.progress import Progress, silent

#: Where clocks start that are constructed, of data sets without dates.
CLOCK_START = "2000-01-01 00:00:00+00"


class PublishedTables:
    """The files of one data set; made by `published_tables`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: Path, name: str, staged: Path) -> None:
        self.connection = connection
        self._source = source
        self._name = name
        self._staged = staged
        self.notes: list[str] = []

    def view(
        self,
        view: str,
        file: str,
        columns: Sequence[str],
        *,
        delimiter: str | None = None,
        further: str | None = None,
    ) -> list[str]:
        """Make a file, plain or .gz, in the folder or in one of its subfolders, a view; returns its columns.

        Args:
            file: its name, perhaps with the folders that it lies in.
            further: columns whose names begin so belong to the view, too.

        Raises:
            InputError: it is missing or there twice, or lacks a column.
        """
        names = (file, f"{file}.gz")
        found = sorted({path for name in names for path in self._source.rglob(name) if path.is_file()})
        if len(found) != 1:
            what = f"{len(found)} files" if found else "no file"
            raise InputError(
                f"{self._source} holds {what} {file}[.gz]; give the folder into which {self._name} was "
                "unpacked"
            )
        read = read_source(self.connection, "products", found[0], delimiter=delimiter)
        missing = [column for column in columns if column not in read.columns]
        if missing:
            raise InputError(
                f"{found[0]} has no column {missing[0]!r}; it has {', '.join(read.columns)}. "
                f"Is it {self._name} as published?"
            )
        named = [*columns, *(name for name in read.columns if further and name.startswith(further))]
        self.connection.execute(
            f"CREATE VIEW {view} AS SELECT {', '.join(map(sql_name, named))} FROM {read.scan_sql}"
        )
        return named

    def rows(
        self,
        patterns: Sequence[str],
        columns: Sequence[str],
        *,
        delimiter: str,
        header: bool,
        one_in: int = 1,
    ) -> list[Path]:
        """Make text files without an ending to go by, or without a header, the table `numbered`.

        It has the columns as text, `file` (from 0, in the order of the result), `row` (from 0, in its file),
        and `rows` of the file, as far as they were read.

        Args:
            patterns: names of files; the first that any file matches counts.
            one_in: keep rows 0, `one_in`, 2 x `one_in`, ... of each file.

        Returns:
            The files in the order of the numbers in their names.

        Raises:
            InputError: no file matches, or a file's first line has another number of fields, or other names.
        """
        matching = (
            sorted({path for path in self._source.rglob(pattern) if path.is_file()}, key=_numbers_in)
            for pattern in patterns
        )
        files = next((found for found in matching if found), [])
        if not files:
            raise InputError(
                f"{self._source} holds no file {' or '.join(patterns)}; give the folder into which "
                f"{self._name} was unpacked"
            )
        for path in files:
            self._check_first_line(path, columns, delimiter, header=header)
        listed = ", ".join(map(sql_name, columns))
        scans = [
            f"SELECT * FROM (SELECT {listed}, {place} AS file, row_number() OVER () - 1 AS row FROM "
            f"{csv_sql([path], delimiter, columns, header=header)}) WHERE row % {int(one_in)} = 0"
            for place, path in enumerate(files)
        ]
        self.connection.execute(f"CREATE TABLE read_rows AS {' UNION ALL '.join(scans)}")
        self.connection.execute(
            "CREATE VIEW numbered AS SELECT r.*, e.rows FROM read_rows r JOIN (SELECT file, max(row) + 1 AS "
            "rows FROM read_rows GROUP BY file) e ON e.file = r.file"
        )
        if one_in > 1:
            self.notes.append(f"a sample: one of {one_in:,} rows, in their order")
        return files

    def _check_first_line(self, path: Path, columns: Sequence[str], delimiter: str, *, header: bool) -> None:
        packed = path.name.endswith(".gz")
        with gzip.open(path, "rt") if packed else path.open() as text:
            found = text.readline().rstrip("\r\n").split(delimiter)
        if len(found) != len(columns):
            raise InputError(
                f"{path} line 1 has {len(found)} fields, but {self._name} as published has {len(columns)}"
            )
        if header and tuple(found) != tuple(columns):
            wrong = next(name for name, own in zip(found, columns, strict=True) if name != own)
            raise InputError(
                f"{path} line 1 names a column {wrong!r}; is it {self._name} as published? It has "
                f"{', '.join(columns)}"
            )

    def refuse(self, rows: str, value: str, advice: str) -> None:
        """Refuse the data set if a query `rows` (FROM ... WHERE ...) finds any row; one `value` is shown.

        Raises:
            InputError: it does.
        """
        found = self.connection.execute(f"SELECT count(*), any_value({value}) {rows}").fetchone()
        assert found is not None
        if found[0]:
            raise InputError(
                f"{self._name} in {self._source}: {found[0]:,} rows {advice}, such as {found[1]!r}"
            )

    def some_users(self, view: str, user: str, count: int | None, seed: int) -> str:
        """A condition (WHERE ...) on `view` that holds for `count` users chosen by the seed; "" for all."""
        if count is None:
            return ""
        return (
            f"WHERE {user} IN (SELECT {user} FROM (SELECT DISTINCT {user} FROM {view}) "
            f"ORDER BY md5({user} || '/{int(seed)}') LIMIT {int(count)})"
        )

    def count(self, query: str) -> int:
        """The one number that a query gives."""
        found = self.connection.execute(query).fetchone()
        assert found is not None
        return int(found[0])

    def stage(self, tables: Mapping[str, str]) -> None:
        """Write the rows of a query for each input table."""
        for table, query in tables.items():
            path = sql_text(str(self._staged / f"{table}.parquet"))
            self.connection.execute(f"COPY ({query}) TO {path} (FORMAT parquet, COMPRESSION zstd)")


def import_published(
    source: Path,
    out: Path,
    *,
    name: str,
    read: Callable[[PublishedTables], None],
    settings: Mapping[str, Any] | None = None,
    description: Mapping[str, Any],
    progress: Progress = silent,
) -> ImportedTables:
    """Write a published data set to the folder `out`.

    Args:
        read: makes views of the files and stages the tables.
        settings: further keys of the mapping by which the staged tables are imported.
        description: what `source.json` says.

    Raises:
        InputError: a file, column or value is not as published.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the one into which {name} was unpacked")
    refuse_to_replace_input(out, source)
    with published_tables(source, name) as (tables, staged):
        progress(f"reading {name}", 0, 1)
        with sentences_of(name):
            read(tables)
        keys: dict[str, Any] = {
            table: {"further": "keep"} for table in TABLES if (staged / f"{table}.parquet").exists()
        }
        for table, own in (settings or {}).items():
            keys.setdefault(table, {}).update(own)
        summary = import_tables(
            staged,
            out,
            ImportMapping.model_validate(keys),
            description={"source": name, **description, "source_notes": tables.notes},
            progress=progress,
        )
    summary.notes[:0] = tables.notes
    return summary


def _numbers_in(path: Path) -> tuple[list[int], str]:
    """`day_2` comes before `day_10`."""
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


@contextmanager
def published_tables(source: Path, name: str) -> Iterator[tuple[PublishedTables, Path]]:
    """A session over the files of `source`, and the folder to which it stages tables."""
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-published-") as spill,
        duckdb.connect(str(Path(spill) / "views.db")) as connection,
    ):
        connection.execute(f"SET temp_directory = {sql_text(spill)}")
        connection.execute("SET TimeZone = 'UTC'")
        staged = Path(spill) / "staged"
        staged.mkdir()
        yield PublishedTables(connection, source, name, staged), staged
