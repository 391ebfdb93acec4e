"""Times as people write them, and the end of a log."""

from datetime import UTC, datetime
from pathlib import Path

from features.inputs.table_specs import TableName
from features.inputs.tables import InputTables
from features.schema import LabelConfig
from serving.packaging.build_generation import SnapshotSource

#: What stands for "after the last event of the log".
END = "end"


def time_us_of(text: str) -> int:
    """Microseconds since 1970 of an ISO 8601 moment; UTC unless it says otherwise.

    `2024-07-29` is that day's midnight.

    Raises:
        ValueError: it is none.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a date or time; write 2024-07-29, 2024-07-29T06:00 (UTC), or {END} for after "
            "the last event"
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def end_of_log_us(tables: InputTables, labels: LabelConfig) -> int:
    """The first microsecond after all impressions, purchases and clicks that count for their impression.

    A click time of next year would make a snapshot of next year, whose counters are all empty.

    Raises:
        ValueError: there are no impressions.
    """
    import duckdb

    if not tables.has("impressions"):
        raise ValueError(f"{tables.root} has no impressions; a snapshot is made of them")
    shown, clicked = (f"epoch_us({column})" for column in ("timestamp", "click_timestamp"))
    moments: list[tuple[TableName, str]] = [("impressions", f"max({shown})")]
    if "click_timestamp" in tables.columns("impressions"):
        counts = f"CAST(clicked AS BIGINT) = 1 AND {clicked} - {shown} < {labels.attribution_us}"
        moments.append(("impressions", f"max({clicked}) FILTER (WHERE {counts})"))
    if tables.has_purchases:
        moments.append(("purchases", f"max({shown})"))
    last = []
    with duckdb.connect(":memory:") as connection:
        for table, moment in moments:
            row = connection.execute(f"SELECT {moment} FROM {tables.scan_sql(table)}").fetchone()
            last.append(int(row[0]) if row and row[0] is not None else 0)
    return max(last) + 1


def snapshot_source(log: Path, as_of: str, labels: LabelConfig) -> SnapshotSource:
    """A log and the moment that `--as-of` names; `labels` says which clicks count.

    Raises:
        ValueError: no log, or no moment.
    """
    at_end = as_of == END
    return SnapshotSource(log, end_of_log_us(InputTables.open(log), labels) if at_end else time_us_of(as_of))
