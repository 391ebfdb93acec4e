"""Criteo's display ads as input tables: 13 numbers and 26 hashed ids of each impression, and its click.

Source: Criteo AI Lab, for research and not for commercial use. Two releases of one layout, without a header
and parted by tabs: a label, 13 whole numbers, 26 hashes of 8 hexadecimal digits, any of them empty.

- Kaggle's Display Advertising Challenge 2014: `train.txt` (45,840,617 rows of 7 days, 11 GB), or the first
  100,000 of them, `dac_sample.txt`. Its `test.txt` has no labels and is not read.
- Criteo 1TB Click Logs (CC BY-NC-SA 4.0): `day_0` ... `day_23`, about 45 GB each, plain or .gz.

Nobody tells what the columns mean, so there are no products, users, queries, texts or purchases: one product
stands for all ads, and every impression is nobody's. Rows come in the order of time without a time; their
clock is constructed, spread evenly over the seven days of `train.txt`, or over the day of its file. Clicks
and other impressions were sampled at different, undisclosed rates: no click rate is that of the ads.
"""

import re
from pathlib import Path

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.published.tables import CLOCK_START, PublishedTables, import_published
from features.columns.clock import DAY_US
from features.progress import Progress, silent

NUMBERS = tuple(f"I{number}" for number in range(1, 14))
IDS = tuple(f"C{number}" for number in range(1, 27))
_FILES = ("train.txt", "train.txt.gz", "dac_sample.txt", "dac_sample.txt.gz", "day_*[0-9]", "day_*[0-9].gz")
_DAY = re.compile(r"day_(\d+)")
#: Of the Kaggle release.
_DAYS = 7


def import_criteo(source: Path, out: Path, *, one_in: int = 1, progress: Progress = silent) -> ImportedTables:
    """Write impressions of Criteo, and the one product that stands for all ads, to the folder `out`.

    Args:
        one_in: keep one of so many rows; 1 for all.

    Raises:
        InputError: a file or value is not as published.
    """
    description = {
        "licence": "CC BY-NC-SA 4.0 (1TB logs); research, not commercial (Kaggle)",
        "clock": f"constructed: rows spread evenly, from {CLOCK_START}",
        "one_in": one_in,
        "absent": ["products", "users", "queries", "texts", "images", "purchases", "relevance"],
    }
    return import_published(
        source,
        out,
        name="Criteo",
        read=lambda tables: _read(tables, one_in),
        settings={"products": {"from_logs": True}, "impressions": {"absent": ["user_id"]}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, one_in: int) -> None:
    files = tables.rows(_FILES, ("label", *NUMBERS, *IDS), delimiter="\t", header=False, one_in=one_in)
    tables.refuse(
        "FROM numbered WHERE label IS NULL OR label NOT IN ('0', '1')", "label", "have no label 0 or 1"
    )
    for column in NUMBERS:
        tables.refuse(
            f"FROM numbered WHERE {column} IS NOT NULL AND TRY_CAST({column} AS BIGINT) IS NULL",
            column,
            f"have no whole number as {column}",
        )
    for column in IDS:
        tables.refuse(
            f"FROM numbered WHERE NOT regexp_full_match({column}, '[0-9a-f]{{1,16}}')",
            column,
            f"have no hexadecimal number as {column}",
        )
    days = [_DAY.match(path.name) for path in files]
    starts = ", ".join(str(int(day[1]) if day else 0) for day in days)
    span = 1 if days[0] else _DAYS
    numbers = ", ".join(f"CAST({column} AS BIGINT) AS {column}" for column in NUMBERS)
    ids = ", ".join(f"CAST('0x' || {column} AS BIGINT) AS {column}" for column in IDS)
    tables.stage(
        {
            "impressions": (
                "SELECT CAST(file AS BIGINT) * 100000000000 + row AS impression_id, "
                f"TIMESTAMPTZ '{CLOCK_START}' + to_days([{starts}][file + 1]) + "
                f"to_microseconds(CAST(CAST(row AS HUGEINT) * {span * DAY_US} // rows AS BIGINT)) "
                "AS timestamp, "
                f"0 AS product_id, CAST(label AS TINYINT) AS clicked, {numbers}, {ids} FROM numbered "
                "ORDER BY timestamp, impression_id"
            )
        }
    )
    tables.notes.append(
        "the clock is CONSTRUCTED: the files have the order of the rows but no times; and one product, 0, "
        "stands for all ads, as no column says which ad it is"
    )
