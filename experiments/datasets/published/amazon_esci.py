"""Amazon's Shopping Queries (ESCI) as input tables: products, queries and human grades of one locale.

Source: C. K. Reddy et al., "Shopping Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product
Search", 2022 (Apache-2.0): 130,652 queries and 2.6 million judgements in English, Spanish and Japanese, in
`shopping_queries_dataset_examples.parquet` and `shopping_queries_dataset_products.parquet`.

Exact is 2 (high), Substitute 1 (moderate); Complement and Irrelevant are 0, since a complement is not what
was searched; the published letter stays in `esci_label`. There are no aisles, images, impressions or
purchases. Products are those that a judgement of the locale names.
"""

from pathlib import Path
from typing import Literal

from experiments.datasets.own_tables.import_tables import ImportedTables
from experiments.datasets.published.tables import PublishedTables, import_published
from features.progress import Progress, silent

Locale = Literal["us", "es", "jp"]
Version = Literal["small", "large"]
GRADES = {"E": 2, "S": 1, "C": 0, "I": 0}


def import_esci(
    source: Path, out: Path, *, locale: Locale = "us", version: Version = "large", progress: Progress = silent
) -> ImportedTables:
    """Write products and relevance of ESCI to the folder `out`; see `import_published` for errors.

    Args:
        version: the judgements of the published small version (harder queries) or all.
    """
    description = {
        "licence": "Apache-2.0",
        "locale": locale,
        "version": version,
        "grades": GRADES,
        "absent": ["aisles", "images", "impressions", "purchases"],
    }
    return import_published(
        source,
        out,
        name="Amazon ESCI",
        read=lambda tables: _read(tables, locale, version),
        settings={"products": {"absent": ["aisle"]}},
        description=description,
        progress=progress,
    )


def _read(tables: PublishedTables, locale: Locale, version: Version) -> None:
    tables.view(
        "examples",
        "shopping_queries_dataset_examples.parquet",
        ("query", "query_id", "product_id", "product_locale", "esci_label", f"{version}_version", "split"),
    )
    tables.view(
        "products",
        "shopping_queries_dataset_products.parquet",
        (
            "product_id",
            "product_locale",
            "product_title",
            "product_description",
            "product_bullet_point",
            "product_brand",
            "product_color",
        ),
    )
    letters = ", ".join(f"'{letter}'" for letter in GRADES)
    tables.refuse(
        f"FROM examples WHERE esci_label IS NULL OR esci_label NOT IN ({letters})",
        "esci_label",
        f"have a label other than {letters}",
    )
    chosen = f"product_locale = '{locale}' AND {version}_version = 1"
    if not tables.count(f"SELECT count(*) FROM examples WHERE {chosen}"):
        tables.refuse(
            "FROM examples", "product_locale", f"are none of locale {locale!r} and version {version!r}"
        )
    grade = " ".join(f"WHEN '{letter}' THEN {number}" for letter, number in GRADES.items())
    pairs = (
        f"SELECT query, product_id, CAST(CASE esci_label {grade} END AS TINYINT) AS grade, 'human' AS "
        f"source, esci_label, split FROM examples WHERE {chosen} QUALIFY row_number() OVER (PARTITION BY "
        "query, product_id ORDER BY query_id, esci_label) = 1 ORDER BY query_id, product_id"
    )
    tables.stage(
        {
            "products": (
                "SELECT product_id, product_title AS title, product_brand AS brand, "
                "product_description AS description, product_bullet_point AS bullet_points, "
                f"product_color AS color FROM products WHERE product_locale = '{locale}' AND product_id IN "
                f"(SELECT product_id FROM examples WHERE {chosen}) ORDER BY product_id"
            ),
            "relevance": pairs,
        }
    )
    repeated = tables.count(f"SELECT count(*) FROM examples WHERE {chosen}")
    repeated -= tables.count(f"SELECT count(*) FROM ({pairs})")
    if repeated:
        tables.notes.append(f"{repeated:,} judgements repeat a query and product; the first of each is kept")
