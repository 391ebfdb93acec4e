"""The four input tables: finding their files, and opening them with their footers checked.

A folder `DATA` holds `products` and, where they exist, `impressions`, `purchases` and `relevance`; each is
one file `DATA/<table>.parquet` or a folder `DATA/<table>/` of them. Opening reads footers only, so it costs
milliseconds at any size; what needs the rows themselves is `features.inputs.validation`.

Features read all tables by `InputTables`, which checks each column's type; encoders read one by `open_table`,
since a catalogue of titles alone is enough for them. Both see the union of the columns of a table's files.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from features.inputs.table_specs import TABLES, TableName, TableSpec, accepts, type_advice, type_family

#: Names that a scan with positions adds to the columns of a table.
RESERVED = ("__file", "file_row_number")


class InputError(ValueError):
    """Input tables that cannot be used; the message names the file, the column and what to do."""


@dataclass(frozen=True)
class InputTables:
    """The tables of one folder, their footers checked. Made by `InputTables.open`."""

    root: Path
    files_by_table: dict[TableName, tuple[Path, ...]]
    schemas: dict[TableName, pa.Schema]
    rows_by_table: dict[TableName, int]
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
            raise InputError(f"{data} is not a folder; give the one that holds products.parquet and the logs")
        files: dict[TableName, tuple[Path, ...]] = {}
        schemas: dict[TableName, pa.Schema] = {}
        rows: dict[TableName, int] = {}
        queries = False
        for name, spec in TABLES.items():
            paths = table_files(data, name)
            if not paths and spec.without:
                continue
            if not paths:
                raise _absent(data, name)
            footers = [(path, _footer(path)) for path in paths]
            for path, footer in footers:
                _check_columns(path, footer.schema.to_arrow_schema(), spec)
            rows[name] = sum(footer.num_rows for _, footer in footers)
            if rows[name] == 0:
                raise InputError(
                    f"{_place(data, spec)} has no rows; write at least one, "
                    + ("or leave the table out" if spec.without else f"{name} cannot be empty")
                )
            files[name] = paths
            schemas[name] = pa.schema(f for f in _one_schema(footers) if not pa.types.is_null(f.type))
            if name == "impressions":
                queries = "query" in schemas[name].names and any(
                    _has_values(footer, "query") for _, footer in footers
                )
        _check_id_types(files, schemas)
        return cls(data, files, schemas, rows, queries)

    def has(self, table: TableName) -> bool:
        """Whether the folder holds that table."""
        return table in self.files_by_table

    @property
    def has_purchases(self) -> bool:
        """Whether users have a purchase history at all."""
        return self.has("purchases")

    def files(self, table: TableName) -> tuple[Path, ...]:
        """The Parquet files of a table, sorted by name."""
        self._expect(table)
        return self.files_by_table[table]

    def path_glob(self, table: TableName) -> str:
        """The table's one file, or its folder's `*.parquet`, as a pattern for DuckDB; see `scan_sql`."""
        files = self.files(table)
        own = self.root / f"{table}.parquet"
        root = Path(escape_glob(str(self.root)))
        return str(root / own.name if files == (own,) else root / table / "*.parquet")

    def scan_sql(self, table: TableName, *, positions: bool = False) -> str:
        """A DuckDB table function that reads exactly the files that were checked.

        With `positions` it has two more columns: `__file`, the path, and `file_row_number`, from 0.
        """
        paths = ", ".join(sql_text(escape_glob(str(path))) for path in self.files(table))
        extra = ", filename = '__file', file_row_number = true" if positions else ""
        return f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false{extra})"

    def dataset(self, table: TableName) -> ds.Dataset:
        """The same files for Arrow; a column that one of them lacks is null there."""
        return _dataset(self.files(table), self.schema(table))

    def columns(self, table: TableName) -> tuple[str, ...]:
        """Column names of a table, in file order; further attributes included."""
        self._expect(table)
        return tuple(self.schemas[table].names)

    def schema(self, table: TableName) -> pa.Schema:
        """Arrow types of a table's columns, dictionary encoding taken off."""
        self._expect(table)
        return self.schemas[table]

    def rows(self, table: TableName) -> int:
        """Number of rows, from the footers."""
        self._expect(table)
        return self.rows_by_table[table]

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

    def _expect(self, table: TableName) -> None:
        if table not in self.files_by_table:
            raise InputError(f"{self.root} holds no {table} table; add {table}.parquet or a folder {table}/")


def table_files(data: Path, name: str) -> tuple[Path, ...]:
    """The Parquet files of one table, sorted by name; none where `data` does not hold it.

    Raises:
        InputError: there is a file and a folder of the name, or the folder holds no table.
    """
    own, folder = data / f"{name}.parquet", data / name
    if own.is_file() and folder.is_dir():
        raise InputError(f"both {own} and {folder}/ exist; keep the one that is the {name} table")
    if own.is_file() or not folder.is_dir():
        return (own,) if own.is_file() else ()
    files = sorted(path for path in folder.glob("*.parquet") if path.name[0] not in "._")
    if not files:
        raise InputError(
            f"{folder} holds no *.parquet files (files in subfolders are not read); "
            f"put the {name} files directly into it"
        )
    return tuple(files)


def find_table(data: Path, name: TableName) -> ds.Dataset | None:
    """One table of a folder, whatever its columns and whatever else the folder holds; None without it.

    Raises:
        InputError: a file is not whole, or two files give a column different types.
    """
    paths = table_files(data, name)
    return _dataset(paths, _one_schema([(path, _footer(path)) for path in paths])) if paths else None


def open_table(data: Path, name: TableName, columns: Sequence[str]) -> ds.Dataset:
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


def sql_text(value: str) -> str:
    """A SQL string literal: `it's` gives `'it''s'`."""
    return "'" + value.replace("'", "''") + "'"


def escape_glob(path: str) -> str:
    """A path in which no character is a wildcard: `a*b` gives `a[*]b`."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _place(data: Path, spec: TableSpec) -> Path:
    own = data / f"{spec.name}.parquet"
    return own if own.exists() else data / spec.name


def _absent(data: Path, name: TableName) -> InputError:
    present = tuple(sorted(path.name for path in data.iterdir())) if data.is_dir() else ()
    return InputError(
        f"{data} has neither {name}.parquet nor a folder {name}/, and that table is required"
        f"{_hint(f'{name}.parquet', present)}"
    )


def _dataset(paths: Sequence[Path], schema: pa.Schema) -> ds.Dataset:
    return ds.dataset([str(path) for path in paths], schema=schema, format="parquet")


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


def _check_columns(path: Path, schema: pa.Schema, spec: TableSpec) -> None:
    for name in RESERVED:
        if name in schema.names:
            raise InputError(f"{path} has a column {name!r}, a name reserved for row positions; rename it")
    for column in spec.columns:
        count = schema.names.count(column.name)
        if count == 0:
            if column.required:
                raise InputError(
                    f"{path} lacks column {column.name!r} ({column.meaning}); "
                    f"add it{_hint(column.name, tuple(schema.names))}"
                )
            continue
        if count > 1:
            raise InputError(f"{path} has {count} columns named {column.name!r}; keep one")
        arrived = schema.field(column.name).type
        plain = arrived.value_type if pa.types.is_dictionary(arrived) else arrived
        if pa.types.is_null(plain) and not column.required:
            continue  # a column of nulls only counts as none
        if not accepts(column, plain):
            raise InputError(f"{path}, column {column.name!r}: {type_advice(column, plain)}")


def _one_schema(footers: list[tuple[Path, pq.FileMetaData]]) -> pa.Schema:
    """The union of the files' columns; types must be alike, so that no reader has to guess."""
    fields: dict[str, tuple[Path, pa.Field]] = {}
    for path, footer in footers:
        for field in footer.schema.to_arrow_schema():
            plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            known = fields.get(field.name)
            if known is None or pa.types.is_null(known[1].type):
                fields[field.name] = (path, pa.field(field.name, plain))
            elif pa.types.is_null(plain):
                continue  # all its values are null: the same as a file without the column
            elif type_family(known[1].type) != type_family(plain):
                raise InputError(
                    f"column {field.name!r} is {known[1].type} in {known[0]} but {plain} in {path}; "
                    "write both with one type"
                )
    return pa.schema([field for _, field in fields.values()])


def _check_id_types(files: dict[TableName, tuple[Path, ...]], schemas: dict[TableName, pa.Schema]) -> None:
    for name in ("product_id", "user_id"):
        first: tuple[Path, pa.DataType] | None = None
        for table, schema in schemas.items():
            if name not in schema.names:
                continue
            here = (files[table][0], schema.field(name).type)
            if first is None:
                first = here
            elif type_family(first[1]) != type_family(here[1]):
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
    close = difflib.get_close_matches(wanted, present, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; found {', '.join(present) or 'nothing'}"
