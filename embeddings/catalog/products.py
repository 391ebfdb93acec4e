"""The products of a data folder as encoders see them: pixels and title tokens, and which products look alike.

Missing images and titles are a supported case: they are counted, and flagged in each batch.

Shapes: P products, B products in a batch, C = 3 colours, H = W = image side, T title tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.images import (
    AugmentationConfig,
    ImageUnreadable,
    OutsideImage,
    Pixels,
    augment,
    load_image,
    to_pixels,
)
from embeddings.catalog.lookalikes import groups_of_lookalikes
from embeddings.catalog.tokenizer import TextTokenizer
from features.inputs.blanks import without_blanks
from features.inputs.image_paths import path_in_folder
from features.inputs.tables import open_table

Modality = Literal["image", "text"]


class CatalogError(ValueError):
    """A products table that encoders cannot work with; the message names the column or the product."""


@dataclass(frozen=True)
class CatalogSummary:
    """How many products there are, and how many lack a title, an image, or both."""

    products: int
    without_title: int
    without_image: int
    without_both: int


@dataclass(frozen=True, eq=False)
class ProductCatalog:
    """Products in the order of their table; a title "" and an image path None mean that there is none.

    An image that the table names outside of the folder is an `OutsideImage`, unreadable like a broken file.
    """

    ids: pa.Array
    titles: list[str]
    image_paths: list[Path | OutsideImage | None]
    aisles: list[str]

    @classmethod
    def open(
        cls,
        data: Path,
        *,
        modalities: Sequence[Modality] = ("image", "text"),
        text_columns: Sequence[str] = ("title",),
    ) -> Self:
        """Read the products of a data folder; a modality left out reads as missing for all.

        `text_columns` are joined by spaces, nulls left out. A table without a column `image` or `aisle` is
        one without images or aisles. No image is opened.

        Raises:
            InputError: there are no products, or they lack a text column.
            CatalogError: an id is null or repeated, or the paths of all images lead out of the folder.
        """
        data = Path(data)
        unknown = set(modalities) - {"image", "text"}
        if unknown or not modalities:
            raise CatalogError(f'modalities must be some of "image" and "text", got {list(modalities)}')
        texts = list(text_columns) if "text" in modalities else []
        needed = ["product_id", *texts]
        table = open_table(data, "products", needed)
        wanted = [*needed, *(["image"] if "image" in modalities else []), "aisle"]
        content = table.to_table(
            columns=[name for name in dict.fromkeys(wanted) if name in table.schema.names]
        )
        count = len(content)
        images = _strings(content, "image") if "image" in modalities else [""] * count
        columns = [_strings(content, name) for name in texts]
        return cls(
            ids=_checked_ids(content.column("product_id"), data),
            titles=[" ".join(" ".join(parts).split()) for parts in zip(*columns, strict=True)]
            if columns
            else [""] * count,
            image_paths=_image_paths(data, images),
            aisles=_strings(content, "aisle"),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, modalities: Sequence[Modality]) -> Self:
        """The same products without the other modality; this catalogue itself where none of them has it.

        What was found out about this catalogue, such as its lookalikes, need then not be found out again.
        """
        titles, images = "text" in modalities, "image" in modalities
        shown = any(path is not None for path in self.image_paths)
        if (titles or not any(self.titles)) and (images or not shown):
            return self
        return replace(
            self,
            titles=self.titles if titles else [""] * len(self),
            image_paths=self.image_paths if images else [None] * len(self),
        )

    @cached_property
    def group_P(self) -> npt.NDArray[np.int64]:
        """Products that must never be each other's negatives have one number, that of the first of them.

        Computed when first asked for, since it reads the images whose file sizes coincide.
        """
        return groups_of_lookalikes(self.titles, self.image_paths)

    def summary(self) -> CatalogSummary:
        """Counts of products and of what they lack; a named image file may still be unreadable."""
        no_title_P = np.array([not title for title in self.titles], dtype=bool)
        no_image_P = np.array([path is None for path in self.image_paths], dtype=bool)
        return CatalogSummary(
            products=len(self),
            without_title=int(no_title_P.sum()),
            without_image=int(no_image_P.sum()),
            without_both=int((no_title_P & no_image_P).sum()),
        )


class HostFlags(NamedTuple):
    """Which products of a batch have an image, and which a title."""

    has_image_B: npt.NDArray[np.bool_]
    has_title_B: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ProductBatch:
    """B products ready for an encoder.

    `pixels_BCHW` float32 is zeros where `has_image_B` is False; `ids_BT`, `mask_BT` int64 are [CLS] [SEP]
    where there is no title. `has_title_B` is False too for a title without a known piece. `index_B` int64 is
    the position of each product in the catalogue.

    `on_host` says the same as `has_image_B` and `has_title_B` to those who must know it without waiting for a
    device.
    """

    pixels_BCHW: torch.Tensor
    has_image_B: torch.Tensor
    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    has_title_B: torch.Tensor
    index_B: torch.Tensor
    on_host: HostFlags | None = None

    def __len__(self) -> int:
        return len(self.index_B)

    def take(self, rows: slice | torch.Tensor, *, tokens: int | None = None) -> "ProductBatch":
        """Some of its products, with so many tokens of their titles; rows of a tensor lie on the host."""
        of_host = None
        if self.on_host is not None:
            host_rows = rows if isinstance(rows, slice) else rows.numpy()
            of_host = HostFlags(*(flag_B[host_rows] for flag_B in self.on_host))
        return ProductBatch(
            pixels_BCHW=self.pixels_BCHW[rows],
            has_image_B=self.has_image_B[rows],
            ids_BT=self.ids_BT[rows][:, :tokens],
            mask_BT=self.mask_BT[rows][:, :tokens],
            has_title_B=self.has_title_B[rows],
            index_B=self.index_B[rows],
            on_host=of_host,
        )

    def to(self, device: torch.device | str) -> "ProductBatch":
        """The same batch with every tensor on `device`; nobody waits for the copies."""
        return ProductBatch(
            pixels_BCHW=to_device(self.pixels_BCHW, device),
            has_image_B=to_device(self.has_image_B, device),
            ids_BT=to_device(self.ids_BT, device),
            mask_BT=to_device(self.mask_BT, device),
            has_title_B=to_device(self.has_title_B, device),
            index_B=to_device(self.index_B, device),
            on_host=self.on_host,
        )

    def image_rows(self) -> torch.Tensor:
        """Positions of the products that have an image, ascending, where the batch is."""
        return self._positions(self._flags().has_image_B)

    def title_rows(self, *, without_image: bool) -> torch.Tensor:
        """Positions of the products that have a title, or that have nothing but a title."""
        has_image_B, has_title_B = self._flags()
        return self._positions(has_title_B & ~has_image_B if without_image else has_title_B)

    def _flags(self) -> HostFlags:
        return self.on_host or HostFlags(self.has_image_B.cpu().numpy(), self.has_title_B.cpu().numpy())

    def _positions(self, chosen_B: npt.NDArray[np.bool_]) -> torch.Tensor:
        return to_device(torch.from_numpy(np.flatnonzero(chosen_B)), self.has_image_B.device)


def load_batch(
    catalog: ProductCatalog,
    tokenizer: TextTokenizer,
    index_B: npt.ArrayLike,
    *,
    image_size: int,
    max_title_tokens: int,
    title_prefix: str = "",
    augmentation: AugmentationConfig | None = None,
    seed: tuple[int, ...] = (),
    unreadable: dict[int, str] | None = None,
) -> ProductBatch:
    """Read the images and titles of the products at `index_B`.

    With `augmentation` each image changes by draws from (*seed, product index): put the epoch into `seed`,
    and the result depends on neither batch, rank nor worker. An unreadable image counts as missing, and
    the reason is put into `unreadable` by product index.

    Raises:
        ImageUnreadable: an image cannot be read and `unreadable` is None.
        CatalogError: an index is not one of the catalogue.
    """
    rows_B = np.asarray(index_B, dtype=np.int64)
    outside_B = (rows_B < 0) | (rows_B >= len(catalog))
    if outside_B.any():
        raise CatalogError(
            f"product indexes must be from 0 to {len(catalog) - 1}, got {int(rows_B[outside_B][0])}"
        )
    rows = rows_B.tolist()

    def read(row: int) -> Pixels | ImageUnreadable | None:
        path = catalog.image_paths[row]
        if path is None:
            return None
        try:
            image = load_image(path, size=image_size)
        except ImageUnreadable as error:
            return error
        if augmentation is None:
            return image
        return augment(image, np.random.default_rng((*seed, row)), augmentation)

    has_image_B = np.zeros(len(rows), dtype=bool)
    shape = (len(rows), 3, image_size, image_size)
    no_images = all(catalog.image_paths[row] is None for row in rows)
    images_BCHW = np.zeros((0, *shape[1:]) if no_images else shape, np.uint8)
    for position, (row, image) in enumerate(zip(rows, map(read, rows), strict=True)):
        if isinstance(image, ImageUnreadable):
            if unreadable is None:
                raise image
            unreadable[row] = image.reason
        elif image is not None:
            images_BCHW[position] = image
            has_image_B[position] = True
    has_image = torch.from_numpy(has_image_B)
    if no_images:  # one zero in memory, whatever the size of an image
        pixels_BCHW = torch.zeros(()).expand(shape)
    else:
        pixels_BCHW = to_pixels(images_BCHW)
        pixels_BCHW[~has_image] = 0
    titles = [catalog.titles[row] for row in rows]
    tokens = tokenizer(titles, max_tokens=max_title_tokens, prefix=title_prefix)
    return ProductBatch(
        pixels_BCHW=pixels_BCHW,
        has_image_B=has_image,
        ids_BT=tokens.ids_BT,
        mask_BT=tokens.mask_BT,
        has_title_B=tokens.known_B,
        index_B=torch.from_numpy(rows_B.copy()),
        on_host=HostFlags(has_image.numpy(), tokens.known_B.numpy()),
    )


def _checked_ids(column: pa.ChunkedArray, data: Path) -> pa.Array:
    ids = column.combine_chunks()
    if pa.types.is_integer(ids.type):
        ids = ids.cast(pa.int64())
    elif pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        ids = without_blanks(ids.cast(pa.string()))
    else:
        raise CatalogError(f"product_id of {data} must be an integer or a string, got {ids.type}")
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        raise CatalogError(
            f"product_id of {data} must not be null or blank, but that of row {row} is; drop that row"
        )
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        raise CatalogError(
            f"product_id of {data} must be unique, but {first['values'].as_py()!r} appears "
            f"{first['counts'].as_py()} times; keep one row for each product (`dashclip validate` "
            "separates them)"
        )
    return ids


def _strings(content: pa.Table, name: str) -> list[str]:
    """A column as strings, "" for null and blanks; all "" when the column is absent."""
    if name not in content.schema.names:
        return [""] * len(content)
    return pc.fill_null(without_blanks(content.column(name).cast(pa.string())), "").to_pylist()


def _image_paths(data: Path, names: Sequence[str]) -> list[Path | OutsideImage | None]:
    paths: list[Path | OutsideImage | None] = []
    for name in names:
        inside = path_in_folder(name) if name else None
        paths.append(data / inside if inside else OutsideImage(name) if name else None)
    named = [path for path in paths if path is not None]
    if named and all(isinstance(path, OutsideImage) for path in named):
        raise CatalogError(
            f"images must lie inside {data}, but the paths of all {len(named):,} lead out of it, such as "
            f"{str(named[0])!r}; write paths relative to the folder, and move the images or a link to them "
            "into it"
        )
    return paths
