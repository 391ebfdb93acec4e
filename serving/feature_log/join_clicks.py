"""From a feature log and later clicks to the four tables: what was served is what is trained on next.

Shapes: N served candidates, C clicks, U users.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.artifacts import atomic_folder, atomic_write_json, json_file_has, link_or_copy
from features.columns.clock import iso
from features.columns.counters import QUANTITIES
from features.inputs.origin import Origin
from features.inputs.plain_types import plain_type, plain_values
from features.inputs.table_specs import TABLES, TableName
from features.inputs.tables import InputTables
from features.progress import Progress, silent
from features.schema import CounterKey
from serving.feature_log.log_files import DENSE, SPARSE, logged_files
from serving.feature_log.user_keys import hidden_user

Int64s = npt.NDArray[np.int64]

_UTC_US = pa.timestamp("us", tz="UTC")
#: Of the impressions; what else a log's impressions have comes from live values.
_OWN = tuple(column.name for column in TABLES["impressions"].columns if column.name != "price")
#: Counters that came with a request: features count for themselves.
_COUNTER = re.compile(rf"({'|'.join(get_args(CounterKey))})_({'|'.join(QUANTITIES)})_\d+d")
#: Logged rows whose live values are Python's objects at a time.
_CHUNK_ROWS = 65_536
#: A description in `out`, by which the folder is known for ours.
_SOURCE, _OURS = "source.json", "joined"


@dataclass(frozen=True)
class Joined:
    """What a join made.

    Attributes:
        share: the smallest share of the requests that was logged: counters made of such impressions count no
            more than that.
        clicks_used: that found their impression; a second click on one counts, too.
        unknown_users: impressions whose user is not in the tables, hence nobody.
        before: impressions of the tables from before the first logged one.
        absent: columns of the tables' impressions that no request gave.
    """

    requests: int
    impressions: int
    clicked: int
    clicks: int
    clicks_used: int
    unknown_users: int
    before: int
    first: str
    last: str
    share: float
    absent: tuple[str, ...]


def join_clicks(
    log: Path,
    clicks: Path,
    out: Path,
    *,
    data: Path,
    key: bytes,
    within_us: int,
    shown: int | None = None,
    rank_column: str | None = None,
    progress: Progress = silent,
) -> tuple[Joined, pa.Table]:
    """Write the tables `out`: served impressions with their clicks, behind those of `data` from before them.

    A click belongs to the latest impression of its request (or user) and product that is not later, and less
    than `within_us` older. Answers of shadows are no impressions.

    Args:
        clicks: Parquet with timestamp, product_id, and request_id or user_id.
        data: the four tables: products and purchases are linked; the ids of its users undo the hiding.
        shown: only so many of the best of each request were shown; all if None.
        rank_column: column of the impressions that is the rank, from 1, where no request gave it.

    Returns:
        What was made, and the served rows with all columns of the log and their impression_id [N].

    Raises:
        ValueError: nothing is logged, or a table cannot be used; says which and what to do.
        FileExistsError: `out` holds something else.
    """
    tables = InputTables.open(data)
    asked = _read_clicks(clicks)
    progress("reading the log", 0, 3)
    served, share = _read_log(log, shown)
    progress("matching clicks", 1, 3)
    products = tables.schema("products").field("product_id").type
    served = _set(served, "product_id", _as_ids(served["product_id"], products, where=f"{log}: product_id"))
    asked = _set(asked, "product_id", _as_ids(asked["product_id"], products, where=f"{clicks}: product_id"))
    if "user_id" in asked.column_names:
        of_users = _as_kind(asked["user_id"], _user_type(tables, asked), where=f"{clicks}: user_id")
        asked = _set(asked, "user_id", of_users)
    raw = _raw_users(tables, asked, key)
    click_us_N, used = _first_clicks(served, asked, within_us=within_us, key=key)
    users = _mapped(served["user"], raw.get, _user_type(tables, asked))
    progress("writing tables", 2, 3)
    first_us = int(pc.min(served["timestamp"]).cast(pa.int64()).as_py())
    before = _before(tables, first_us)
    impressions, ids, absent = _impressions(
        served, users, click_us_N, before=before, tables=tables, rank_column=rank_column
    )
    joined = Joined(
        requests=len(served["request_id"].unique()),
        impressions=served.num_rows,
        clicked=int(np.count_nonzero(click_us_N >= 0)),
        clicks=asked.num_rows,
        clicks_used=used,
        unknown_users=users.null_count - served["user"].null_count,
        before=0 if before is None else before.num_rows,
        first=iso(first_us),
        last=iso(int(pc.max(served["timestamp"]).cast(pa.int64()).as_py())),
        share=share,
        absent=absent,
    )
    with atomic_folder(out, ours=lambda path: json_file_has(path / _SOURCE, _OURS)) as folder:
        (folder / "impressions").mkdir()
        pq.write_table(impressions, folder / "impressions" / "served.parquet")
        if before is not None and before.num_rows:
            pq.write_table(before, folder / "impressions" / "before.parquet")
        others: list[TableName] = ["products", "purchases", "relevance"]
        for name in others:
            for path in tables.files(name) if tables.has(name) else ():
                link_or_copy(path, folder / path.relative_to(data))
        atomic_write_json(folder / _SOURCE, {**asdict(Origin.of(data)), _OURS: asdict(joined)})
    progress("writing tables", 3, 3)
    return joined, served.append_column("impression_id", ids)


def _read_log(log: Path, shown: int | None) -> tuple[pa.Table, float]:
    """What users were answered, by time, and the smallest share of the requests that was logged."""
    files = [*logged_files(log)] if log.is_dir() else []
    parts = [table for file in files if (table := file.table()) is not None]
    if not parts:
        raise ValueError(f"{log} holds no feature log; `dashclip serve --feature-log` writes one")
    table = pa.concat_tables(parts, promote_options="default")
    table = table.filter(pc.invert(table["is_shadow"]))
    if shown is not None:
        table = table.filter(pc.less(table["rank"], shown))
    if not table.num_rows:
        raise ValueError(f"{log} holds answers of shadows only: nobody was shown anything")
    order = [("timestamp", "ascending"), ("request_id", "ascending"), ("candidate", "ascending")]
    return table.sort_by(order).replace_schema_metadata(), min(file.share for file in files)


def _read_clicks(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"the clicks {path} cannot be read as Parquet: {error}") from None
    names = table.column_names
    lacking = [name for name in ("timestamp", "product_id") if name not in names]
    if lacking or not {"request_id", "user_id"} & {*names}:
        raise ValueError(
            f"{path} has the columns {', '.join(names)}; it needs timestamp, product_id, and request_id or "
            "user_id"
        )
    kind = table.schema.field("timestamp").type
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        raise ValueError(f"{path}: timestamp is {kind}; it has to be a timestamp with a time zone")
    return _set(table, "timestamp", plain_values(table["timestamp"], _UTC_US))


def _raw_users(tables: InputTables, clicks: pa.Table, key: bytes) -> dict[str, int | str]:
    """The id of each user of tables and clicks, by the name in the log."""
    names: tuple[TableName, ...] = ("impressions", "purchases")
    found = [
        tables.table(name).to_table(["user_id"])["user_id"].unique() for name in names if tables.has(name)
    ]
    if "user_id" in clicks.column_names:
        found.append(clicks["user_id"].unique())
    ids = {one for part in found for one in part.to_pylist() if one is not None}
    return {hidden_user(one, key): one for one in ids}


def _user_type(tables: InputTables, clicks: pa.Table) -> pa.DataType:
    names: tuple[TableName, ...] = ("impressions", "purchases")
    for name in names:
        if tables.has(name):
            return tables.schema(name).field("user_id").type
    return clicks.schema.field("user_id").type if "user_id" in clicks.column_names else pa.string()


def _as_ids(ids: pa.ChunkedArray, kind: pa.DataType, *, where: str) -> pa.ChunkedArray:
    if ids.null_count:
        raise ValueError(f"{where} holds a null; every product needs its id of the catalogue")
    return _as_kind(ids, kind, where=where)


def _as_kind(ids: pa.ChunkedArray, kind: pa.DataType, *, where: str) -> pa.ChunkedArray:
    """Integers as the tables' integers, text as their text: no other value would find its like."""
    plain = plain_type(ids.type)
    if pa.types.is_null(plain):
        return ids.cast(kind)
    if plain != kind and not (pa.types.is_integer(plain) and pa.types.is_integer(kind)):
        raise ValueError(f"{where} is {ids.type}, the tables have {kind}; write it as they have it")
    try:
        return pa.chunked_array([plain_values(part, kind) for part in ids.chunks], kind)
    except pa.ArrowInvalid:
        largest = pc.max(ids).as_py()
        raise ValueError(
            f"{where} holds {largest}, beyond the 64-bit signed integers of the tables; no id is so large"
        ) from None


def _first_clicks(served: pa.Table, clicks: pa.Table, *, within_us: int, key: bytes) -> tuple[Int64s, int]:
    """Time of the first click of each served row [N], -1 without one; and how many clicks found their row."""
    if "request_id" in clicks.column_names:
        keys = served["request_id"], clicks["request_id"].cast(pa.string())
    else:
        hidden = _mapped(clicks["user_id"], lambda one: hidden_user(one, key), pa.string())
        keys = served["user"], pa.chunked_array([hidden])
    who = _codes(*keys)
    what = _codes(served["product_id"], clicks["product_id"])
    at = tuple(table["timestamp"].cast(pa.int64()).to_numpy() for table in (served, clicks))
    row_C = latest_before(
        np.stack([who[0], what[0]], axis=1), at[0], np.stack([who[1], what[1]], axis=1), at[1]
    )
    found_C = np.flatnonzero((row_C >= 0) & (who[1] >= 0))
    found_C = found_C[at[1][found_C] - at[0][row_C[found_C]] < within_us]
    never = np.iinfo(np.int64).max
    click_us_N = np.full(served.num_rows, never)
    np.minimum.at(click_us_N, row_C[found_C], at[1][found_C])
    return np.where(click_us_N == never, -1, click_us_N), len(found_C)


def _mapped(values: pa.ChunkedArray, change: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Each value changed, and only once where it recurs; null stays null."""
    encoded = values.combine_chunks().dictionary_encode()
    changed = [None if one is None else change(one) for one in encoded.dictionary.to_pylist()]
    return pa.array(changed, kind).take(encoded.indices)


def _codes(served: pa.ChunkedArray, clicks: pa.ChunkedArray) -> tuple[Int64s, Int64s]:
    """Equal numbers for equal values of both; -1 for null."""
    both = pa.concat_arrays([served.combine_chunks(), clicks.cast(served.type).combine_chunks()])
    code = both.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return code[: len(served)], code[len(served) :]


def latest_before(key_NK: Int64s, time_N: Int64s, key_CK: Int64s, time_C: Int64s) -> Int64s:
    """For each of C the latest of N with the same key and no later time, the last one of equals; else -1."""
    key = np.concatenate([key_NK, key_CK])
    time = np.concatenate([time_N, time_C])
    is_click = np.arange(len(time)) >= len(time_N)
    order = np.lexsort((is_click, time, *key.T))  # stable; an impression goes before a click of its moment
    row = np.where(is_click[order], -1, np.arange(len(order)))
    np.maximum.accumulate(row, out=row)
    same = row >= 0
    same[same] = (key[order[row[same]]] == key[order[same]]).all(axis=1)
    found = np.full(len(time), -1, np.int64)
    found[order] = np.where(same, order[np.maximum(row, 0)], -1)
    return found[len(time_N) :]


def _before(tables: InputTables, first_us: int) -> pa.Table | None:
    """Impressions of the tables from before the first logged one; from then on the log has them."""
    if not tables.has("impressions"):
        return None
    return tables.table("impressions").to_table(between_us=("timestamp", 0, first_us - 1))


def _impressions(
    served: pa.Table,
    users: pa.Array,
    click_us_N: Int64s,
    *,
    before: pa.Table | None,
    tables: InputTables,
    rank_column: str | None,
) -> tuple[pa.Table, pa.Array, tuple[str, ...]]:
    """The impressions of the log, their ids, and the columns that no request gave."""
    columns: dict[str, Any] = {
        "impression_id": _new_ids(served, tables),
        "timestamp": served["timestamp"],
        "user_id": users,
        "query": served["query"],
        "product_id": served["product_id"],
        "clicked": pa.array(click_us_N >= 0).cast(pa.int8()),
        "click_timestamp": pa.array(click_us_N, mask=click_us_N < 0).cast(_UTC_US),
    }
    kinds = None if before is None else {field.name: field.type for field in before.schema}
    given = _given(served, kinds)
    if rank_column is not None:
        if kinds is not None and rank_column not in given:
            raise ValueError(
                f"rank column {rank_column!r} is none of the impressions of {tables.root}; there are "
                f"{', '.join(given) or 'none'}"
            )
        if rank_column not in given or given[rank_column].null_count == served.num_rows:
            kind = pa.int64() if kinds is None else kinds[rank_column]
            given[rank_column] = _cast(pc.add(served["rank"].cast(pa.int64()), 1), rank_column, kind)
    absent = tuple(name for name, values in given.items() if values.null_count == served.num_rows)
    return pa.table(columns | given), columns["impression_id"], absent


def _given(served: pa.Table, kinds: Mapping[str, pa.DataType] | None) -> dict[str, pa.ChunkedArray]:
    """The live values of the requests, by column [N]: of those of `kinds`, or of all but counters if None.

    A part of the log at a time: as Python's objects it would take many times its size.
    """
    parts = []
    for first in range(0, served.num_rows, _CHUNK_ROWS):
        given = [orjson.loads(text) for text in served["given"].slice(first, _CHUNK_ROWS).to_pylist()]
        names = kinds
        if names is None:
            found = {name for one in given for name in one if not _COUNTER.fullmatch(name)}
            names = dict.fromkeys(sorted(found))
        parts.append(
            pa.table(
                {
                    name: _typed([one.get(name) for one in given], name, kind)
                    for name, kind in names.items()
                    if name not in _OWN
                }
            )
        )
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the log has values of several kinds in one column: {error}") from None
    return {name: table[name] for name in table.column_names}


def _typed(values: Sequence[Any], name: str, kind: pa.DataType | None) -> pa.Array:
    """As `kind`, or as what they are if None."""
    numeric = (
        any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if kind is None
        else pa.types.is_integer(kind) or pa.types.is_floating(kind)
    )
    if numeric:  # true is 1, as for features of a request
        values = [int(value) if isinstance(value, bool) else value for value in values]
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"the log has values of several kinds in {name!r}: {error}") from None
    return array if kind is None else _cast(array, name, kind)  # `pa.array(values, kind)` makes 2 of 2.5


def _cast(values: Any, name: str, kind: pa.DataType) -> Any:
    try:
        return values.cast(kind)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"the log has values of {name!r} that are no {kind} as in the tables: {error}"
        ) from None


def _new_ids(served: pa.Table, tables: InputTables) -> pa.Array:
    """Ids that no impression of the tables has, those of an earlier log among them."""
    count, kind, last = served.num_rows, pa.int64(), -1
    if tables.has("impressions"):
        ids = tables.table("impressions").to_table(["impression_id"])["impression_id"]
        kind = ids.type
        if pa.types.is_integer(kind):
            last = max(last, int(pc.max(ids).as_py()))
    if pa.types.is_integer(kind):
        return pa.array(np.arange(last + 1, last + 1 + count), kind)
    first_us = served["timestamp"].cast(pa.int64())[0].as_py()  # an earlier log began before it
    numbers = pa.array(range(count), pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise("served", str(first_us), numbers, "-").cast(kind)


def feature_names(served: pa.Table) -> list[tuple[str, str]]:
    """(kind, name) of the features that a log holds."""
    kinds = {DENSE: "dense", SPARSE: "sparse"}
    return [
        (kind, column.removeprefix(prefix))
        for column in served.column_names
        for prefix, kind in kinds.items()
        if column.startswith(prefix)
    ]


def _set(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
