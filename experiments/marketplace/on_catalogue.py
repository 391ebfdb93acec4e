"""A simulated log on a real catalogue: invented shoppers, real products, queries and grades.

The products, images and grades of a data folder stay as they are. Shoppers, searches, slates, clicks and
purchases are drawn by the rules of the simulated marketplace (docs/marketplace.md), so the true click
probabilities are known. Whatever is measured on such a log is a statement about simulated people.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.marketplace.config import CatalogueConfig
from experiments.marketplace.days.slates import AuctionSlates, ListSlates, Slates
from experiments.marketplace.generate import child_seed, describe, grade_shares, is_marketplace, write_log
from experiments.marketplace.tables import by_index, write_table
from experiments.marketplace.world.candidates import CandidateGrades, find_candidates
from experiments.marketplace.world.real_catalog import RealCatalog, RealWorld, read_real_world
from experiments.marketplace.world.shoppers import make_shoppers
from features.artifacts import atomic_folder, link_or_copy, refuse_to_replace_input
from features.inputs.tables import open_table, table_files
from features.progress import Progress, silent

# Parts of the seed, as in `generate`, which numbers the days and promotions of both.
_CATALOG, _CANDIDATES, _SHOPPERS = 0, 2, 4


def generate_on_catalogue(
    config: CatalogueConfig, data: Path, out: Path, *, progress: Progress = silent
) -> dict[str, Any]:
    """Write the catalogue of `data` with a simulated log to `out`, and return its summary.

    Logs that `data` holds are not read and not copied. Equal configs and catalogues give equal tables. The
    folder appears when all of it is there; only an older simulated marketplace is replaced.

    Raises:
        InputError, CatalogError, RelevanceError: the catalogue or its grades cannot be used.
        FileExistsError: `out` holds something that is no simulated marketplace.
        ValueError: `out` would replace `data`.
    """
    refuse_to_replace_input(out, data)
    with atomic_folder(out, ours=is_marketplace) as folder:
        world = read_real_world(config, data, child_seed(config, _CATALOG), progress=progress)
        catalog, queries = world.catalog, world.queries
        rng = np.random.default_rng(child_seed(config, _CANDIDATES))
        candidates = find_candidates(world, config.candidates, rng, progress=progress)
        shoppers = make_shoppers(config, catalog, child_seed(config, _SHOPPERS))
        # Nobody asks for a style that the catalogue lacks: few titles share few words.
        wanted_U = shoppers.diet_U & ((1 << len(catalog.styles)) - 1)
        shoppers = dataclasses.replace(shoppers, diet_U=wanted_U)
        pools = candidates.pools(catalog, queries)
        law = AuctionSlates if config.candidates == "retrieval" else ListSlates
        slates: Slates = law(catalog, pools, candidates)
        facts = write_log(folder, config, catalog, queries, shoppers, slates, candidates, None, progress)
        write_world_truth(folder, world, candidates)
        progress("copying the catalogue", 0, 1)
        images = copy_catalogue(data, folder, catalog)
        progress("copying the catalogue", 1, 1)
        summary = {
            "products": catalog.num_products,
            "users": shoppers.num_users,
            "queries": queries.num_queries,
            "labels": len(world.grades),
            "label_shares": grade_shares(world.grades.grade_G),
            "new_product_share": float((catalog.available_from_P >= 0).mean()),
            "images": images,
            "candidates": candidates.summary(queries),
            **facts.summary(),
        }
        describe(folder, config, summary, catalogue=str(data), made_of_titles=catalog.sources)
    return summary


def copy_catalogue(data: Path, folder: Path, catalog: RealCatalog) -> int:
    """Copy the tables products and relevance and the images that exist; returns how many images.

    Products without aisles, which features require, get the type of each as one, in a single file.
    """
    products = open_table(data, "products", ["product_id"])
    copied = ["relevance"]
    if catalog.has_aisles:
        copied.append("products")
    else:
        names = pa.array(catalog.type_names).take(pa.array(catalog.type_P))
        columns = [name for name in products.schema.names if name != "aisle"]
        table = products.to_table(columns=columns).append_column("aisle", names)
        pq.write_table(table, folder / "products.parquet")
    for name in copied:
        for path in table_files(data, name):
            target = folder / path.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    found = [path for path in catalog.image_paths if path.is_file()]
    for path in found:
        link_or_copy(path, folder / path.relative_to(data))
    return len(found)


def write_world_truth(folder: Path, world: RealWorld, candidates: CandidateGrades) -> None:
    """truth/products, truth/searches and truth/candidates: what nobody could read in the catalogue."""
    catalog, queries = world.catalog, world.queries
    product_ids = pa.array(catalog.product_id_P)
    types = pa.array(catalog.type_names)
    styles = [
        [word for bit, word in enumerate(catalog.styles) if bits >> bit & 1]
        for bits in catalog.flags_P.tolist()
    ]
    products = {
        "product_id": product_ids,
        "type": types.take(pa.array(catalog.type_P)),
        "brand": pa.array(catalog.brand_names, pa.string()),
        "variety": pa.array(catalog.variety_names, pa.string()),
        "styles": pa.array(styles, pa.list_(pa.string())),
        "quality": catalog.quality_P,
        "popularity": catalog.popularity_P,
        "ad_weight": catalog.ad_weight_P,
        "price": catalog.price_P,
        "log_relative_price": catalog.log_relative_price_P,
        "available_from_day": catalog.available_from_P,
    }
    searches = {
        "query": pa.array(queries.texts),
        "type": types.take(pa.array(queries.anchor_Q)),
        "traffic": queries.traffic_Q,
    }
    pairs = {
        "query": by_index(queries.texts, candidates.query_E),
        "product_id": product_ids.take(pa.array(candidates.product_E)),
        "grade": candidates.grade_E,
        "graded": candidates.graded_E,
    }
    for name, columns in (("products", products), ("searches", searches), ("candidates", pairs)):
        write_table(folder / "truth" / f"{name}.parquet", pa.table(columns))
