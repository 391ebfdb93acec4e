"""What users did in the last days of a log and in the weeks before them, as an experiment would see it.

An experiment of D days is thought to have run on the last D days of the log: its units are the users who saw
something then, its covariates what they did before. A conversion is a click that the same user's purchase of
the same product follows within a day. Logs do not say what ads earn, so revenue cannot be planned.

Shapes: U users.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt

from experiments.abtest.description import ExperimentError
from experiments.abtest.metrics import BEFORE, Metric
from features.inputs.tables import InputTables

FloatArray = npt.NDArray[np.float64]
CONVERSION_HOURS = 24


@dataclass(frozen=True, eq=False)
class PastWindow:
    """The users of a window of days: names, sums in the window, and sums before it under `pre_<name>`."""

    days: int
    before_days: int
    users: tuple[str, ...]
    sums: dict[str, FloatArray]

    def has_past(self, metric: Metric) -> bool:
        """Whether all that the metric is made of happened before the window, too."""
        names = [BEFORE + name for name in metric.columns]
        return all(name in self.sums and self.sums[name].any() for name in names)


@dataclass(frozen=True)
class PastLog:
    """A log by user and day, open for questions.

    Attributes:
        days: from the first to the last.
        counted: impressions and clicks; conversions if there are purchases.
    """

    connection: duckdb.DuckDBPyConnection
    days: int
    counted: tuple[str, ...]

    def window(self, days: int, *, before_days: int) -> PastWindow:
        """The last `days` days, and as many before them as there are, up to `before_days`."""
        start, before = self.days - days, max(0, self.days - days - before_days)
        columns = ", ".join(
            f"coalesce(sum({name}) FILTER (day >= {start}), 0)::DOUBLE AS {name}, "
            f"coalesce(sum({name}) FILTER (day < {start}), 0)::DOUBLE AS {BEFORE}{name}"
            for name in self.counted
        )
        found = self.connection.sql(
            f"SELECT unit, {columns} FROM user_days WHERE day >= {before} GROUP BY unit "
            f"HAVING count(*) FILTER (day >= {start}) > 0 ORDER BY unit"
        ).to_arrow_table()
        names = found.column_names[1:]
        if before == start:
            names = [name for name in names if not name.startswith(BEFORE)]
        return PastWindow(
            days=days,
            before_days=start - before,
            users=tuple(found["unit"].to_pylist()),
            sums={name: found[name].to_numpy() for name in names},
        )


@contextmanager
def open_past(data: Path) -> Iterator[PastLog]:
    """Count impressions, clicks and conversions of a data folder by user and day (UTC).

    Raises:
        InputError: the tables cannot be used.
        ExperimentError: there are no impressions of known users on two days or more.
    """
    tables = InputTables.open(data)
    if not tables.has("impressions"):
        raise ExperimentError(f"{data} has no impressions, so nothing says how users behave")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        columns = tables.columns("impressions")
        clicked_at = "coalesce(click_timestamp, timestamp)" if "click_timestamp" in columns else "timestamp"
        bought = "0"
        if tables.has_purchases:
            bought = (
                f"CASE WHEN clicked::BIGINT = 1 AND EXISTS (FROM {tables.scan_sql('purchases')} AS p "
                "WHERE p.user_id = i.user_id AND p.product_id = i.product_id AND p.timestamp BETWEEN "
                f"i.clicked_at AND i.clicked_at + INTERVAL {CONVERSION_HOURS} HOURS) THEN 1 ELSE 0 END"
            )
        connection.execute(
            "CREATE TABLE user_days AS SELECT user_id::VARCHAR AS unit, timestamp::DATE AS date, "
            "count(*) AS impressions, sum(clicked::BIGINT) AS clicks, "
            f"sum({bought}) AS conversions FROM (SELECT *, {clicked_at} AS clicked_at "
            f"FROM {tables.scan_sql('impressions')} WHERE user_id IS NOT NULL) AS i GROUP BY ALL"
        )
        [(first, days)] = connection.execute(
            "SELECT min(date), max(date) - min(date) + 1 FROM user_days"
        ).fetchall()
        if days is None or days < 2:
            raise ExperimentError(
                f"{data} has impressions of known users on {days or 0} days; at least 2 are needed"
            )
        connection.execute("ALTER TABLE user_days ADD COLUMN day BIGINT")
        connection.execute("UPDATE user_days SET day = date - ?", [first])
        counted = ("impressions", "clicks", *(("conversions",) if tables.has_purchases else ()))
        yield PastLog(connection, int(days), counted)
