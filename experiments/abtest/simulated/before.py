"""What is known of consumers and queries before the first day of an experiment: from the world's log alone.

Shapes: U consumers, Q queries.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from experiments.abtest.simulated.day_files import TOP_QUERIES
from experiments.marketplace.generate import World, midnight_us
from experiments.marketplace.tables import FIRST_USER_ID
from features.columns.clock import DAY_US

#: Days before the experiment that covariates count.
COVARIATE_DAYS = 28
COVARIATES = ("searches", "impressions", "clicks", "conversions")
#: A purchase is a conversion if it follows a click on the product within this time.
_CONVERSION_US = 3_600_000_000


@dataclass(frozen=True)
class Before:
    """Covariates and segments by consumer, and the queries asked most.

    Attributes:
        units: `unit`, `pre_...` and `segment_...`, one row for each consumer.
        top_Q: whether a query is one of the most frequent ones.
        impressions, purchases: rows of the log.
    """

    units: pa.Table
    top_Q: npt.NDArray[np.bool_]
    impressions: int
    purchases: int


def read_before(world: World, folder: Path) -> Before:
    """Count the last weeks of a world's log."""
    import duckdb

    config = world.config
    end_us = midnight_us(config, config.days)
    first_us, history_us = end_us - COVARIATE_DAYS * DAY_US, end_us - config.history_days * DAY_US
    with duckdb.connect() as connection:
        for name in ("impressions", "purchases"):
            connection.read_parquet(str(folder / f"{name}.parquet")).create_view(name)
        counted = connection.sql(
            """
            WITH recent AS (SELECT * FROM impressions WHERE epoch_us(timestamp) >= $first),
            orders AS (
                SELECT r.user_id, count(*) AS conversions FROM recent r WHERE clicked = 1 AND EXISTS (
                    FROM purchases p WHERE p.user_id = r.user_id AND p.product_id = r.product_id
                    AND epoch_us(p.timestamp) - epoch_us(r.click_timestamp) BETWEEN 0 AND $within
                ) GROUP BY ALL
            ),
            shown AS (
                SELECT user_id, count(DISTINCT timestamp) AS searches, count(*) AS impressions,
                    sum(clicked) AS clicks FROM recent GROUP BY ALL
            )
            SELECT shown.*, coalesce(conversions, 0) AS conversions
            FROM shown LEFT JOIN orders USING (user_id)
            """,
            params={"first": first_us, "within": _CONVERSION_US},
        ).to_arrow_table()
        buyers = connection.sql(
            "SELECT DISTINCT user_id FROM purchases WHERE epoch_us(timestamp) >= $since",
            params={"since": history_us},
        ).to_arrow_table()
        queries = connection.sql(
            "SELECT query FROM impressions GROUP BY query ORDER BY count(*) DESC, query LIMIT $top",
            params={"top": TOP_QUERIES},
        ).to_arrow_table()
        rows = [
            int(connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])
            for name in ("impressions", "purchases")
        ]
    users = world.shoppers.num_users
    columns: dict[str, npt.NDArray[np.float64]] = {}
    place = counted["user_id"].to_numpy() - FIRST_USER_ID
    for name in COVARIATES:
        columns[f"pre_{name}"] = np.zeros(users)
        columns[f"pre_{name}"][place] = counted[name].cast(pa.float64()).to_numpy()
    bought_U = np.zeros(users, bool)
    bought_U[buyers["user_id"].to_numpy() - FIRST_USER_ID] = True
    searched_U = columns["pre_searches"]
    activity_U = np.select([searched_U == 0, searched_U <= 2], ["none", "1 or 2"], "3 or more")
    top = set(queries["query"].to_pylist())
    return Before(
        units=pa.table(
            {
                "unit": np.arange(users) + FIRST_USER_ID,
                **columns,
                "segment_purchases": np.where(bought_U, "with purchases", "without").tolist(),
                "segment_searches_before": activity_U.tolist(),
            }
        ),
        top_Q=np.array([text in top for text in world.queries.texts]),
        impressions=rows[0],
        purchases=rows[1],
    )
