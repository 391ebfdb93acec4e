"""dunnhumby's Complete Journey as input tables: groceries, purchases, and impressions that are constructed.

Source: dunnhumby, "The Complete Journey" (a source file, under its terms of use; 2,595,732 purchases
of 2,500 households in two years, 92,353 products; 142 MB without `causal_data.csv`, 840 MB with it). Of its
eight files `transaction_data.csv` and `product.csv` are read. Campaigns, coupons and displays
(`campaign_*.csv`, `coupon*.csv`, `causal_data.csv`) say what was offered, not what was seen.

- Nothing was shown: impressions are constructed, as of `experiments.datasets.own_tables.negatives`.
- Days are numbered, 1 to 711, on one calendar for all households, and times of day are real. Which dates they
  were is not published: day 1 is put at `CLOCK_START`, so days of the week have no names.
- A title is made of type, size and brand: `ICE - CRUSHED/CUBED 22 LB National`; the aisle is the commodity.
"""

from pathlib import Path

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.own_tables.mapping import ConstructedImpressions
from experiments.datasets.published.tables import CLOCK_START, PublishedTables, import_published
from features.progress import Progress, silent

_TRANSACTIONS = ("household_key", "BASKET_ID", "DAY", "PRODUCT_ID", "QUANTITY", "STORE_ID", "TRANS_TIME")
_PRODUCTS = (
    *("PRODUCT_ID", "MANUFACTURER", "DEPARTMENT", "BRAND"),
    *("COMMODITY_DESC", "SUB_COMMODITY_DESC", "CURR_SIZE_OF_PRODUCT"),
)


def import_complete_journey(
    source: Path,
    out: Path,
    *,
    users: int | None = 500,
    negatives: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> ImportedTables:
    """Write products, purchases and constructed impressions to the folder `out`.

    Args:
        users: so many households, chosen by the seed; all of them if None.

    Raises:
        InputError: a file, column or value is not as published.
    """
    constructed = ConstructedImpressions(negatives=negatives, seed=seed)
    description = {
        "licence": "terms of use of dunnhumby's source files",
        "clock": f"day 1 is put at {CLOCK_START}; days and times of day are as published",
        "users": users,
        "absent": ["queries", "images", "prices", "relevance", "impressions (constructed)"],
    }
    return import_published(
        source,
        out,
        name="Complete Journey",
        read=lambda tables: _read(tables, users, seed),
        settings={"impressions": {"constructed": constructed.model_dump()}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, users: int | None, seed: int) -> None:
    tables.view("transactions", "transaction_data.csv", _TRANSACTIONS)
    tables.view("products", "product.csv", _PRODUCTS)
    for column in ("household_key", "BASKET_ID", "DAY", "QUANTITY"):
        tables.refuse(
            f"FROM transactions WHERE TRY_CAST({column} AS BIGINT) IS NULL",
            column,
            f"of transaction_data have no whole {column}",
        )
    tables.refuse(
        "FROM transactions WHERE NOT coalesce(TRY_CAST(TRANS_TIME AS BIGINT) BETWEEN 0 AND 2359 AND "
        "TRY_CAST(TRANS_TIME AS BIGINT) % 100 < 60, false)",
        "TRANS_TIME",
        "of transaction_data have no time of day HHMM",
    )
    chosen = tables.some_users("transactions", "household_key", users, seed)
    kind, size = (f"nullif(trim({column}), '')" for column in ("SUB_COMMODITY_DESC", "CURR_SIZE_OF_PRODUCT"))
    tables.stage(
        {
            "products": (
                f"SELECT PRODUCT_ID AS product_id, concat_ws(' ', {kind}, {size}, BRAND) AS title, "
                "nullif(trim(COMMODITY_DESC), '') AS aisle, nullif(trim(DEPARTMENT), '') AS department, "
                "BRAND AS brand, MANUFACTURER AS manufacturer FROM products"
            ),
            "purchases": (
                f"SELECT TIMESTAMPTZ '{CLOCK_START}' + to_days(CAST(DAY AS INTEGER) - 1) + "
                "to_minutes(CAST(TRANS_TIME AS BIGINT) // 100 * 60 + CAST(TRANS_TIME AS BIGINT) % 100) AS "
                "timestamp, household_key AS user_id, PRODUCT_ID AS product_id, "
                "row_number() OVER (ORDER BY CAST(DAY AS BIGINT), CAST(TRANS_TIME AS BIGINT), "
                "CAST(BASKET_ID AS BIGINT), CAST(PRODUCT_ID AS BIGINT)) - 1 AS purchase_id, "
                f"CAST(QUANTITY AS BIGINT) AS quantity, STORE_ID AS store_id FROM transactions {chosen} "
                "ORDER BY timestamp, purchase_id"
            ),
        }
    )
    tables.notes.append(
        "the dates are not published: day 1 is put at 2000-01-01, so days of the week are told apart but "
        "have no names"
    )
