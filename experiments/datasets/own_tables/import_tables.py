"""A folder of somebody's own tables and a mapping to the four input tables.

Tables are read once to check every value and once to store them; ids become int64 where every id of every
table is a whole number, else text. What the source lacks is made only where the mapping says so, and the
summary and `source.json` say what was made.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from experiments.datasets.own_tables.columns import (
    FRACTION,
    POINTED,
    WHOLE,
    Reading,
    check,
    close_to,
    read_column,
)
from experiments.datasets.own_tables.made_tables import (
    MadeTable,
    impressions_of_purchases,
    products_of_logs,
    purchases_of_clicks,
)
from experiments.datasets.own_tables.mapping import ImportMapping, may_be_absent
from experiments.datasets.own_tables.sources import (
    FORMATS,
    Source,
    find_source,
    is_table_file,
    read_source,
    sentences_of,
)
from features.artifacts import (
    atomic_folder,
    atomic_write_json,
    json_file_has,
    link_or_copy,
    refuse_to_replace_input,
)
from features.inputs.image_paths import path_in_folder
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TABLES, ColumnSpec, TableName
from features.inputs.tables import InputError, InputTables, sql_text
from features.progress import Progress, silent

#: Where the logs' products come from, and what the id columns of several tables have in common.
_SHARED_IDS = ("product_id", "user_id")


@dataclass
class ImportedTables:
    """What was written: rows of each table, and sentences on what was made, left out or is not there."""

    rows: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    constructed: bool = False


def import_tables(
    source: Path,
    out: Path,
    mapping: ImportMapping,
    *,
    memory_limit: str = "4GB",
    threads: int = 2,
    description: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> ImportedTables:
    """Write the tables of the folder `source` to the folder `out`, as `mapping` says.

    Args:
        description: what `source.json` says of the tables besides the summary; where they came from if None.

    Raises:
        InputError: a table, column or value that cannot be read, or that the mapping does not explain.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the one that holds the tables")
    refuse_to_replace_input(out, source)
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-import-") as spill,
        duckdb.connect(str(Path(spill) / "stage.db")) as connection,
    ):
        connection.execute(f"SET memory_limit = {sql_text(memory_limit)}")
        connection.execute(f"SET temp_directory = {sql_text(spill)}")
        connection.execute(f"SET threads = {int(threads)}")
        connection.execute("SET TimeZone = 'UTC'")
        work = _Import(connection, source, mapping)
        for step, name in enumerate(TABLES):
            progress(f"reading {name}", step, len(TABLES))
            with sentences_of(name):
                work.stage(name)
        progress("making what is not there", 0, 1)
        work.make_absent_tables()
        work.number_ids()
        with atomic_folder(
            out, ours=lambda path: json_file_has(path / "source.json", "constructed")
        ) as folder:
            progress("writing", 0, 1)
            work.write(folder)
            said = description or {"source": "own tables", "tables_of": str(source)}
            atomic_write_json(folder / "source.json", {**said, "simulated": False, **asdict(work.summary)})
            InputTables.open(folder)
        progress("writing", 1, 1)
    return work.summary


class _Import:
    """One import: each table is `stage_<table>` in a database, ids as text, until it is written."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: Path, mapping: ImportMapping) -> None:
        self.connection = connection
        self.source = source
        self.mapping = mapping
        self.summary = ImportedTables()
        self.columns: dict[TableName, list[str]] = {}
        #: Whether impressions got their ids here, by time.
        self.numbered = False
        self._read: set[str] = set()

    def stage(self, name: TableName) -> None:
        """Read one table, if it is there."""
        made = {
            "products": self.mapping.products.from_logs,
            "impressions": self.mapping.impressions.constructed is not None,
            "purchases": self.mapping.purchases.from_clicks,
        }
        if made.get(name):
            there = find_source(self.source, name)
            if there is not None:
                raise InputError(
                    f"the mapping makes {name} of another table, but {there} is there; take the key out, or "
                    "move the file"
                )
            return
        settings = self.mapping.table(name)
        if settings.file is not None:
            place: Path | None = self.source / settings.file
            if not (self.source / settings.file).exists():
                present = sorted(path.name for path in self.source.iterdir())
                raise InputError(
                    f"{self.source} has no {settings.file!r} ({name}.file){close_to(settings.file, present)}"
                )
        else:
            place = find_source(self.source, name)
        if place is None:
            if settings.model_fields_set:
                raise InputError(
                    f"the mapping describes {name}, but {self.source} holds no file or folder of that name "
                    f"({', '.join(FORMATS)}); name it ({name}.file = 'their_{name}.csv')"
                )
            return
        self._read.add(place.relative_to(self.source).parts[0])
        read = read_source(
            self.connection, name, place, delimiter=settings.delimiter, encoding=settings.encoding
        )
        readings = [
            reading
            for spec in TABLES[name].columns
            if (reading := self._reading(name, read, spec)) is not None
        ]
        further = self._further(name, read)
        if check(self.connection, read, readings) == 0:
            raise InputError(f"{place} has no rows; take the {name} table out, or write at least one")
        values = [f"{reading.sql} AS {sql_name(reading.name)}" for reading in readings]
        values += [sql_name(column) for column in further]
        self.connection.execute(
            f"CREATE TABLE stage_{name} AS SELECT {', '.join(values)}, row_number() OVER () AS __row FROM "
            f"{read.scan_sql}"
        )
        self.columns[name] = [reading.name for reading in readings] + further
        self._type_further(name, [column for column in further if read.columns[column] == "VARCHAR"])

    def make_absent_tables(self) -> None:
        """What the mapping asks for: impressions of purchases, purchases of clicks, products of logs."""
        constructed = self.mapping.impressions.constructed
        if constructed is not None:
            self._need("purchases", "of which impressions.constructed makes impressions")
            self._add("impressions", impressions_of_purchases(self.connection, constructed))
            self.summary.constructed = True
        if self.mapping.purchases.from_clicks:
            self._need("impressions", "of which purchases.from_clicks makes purchases")
            has_time = "click_timestamp" in self.columns["impressions"]
            self._add("purchases", purchases_of_clicks(self.connection, has_click_times=has_time))
        if self.mapping.products.from_logs:
            if not self.columns:
                raise InputError(f"products.from_logs makes products of logs, but {self.source} holds none")
            self._add("products", products_of_logs(self.connection, tuple(self.columns)))
        self._need("products", "and that is needed (products.from_logs = true makes one of the logs' ids)")
        unread = [
            path.name
            for path in sorted(self.source.iterdir())
            if path.is_file() and path.name not in self._read and is_table_file(path)
        ]
        if unread:
            self.summary.notes.append(f"not read, as nothing names them: {', '.join(unread)}")
        if "impressions" in self.columns and "impression_id" not in self.columns["impressions"]:
            self.connection.execute("ALTER TABLE stage_impressions ADD COLUMN impression_id VARCHAR")
            self.connection.execute(
                "UPDATE stage_impressions SET impression_id = CAST(n AS VARCHAR) FROM (SELECT __row AS r, "
                "row_number() OVER (ORDER BY timestamp, __row) - 1 AS n FROM stage_impressions) WHERE r = "
                "__row"
            )
            self.columns["impressions"].insert(0, "impression_id")
            self.numbered = True
            self.summary.notes.append("impression_id is not in the source: impressions are numbered by time")

    def number_ids(self) -> None:
        """Ids that are whole numbers in all tables become int64; so do impression and purchase ids."""
        keys: dict[str, list[TableName]] = {}
        for name, columns in self.columns.items():
            for column in columns:
                spec = TABLES[name].column(column)
                if spec is not None and spec.kind == "id":
                    keys.setdefault(column, []).append(name)
        for column, tables in keys.items():
            # pandas writes 7.0 for 7 where some ids of the column are null
            pointed = [name for name in tables if not self._other_values(name, column, POINTED, "DOUBLE")]
            plain = [name for name in tables if name not in pointed]
            if any(self._other_values(name, column, WHOLE, "BIGINT") for name in plain):
                continue
            for name in pointed:
                place = sql_name(column)
                self.connection.execute(
                    f"UPDATE stage_{name} SET {place} = replace(CAST({place} AS VARCHAR), '.0', '')"
                )
                self.summary.notes.append(f"{name}: {column} is written as 7.0 instead of 7, and read as 7")
            for name in tables:
                self._retype(name, column, "BIGINT")

    def write(self, folder: Path) -> None:
        """Each table as one Parquet file, and the images beside them."""
        for name, columns in self.columns.items():
            listed = ", ".join(map(sql_name, columns))
            order = "impression_id" if name == "impressions" and self.numbered else "__row"
            self.connection.execute(
                f"COPY (SELECT {listed} FROM stage_{name} ORDER BY {order}) "
                f"TO {sql_text(str(folder / f'{name}.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
            )
            self.summary.rows[name] = self._one(f"SELECT count(*) FROM stage_{name}")[0]
        if "image" in self.columns["products"]:
            self._link_images(folder)

    def _reading(self, name: TableName, read: Source, spec: ColumnSpec) -> Reading | None:
        key = f"{name}.columns.{spec.name}"
        settings = self.mapping.table(name)
        if spec.name in settings.absent:
            self.summary.notes.append(f"{name}: no {spec.name} in the source ({name}.absent), so it is null")
            return Reading(spec.name, "CAST(NULL AS VARCHAR)")
        found = read_column(self.connection, read, spec, getattr(settings.columns, spec.name), key=key)
        if found is None and spec.required and spec.name != "impression_id":
            advice = f"name theirs in the mapping ({key} = 'their name')"
            if spec.kind == "text":
                advice += f", one value for all ({key} = {{ value = '...' }})"
            if may_be_absent(name, spec):
                advice += f", or say that there is none ({name}.absent = ['{spec.name}'])"
            raise InputError(
                f"{read.place} has no column {spec.name!r} "
                f"({spec.meaning}){close_to(spec.name, read.columns)}; {advice}"
            )
        return found

    def _further(self, name: TableName, read: Source) -> list[str]:
        settings = self.mapping.table(name)
        rules = settings.columns
        mapped = [getattr(rules, column) for column in type(rules).model_fields]
        used = {rule.column.casefold() for rule in mapped if rule is not None and rule.column is not None}
        taken = {spec.name for spec in TABLES[name].columns}
        unmapped = {spec for spec in taken if getattr(rules, spec) is None and spec not in settings.absent}
        others = [
            column
            for column in read.columns
            if column.casefold() not in used and column.casefold() not in unmapped
        ]
        if isinstance(settings.further, str):
            kept = others if settings.further == "keep" else []
        else:
            kept = list(settings.further)
            for column in kept:
                if column not in read.columns:
                    raise InputError(
                        f"{read.place} has no column {column!r} "
                        f"({name}.further){close_to(column, read.columns)}"
                    )
        for column in kept:
            if column.casefold() in taken:
                raise InputError(
                    f"{name}.further keeps the source's column {column!r}, but that is the name of a column "
                    f"of {name} that is read from elsewhere; rename it, or list the further columns without "
                    "it"
                )
        left = [column for column in others if column not in kept]
        if left:
            self.summary.notes.append(
                f"{name}: left out {', '.join(left)} ({name}.further = 'keep' keeps them, a list some)"
            )
        return kept

    def _type_further(self, name: TableName, columns: list[str]) -> None:
        """Columns of text in which all values are numbers become numbers."""
        for column in columns:
            if self._other_values(name, column, WHOLE, "BIGINT") == 0:
                self._retype(name, column, "BIGINT")
            elif self._other_values(name, column, FRACTION, "DOUBLE") == 0:
                self._retype(name, column, "DOUBLE")

    def _other_values(self, name: TableName, column: str, pattern: str, kind: str) -> int:
        """How many values are not written as numbers of a kind; all, if every value is null."""
        value = f"CAST({sql_name(column)} AS VARCHAR)"
        other, any_value = self._one(
            f"SELECT count({value}) FILTER (WHERE NOT regexp_full_match({value}, '{pattern}') "
            f"OR TRY_CAST({value} AS {kind}) IS NULL), count({value}) FROM stage_{name}"
        )
        return int(other) if any_value else 1

    def _retype(self, name: TableName, column: str, kind: str) -> None:
        self.connection.execute(f"ALTER TABLE stage_{name} ALTER {sql_name(column)} TYPE {kind}")

    def _need(self, name: TableName, why: str) -> None:
        if name not in self.columns:
            present = ", ".join(sorted(path.name for path in self.source.iterdir())) or "nothing"
            raise InputError(
                f"{self.source} holds no {name} table, {why}. It holds {present}; name theirs in a mapping "
                f"({name}.file = '...'; `dashclip import tables --example` prints one)"
            )

    def _add(self, name: TableName, made: MadeTable) -> None:
        self.columns[name] = list(made.columns)
        self.summary.notes.append(made.note)

    def _link_images(self, folder: Path) -> None:
        urls = "regexp_matches(image, '^https?://')"
        addresses = self._one(f"SELECT count(*) FROM stage_products WHERE {urls}")[0]
        if addresses:
            raise InputError(
                f"products.columns.image: {addresses:,} values are addresses of web pages; download the "
                "images and give their paths in SOURCE, or map another column, or none, and keep these by "
                "products.further"
            )
        found = self.connection.execute(
            "SELECT DISTINCT image FROM stage_products WHERE image IS NOT NULL"
        ).fetchall()
        paths = {path for (name,) in found if (path := path_in_folder(name)) is not None}
        missing = 0
        for path in sorted(paths):
            if (self.source / path).is_file():
                link_or_copy(self.source / path, folder / path)
            else:
                missing += 1
        if missing:
            self.summary.notes.append(f"{missing:,} of {len(paths):,} images are not files in {self.source}")

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self.connection.execute(sql).fetchone()
        assert row is not None
        return row
