"""Which rows of the input tables break which rules, found by DuckDB with bounded memory.

Each table is read once for its rules; ids that occur twice are found by an aggregation before that. What
outgrows the memory limit goes to temporary files. Images are opened in threads: decoding releases the
interpreter lock.
"""

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from features.inputs.blanks import is_missing_sql
from features.inputs.findings import Example, RuleFinding, TableFinding
from features.inputs.image_paths import path_in_folder
from features.inputs.images import ImageUnreadable, decode_image
from features.inputs.rules import IDENTITY, LATEST, LOG_ENDS, RULES, Rule
from features.inputs.table_specs import TableName
from features.inputs.tables import RESERVED, InputError, InputTables, sql_text
from features.progress import Progress

_BATCH = 2048


def unreadable_images(root: Path, names: Iterable[str], *, threads: int) -> Iterator[str]:
    """Go through images, named relative to `root`; yield the names of those that cannot be used.

    Each is decoded as encoders do it (JPEG at an eighth of its size). A path that leads out of `root` counts
    as unreadable.
    """
    waiting = iter(names)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(waiting, _BATCH)):
            readable = pool.map(lambda name: _is_readable(root, name), batch)
            yield from (name for name, good in zip(batch, readable, strict=True) if not good)


def _is_readable(root: Path, name: str) -> bool:
    path = path_in_folder(name)
    if path is None:
        return False
    try:
        decode_image(root / path, side=1)
    except ImageUnreadable:
        return False
    return True


#: Columns that a quarantined row has on top of its own.
QUARANTINE_COLUMNS = ("_reason", "_file", "_row")

_PLACE = "{'file': r._file, 'row': r._row}"


class RowChecks:
    """One DuckDB session over the tables of one folder; make it with `open_row_checks`.

    Judge `products` before the logs: a log row may only name a product that is itself not quarantined.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: InputTables) -> None:
        self.tables = tables
        self._connection = connection
        self._judged: set[TableName] = set()
        connection.execute("CREATE TEMP TABLE images (image VARCHAR)")

    def run(self, sql: str) -> None:
        """Execute a statement that writes a file."""
        self._connection.execute(sql)

    def rows_sql(self, table: TableName) -> str:
        """A subquery: the table's own columns, then `_file` (relative to the folder) and `_row` (from 0)."""
        scan = self.tables.scan_sql(table, positions=True)
        columns = [row[0] for row in self._fetch(f"DESCRIBE SELECT * FROM {scan}")]
        dropped = ", ".join(sorted({*RESERVED, *(set(columns) & set(QUARANTINE_COLUMNS))}))
        # pathlib takes "." out of a path, so what stands before a file's name may be shorter than the folder.
        path = self.tables.files(table)[0]
        folder = len(str(path)) - len(str(path.relative_to(self.tables.root)))
        relative = f"substr(__file, {folder + 1})"
        return f"(SELECT * EXCLUDE ({dropped}), {relative} AS _file, file_row_number AS _row FROM {scan})"

    def good_rows_sql(self, table: TableName) -> str:
        """A query of the judged table's rows that no rule quarantines, own columns only, in any order."""
        return f"SELECT r.* EXCLUDE (_file, _row) FROM {self.rows_sql(table)} r WHERE {_is_good(table)}"

    def quarantined_rows_sql(self, table: TableName) -> str:
        """A query of the judged table's other rows, with `QUARANTINE_COLUMNS`."""
        return (
            "SELECT r.* EXCLUDE (_file, _row), b.reasons AS _reason, b._file, b._row "
            f"FROM {self.rows_sql(table)} r JOIN bad_{table} b ON b._file = r._file AND b._row = r._row "
            "WHERE len(b.reasons) > 0 ORDER BY b._file, b._row"
        )

    def quarantined_places(self, table: TableName, file: str) -> npt.NDArray[np.int64]:
        """Rows of one file (relative to the folder) of a judged table that are quarantined, rising."""
        self._connection.execute(
            f"SELECT _row FROM bad_{table} WHERE len(reasons) > 0 AND _file = {sql_text(file)} ORDER BY _row"
        )
        return self._connection.fetchnumpy()["_row"]

    def readable_images(self) -> list[str]:
        """Images of the good products in one spelling each, without those that cannot be read."""
        found = self._fetch(
            f"SELECT DISTINCT p.image FROM ({self.good_rows_sql('products')}) p "
            f"ANTI JOIN images ON p.image = images.image WHERE NOT {is_missing_sql('p.image')}"
        )
        return sorted({path for (name,) in found if (path := path_in_folder(name)) is not None})

    def no_readable_image(self) -> RuleFinding | None:
        """A finding if products name images of which not one can be read; needs `check_images`."""
        if "image" not in self.tables.columns("products"):
            return None
        named, unreadable = self._fetch(
            "SELECT count(*), count(images.image) "
            f"FROM {self.tables.scan_sql('products')} p LEFT JOIN images ON p.image = images.image "
            f"WHERE NOT {is_missing_sql('p.image')}"
        )[0]
        if not named or unreadable < named:
            return None
        return RuleFinding(
            "no_readable_image",
            "fail",
            "image",
            named,
            named / self.tables.rows("products"),
            None,
            f"none of the images of {named:,} products can be read; paths are relative to "
            f"{self.tables.root}, so check where the files lie, or leave the images unchecked (--no-images)",
        )

    def check_images(self, *, threads: int, progress: Progress) -> None:
        """Open every distinct image; those that cannot be read are then found by `judge`."""
        if "image" not in self.tables.columns("products"):
            return
        scan = self.tables.scan_sql("products")
        distinct = f"SELECT DISTINCT image FROM {scan} WHERE NOT {is_missing_sql('image')}"
        total = self._fetch(f"SELECT count(*) FROM ({distinct})")[0][0]
        result = self._connection.execute(distinct)

        def names() -> Iterator[str]:
            done = 0
            while rows := result.fetchmany(2048):
                progress("checking images", done, total)
                yield from (row[0] for row in rows)
                done += len(rows)

        bad = [(name,) for name in unreadable_images(self.tables.root, names(), threads=threads)]
        if bad:
            self._connection.executemany("INSERT INTO images VALUES (?)", bad)

    def take_all_products_as_known(self) -> None:
        """Let log rows name any product, without judging the products first."""
        scan = self.tables.scan_sql("products")
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE known AS SELECT DISTINCT product_id FROM {scan}"
        )

    def judge(self, table: TableName) -> TableFinding:
        """Hold every row of a table to its rules."""
        rules = self._applicable(table)
        if any(rule.joins == "copies" for rule in rules):
            self._collect_copies(table)
        if any(LOG_ENDS in rule.condition for rule in rules):
            self._connection.execute(
                f"SET VARIABLE {LOG_ENDS} = (SELECT max(timestamp) FROM {self.tables.scan_sql(table)} "
                f"WHERE timestamp <= getvariable('{LATEST}'))"
            )
        self._connection.execute(
            f"CREATE TEMP TABLE bad_{table} AS SELECT r._file, r._row, "
            f"{_names_sql(rules, 'quarantine')} AS reasons, {_names_sql(rules, 'warn')} AS remarks "
            f"FROM {self.rows_sql(table)} r{_joins_sql(table, rules)} WHERE {_any_of(rules)}"
        )
        self._judged.add(table)
        if table == "products":
            self._connection.execute(
                "CREATE OR REPLACE TEMP TABLE known AS SELECT DISTINCT product_id "
                f"FROM ({self.good_rows_sql(table)})"
            )
        return self._summarise(table)

    def any_bad_row(self, table: TableName) -> bool:
        """Whether `judge` would quarantine any row, at the price of one scan (and one aggregation)."""
        rules = [rule for rule in self._applicable(table) if rule.severity == "quarantine"]
        direct = [rule for rule in rules if rule.joins != "copies"]
        scan = self.tables.scan_sql(table)
        found = self._fetch(
            f"SELECT 1 FROM {scan} r{_joins_sql(table, direct)} WHERE {_any_of(direct)} LIMIT 1"
        )
        if not found and len(direct) < len(rules):
            found = self._fetch(f"{self._repeated_sql(table)} LIMIT 1")
        return bool(found)

    def single_class(self) -> RuleFinding | None:
        """A finding if the impressions left hold clicks only, or none: nothing can be learned or measured."""
        if not self.tables.has("impressions"):
            return None
        good = "impressions" in self._judged
        rows = f"({self.good_rows_sql('impressions')})" if good else self.tables.scan_sql("impressions")
        lowest, highest, count = self._fetch(
            f"SELECT min(clicked::BIGINT), max(clicked::BIGINT), count(*) FROM {rows}"
        )[0]
        if lowest != highest or not count:
            return None
        files = self.tables.files("impressions")
        place = files[0] if len(files) == 1 else files[0].parent
        return RuleFinding(
            "single_class_labels",
            "fail",
            "clicked",
            count,
            count / self.tables.rows("impressions"),
            None,
            f"all {count:,} usable rows of {place} have clicked = {lowest}; a ranker needs impressions that "
            "were clicked and impressions that were not, so log both",
        )

    def no_common_user(self) -> RuleFinding | None:
        """A warning if nobody who bought is in the impressions, as where ids are written in two ways."""
        if not (self.tables.has("impressions") and self.tables.has("purchases")):
            return None
        shown, bought = (
            f"(SELECT user_id FROM {self.tables.scan_sql(name)} r WHERE NOT {is_missing_sql('r.user_id')})"
            for name in ("impressions", "purchases")
        )
        examples = [self._fetch(f"SELECT user_id FROM {users} LIMIT 1") for users in (shown, bought)]
        # The users of the smaller table are kept in memory, and the larger one is read until one is found.
        both = f"SELECT 1 FROM {shown} WHERE user_id IN (SELECT DISTINCT user_id FROM {bought}) LIMIT 1"
        if not all(examples) or self._fetch(both):
            return None
        (((seen,),), ((buyer,),)) = examples
        return RuleFinding(
            "no_common_user",
            "warn",
            "user_id",
            self.tables.rows("purchases"),
            1.0,
            None,
            f"no user of the purchases, such as {buyer!r}, is in the impressions, which have {seen!r}: every "
            "history is empty; are the ids written alike?",
        )

    def _written_otherwise(self) -> str:
        """What to add where no row of a table names a product that is known."""
        known = self._fetch("SELECT product_id FROM known LIMIT 1")
        return f"; as no row names one, are ids written alike? products has {known[0][0]!r}" if known else ""

    def _fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    def _applicable(self, table: TableName) -> list[Rule]:
        columns = set(self.tables.columns(table))
        if table == "impressions" and not self.tables.has_queries:
            columns.discard("query")
        keys = set(IDENTITY[table]) <= columns
        return [
            rule
            for rule in RULES[table]
            if {rule.column, *rule.needs} <= columns and (rule.joins != "copies" or keys)
        ]

    def _repeated_sql(self, table: TableName) -> str:
        keys = ", ".join(IDENTITY[table])
        present = " AND ".join(f"NOT {is_missing_sql(key)}" for key in IDENTITY[table])
        scan = self.tables.scan_sql(table)
        return f"SELECT {keys} FROM {scan} WHERE {present} GROUP BY {keys} HAVING count(*) > 1"

    def _collect_copies(self, table: TableName) -> None:
        """`copies_<table>`: each id that occurs twice, with the place of its first otherwise good row."""
        keys = IDENTITY[table]
        others = [
            rule
            for rule in self._applicable(table)
            if rule.severity == "quarantine" and rule.joins != "copies"
        ]
        self._connection.execute(f"CREATE TEMP TABLE repeated_{table} AS {self._repeated_sql(table)}")
        grade = f", arg_min(r.grade, {_PLACE}) AS grade" if table == "relevance" else ""
        by = ", ".join(f"r.{key}" for key in keys)
        same = " AND ".join(f"r.{key} = repeated.{key}" for key in keys)
        self._connection.execute(
            f"CREATE TEMP TABLE copies_{table} AS SELECT {by}, min({_PLACE}) AS first{grade} "
            f"FROM {self.rows_sql(table)} r JOIN repeated_{table} AS repeated ON {same}"
            f"{_joins_sql(table, others)} WHERE NOT coalesce({_any_of(others)}, false) GROUP BY {by}"
        )

    def _summarise(self, table: TableName) -> TableFinding:
        counted = self._fetch(
            "SELECT name, count(*), min({'file': _file, 'row': _row}) FROM "
            f"(SELECT unnest(list_concat(reasons, remarks)) AS name, _file, _row FROM bad_{table}) "
            "GROUP BY name"
        )
        by_name = {name: (count, place) for name, count, place in counted}
        total = self.tables.rows(table)
        findings = []
        for rule in self._applicable(table):
            count, place = by_name.get(rule.name, (0, None))
            example = self._example(table, rule.column, place["file"], place["row"]) if place else None
            more = self._written_otherwise() if rule.joins == "known" and count == total else ""
            advice = rule.advice + more
            findings.append(
                RuleFinding(rule.name, rule.severity, rule.column, count, count / total, example, advice)
            )
        quarantined = self._fetch(f"SELECT count(*) FROM bad_{table} WHERE len(reasons) > 0")[0][0]
        return TableFinding(total, quarantined, tuple(findings))

    def _example(self, table: TableName, column: str, file: str, row: int) -> Example:
        found = self._fetch(
            f"SELECT r.{column}::VARCHAR FROM {self.rows_sql(table)} r "
            f"WHERE r._file = {sql_text(file)} AND r._row = {int(row)}"
        )
        return Example(file, row, found[0][0])


@contextmanager
def open_row_checks(
    tables: InputTables, *, memory_limit: str, threads: int, now: datetime | None
) -> Iterator[RowChecks]:
    """A session in UTC that spills to a temporary folder; `now` is the present if None.

    Raises:
        InputError: inside the block, when a file breaks off or memory does not suffice.
    """
    latest = (now or datetime.now(UTC)) + timedelta(days=1)
    with tempfile.TemporaryDirectory(prefix="dashclip-validate-") as spill, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = {sql_text(memory_limit)}")
        connection.execute(f"SET temp_directory = {sql_text(spill)}")
        connection.execute(f"SET threads = {int(threads)}")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET VARIABLE {LATEST} = TIMESTAMPTZ {sql_text(latest.isoformat())}")
        try:
            yield RowChecks(connection, tables)
        except duckdb.OutOfMemoryException as error:
            raise InputError(
                f"{tables.root} cannot be checked in {memory_limit} of memory; raise the limit ({error})"
            ) from error
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException):
            raise  # a mistake in a rule's SQL, not in the data
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"checking {tables.root} broke off ({first}); if that speaks of a file's content, the file "
                "is damaged inside: write it again"
            ) from error


def _is_good(table: TableName) -> str:
    return (
        f"NOT EXISTS (SELECT 1 FROM bad_{table} b "
        "WHERE b._file = r._file AND b._row = r._row AND len(b.reasons) > 0)"
    )


def _joins_sql(table: TableName, rules: list[Rule]) -> str:
    used = {rule.joins for rule in rules}
    sql = ""
    if "known" in used:
        sql += " LEFT JOIN known ON r.product_id = known.product_id"
    if "images" in used:
        sql += " LEFT JOIN images ON r.image = images.image"
    if "copies" in used:
        same = " AND ".join(f"r.{key} = copies.{key}" for key in IDENTITY[table])
        sql += f" LEFT JOIN copies_{table} AS copies ON {same}"
    return sql


def _any_of(rules: list[Rule]) -> str:
    return " OR ".join(f"({rule.condition})" for rule in rules) or "false"


def _names_sql(rules: list[Rule], severity: str) -> str:
    cases = [
        f"CASE WHEN {rule.condition} THEN {sql_text(rule.name)} END"
        for rule in rules
        if rule.severity == severity
    ]
    return f"list_filter([{', '.join(cases)}]::VARCHAR[], lambda name: name IS NOT NULL)"
