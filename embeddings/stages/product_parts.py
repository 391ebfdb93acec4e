"""Which products the stages are trained on and which they are measured on: one answer for all of them.

A stage measured on products that an earlier one was trained on would call memory a success.
"""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from embeddings.catalog.holdout import TRAIN, HoldoutConfig, product_roles, validation_products
from embeddings.catalog.products import ProductCatalog

BoolArray = npt.NDArray[np.bool_]


class ProductParts(NamedTuple):
    """Products that any stage may be trained on, and those that stages are measured on; others are for tests.

    Both are masks over the products table, (P,).
    """

    train_P: BoolArray
    validation_P: BoolArray

    @classmethod
    def of(cls, catalog: ProductCatalog, config: HoldoutConfig) -> Self:
        """The parts of a catalogue that was opened with images and titles, whatever a stage looks at."""
        usable_P = product_roles(catalog.ids, config) == TRAIN
        shown_P = np.array([path is not None for path in catalog.image_paths], bool)
        titled_P = np.array([bool(title) for title in catalog.titles], bool)
        validation_P = validation_products(
            catalog.ids,
            usable_P=usable_P,
            kind_P=2 * shown_P.astype(np.int8) + titled_P,
            group_P=catalog.group_P,
            config=config,
        )
        return cls(usable_P & ~validation_P, validation_P)


def unseen_products(catalog: ProductCatalog, config: HoldoutConfig) -> BoolArray:
    """Products that are new to encoders, (P,): no stage is trained on them, nor on one that looks like them.

    Test products are drawn one by one, so that the role of none depends on others; a size variant of some is
    trained on. Where few titles stand for many products (`validation_within_groups`) looking alike says
    little, and only the products themselves count. The catalogue as for `ProductParts.of`.
    """
    train_P = ProductParts.of(catalog, config).train_P
    if config.validation_within_groups:
        return ~train_P
    return ~np.isin(catalog.group_P, catalog.group_P[train_P])


def has_image_and_title(catalog: ProductCatalog) -> npt.NDArray[np.bool_]:
    """Products with both an image path and a title, (P,)."""
    shown_P = np.array([path is not None for path in catalog.image_paths], bool)
    return shown_P & np.array([bool(title) for title in catalog.titles], bool)
