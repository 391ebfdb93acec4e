"""The same rows as other people's software stores them: other types, several files, empty row groups."""

import itertools
import random
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.features.small_logs import random_tables

TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int16(), pa.large_string()),
)
WHOLES = (pa.int64(), pa.int32(), pa.int16(), pa.uint32(), pa.dictionary(pa.int32(), pa.int64()))
NUMBERS = (pa.float64(), pa.float32(), pa.decimal128(12, 2), pa.decimal256(40, 2))
TIMES = (
    pa.timestamp("us", tz="UTC"),
    pa.timestamp("us", tz="America/New_York"),
    pa.timestamp("ns", tz="UTC"),
    pa.timestamp("ns", tz="Asia/Kolkata"),
)
FLAGS = (pa.int8(), pa.int64(), pa.uint8(), pa.bool_())
#: Null in the last third of the rows, so that the last of three files may lack them.
SPARSE_COLUMNS = ("query", "price", "store_id", "brand", "click_timestamp")


def plain_tables(seed: int, *, text_ids: bool) -> dict[str, pa.Table]:
    """Tables in plain types whose values every type above can hold."""
    tables = random_tables(seed, text_ids=text_ids)
    for name, table in tables.items():
        for place, field in enumerate(table.schema):
            values = table.column(place).combine_chunks()
            if pa.types.is_floating(field.type):
                values = pc.divide(pc.round(pc.multiply(values, 4)), 4)
            if field.name in SPARSE_COLUMNS:
                late = np.arange(len(table)) >= len(table) * 2 // 3
                values = pc.if_else(pa.array(late), pa.scalar(None, values.type), values)
            table = table.set_column(place, field.name, values)
        tables[name] = table
    return tables


def write_as_others_would(folder: Path, tables: dict[str, pa.Table], choice: random.Random) -> Path:
    """Write each table as one file or three, each column of each file in any type that holds its values."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        cuts = [0, len(table)]
        if choice.random() < 0.7:
            cuts = [0, len(table) // 3, len(table) * 2 // 3, len(table)]
        parts = [table.slice(start, end - start) for start, end in itertools.pairwise(cuts)]
        for number, part in enumerate(parts):
            path = folder / f"{name}.parquet" if len(parts) == 1 else folder / name / f"{number}.parquet"
            path.parent.mkdir(exist_ok=True)
            stored = _stored(part, choice)
            if choice.random() < 0.3:
                stored = stored.append_column("listed", pa.array([date(2024, 1, 1)] * len(part), pa.date32()))
            _write(path, stored, choice)
        if len(parts) > 1:
            (folder / name / ".3.parquet.tmp").write_bytes(b"half")
            shutil.copy(folder / name / "0.parquet", folder / name / "_0.parquet")
    return folder


def _stored(part: pa.Table, choice: random.Random) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    names = part.column_names[:]
    choice.shuffle(names)
    for name in names:
        values = part.column(name).combine_chunks()
        if name in SPARSE_COLUMNS and values.null_count == len(values):
            how = choice.choice(("absent", "null", "typed"))
            if how == "absent":
                continue
            if how == "null":
                columns[name] = pa.nulls(len(values))
                continue
        kinds = FLAGS if name == "clicked" else kinds_of(values.type)
        columns[name] = stored_as(values, choice.choice(kinds))
    return pa.table(columns)


def kinds_of(plain: pa.DataType) -> tuple[pa.DataType, ...]:
    """The types that carry values of a plain type."""
    if pa.types.is_string(plain):
        return TEXTS
    if pa.types.is_timestamp(plain):
        return TIMES
    return NUMBERS if pa.types.is_floating(plain) else WHOLES


def stored_as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values in another type; moments in nanoseconds get digits below the microsecond."""
    if pa.types.is_dictionary(kind):
        return values.cast(kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_decimal(kind):
        return pa.array(
            [None if value is None else Decimal(value) for value in values.to_pylist()], type=kind
        )
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        ns = pc.multiply(values.cast(pa.int64()), 1000)
        return pc.add(ns, pa.array(np.arange(len(values)) * 337 % 1000)).cast(kind)
    return values.cast(kind)


def _write(path: Path, table: pa.Table, choice: random.Random) -> None:
    """With a row group of no rows before, between or behind the others."""
    group = max(len(table) // choice.choice((1, 2, 3)), 1)
    groups = [table.slice(start, group) for start in range(0, len(table), group)]
    groups.insert(choice.randint(0, len(groups)), table.slice(0, 0))
    with pq.ParquetWriter(path, table.schema, store_schema=True) as writer:
        for rows in groups:
            writer.write_table(rows)
