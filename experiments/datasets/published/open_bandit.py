"""ZOZO's Open Bandit Dataset as input tables: fashion products shown at random or by a bandit, and clicks.

Source: Y. Saito, S. Aihara, M. Matsutani and Y. Narita, "Open Bandit Dataset and Pipeline", 2020 (CC BY 4.0;
26 million impressions of 7 days in November 2019, about 11 GB): a folder for each policy (`random`, `bts`),
in it one for each campaign (`all`, `men`, `women`) with `{campaign}.csv` and `item_context.csv`. The
repository of the pipeline, st-tech/zr-obp, has a sample of 10,000 rows of each in `obd/`.

Products and users are anonymous: hashed features, no names, no texts, no ids of users, so every impression
is nobody's. `affinity` is how often this user had clicked the shown product before, the one entry of the row
of the published affinity matrix that belongs to it. About one impression of 200 is clicked.
"""

from pathlib import Path
from typing import Literal

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.published.tables import PublishedTables, import_published
from features.inputs.plain_types import sql_name
from features.progress import Progress, silent

Policy = Literal["random", "bts"]
Campaign = Literal["all", "men", "women"]

_AFFINITY = "user-item_affinity_"
_USER = tuple(f"user_feature_{number}" for number in range(4))
_PRODUCT = tuple(f"item_feature_{number}" for number in range(4))


def import_open_bandit(
    source: Path,
    out: Path,
    *,
    policy: Policy = "random",
    campaign: Campaign = "men",
    progress: Progress = silent,
) -> ImportedTables:
    """Write products and impressions of one policy and campaign to the folder `out`.

    Args:
        policy: `random` showed every product alike, so nothing of a click is due to what was chosen; `bts`
            is Bernoulli Thompson sampling, which shows what is clicked.

    Raises:
        InputError: a file, column or value is not as published.
    """
    description = {
        "licence": "CC BY 4.0",
        "policy": policy,
        "campaign": campaign,
        "absent": ["users", "queries", "texts", "images", "purchases", "relevance"],
    }
    return import_published(
        source,
        out,
        name="Open Bandit",
        read=lambda tables: _read(tables, f"{policy}/{campaign}", campaign),
        settings={"products": {"absent": ["title", "aisle"]}, "impressions": {"absent": ["user_id"]}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, folder: str, campaign: Campaign) -> None:
    named = ("timestamp", "item_id", "position", "click", "propensity_score", *_USER)
    found = tables.view("shown", f"{folder}/{campaign}.csv", named, further=_AFFINITY)
    tables.view("context", f"{folder}/item_context.csv", ("item_id", *_PRODUCT))
    affinities = [column for column in found if column.startswith(_AFFINITY)]
    for view, column in (("shown", "item_id"), ("shown", "position"), ("context", "item_id")):
        tables.refuse(
            f"FROM {view} WHERE TRY_CAST({column} AS BIGINT) IS NULL", column, f"have no whole {column}"
        )
    tables.refuse(
        "FROM shown WHERE click IS NULL OR click NOT IN ('0', '1')", "click", "have no click 0 or 1"
    )
    tables.refuse(
        f"FROM shown WHERE CAST(item_id AS BIGINT) NOT BETWEEN 0 AND {len(affinities) - 1}",
        "item_id",
        f"name a product without affinity (there are {len(affinities)})",
    )
    cases = " ".join(
        f"WHEN {int(column.removeprefix(_AFFINITY))} THEN TRY_CAST({sql_name(column)} AS DOUBLE)"
        for column in affinities
    )
    tables.stage(
        {
            "products": (
                "SELECT CAST(item_id AS BIGINT) AS product_id, CAST(item_feature_0 AS DOUBLE) AS "
                f"item_feature_0, {', '.join(_PRODUCT[1:])} FROM context ORDER BY product_id"
            ),
            "impressions": (
                "SELECT CAST(timestamp AS TIMESTAMPTZ) AS timestamp, CAST(item_id AS BIGINT) AS product_id, "
                "CAST(click AS TINYINT) AS clicked, CAST(position AS BIGINT) AS position, "
                "CAST(propensity_score AS DOUBLE) AS propensity_score, "
                f"{', '.join(_USER)}, CASE CAST(item_id AS BIGINT) {cases} END AS affinity FROM shown"
            ),
        }
    )
