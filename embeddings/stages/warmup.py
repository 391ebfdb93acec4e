"""Warm-ups: what an encoder without published weights does first.

The paper starts from BLIP, whose text encoder knows language and whose image encoder knows pictures. From
scratch, a few thousand products and graded pairs are too few to learn even that equal words are equal.

Text: titles are contrasted with queries made from them (`title_queries`). Image: then images are contrasted
with the titles that the text encoder, now locked, understands (Zhai et al. 2022, "LiT"), and predict the
tokens of their titles (Huang et al. 2024, "SuperClass"): which words go with a picture is learned from every
title that has them, where a contrast only asks which title it is. Both contrasts are InfoNCE in the batch and
both ways, with lookalike products, and titles from which the same query was made, left out.

Shapes: B products, T tokens, D embedding width.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Iterator
from typing import Annotated, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.groups import connected_groups
from embeddings.catalog.images import AugmentationConfig
from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.catalog.titles import title_query
from embeddings.catalog.tokenizer import TokenBatch
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import ProductEncoder, seeded
from embeddings.stages.locked_titles import LockedTitles
from embeddings.stages.product_parts import BoolArray, ProductParts, has_image_and_title
from embeddings.training.evaluation import AT_CHANCE, ROWS, Found, evaluation_chunks, found_in_chunk
from embeddings.training.loop import OptimizerConfig, rows_of_a_step
from embeddings.training.losses import (
    NO_GROUP,
    Columns,
    itc_loss,
    mean_token_share,
    rarity,
    title_token_loss,
)
from embeddings.training.prefetch import prefetch
from embeddings.training.ranks import Ranks


class WarmupConfig(OptimizerConfig):
    """The text warm-up, and what both have in common."""

    #: Cosines are divided by it before the softmax.
    temperature: Annotated[float, Field(gt=0)] = 0.05


class ImageWarmupConfig(WarmupConfig):
    """The image warm-up."""

    augmentation: AugmentationConfig | None = AugmentationConfig()
    #: Weight of the tokens that images predict, beside the contrast.
    token_weight: Annotated[float, Field(ge=0)] = 1.0


class TextBatch(NamedTuple):
    """Titles, queries made of them, and the groups that are no negatives of each other."""

    titles: TokenBatch
    queries: TokenBatch
    group_B: Tensor


class ImageBatch(NamedTuple):
    """Products, their titles' vectors, groups; none where image or title cannot be read."""

    products: ProductBatch
    title_BD: Tensor
    group_B: Tensor


Batch = TypeVar("Batch", TextBatch, ImageBatch)

#: What the loss of the contrast is called in an evaluation.
CONTRAST = "contrastive_loss"


class Contrast(nn.Module, ABC, Generic[Batch]):
    """Titles against what belongs to them; `forward` gives the loss."""

    def __init__(self, product: ProductEncoder, *, temperature: float) -> None:
        super().__init__()
        self.product = product
        product.requires_grad_(False)
        self.temperature = temperature

    @abstractmethod
    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit vectors of titles and of what belongs to them, float32, both (B, D)."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The contrast."""
        return {"loss": self.contrast(*self.features(batch), batch.group_B)}

    def measure(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `features` gives, and the losses that `forward` adds up; of some, what chance gives."""
        title_BD, other_BD = self.features(batch)
        return title_BD, other_BD, {CONTRAST: self.contrast(title_BD, other_BD, batch.group_B)}

    def contrast(self, title_BD: Tensor, other_BD: Tensor, group_B: Tensor) -> Tensor:
        """InfoNCE of unit vectors, both ways, in nats."""
        return itc_loss(
            title_BD,
            other_BD,
            Columns(title_BD, other_BD, group_B),
            positive_B=torch.arange(len(title_BD), device=title_BD.device),
            temperature=self.temperature,
            alpha=0.0,
        ).loss


class TextWarmup(Contrast[TextBatch]):
    """Trains the text encoder without cross-attention, and its projection."""

    def __init__(self, product: ProductEncoder, *, temperature: float) -> None:
        super().__init__(product, temperature=temperature)
        for name, parameter in product.text.named_parameters():
            parameter.requires_grad_("crossattention" not in name)
        product.text_proj.requires_grad_(True)

    def features(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Of titles and of the queries made of them."""
        return _text_features(self.product, batch.titles), _text_features(self.product, batch.queries)


class ImageWarmup(Contrast[ImageBatch]):
    """Trains the image encoder and its projection; the text encoder is locked."""

    rarity_V: Tensor
    token_share_V: Tensor

    def __init__(
        self,
        product: ProductEncoder,
        *,
        temperature: float,
        token_weight: float,
        rarity_V: Tensor,
        token_share_V: Tensor,
    ) -> None:
        """Take what the tokens of the vocabulary weigh, and their mean share in the targets, both (V,).

        The head that predicts tokens is not kept.
        """
        super().__init__(product, temperature=temperature)
        product.vision.requires_grad_(True)
        product.vision_proj.requires_grad_(True)
        self.token_weight = token_weight
        self.register_buffer("rarity_V", rarity_V, persistent=False)
        self.register_buffer("token_share_V", token_share_V, persistent=False)
        self.token_head = nn.Linear(product.vision_proj.out_features, len(rarity_V))

    def features(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Of titles and of images."""
        title_BD, image_BD = self._title_and_image(batch)
        return title_BD, normalize(image_BD, dim=-1)

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The contrast, and the title tokens that each image predicts."""
        title_BD, image_BD = self._title_and_image(batch)
        contrast = self.contrast(title_BD, normalize(image_BD, dim=-1), batch.group_B)
        if not self.token_weight:
            return {"loss": contrast}
        with torch.autocast(image_BD.device.type, enabled=False):
            tokens = self._token_loss(self.token_head(image_BD), batch)
        loss = contrast + self.token_weight * tokens
        return {"loss": loss, "contrast": contrast.detach(), "tokens": tokens.detach()}

    def measure(self, batch: ImageBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Contrast`; by chance each token is as likely as in the titles trained on."""
        title_BD, image_BD = self._title_and_image(batch)
        unit_BD = normalize(image_BD, dim=-1)
        losses = {CONTRAST: self.contrast(title_BD, unit_BD, batch.group_B)}
        if self.token_weight:
            constant_V = self.token_share_V.log().clamp_min(torch.finfo(torch.float32).min)
            with torch.autocast(image_BD.device.type, enabled=False):
                for name, logits_BV in (
                    ("token_loss", self.token_head(image_BD)),
                    (f"token_loss{AT_CHANCE}", constant_V.expand(len(image_BD), -1)),
                ):
                    losses[name] = self.token_weight * self._token_loss(logits_BV, batch)
        return title_BD, unit_BD, losses

    def _token_loss(self, logits_BV: Tensor, batch: ImageBatch) -> Tensor:
        loss_B = title_token_loss(logits_BV, batch.products.ids_BT, batch.products.mask_BT, self.rarity_V)
        known_B = batch.group_B != NO_GROUP
        return (loss_B * known_B).sum() / known_B.sum().clamp_min(1)

    def _title_and_image(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors of titles, and projected images that are not yet unit vectors; float32, (B, D)."""
        image_BD = self.product.projected_images(self.product.image_tokens(batch.products.pixels_BCHW))
        return batch.title_BD, image_BD.float()


class ContrastTask(ABC, Generic[Batch]):
    """A warm-up as the training loop sees it."""

    module: Contrast[Batch]
    title: str
    rows_name: str
    #: Of the share of evaluation products whose title is found.
    found_name: str

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        *,
        config: WarmupConfig,
        parts: ProductParts,
        usable_P: BoolArray,
        needs: str,
        ranks: Ranks,
        advice: str = "",
    ) -> None:
        """Take the usable products of both parts.

        Raises:
            ValueError: there are fewer than four, or too few for the micro-batches.
        """
        self.train, self.evaluation = (np.flatnonzero(usable_P & part_P) for part_P in parts)
        if len(self.train) < 2 or len(self.evaluation) < 2:
            raise ValueError(
                f"the {self.title} needs at least four products with {needs}, got "
                f"{len(self.train) + len(self.evaluation)}{advice}"
            )
        self.encoder, self.catalog, self.seed, self.ranks = encoder, catalog, config.seed, ranks
        self.accumulation = config.accumulation
        self.batch_rows = rows_of_a_step(config, len(self.train), ranks=ranks, fewest=2)
        self.steps_per_epoch = len(self.train) // self.batch_rows

    @abstractmethod
    def batch(self, rows: npt.NDArray[np.int64], epoch: int | None) -> Batch:
        """These products, with what is drawn for an epoch; None for what never changes."""

    def before_step(self, step: int) -> None:
        """Nothing to do."""

    def micro_batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        """Products in an order drawn for this epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.train)
        micro_rows = self.batch_rows // self.accumulation

        def load() -> Iterator[Batch]:
            for micro in range(first_step * self.accumulation, self.steps_per_epoch * self.accumulation):
                rows = order[micro * micro_rows : (micro + 1) * micro_rows]
                yield self.batch(rows[self.ranks.slice_of(len(rows))], epoch)

        yield from prefetch(load())

    def evaluate(self) -> dict[str, float]:
        """Losses on the products kept aside, and how often one of them finds its own title in its chunk.

        Raises:
            ValueError: not one of them has an image that can be read.
        """
        found = Found(0.0, 0.0, 0.0, 0.0)
        sums: dict[str, float] = {}
        for rows in evaluation_chunks(self.evaluation):
            batch = self.batch(rows, None)
            title_BD, other_BD, losses = self.module.measure(batch)
            in_chunk = found_in_chunk(other_BD @ title_BD.T, batch.group_B)
            found += in_chunk
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * in_chunk.rows
        if not found.rows:
            raise ValueError(
                f"none of the {len(self.evaluation)} evaluation products of the {self.title} can be read; "
                "check the image files of the data folder"
            )
        measures = {name: value / found.rows for name, value in sums.items()}
        return {
            "loss": sum(value for name, value in measures.items() if not name.endswith(AT_CHANCE)),
            **measures,
            self.found_name: found.hits / found.rows,
            ROWS: found.rows,
            f"{CONTRAST}{AT_CHANCE}": found.loss_at_chance / found.rows,
            f"{self.found_name}{AT_CHANCE}": found.hits_at_chance / found.rows,
        }


class TextWarmupTask(ContrastTask[TextBatch]):
    """Products with a title, each with a new query of it in every epoch."""

    title, rows_name = "text warm-up", "titles"
    found_name = "query_finds_title"

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        *,
        config: WarmupConfig,
        parts: ProductParts,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """See `ContrastTask`."""
        titled_P = np.array([bool(title) for title in catalog.titles])
        super().__init__(
            encoder, catalog, config=config, parts=parts, usable_P=titled_P, needs="a title", ranks=ranks
        )
        self.device = device
        self.module = TextWarmup(encoder.product, temperature=config.temperature).to(device)

    def batch(self, rows: npt.NDArray[np.int64], epoch: int | None) -> TextBatch:
        """Titles and one query each."""
        titles = [self.catalog.titles[row] for row in rows.tolist()]
        draw = 0 if epoch is None else epoch + 1
        queries = [
            title_query(title, np.random.default_rng((self.seed, draw, row)))
            for title, row in zip(titles, rows.tolist(), strict=True)
        ]
        query_tokens = self.encoder.query_tokens(queries)
        # Titles from which one query was made are no negatives of each other: each is what it asks for.
        group_B = self.catalog.group_P[rows]
        keys: list[tuple[int, Hashable]] = [*enumerate(group_B.tolist())]
        keys += [(row, ids_T.tobytes()) for row, ids_T in enumerate(query_tokens.ids_BT.numpy())]
        return TextBatch(
            titles=_to(self.encoder.title_tokens(titles), self.device),
            queries=_to(query_tokens, self.device),
            group_B=to_device(torch.from_numpy(group_B[connected_groups(len(rows), keys)]), self.device),
        )


class ImageWarmupTask(ContrastTask[ImageBatch]):
    """Products with an image and a title."""

    title, rows_name = "image warm-up", "images"
    found_name = "image_finds_title"

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        *,
        config: ImageWarmupConfig,
        parts: ProductParts,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """See `ContrastTask`."""
        super().__init__(
            encoder,
            catalog,
            config=config,
            parts=parts,
            usable_P=has_image_and_title(catalog),
            needs="an image and a title",
            advice="; without images leave [image_warmup] out of the config",
            ranks=ranks,
        )
        self.device, self.augmentation = device, config.augmentation
        tokens = encoder.title_tokens([catalog.titles[row] for row in self.train.tolist()])
        rarity_V = rarity(tokens, encoder.config.vocab_size)
        self.module = seeded(
            lambda: ImageWarmup(
                encoder.product,
                temperature=config.temperature,
                token_weight=config.token_weight,
                rarity_V=rarity_V,
                token_share_V=mean_token_share(tokens, rarity_V),
            ),
            config.seed,
        ).to(device)
        shown_N = np.concatenate([self.train, self.evaluation])
        self.titles = LockedTitles(encoder, catalog.titles, shown_N, precision=config.precision)
        #: Why the image of a product could not be read; such a product takes no part.
        self.unreadable: dict[int, str] = {}

    def batch(self, rows: npt.NDArray[np.int64], epoch: int | None) -> ImageBatch:
        """Titles and images, changed by draws of the epoch."""
        products = self.encoder.load_batch(
            self.catalog,
            rows,
            augmentation=None if epoch is None else self.augmentation,
            seed=(self.seed, epoch or 0),
            unreadable=self.unreadable,
        )
        complete_B = products.has_image_B & products.has_title_B
        group_B = torch.from_numpy(self.catalog.group_P[rows]).masked_fill(~complete_B, NO_GROUP)
        return ImageBatch(products.to(self.device), self.titles.of(rows), to_device(group_B, self.device))


def _text_features(product: ProductEncoder, tokens: TokenBatch) -> Tensor:
    """What the text encoder makes of titles or of queries, float32, (B, D)."""
    return product.text_features(product.text_tokens(tokens.ids_BT, tokens.mask_BT), tokens.mask_BT).float()


def _to(tokens: TokenBatch, device: torch.device) -> TokenBatch:
    return TokenBatch(*(to_device(part, device) for part in (tokens.ids_BT, tokens.mask_BT, tokens.known_B)))
