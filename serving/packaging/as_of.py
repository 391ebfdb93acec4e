"""Times as people write them, and the end of a log."""

from datetime import UTC, datetime
from pathlib import Path

from features.inputs.tables import InputTables
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


def end_of_log_us(tables: InputTables) -> int:
    """The first microsecond after all impressions, clicks and purchases.

    Raises:
        ValueError: there are no impressions.
    """
    import duckdb

    if not tables.has("impressions"):
        raise ValueError(f"{tables.root} has no impressions; a snapshot is made of them")
    columns = [("impressions", "timestamp")]
    if "click_timestamp" in tables.columns("impressions"):
        columns.append(("impressions", "click_timestamp"))
    if tables.has_purchases:
        columns.append(("purchases", "timestamp"))
    last = []
    with duckdb.connect(":memory:") as connection:
        for table, column in columns:
            row = connection.execute(
                f"SELECT max(epoch_us({column})) FROM {tables.scan_sql(table)}"  # type: ignore[arg-type]
            ).fetchone()
            last.append(int(row[0]) if row and row[0] is not None else 0)
    return max(last) + 1


def snapshot_source(log: Path, as_of: str) -> SnapshotSource:
    """A log and the moment that `--as-of` names.

    Raises:
        ValueError: no log, or no moment.
    """
    return SnapshotSource(log, end_of_log_us(InputTables.open(log)) if as_of == END else time_us_of(as_of))
