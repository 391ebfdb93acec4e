"""Wayfair's WANDS as input tables: furniture, queries, and a human grade of each judged pair.

Source: Y. Chen, S. Liu, Z. Liu, W. Sun, L. Baltrunas and B. Schroeder, "WANDS: Dataset for Product Search
Relevance Assessment", ECIR 2022 (MIT licence): 42,994 products, 480 queries, 233,448 judgements, in
`product.csv`, `query.csv` and `label.csv`, parted by tabs. Exact is 2 (high), Partial 1, Irrelevant 0. The
aisle is the first level of the category hierarchy. There are no images, impressions or purchases.
"""

from pathlib import Path

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.published.tables import PublishedTables, import_published
from features.progress import Progress, silent

GRADES = {"Exact": 2, "Partial": 1, "Irrelevant": 0}


def import_wands(source: Path, out: Path, *, progress: Progress = silent) -> ImportedTables:
    """Write products and relevance of WANDS to the folder `out`; see `import_published` for errors."""
    description = {"licence": "MIT", "grades": GRADES, "absent": ["images", "impressions", "purchases"]}
    return import_published(source, out, name="WANDS", read=_read, description=description, progress=progress)


def _read(tables: PublishedTables) -> None:
    tables.view(
        "product",
        "product.csv",
        (
            "product_id",
            "product_name",
            "product_class",
            "category hierarchy",
            "product_description",
            "product_features",
            "rating_count",
            "average_rating",
        ),
        delimiter="\t",
    )
    tables.view("query", "query.csv", ("query_id", "query", "query_class"), delimiter="\t")
    tables.view("label", "label.csv", ("id", "query_id", "product_id", "label"), delimiter="\t")
    names = ", ".join(f"'{label}'" for label in GRADES)
    tables.refuse(
        f"FROM label WHERE label IS NULL OR label NOT IN ({names})",
        "label",
        f"have a label other than {names}",
    )
    tables.refuse(
        "FROM label WHERE query_id NOT IN (SELECT query_id FROM query)",
        "query_id",
        "name a query that is not there",
    )
    grade = " ".join(f"WHEN '{label}' THEN {number}" for label, number in GRADES.items())
    pairs = (
        f"SELECT q.query, l.product_id, CAST(CASE l.label {grade} END AS TINYINT) AS grade, 'human' AS "
        "source, q.query_class FROM label l JOIN query q ON q.query_id = l.query_id QUALIFY row_number() "
        "OVER (PARTITION BY q.query, l.product_id ORDER BY CAST(l.id AS BIGINT)) = 1 ORDER BY CAST(l.id AS "
        "BIGINT)"
    )
    tables.stage(
        {
            "products": (
                "SELECT product_id, product_name AS title, "
                "nullif(trim(split_part(\"category hierarchy\", '/', 1)), '') AS aisle, "
                'product_description AS description, product_class, "category hierarchy" AS category, '
                "product_features, TRY_CAST(rating_count AS DOUBLE) AS rating_count, "
                "TRY_CAST(average_rating AS DOUBLE) AS average_rating FROM product"
            ),
            "relevance": pairs,
        }
    )
    repeated = tables.count("SELECT count(*) FROM label") - tables.count(f"SELECT count(*) FROM ({pairs})")
    if repeated:
        tables.notes.append(f"{repeated:,} judgements repeat a query and product; the first of each is kept")
