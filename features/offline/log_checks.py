"""What is refused in a log, in a sentence each, whichever engine has counted it."""

import math
from collections.abc import Mapping

import pyarrow as pa

from features.columns.transforms import LARGEST
from features.inputs.table_specs import TableName, is_text
from features.inputs.tables import InputTables
from features.schema import DenseFeature, FeatureConfig

#: Columns of the impressions in which no value may be missing.
REQUIRED_OF_IMPRESSIONS = ("impression_id", "timestamp", "product_id")


class LogError(ValueError):
    """Rows that no feature can be made of; says how many, the first one, and what to do."""


def bad_rows(tables: InputTables, table: TableName, problem: str) -> LogError:
    """The error for rows that `dashclip validate` tells from the good ones."""
    return LogError(
        f"{tables.path_glob(table)}: {problem}; "
        f"run `dashclip validate {tables.root} --out CHECKED --write-clean` and build from "
        "CHECKED/clean"
    )


def check_impressions(
    tables: InputTables, *, missing: Mapping[str, int], not_a_label: int, clicked_before_shown: int
) -> None:
    """Raises LogError: required values are missing, a label is none, or a click came before its impression.

    Such a click would be counted among what was known when its own impression was shown.

    Args:
        missing: rows without it, of each of `REQUIRED_OF_IMPRESSIONS`.
        not_a_label: rows with `clicked` other than 0 and 1.
        clicked_before_shown: rows whose `click_timestamp` is earlier than their `timestamp`.
    """
    for name in REQUIRED_OF_IMPRESSIONS:
        if missing[name]:
            raise bad_rows(tables, "impressions", f"{missing[name]:,} rows have no {name}")
    if not_a_label:
        raise bad_rows(tables, "impressions", f"{not_a_label:,} rows have `clicked` other than 0 and 1")
    if clicked_before_shown:
        problem = f"{clicked_before_shown:,} rows have a `click_timestamp` before their `timestamp`"
        raise bad_rows(tables, "impressions", problem)


def check_purchases(tables: InputTables, *, lost: int) -> None:
    """Raises LogError: `lost` rows lack a product_id or timestamp."""
    if lost:
        raise bad_rows(tables, "purchases", f"{lost:,} rows lack a product_id or timestamp")


def check_products_are_known(
    tables: InputTables, table: TableName, *, rows: int, example: int | str | None
) -> None:
    """Raises LogError: `rows` of a log name products that the catalogue lacks, such as `example`."""
    if rows:
        problem = f"{rows:,} rows name a product that products lacks, such as {example!r}"
        raise bad_rows(tables, table, problem)


def too_large(feature: DenseFeature, number: float, *, file: str, row: int) -> LogError:
    """The error for a number that a dense feature's transform cannot take."""
    infinite = math.isinf(number)
    return LogError(
        f"{file} row {row}, dense feature {feature.name!r}: column {feature.column!r} of "
        f"{feature.source} holds "
        + (
            f"an infinite value ({number:g}); "
            if infinite
            else f"{number:g}, too large for transform = 'standard' (at most "
            f"{LARGEST[feature.transform]:.1e}); "
        )
        + f"correct it or write null{'' if infinite else ', or use the transform log'}"
    )


def check_columns(tables: InputTables, config: FeatureConfig) -> None:
    """Columns that features read exist and can be read as asked; counters have their keys.

    Raises:
        InputError: a column is missing.
        LogError: its type carries no such feature, or counters are asked for by a key that the log lacks.
    """
    for feature in config.features:
        if feature.source == "timestamp":
            continue
        table: TableName = feature.source
        dense = isinstance(feature, DenseFeature)
        wanted_by = f"{'dense' if dense else 'sparse'} feature {feature.name!r}"
        tables.require_columns(table, (feature.column,), wanted_by=wanted_by)
        kind = tables.schema(table).field(feature.column).type
        number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if dense and not (number or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise LogError(
                f"{wanted_by} needs numbers, but column {feature.column!r} of {table} is {kind}; "
                "make it a sparse feature or cast the column"
            )
        if not dense and not (number or is_text(kind)):
            raise LogError(
                f"{wanted_by} needs integer or string ids, but column {feature.column!r} of {table} is "
                f"{kind}; make it a dense feature or cast the column"
            )
    keys = config.counters.keys if config.counters else ()
    asks = [key for key in keys if key.startswith("query")]
    if asks and not tables.has_queries:
        left = [key for key in keys if key not in asks]
        raise LogError(
            f"counters.keys asks for {asks}, but the impressions have no queries; set counters.keys = {left}"
        )
