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

from embeddings.catalog.groups import connected_groups
from embeddings.catalog.images import AugmentationConfig
from embeddings.catalog.products import ProductBatch, ProductCatalog, prefetch
from embeddings.catalog.titles import title_query
from embeddings.catalog.tokenizer import TokenBatch
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import ProductEncoder, seeded
from embeddings.training.loop import OptimizerConfig
from embeddings.training.losses import NO_GROUP, Columns, itc_loss, rarity, title_token_loss
from embeddings.training.ranks import Ranks


class WarmupConfig(OptimizerConfig):
    """The text warm-up, and what both have in common."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    #: Share of products kept aside, to stop at the lowest loss.
    evaluation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05


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
    """Products, and their groups; none where the image cannot be read or the title has no known piece."""

    products: ProductBatch
    group_B: Tensor


Batch = TypeVar("Batch", TextBatch, ImageBatch)


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

    def __init__(
        self, product: ProductEncoder, *, temperature: float, token_weight: float, rarity_V: Tensor
    ) -> None:
        """Take what the tokens of the vocabulary weigh, (V,); the head that predicts them is not kept."""
        super().__init__(product, temperature=temperature)
        product.vision.requires_grad_(True)
        product.vision_proj.requires_grad_(True)
        self.token_weight = token_weight
        self.register_buffer("rarity_V", rarity_V, persistent=False)
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
        ids_BT, mask_BT = batch.products.ids_BT, batch.products.mask_BT
        with torch.autocast(image_BD.device.type, enabled=False):
            loss_B = title_token_loss(self.token_head(image_BD), ids_BT, mask_BT, self.rarity_V)
        known_B = batch.group_B != NO_GROUP
        tokens = (loss_B * known_B).sum() / known_B.sum().clamp_min(1)
        loss = contrast + self.token_weight * tokens
        return {"loss": loss, "contrast": contrast.detach(), "tokens": tokens.detach()}

    def _title_and_image(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors of titles, and projected images that are not yet unit vectors; float32, (B, D)."""
        ids_BT, mask_BT = batch.products.ids_BT, batch.products.mask_BT
        with torch.no_grad():
            title_BD = self.product.text_features(self.product.text_tokens(ids_BT, mask_BT), mask_BT)
        image_BD = self.product.projected_images(self.product.image_tokens(batch.products.pixels_BCHW))
        return title_BD.float(), image_BD.float()


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
        usable_P: npt.NDArray[np.bool_],
        needs: str,
        ranks: Ranks,
        advice: str = "",
    ) -> None:
        """Split the usable products into training and evaluation.

        Raises:
            ValueError: there are fewer than four.
        """
        usable = np.flatnonzero(usable_P)
        if len(usable) < 4:
            raise ValueError(
                f"this warm-up needs at least four products with {needs}, got {len(usable)}{advice}"
            )
        shuffled = np.random.default_rng((config.seed, len(usable))).permutation(usable)
        aside = max(2, round(config.evaluation_share * len(usable)))
        self.evaluation, self.train = np.sort(shuffled[:aside]), np.sort(shuffled[aside:])
        self.encoder, self.catalog, self.seed, self.ranks = encoder, catalog, config.seed, ranks
        self.accumulation = config.accumulation
        self.batch_rows = min(config.batch_size, len(self.train) // ranks.count * ranks.count)
        self.steps_per_epoch = max(1, len(self.train) // self.batch_rows)

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
        """Loss on the products kept aside, and how often one of them finds its own title among them."""
        batch = self.batch(self.evaluation[: self.batch_rows], None)
        loss = float(self.module(batch)["loss"])
        title_BD, other_BD = self.module.features(batch)
        known_B = batch.group_B != NO_GROUP
        similarity_BB = (other_BD @ title_BD.T).masked_fill(~known_B, -torch.inf)
        found_B = batch.group_B[similarity_BB.argmax(dim=1)] == batch.group_B
        return {"loss": loss, self.found_name: float(found_B[known_B].float().mean())}


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
        usable_P: npt.NDArray[np.bool_],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """See `ContrastTask`."""
        titled_P = np.array([bool(title) for title in catalog.titles])
        super().__init__(
            encoder, catalog, config=config, usable_P=usable_P & titled_P, needs="a title", ranks=ranks
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
        config, tokenizer = self.encoder.config, self.encoder.tokenizer
        query_tokens = tokenizer(queries, max_tokens=config.max_query_tokens)
        # Titles from which one query was made are no negatives of each other: each is what it asks for.
        group_B = self.catalog.group_P[rows]
        keys: list[tuple[int, Hashable]] = [*enumerate(group_B.tolist())]
        keys += [(row, ids_T.tobytes()) for row, ids_T in enumerate(query_tokens.ids_BT.numpy())]
        return TextBatch(
            titles=_to(tokenizer(titles, max_tokens=config.max_title_tokens), self.device),
            queries=_to(query_tokens, self.device),
            group_B=torch.from_numpy(group_B[connected_groups(len(rows), keys)]).to(self.device),
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
        usable_P: npt.NDArray[np.bool_],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """See `ContrastTask`."""
        shown_P = np.array([path is not None for path in catalog.image_paths], bool)
        titled_P = np.array([bool(title) for title in catalog.titles])
        usable_P = usable_P & shown_P & titled_P
        super().__init__(
            encoder,
            catalog,
            config=config,
            usable_P=usable_P,
            needs="an image and a title",
            advice="; without images leave [image_warmup] out of the config",
            ranks=ranks,
        )
        self.device, self.augmentation = device, config.augmentation
        tokens = encoder.tokenizer(
            [catalog.titles[row] for row in self.train.tolist()], max_tokens=encoder.config.max_title_tokens
        )
        self.module = seeded(
            lambda: ImageWarmup(
                encoder.product,
                temperature=config.temperature,
                token_weight=config.token_weight,
                rarity_V=rarity(tokens, encoder.config.vocab_size),
            ),
            config.seed,
        ).to(device)
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
        return ImageBatch(products.to(self.device), group_B.to(self.device))


def _text_features(product: ProductEncoder, tokens: TokenBatch) -> Tensor:
    """What the text encoder makes of titles or of queries, float32, (B, D)."""
    return product.text_features(product.text_tokens(tokens.ids_BT, tokens.mask_BT), tokens.mask_BT).float()


def _to(tokens: TokenBatch, device: torch.device) -> TokenBatch:
    return TokenBatch(tokens.ids_BT.to(device), tokens.mask_BT.to(device), tokens.known_B.to(device))
