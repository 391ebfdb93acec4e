"""Avazu's mobile ads as input tables: hashed ids of each impression, its hour and its click.

Source: Kaggle's "Click-Through Rate Prediction" of Avazu, 2014 (under the rules of the competition):
`train.gz`, which unpacks to `train` or `train.csv` (40,428,967 rows of 10 days, 6 GB). Its `test` has no
clicks and is not read.

- The user is `device_id`, but for `a99f214a`, by far the most frequent one: it stands for devices without an
  id, so such impressions are nobody's.
- The product is `C14`, which has the most values (about 2,600) of C14 to C21. What these columns mean is
  undisclosed, so this is a guess.
- Times are whole UTC hours: an impression sees the clicks of earlier hours. Clicks and other impressions were
  sampled at different rates, so no click rate is that of the ads.

There are no texts, queries or purchases.
"""

from pathlib import Path

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.published.tables import PublishedTables, import_published
from features.progress import Progress, silent

#: What stands in `device_id` where a device has none.
NO_DEVICE = "a99f214a"
_WHOLE = ("C1", "banner_pos", "device_type", "device_conn_type", *(f"C{number}" for number in range(14, 22)))
_HASHES = (
    *("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model"),
)
COLUMNS = (
    *("id", "click", "hour", "C1", "banner_pos"),
    *_HASHES,
    *("device_type", "device_conn_type"),
    *(f"C{number}" for number in range(14, 22)),
)
_FILES = ("train.csv", "train.csv.gz", "train", "train.gz")


def import_avazu(source: Path, out: Path, *, one_in: int = 1, progress: Progress = silent) -> ImportedTables:
    """Write impressions of Avazu, and a product for each ad, to the folder `out`.

    Args:
        one_in: keep one of so many rows; 1 for all.

    Raises:
        InputError: a file, column or value is not as published.
    """
    description = {
        "licence": "competition rules",
        "one_in": one_in,
        "nobody": f"device_id {NO_DEVICE}",
        "product": "C14",
        "absent": ["queries", "texts", "images", "purchases", "relevance"],
    }
    return import_published(
        source,
        out,
        name="Avazu",
        read=lambda tables: _read(tables, one_in),
        settings={"products": {"from_logs": True}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, one_in: int) -> None:
    tables.rows(_FILES, COLUMNS, delimiter=",", header=True, one_in=one_in)
    tables.refuse(
        "FROM numbered WHERE click IS NULL OR click NOT IN ('0', '1')", "click", "have no click 0 or 1"
    )
    tables.refuse(
        "FROM numbered WHERE try_strptime(hour, '%y%m%d%H') IS NULL", "hour", "have no hour YYMMDDHH"
    )
    for column in _WHOLE:
        tables.refuse(
            f"FROM numbered WHERE TRY_CAST({column} AS BIGINT) IS NULL", column, f"have no whole {column}"
        )
    kept = [column for column in COLUMNS if column not in ("id", "click", "hour", "device_id", "C14")]
    values = [f"CAST({column} AS BIGINT) AS {column}" if column in _WHOLE else column for column in kept]
    tables.stage(
        {
            "impressions": (
                "SELECT row AS impression_id, CAST(strptime(hour, '%y%m%d%H') AS TIMESTAMPTZ) AS timestamp, "
                f"nullif(device_id, '{NO_DEVICE}') AS user_id, CAST(C14 AS BIGINT) AS product_id, "
                f"CAST(click AS TINYINT) AS clicked, {', '.join(values)} FROM numbered ORDER BY impression_id"
            )
        }
    )
    without = tables.count(f"SELECT count(*) FROM numbered WHERE device_id = '{NO_DEVICE}'")
    tables.notes.append(
        f"{without:,} impressions are of devices without an id (device_id {NO_DEVICE}), so they are "
        "nobody's; the product is C14, whose meaning is undisclosed"
    )
