"""Instacart's orders as input tables: products with aisles, purchases, and impressions that are constructed.

Source: "The Instacart Online Grocery Shopping Dataset 2017" (for non-commercial use; 3.4 million orders of
206,209 users, 49,688 products; about 700 MB), in `orders.csv`, `order_products__prior.csv`,
`order_products__train.csv`, `products.csv`, `aisles.csv` and `departments.csv`, as on Kaggle.

Nothing was shown and there are no dates, so two things are constructed:

- The clock. Each user's first order lies in the week from `CLOCK_START`, on its published day of the week and
  hour; later orders follow by the published days between them (30 stands for 30 or more). Moments of two
  users cannot be compared: split per user.
- Impressions, as of `experiments.datasets.own_tables.negatives`.
"""

from pathlib import Path

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.own_tables.mapping import ConstructedImpressions
from experiments.datasets.published.tables import CLOCK_START, PublishedTables, import_published
from features.progress import Progress, silent

_ORDERS = (
    "order_id",
    "user_id",
    "eval_set",
    "order_number",
    "order_dow",
    "order_hour_of_day",
    "days_since_prior_order",
)


def import_instacart(
    source: Path,
    out: Path,
    *,
    users: int | None = 10_000,
    negatives: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> ImportedTables:
    """Write products, purchases and constructed impressions of Instacart to the folder `out`.

    Args:
        users: so many users, chosen by the seed; all of them if None.

    Raises:
        InputError: a file, column or value is not as published.
    """
    constructed = ConstructedImpressions(negatives=negatives, seed=seed)
    description = {
        "licence": "non-commercial use",
        "clock": f"constructed: each user's first order in the week from {CLOCK_START}; split per user",
        "users": users,
        "absent": ["queries", "images", "prices", "relevance", "impressions (constructed)"],
    }
    return import_published(
        source,
        out,
        name="Instacart",
        read=lambda tables: _read(tables, users, seed),
        settings={"impressions": {"constructed": constructed.model_dump()}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, users: int | None, seed: int) -> None:
    tables.view("orders", "orders.csv", _ORDERS)
    for part in ("prior", "train"):
        columns = ("order_id", "product_id", "add_to_cart_order")
        tables.view(part, f"order_products__{part}.csv", columns)
    tables.view("products", "products.csv", ("product_id", "product_name", "aisle_id", "department_id"))
    tables.view("aisles", "aisles.csv", ("aisle_id", "aisle"))
    tables.view("departments", "departments.csv", ("department_id", "department"))
    whole = ["order_id", "user_id", "order_number", "order_dow", "order_hour_of_day"]
    for column in whole:
        tables.refuse(
            f"FROM orders WHERE TRY_CAST({column} AS BIGINT) IS NULL",
            column,
            f"of orders have no whole {column}",
        )
    chosen = tables.some_users("orders", "user_id", users, seed)
    # the hour and the day of the week are those of the order; days between orders are whole
    tables.connection.execute(
        f"CREATE TABLE clock AS SELECT order_id, user_id, TIMESTAMPTZ '{CLOCK_START}' + to_hours(CAST(24 * "
        "(first_value(CAST(order_dow AS BIGINT)) OVER later + sum(coalesce(TRY_CAST(days_since_prior_order "
        "AS DOUBLE), 0)) OVER later) + CAST(order_hour_of_day AS BIGINT) AS BIGINT)) AS timestamp FROM "
        f"orders {chosen} WINDOW later AS (PARTITION BY user_id ORDER BY CAST(order_number AS BIGINT))"
    )
    tables.stage(
        {
            "products": (
                "SELECT product_id, product_name AS title, a.aisle, d.department FROM products p "
                "LEFT JOIN aisles a ON a.aisle_id = p.aisle_id "
                "LEFT JOIN departments d ON d.department_id = p.department_id"
            ),
            "purchases": (
                "SELECT timestamp, user_id, product_id, "
                "CAST(order_id AS BIGINT) * 1000 + CAST(add_to_cart_order AS BIGINT) AS purchase_id "
                "FROM (SELECT * FROM prior UNION ALL SELECT * FROM train) JOIN clock USING (order_id) "
                "ORDER BY timestamp, purchase_id"
            ),
        }
    )
    tables.notes.append(
        "the clock is CONSTRUCTED: the data have no dates, only days between a user's orders, so moments of "
        "two users cannot be compared; split per user"
    )
