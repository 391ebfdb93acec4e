"""Package images of the simulated products."""

from pathlib import Path

import numpy as np

from experiments.marketplace.catalog import Catalog


def image_paths(catalog: Catalog) -> list[str]:
    """Where each product's image goes, relative to the marketplace folder."""
    return [f"images/{product_id // 1000}/{product_id}.png" for product_id in catalog.product_id_P.tolist()]


def write_images(
    folder: Path, catalog: Catalog, pixels: int, seed: np.random.SeedSequence
) -> list[str | None]:
    """Not drawn so far: no product has an image."""
    return [None] * catalog.num_products
