"""The four input tables: finding their files, and opening them with their footers checked.

A folder `DATA` holds `products` and, where they exist, `impressions`, `purchases` and `relevance`; each is
one file `DATA/<table>.parquet` (or `.parq`) or a folder `DATA/<table>/` of them, in subfolders too. A Hive
partition `day=2024-05-01/` is a column `day`, unless the file holds one itself. Opening reads footers only,
so it costs milliseconds at any size; what needs the rows themselves is `features.inputs.validation`.

Features open all tables by `InputTables`; encoders open one by `open_table`, since a catalogue of titles
alone is enough for them. Both get an `InputTable`: the union of its files' columns, each in its plain type.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from features.inputs.plain_types import common_type, plain_sql, plain_type, plain_values, sql_name
from features.inputs.table_folders import SUFFIXES, files_in, partition_of, partition_types
from features.inputs.table_specs import TABLES, TableName, TableSpec, accepts, type_advice

#: Names that a scan with positions adds to the columns of a table.
RESERVED = ("__file", "file_row_number")
#: Formats that `dashclip import tables` turns into Parquet; here they get a hint.
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
_BATCH_ROWS = 65_536


class InputError(ValueError):
    """Input tables that cannot be used; the message names the file, the column and what to do."""


@dataclass(frozen=True)
class InputTable:
    """One table, of one file or several.

    Attributes:
        files: sorted by path.
        file_schemas: the columns of each file, as they are stored; then those that its path tells.
        partitions: what the path of each file tells: a value for each of these columns.
        schema: the union of the files' columns in plain types; a column of which no file has a typed value is
            none.
    """

    name: TableName
    files: tuple[Path, ...]
    file_schemas: tuple[pa.Schema, ...]
    partitions: tuple[Mapping[str, int | str | None], ...]
    schema: pa.Schema
    rows: int

    @classmethod
    def of(
        cls,
        name: TableName,
        footers: Mapping[Path, pq.FileMetaData],
        *,
        folder: Path | None = None,
        own_names: bool = False,
    ) -> "InputTable":
        """The table whose files have these footers.

        Args:
            folder: the table's folder; what the paths of files in it tell becomes columns.
            own_names: columns still have names of their own, which are not held to the table's.

        Raises:
            InputError: two columns differ in case alone, or two files give one column types that no plain
                type holds.
        """
        schemas = {path: footer.schema.to_arrow_schema() for path, footer in footers.items()}
        partitions = _partitions(schemas, folder)
        _check_names(schemas, None if own_names else TABLES[name])
        return cls(
            name=name,
            files=tuple(footers),
            file_schemas=tuple(schemas.values()),
            partitions=tuple(partitions),
            schema=_union(schemas),
            rows=sum(footer.num_rows for footer in footers.values()),
        )

    def check_types(self) -> None:
        """Check that every declared column has a type that carries what it means.

        Raises:
            InputError: one has not; names the file.
        """
        for declared in TABLES[self.name].columns:
            for path, schema in zip(self.files, self.file_schemas, strict=True):
                arrived = _stored_type(schema, declared.name)
                if arrived is not None and not accepts(declared, arrived):
                    raise InputError(f"{path}, column {declared.name!r}: {type_advice(declared, arrived)}")

    def scan_sql(self, *, positions: bool = False) -> str:
        """A subquery for DuckDB with the rows of all files; files of the same columns are read together.

        With `positions` it has two more columns: `__file`, the path, and `file_row_number`, from 0.
        """
        paths_of: dict[tuple[pa.Schema, tuple[tuple[str, int | str | None], ...]], list[str]] = {}
        for path, schema, values in zip(self.files, self.file_schemas, self.partitions, strict=True):
            alike = (schema.remove_metadata(), tuple(values.items()))
            paths_of.setdefault(alike, []).append(sql_text(escape_glob(str(path))))
        extra = ", filename = '__file', file_row_number = true" if positions else ""
        scans = []
        for (schema, partition), paths in paths_of.items():
            told = dict(partition)
            columns = [
                f"{_literal(told[field.name], field.type)} AS {sql_name(field.name)}"
                if field.name in told
                else f"{plain_sql(field.name, _stored_type(schema, field.name), field.type)} "
                f"AS {sql_name(field.name)}"
                for field in self.schema
            ]
            scans.append(
                f"SELECT {', '.join([*columns, *(RESERVED if positions else ())])} FROM read_parquet("
                f"[{', '.join(paths)}], union_by_name = true, hive_partitioning = false{extra})"
            )
        return f"({' UNION ALL '.join(scans)})"

    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        batch_size: int = _BATCH_ROWS,
        between_us: tuple[str, int, int] | None = None,
        row_groups: range | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows for Arrow, in the order of the files; `columns` are all if None.

        Args:
            between_us: a column of moments and the first and last microsecond since 1970 that are wanted.
            row_groups: those of each file that are wanted, all if None; see `of_file`.
        """
        wanted = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        for path, schema, told in zip(self.files, self.file_schemas, self.partitions, strict=True):
            present = [
                name for name in wanted.names if name not in told and _stored_type(schema, name) is not None
            ]
            within = None
            if between_us is not None:
                name, first_us, last_us = between_us
                within = _between(ds.field(name), schema.field(name).type, first_us, last_us)
            stored: ds.Dataset | ds.Fragment = ds.dataset([str(path)], format="parquet")
            if row_groups is not None:
                stored = next(iter(stored.get_fragments())).subset(row_group_ids=list(row_groups))
            for batch in stored.to_batches(columns=present, filter=within, batch_size=batch_size):
                yield pa.RecordBatch.from_arrays(
                    [
                        plain_values(batch.column(field.name), field.type)
                        if field.name in present
                        else pa.repeat(pa.scalar(told.get(field.name), field.type), batch.num_rows)
                        for field in wanted
                    ],
                    schema=wanted,
                )

    def of_file(self, number: int) -> "InputTable":
        """The part of the table that one of its files holds; `rows` stays that of all."""
        return replace(
            self,
            files=(self.files[number],),
            file_schemas=(self.file_schemas[number],),
            partitions=(self.partitions[number],),
        )

    def to_table(
        self, columns: Sequence[str] | None = None, *, between_us: tuple[str, int, int] | None = None
    ) -> pa.Table:
        """As `to_batches`, in one piece."""
        wanted = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        return pa.Table.from_batches(self.to_batches(columns, between_us=between_us), schema=wanted)

    def head(self, count: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The first `count` rows."""
        taken: list[pa.RecordBatch] = []
        for batch in self.to_batches(columns):
            taken.append(batch.slice(0, count - sum(map(len, taken))))
            if sum(map(len, taken)) == count:
                break
        return pa.Table.from_batches(taken)


@dataclass(frozen=True)
class InputTables:
    """The tables of one folder, their footers checked. Made by `InputTables.open`."""

    root: Path
    tables: dict[TableName, InputTable]
    has_queries: bool

    @classmethod
    def open(cls, data: Path) -> "InputTables":
        """Find the tables of `data` and check their Parquet footers against `TABLES`.

        A folder with products alone opens; `absences` says what it goes without.

        Raises:
            InputError: a table or column is missing, has a type that loses information (ids that are not
                int64 or strings, times without a zone), is empty, or a file is not whole.
        """
        if not data.is_dir():
            raise _no_folder(data)
        tables: dict[TableName, InputTable] = {}
        queries = False
        for name, spec in TABLES.items():
            paths = table_files(data, name)
            if not paths and spec.without:
                continue
            if not paths:
                raise _absent(data, name)
            footers = {path: _footer(path) for path in paths}
            table = InputTable.of(name, footers, folder=data / name)
            _check_required(table, spec)
            table.check_types()
            if table.rows == 0:
                raise InputError(
                    f"{_place(data, spec)} has no rows; write at least one, "
                    + ("or leave the table out" if spec.without else f"{name} cannot be empty")
                )
            tables[name] = table
            if name == "impressions":
                queries = "query" in table.schema.names and any(
                    told.get("query") is not None or _has_values(footer, "query")
                    for footer, told in zip(footers.values(), table.partitions, strict=True)
                )
        _check_id_types(tables)
        return cls(data, tables, queries)

    def has(self, table: TableName) -> bool:
        """Whether the folder holds that table."""
        return table in self.tables

    @property
    def has_purchases(self) -> bool:
        """Whether users have a purchase history at all."""
        return self.has("purchases")

    def table(self, table: TableName) -> InputTable:
        """One table.

        Raises:
            InputError: the folder does not hold it.
        """
        if table not in self.tables:
            raise InputError(f"{self.root} holds no {table} table; add {table}.parquet or a folder {table}/")
        return self.tables[table]

    def files(self, table: TableName) -> tuple[Path, ...]:
        """The Parquet files of a table, sorted by name."""
        return self.table(table).files

    def path_glob(self, table: TableName) -> str:
        """Where messages say that a table lies: its one file, or `*.parquet` of its folder."""
        files = self.files(table)
        if files[0].parent == self.root:
            return escape_glob(str(files[0]))
        nested = any(path.parent != self.root / table for path in files)
        suffixes = {path.suffix for path in files}
        name = f"*{suffixes.pop() if len(suffixes) == 1 else '.parq*'}"
        return str(Path(escape_glob(str(self.root / table)), *(["**"] if nested else []), name))

    def scan_sql(self, table: TableName, *, positions: bool = False) -> str:
        """`InputTable.scan_sql` of a table."""
        return self.table(table).scan_sql(positions=positions)

    def columns(self, table: TableName) -> tuple[str, ...]:
        """Column names of a table, in file order; further attributes included."""
        return tuple(self.schema(table).names)

    def schema(self, table: TableName) -> pa.Schema:
        """Plain types of a table's columns."""
        return self.table(table).schema

    def rows(self, table: TableName) -> int:
        """Number of rows, from the footers."""
        return self.table(table).rows

    def require_columns(self, table: TableName, names: tuple[str, ...], *, wanted_by: str) -> None:
        """Check that further attributes exist.

        Raises:
            InputError: a name is not a column of the table; names the closest one.
        """
        for name in names:
            if name not in self.columns(table):
                raise InputError(
                    f"{wanted_by} reads column {name!r} of {_place(self.root, TABLES[table])}, which lacks it"
                    f"{_hint(name, self.columns(table))}"
                )

    @property
    def absences(self) -> tuple[str, ...]:
        """What this data set goes without, one sentence each; empty when all is there."""
        said = [f"no {name} table: {spec.without}" for name, spec in TABLES.items() if not self.has(name)]
        if self.has("impressions") and not self.has_queries:
            said.append(
                "no queries in impressions: features of the query and similarities to it are left out"
            )
        if "image" not in self.columns("products"):
            said.append("no images in products: image embeddings cannot be made")
        return tuple(said)


def table_files(data: Path, name: str) -> tuple[Path, ...]:
    """The Parquet files of one table, sorted by path; none where `data` does not hold it.

    Raises:
        InputError: the table is there twice or in another format, its folder holds no Parquet or something
            else, or the file is a folder.
    """
    folder = data / name
    own = [data / f"{name}{suffix}" for suffix in SUFFIXES]
    for path in own:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder; rename it to {folder}/, and its *.parquet files are one table"
            )
    there = [path for path in (*own, folder) if path.exists()]
    if len(there) > 1:
        both = " and ".join(f"{path}/" if path == folder else str(path) for path in there)
        raise InputError(f"both {both} exist; keep the one that is the {name} table")
    if not there:
        _refuse_other_formats(data, name)
    if not folder.is_dir():
        return tuple(there)
    files = files_in(folder)
    if not files:
        raise InputError(f"{folder} holds no *.parquet files; put the {name} files into it")
    for path in files:
        if path.suffix not in SUFFIXES:
            raise InputError(
                f"{path} is not named *.parquet, and all of {folder} is one table; take it out, or turn CSV, "
                "TSV and JSON lines into Parquet by `dashclip import tables`"
            )
    return tuple(files)


def find_table(data: Path, name: TableName) -> InputTable | None:
    """One table of a folder, whatever its columns and whatever else the folder holds; None without it.

    Raises:
        InputError: a file is not whole, or see `InputTable.of`.
    """
    paths = table_files(data, name)
    if not paths:
        return None
    return open_files(name, paths, folder=data / name)


def open_table(data: Path, name: TableName, columns: Sequence[str]) -> InputTable:
    """`find_table` of a table that must be there with these columns.

    Raises:
        InputError: it is not, or a column is not.
    """
    table = find_table(data, name)
    if table is None:
        raise _absent(data, name)
    present = table.schema.names
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"{name} of {data} must have the columns {missing}; found {', '.join(present)}")
    return table


def open_files(
    name: TableName, paths: Sequence[Path], *, folder: Path | None = None, own_names: bool = False
) -> InputTable:
    """The table of these files, wherever they lie; `folder` and `own_names` as in `InputTable.of`.

    Raises:
        InputError: a file is not whole, or see `InputTable.of`.
    """
    return InputTable.of(name, {path: _footer(path) for path in paths}, folder=folder, own_names=own_names)


def sql_text(value: str) -> str:
    """A SQL string literal: `it's` gives `'it''s'`."""
    return "'" + value.replace("'", "''") + "'"


def escape_glob(path: str) -> str:
    """A path in which no character is a wildcard: `a*b` gives `a[*]b`."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _literal(value: int | str | None, kind: pa.DataType) -> str:
    """SQL of what a path tells."""
    text = "NULL" if value is None else sql_text(str(value))
    return f"CAST({text} AS {'BIGINT' if kind == pa.int64() else 'VARCHAR'})"


def _partitions(schemas: dict[Path, pa.Schema], folder: Path | None) -> list[dict[str, int | str | None]]:
    """What each path tells, in types; `schemas` get the columns. Those that a file holds win."""
    told = {
        path: {name: value for name, value in partition_of(path, folder).items() if name not in schema.names}
        if folder is not None and path.is_relative_to(folder)
        else {}
        for path, schema in schemas.items()
    }
    types = partition_types(told.values())
    partitions: list[dict[str, int | str | None]] = []
    for path, values in told.items():
        for name in values:
            schemas[path] = schemas[path].append(pa.field(name, types[name]))
        partitions.append(
            {
                name: int(value) if value is not None and types[name] == pa.int64() else value
                for name, value in values.items()
            }
        )
    return partitions


def _refuse_other_formats(data: Path, name: str) -> None:
    """A table that is there as CSV must not count as absent."""
    suffixes = [f"{suffix}{packed}" for suffix in OTHER_SUFFIXES for packed in ("", ".gz")]
    for path in (data / f"{name}{suffix}" for suffix in suffixes):
        if path.exists():
            raise InputError(
                f"{path} is not Parquet, and tables are read as that; `dashclip import tables {data} OUT` "
                "turns CSV, TSV and JSON lines into it"
            )


def _place(data: Path, spec: TableSpec) -> Path:
    own = (data / f"{spec.name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in own if path.exists()), data / spec.name)


def _no_folder(data: Path) -> InputError:
    return InputError(f"{data} is not a folder; give the one that holds products.parquet and the logs")


def _absent(data: Path, name: TableName) -> InputError:
    if not data.is_dir():
        return _no_folder(data)
    present = tuple(sorted(path.name for path in data.iterdir()))
    return InputError(
        f"{data} has neither {name}.parquet nor a folder {name}/, and that table is required"
        f"{_hint(f'{name}.parquet', present)}"
    )


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise InputError(
            f"{path} ({path.stat().st_size:,} bytes) is not a complete Parquet file, perhaps cut off while "
            "being written; write it again (under another name, then rename it)"
        ) from error


def _check_names(schemas: Mapping[Path, pa.Schema], spec: TableSpec | None) -> None:
    """The engine reads `Clicked` where `clicked` is asked for, so no two names may differ in case alone."""
    reserved = {name.lower() for name in RESERVED}
    declared = {column.name.lower(): column for column in spec.columns} if spec is not None else {}
    seen: dict[str, tuple[str, Path]] = {}
    for path, schema in schemas.items():
        for name in schema.names:
            folded = name.lower()
            if folded in reserved:
                raise InputError(
                    f"{path} has a column {name!r}, a name reserved for row positions; rename it"
                )
            if (count := schema.names.count(name)) > 1:
                raise InputError(f"{path} has {count} columns named {name!r}; keep one")
            known, place = seen.setdefault(folded, (name, path))
            if known != name:
                here = "" if place == path else f" of {place}"
                raise InputError(
                    f"{path} has a column {name!r}, which differs from {known!r}{here} in case alone; "
                    "rename or drop one of them"
                )
    for folded, (name, path) in seen.items():
        if folded in declared and (column := declared[folded]).name != name:
            raise InputError(
                f"{path} has a column {name!r}, which differs from {column.name!r} ({column.meaning}) in "
                f"case alone; rename it to {column.name!r} if it holds that, else to something else"
            )


def _union(schemas: Mapping[Path, pa.Schema]) -> pa.Schema:
    """The union of the files' columns in plain types; types must be alike, so that no reader has to guess."""
    found: dict[str, tuple[pa.DataType, Path]] = {}
    for path, schema in schemas.items():
        for field in schema:
            plain = plain_type(field.type)
            if field.name not in found or pa.types.is_null(found[field.name][0]):
                found[field.name] = (plain, path)
                continue
            known, place = found[field.name]
            common = common_type(known, plain)
            if common is None:
                raise InputError(
                    f"column {field.name!r} is {known} in {place} but {field.type} in {path}; "
                    "write both with one type"
                )
            found[field.name] = (common, place)
    return pa.schema([(name, kind) for name, (kind, _) in found.items() if not pa.types.is_null(kind)])


def _stored_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """A column's type in a file, dictionary encoding taken off; None where all its values are null."""
    place = schema.get_field_index(name)
    if place < 0:
        return None
    kind = schema.field(place).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return None if pa.types.is_null(kind) else kind


def _between(column: ds.Expression, stored: pa.TimestampType, first_us: int, last_us: int) -> ds.Expression:
    """Condition on stored moments, in their own unit, so that row groups are skipped by their statistics."""
    unit_ns = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[stored.unit]
    first, last = -(-first_us * 1000 // unit_ns), (last_us * 1000 + 999) // unit_ns
    low, high = (pa.scalar(moment, pa.int64()).cast(stored) for moment in (first, last))
    return (column >= low) & (column <= high)


def _check_required(table: InputTable, spec: TableSpec) -> None:
    for column in spec.columns:
        if not column.required:
            continue
        for path, schema in zip(table.files, table.file_schemas, strict=True):
            if column.name not in schema.names:
                raise InputError(
                    f"{path} lacks column {column.name!r} ({column.meaning}); "
                    f"add it{_hint(column.name, tuple(schema.names))}"
                )
        if column.name not in table.schema.names:
            raise InputError(f"{table.files[0]}, column {column.name!r}: {type_advice(column, pa.null())}")


def _check_id_types(tables: Mapping[TableName, InputTable]) -> None:
    for name in ("product_id", "user_id"):
        first: tuple[Path, pa.DataType] | None = None
        for table in tables.values():
            if name not in table.schema.names:
                continue
            here = (table.files[0], table.schema.field(name).type)
            first = first or here
            if first[1] != here[1]:
                raise InputError(
                    f"column {name!r} is {first[1]} in {first[0]} but {here[1]} in {here[0]}, so nothing "
                    "would match; write it as int64 in both, or as string in both"
                )


def _has_values(footer: pq.FileMetaData, name: str) -> bool:
    """Whether a column holds anything but nulls, from the footer; without statistics it is believed to."""
    for chunk in _chunks(footer, name):
        statistics = chunk.statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count < chunk.num_values:
            return True
    return False


def _chunks(footer: pq.FileMetaData, name: str) -> Iterator[pq.ColumnChunkMetaData]:
    places = [i for i in range(footer.num_columns) if footer.schema.column(i).path == name]
    for group in range(footer.num_row_groups):
        for place in places:
            yield footer.row_group(group).column(place)


def _hint(wanted: str, present: tuple[str, ...]) -> str:
    same = [name for name in present if name.lower() == wanted.lower()]
    close = same or difflib.get_close_matches(wanted, present, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; found {', '.join(present) or 'nothing'}"
