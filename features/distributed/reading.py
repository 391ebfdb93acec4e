"""Reading the log in pieces: counting its ids, then handing out its rows with ids numbered.

A piece is some row groups of one file, read by the same code as on one machine. Ids are looked up in maps on
the shared disk, so no process holds them. Shapes: N rows of a piece, K distinct ids.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.columns.id_map import IdMap
from features.columns.kernels import NO_CLICK
from features.columns.transforms import LARGEST
from features.columns.vocabulary import stable_hash
from features.distributed.engine import BUCKET, Stage
from features.distributed.routing import KIND, KeyRoutes
from features.inputs.blanks import without_blanks
from features.inputs.table_specs import TableName, is_text
from features.inputs.tables import InputTable, InputTables
from features.offline.log_checks import REQUIRED_OF_IMPRESSIONS
from features.offline.log_reader import KEY_OF_COLUMN, NO_ID, own_dense, own_sparse
from features.schema import FeatureConfig

#: Rows of a piece, about: that many lie in memory at once.
_PIECE_ROWS = 1_000_000
HOUR_US = 3_600_000_000
#: What `count_piece` says of a whole piece rather than of an id.
FACTS = "facts"
#: Impressions of each hour since 1970.
HOUR = "hour"

#: Rows and purchases of each distinct id, by the name of its index; `note` is JSON, of `FACTS` alone.
COUNTS = pa.schema(
    [
        (BUCKET, pa.int32()),
        ("name", pa.string()),
        ("number", pa.int64()),
        ("text", pa.string()),
        ("shown", pa.int64()),
        ("bought", pa.int64()),
        ("note", pa.string()),
    ]
)


@dataclass(frozen=True)
class Piece:
    """Row groups of one file of a table; `first_row` is the number of the first row in its file."""

    table: TableName
    file: int
    row_groups: range
    first_row: int


def pieces_of(tables: InputTables, names: Sequence[TableName]) -> tuple[Piece, ...]:
    """The tables in pieces of about `_PIECE_ROWS` rows; a row group is never cut."""
    found: list[Piece] = []
    for name in names:
        for number, path in enumerate(tables.files(name)):
            footer = pq.read_metadata(path)
            rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            first = first_row = waiting = 0
            for group, count in enumerate(rows, start=1):
                waiting += count
                if waiting >= _PIECE_ROWS or group == len(rows):
                    if waiting:
                        found.append(Piece(name, number, range(first, group), first_row))
                    first, first_row, waiting = group, first_row + waiting, 0
    return tuple(found)


@dataclass(frozen=True)
class Counting:
    """The first pass: distinct ids with their rows, and what is wrong with the rows."""

    tables: InputTables
    config: FeatureConfig
    pieces: tuple[Piece, ...]
    reducers: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Adds up what the pieces have counted."""
        return (Stage(sum_counts, COUNTS),)

    def __call__(self, task: int) -> pa.Table:
        """Counts of one piece."""
        piece = self.pieces[task]
        table = self.tables.table(piece.table).of_file(piece.file)
        counts = _Counts(self.reducers)
        if piece.table == "impressions":
            facts = self._impressions(table, piece, counts)
        else:
            facts = self._purchases(table, piece, counts)
        counts.note({"table": piece.table, **facts})
        return counts.table()

    def _impressions(self, table: InputTable, piece: Piece, counts: "_Counts") -> dict[str, Any]:
        names = table.schema.names
        own = [feature.column for feature in own_sparse(self.config)]
        dense = own_dense(self.config)
        wanted = {*REQUIRED_OF_IMPRESSIONS, "user_id", "clicked", *own, *(f.column for f in dense)}
        wanted |= {name for name in ("query", "click_timestamp") if name in names}
        rows = _rows(table, piece, sorted(wanted))
        time_us_N = _microseconds(rows.column("timestamp"))
        clicked = rows.column("clicked").cast(pa.int64())
        is_label = pc.fill_null(pc.is_in(clicked, value_set=pa.array([0, 1])), False)
        without_time, clicked_before_shown = pc.equal(clicked, 1), 0
        if "click_timestamp" in names:
            early = pc.less(rows.column("click_timestamp"), rows.column("timestamp"))
            clicked_before_shown = _true(early)
            without_time = pc.and_(without_time, pc.is_null(rows.column("click_timestamp")))
        counts.add("user", rows.column("user_id"), shown=True)
        counts.add("product", rows.column("product_id"), shown=True)
        if "query" in names:
            counts.add("query", rows.column("query"), shown=True)
        for column in own:
            counts.add(f"id:{column}", rows.column(column), shown=True)
        counts.add(HOUR, pa.chunked_array([pa.array(time_us_N // HOUR_US)]), shown=True)
        return {
            "rows": len(rows),
            "missing": {name: _missing(rows.column(name)) for name in REQUIRED_OF_IMPRESSIONS},
            "not_a_label": len(rows) - _true(is_label),
            "clicked_before_shown": clicked_before_shown,
            "clicks_without_time": _true(without_time),
            "anonymous": _missing(rows.column("user_id")),
            "first_us": int(time_us_N.min()),
            "last_us": int(time_us_N.max()),
            "too_large": [
                found
                for number, feature in enumerate(self.config.dense)
                if feature in dense
                for found in _too_large(number, feature.transform, rows.column(feature.column), table, piece)
            ],
        }

    def _purchases(self, table: InputTable, piece: Piece, counts: "_Counts") -> dict[str, Any]:
        rows = _rows(table, piece, ["product_id", "timestamp", "user_id"])
        counts.add("user", rows.column("user_id"), shown=False)
        counts.add("product", rows.column("product_id"), shown=False)
        lost = pc.or_(
            pc.is_null(without_blanks(rows.column("product_id"))), pc.is_null(rows.column("timestamp"))
        )
        return {"rows": len(rows), "anonymous": _missing(rows.column("user_id")), "lost": _true(lost)}


class _Counts:
    """Gathers rows of `COUNTS`."""

    def __init__(self, reducers: int) -> None:
        self._reducers = reducers
        self._parts: list[pa.Table] = []

    def add(self, name: str, values: pa.ChunkedArray, *, shown: bool) -> None:
        """Count distinct values; missing ones are none."""
        counted = without_blanks(_id_values(values)).combine_chunks().drop_null().value_counts()
        ids, rows = counted.field("values"), counted.field("counts")
        text = is_text(ids.type)
        none = np.zeros(len(ids), np.int64)
        self._parts.append(
            pa.table(
                [
                    pa.array((stable_hash(ids) % np.uint64(self._reducers)).astype(np.int32)),
                    pa.repeat(name, len(ids)),
                    pa.nulls(len(ids), pa.int64()) if text else ids,
                    ids if text else pa.nulls(len(ids), pa.string()),
                    rows if shown else pa.array(none),
                    pa.array(none) if shown else rows,
                    pa.nulls(len(ids), pa.string()),
                ],
                schema=COUNTS,
            )
        )

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say something of the whole piece."""
        note = dict.fromkeys(COUNTS.names) | {BUCKET: 0, "name": FACTS, "note": json.dumps(facts)}
        self._parts.append(pa.Table.from_pylist([note], schema=COUNTS))

    def table(self) -> pa.Table:
        return pa.concat_tables(self._parts)


def sum_counts(counts: pa.Table) -> pa.Table:
    """`COUNTS` of one bucket, each id once."""
    facts = counts.filter(pc.equal(counts.column("name"), FACTS))
    ids = counts.filter(pc.not_equal(counts.column("name"), FACTS))
    summed = ids.group_by([BUCKET, "name", "number", "text"]).aggregate([("shown", "sum"), ("bought", "sum")])
    summed = summed.rename_columns({"shown_sum": "shown", "bought_sum": "bought"})
    summed = summed.append_column("note", pa.nulls(len(summed), pa.string()))
    return pa.concat_tables([summed.select(COUNTS.names).cast(COUNTS), facts.cast(COUNTS)])


@dataclass(frozen=True)
class Encoding:
    """The second pass: impressions, and purchases for histories, with ids numbered and labels as logged.

    Attributes:
        ids: folder of the maps of `write_id_maps`.
        routes: of users.
    """

    tables: InputTables
    config: FeatureConfig
    pieces: tuple[Piece, ...]
    ids: Path
    routes: KeyRoutes
    has_click_times: bool

    @property
    def schema(self) -> pa.Schema:
        """Rows of both tables; a column that a table has not is null.

        `tie` orders the purchases of a user's moment: the purchase_id, or else the place in the files.
        """
        impression_id = self.tables.schema("impressions").field("impression_id").type
        fields: list[tuple[str, pa.DataType]] = [
            (BUCKET, pa.int32()),
            (KIND, pa.int8()),
            ("impression_id", impression_id),
            ("time_us", pa.int64()),
            ("clicked", pa.int8()),
            ("click_us", pa.int64()),
            ("user", pa.int32()),
            ("product", pa.int32()),
            ("query", pa.int32()),
        ]
        fields += [(f"dense:{feature.name}", pa.float64()) for feature in own_dense(self.config)]
        fields += [(f"id:{feature.column}", pa.int32()) for feature in own_sparse(self.config)]
        return pa.schema([*fields, ("tie", self._tie_type)])

    def __call__(self, task: int) -> pa.Table:
        """The rows of one piece."""
        piece = self.pieces[task]
        table = self.tables.table(piece.table).of_file(piece.file)
        if piece.table == "impressions":
            return self._whole(self.routes.route(self._impressions(table, piece), "user"))
        return self._whole(self.routes.route_purchases(self._purchases(table, piece), "user"))

    def _impressions(self, table: InputTable, piece: Piece) -> pa.Table:
        dense, sparse = own_dense(self.config), own_sparse(self.config)
        wanted = {*REQUIRED_OF_IMPRESSIONS, "user_id", "clicked"}
        wanted |= {feature.column for feature in dense} | {feature.column for feature in sparse}
        wanted |= {"query"} if self.tables.has_queries else set()
        wanted |= {"click_timestamp"} if self.has_click_times else set()
        rows = _rows(table, piece, sorted(wanted))
        time_us_N = _microseconds(rows.column("timestamp"))
        clicked_N = rows.column("clicked").cast(pa.int8()).to_numpy()
        at_us_N = time_us_N
        if self.has_click_times:
            at_us_N = _microseconds(pc.coalesce(rows.column("click_timestamp"), rows.column("timestamp")))
        counts_N = (clicked_N == 1) & (at_us_N - time_us_N < self.config.labels.attribution_us)
        columns = {
            "impression_id": rows.column("impression_id"),
            "time_us": time_us_N,
            "clicked": clicked_N,
            "click_us": np.where(counts_N, at_us_N, NO_CLICK),
            "user": self._codes("user", rows.column("user_id")),
            "product": self._codes("product", rows.column("product_id")),
            "query": self._codes("query", rows.column("query"))
            if self.tables.has_queries
            else np.full(len(rows), NO_ID, np.int32),
        }
        for feature in dense:
            columns[f"dense:{feature.name}"] = rows.column(feature.column).cast(pa.float64())
        for column in (feature.column for feature in sparse):
            columns[f"id:{column}"] = self._codes(f"id:{column}", rows.column(column))
        return pa.table(columns)

    def _purchases(self, table: InputTable, piece: Piece) -> pa.Table:
        has_ids = "purchase_id" in self.tables.columns("purchases")
        wanted = ["product_id", "timestamp", "user_id", *(["purchase_id"] if has_ids else [])]
        rows = _rows(table, piece, wanted)
        if has_ids:
            tie = without_blanks(rows.column("purchase_id"))
        else:
            names = [str(path) for path in self.tables.files("purchases")]
            place = sorted(names).index(names[piece.file])
            tie = pa.array((place << 40) + piece.first_row + np.arange(len(rows)))
        bought = pa.table(
            {
                "time_us": _microseconds(rows.column("timestamp")),
                "user": self._codes("user", rows.column("user_id")),
                "product": self._codes("product", rows.column("product_id")),
                "tie": tie,
            }
        )
        return bought.filter(pc.greater_equal(bought.column("user"), 0))

    @property
    def _tie_type(self) -> pa.DataType:
        if not self.tables.has_purchases or "purchase_id" not in self.tables.columns("purchases"):
            return pa.int64()
        return self.tables.schema("purchases").field("purchase_id").type

    def _codes(self, name: str, values: pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """Number of each id, NO_ID of a missing one."""
        return (
            _open_map(self.ids / _file_name(name)).find(_id_values(values).combine_chunks()).astype(np.int32)
        )

    def _whole(self, rows: pa.Table) -> pa.Table:
        """The rows with all columns of the schema."""
        present = set(rows.column_names)
        return pa.table(
            [
                rows.column(field.name).cast(field.type)
                if field.name in present
                else pa.nulls(len(rows), field.type)
                for field in self.schema
            ],
            schema=self.schema,
        )


def write_id_maps(folder: Path, ids: Mapping[str, pa.Array]) -> None:
    """Write the map of each index, by its name."""
    for name, values in ids.items():
        IdMap.write(folder / _file_name(name), values)


def _file_name(index: str) -> str:
    """A name for the map of an index, whatever characters its column has."""
    return index if index in KEY_OF_COLUMN.values() else index.encode().hex()


@lru_cache(maxsize=64)
def _open_map(folder: Path) -> IdMap:
    return IdMap.open(folder)


def _rows(table: InputTable, piece: Piece, columns: Sequence[str]) -> pa.Table:
    batches = table.to_batches(columns, row_groups=piece.row_groups)
    return pa.Table.from_batches(batches, pa.schema([table.schema.field(name) for name in columns]))


def _id_values(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as int64 or text; flags are 0 and 1."""
    return values if is_text(values.type) else values.cast(pa.int64())


def _microseconds(moments: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Microseconds since 1970; the checks refuse a missing moment, here it is 0."""
    time_us_N: npt.NDArray[np.int64] = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy()
    return time_us_N


def _missing(values: pa.ChunkedArray) -> int:
    return int(without_blanks(values).null_count)


def _true(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _too_large(
    feature: int, transform: str, values: pa.ChunkedArray, table: InputTable, piece: Piece
) -> Iterator[list[Any]]:
    """The first number that the transform cannot take: number of the feature, value, file, row."""
    value_N = values.cast(pa.float64()).to_numpy()
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(np.abs(value_N) > LARGEST[transform])
    if len(rows):
        row = int(rows[0])
        yield [feature, float(value_N[row]), str(table.files[0]), piece.first_row + row]
