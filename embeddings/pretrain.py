"""Stage 1: continual pre-training of the product encoders on the catalogue (paper section 3.2.1).

ITC with a momentum teacher, a queue and soft targets, and ITM with hard negatives, as in ALBEF and BLIP (Li et
al. 2021, 2022); early stop at the lowest matching loss on products kept aside, with the same negatives each
time. Products without image or title say nothing here and are left out, counted.

Shapes: B products of this rank's micro-batch, G those of all ranks, T tokens, I image tokens, H hidden width,
D embedding width, C columns.
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from embeddings.catalog import ProductBatch, ProductCatalog, load_batch, prefetch
from embeddings.dashclip import DashClipEncoder
from embeddings.distributed import Ranks, gather_rows, gather_rows_with_gradient, sum_over_ranks
from embeddings.encoders import ProductEncoder, freeze_first_layers
from embeddings.feature_queue import FeatureQueue
from embeddings.images import AugmentationConfig, ImageUnreadable
from embeddings.losses import draw_negatives, hard_negative_probabilities, itc_loss, itm_loss
from embeddings.training import OptimizerConfig

#: The range in which the learned temperature is held (BLIP).
TEMPERATURE_RANGE = (0.001, 0.5)
#: Parts of the encoder that the teacher shadows; the others have no say in ITC.
SHADOWED = ("vision", "text", "vision_proj", "text_proj")

Share = Annotated[float, Field(ge=0, le=1)]


class PretrainConfig(OptimizerConfig):
    """Stage 1. Defaults are BLIP's where they do not depend on the size of the catalogue."""

    #: Of the image and of the text encoder; the paper freezes 8 of 12.
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    embedding_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.995
    #: Pairs of teacher features; at most as many as there are products.
    queue_size: Annotated[int, Field(ge=0)] = 57_600
    #: Weight of the teacher in the soft targets, reached linearly over the first epochs.
    soft_target_share: Share = 0.4
    soft_target_epochs: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])] = 0.07
    augmentation: AugmentationConfig | None = AugmentationConfig()
    #: Products kept aside for the early stop, a share and a maximum.
    evaluation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    evaluation_products: Annotated[int, Field(ge=4)] = 2_000

    @model_validator(mode="after")
    def _epoch_is_long_enough(self) -> Self:
        if self.batch_size // self.accumulation < 2:
            raise ValueError("a micro-batch of one product has no negatives; raise batch_size")
        return self


class PretrainBatch(NamedTuple):
    """Products of one micro-batch with their groups; `draw` seeds the hard negatives of all ranks alike."""

    products: ProductBatch
    group_B: Tensor
    draw: int


class Pretraining(nn.Module):
    """The encoder, its momentum teacher, the queue and the temperature; `forward` gives both losses."""

    def __init__(
        self, online: ProductEncoder, *, config: PretrainConfig, queue_size: int, ranks: Ranks, title_tokens: int
    ) -> None:
        super().__init__()
        self.online = online
        freeze_first_layers(online.vision, config.frozen_layers)
        freeze_first_layers(online.text, config.frozen_layers)
        online.product_proj.requires_grad_(False)
        self.teacher = nn.ModuleDict(
            {name: copy.deepcopy(getattr(online, name)).requires_grad_(False) for name in SHADOWED}
        )
        self.queue = FeatureQueue(queue_size, online.text_proj.out_features)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.momentum = config.embedding_momentum
        self.ranks, self.title_tokens = ranks, title_tokens
        self.soft_share = 0.0

    @torch.no_grad()
    def before_step(self, soft_share: float) -> None:
        """Clamp the temperature, move the teacher a little towards the online encoder."""
        self.soft_share = soft_share
        self.temperature.clamp_(*TEMPERATURE_RANGE)
        for name in SHADOWED:
            online, teacher = getattr(self.online, name), self.teacher[name]
            for own, followed in zip(teacher.parameters(), online.parameters(), strict=True):
                own.lerp_(followed, 1 - self.momentum)

    def forward(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Losses of this rank's rows against the global batch, in nats; their mean over ranks is the batch's."""
        products, ranks = batch.products, self.ranks
        image_BIH = self.online.image_tokens(products.pixels_BCHW)
        text_BTH = self.online.text_tokens(products.ids_BT, products.mask_BT)
        image_BD = self.online.image_features(image_BIH)
        text_BD = self.online.text_features(text_BTH)
        group_G = gather_rows(batch.group_B, ranks)
        own = ranks.slice_of(len(group_G))
        teacher_image_GD, teacher_text_GD = (
            gather_rows(features_BD.float(), ranks) for features_BD in self._teacher_features(products)
        )
        itc = itc_loss(
            image_BD,
            text_BD,
            self.queue.columns(teacher_image_GD, teacher_text_GD, group_G),
            positive_B=torch.arange(own.start, own.stop, device=group_G.device),
            temperature=self.temperature,
            alpha=self.soft_share,
            total_rows=len(group_G),
        ).loss
        itm = self._matching_loss(batch, image_BIH, image_BD, text_BD, group_G)
        if self.training:
            self.queue.push(teacher_image_GD, teacher_text_GD, group_G)
        # Each is this rank's share of the global loss, and DDP averages over ranks.
        itc, itm = itc * ranks.count, itm * ranks.count
        return {"loss": itc + itm, "itc": itc, "itm": itm, "temperature": self.temperature.detach()}

    def _matching_loss(
        self, batch: PretrainBatch, image_BIH: Tensor, image_BD: Tensor, text_BD: Tensor, group_G: Tensor
    ) -> Tensor:
        products, ranks = batch.products, self.ranks
        image_GD, text_GD = gather_rows(image_BD.float(), ranks), gather_rows(text_BD.float(), ranks)
        image_GIH = gather_rows_with_gradient(image_BIH, ranks)
        ids_GT, mask_GT = products.ids_BT, products.mask_BT
        if ranks.count > 1:  # one width for all ranks
            missing = self.title_tokens - ids_GT.shape[1]
            ids_GT, mask_GT = (gather_rows(pad(part, (0, missing)), ranks) for part in (ids_GT, mask_GT))
        generator = torch.Generator().manual_seed(batch.draw)
        own, temperature = ranks.slice_of(len(group_G)), self.temperature.detach()

        def negatives(of_GD: Tensor, among_GD: Tensor) -> Tensor:
            probability_GG = hard_negative_probabilities(
                of_GD @ among_GD.T / temperature, group_B=group_G, group_C=group_G
            )
            return draw_negatives(probability_GG, generator)[own]

        other_image_B, other_text_B = negatives(text_GD, image_GD), negatives(image_GD, text_GD)
        found_B = (other_image_B >= 0) & (other_text_B >= 0)
        ids_BT, mask_BT = ids_GT[own], mask_GT[own]
        other_image_F, other_text_F = other_image_B[found_B], other_text_B[found_B]
        logits_N2 = self.online.match_logits(
            torch.cat([ids_BT, ids_BT[found_B], ids_GT[other_text_F]]),
            torch.cat([mask_BT, mask_BT[found_B], mask_GT[other_text_F]]),
            torch.cat([image_BIH, image_GIH[other_image_F], image_BIH[found_B]]),
        )
        matched = len(ids_BT)
        pairs = torch.tensor(float(len(logits_N2)), device=logits_N2.device)
        return itm_loss(
            logits_N2[:matched], logits_N2[matched:], total_pairs=sum_over_ranks(pairs, ranks)
        )

    @torch.no_grad()
    def _teacher_features(self, products: ProductBatch) -> tuple[Tensor, Tensor]:
        teacher = self.teacher
        image_BH = teacher["vision"](pixel_values=products.pixels_BCHW).last_hidden_state[:, 0]
        text_BH = teacher["text"](
            input_ids=products.ids_BT, attention_mask=products.mask_BT
        ).last_hidden_state[:, 0]
        return (
            nn.functional.normalize(teacher["vision_proj"](image_BH), dim=-1),
            nn.functional.normalize(teacher["text_proj"](text_BH), dim=-1),
        )


class PretrainTask:
    """Stage 1 as the training loop sees it."""

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        *,
        config: PretrainConfig,
        usable_P: npt.NDArray[np.bool_],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Split the usable products that have both modalities into training and evaluation.

        Args:
            usable_P: products that stage 1 may see.

        Raises:
            ValueError: too few products have both an image and a title.
        """
        both_P = np.array([bool(title) for title in catalog.titles]) & np.array(
            [path is not None for path in catalog.image_paths]
        )
        usable = np.flatnonzero(both_P & usable_P)
        self.left_out = int(len(catalog) - both_P.sum())
        self.train, self.evaluation = _split_by_group(usable, catalog.group_P, config=config)
        if len(self.train) < 2 or len(self.evaluation) < 2:
            raise ValueError(
                f"stage 1 needs at least four products with an image and a title, got {len(usable)} of "
                f"{len(catalog)}; without images start at stage 2 (`dashclip encode align --from-scratch`)"
            )
        self.encoder, self.catalog, self.config = encoder, catalog, config
        self.device, self.ranks = device, ranks
        self.batch_rows = min(config.batch_size, len(self.train) // ranks.count * ranks.count)
        self.steps_per_epoch = max(1, len(self.train) // self.batch_rows)
        self.module = Pretraining(
            encoder.product,
            config=config,
            queue_size=min(config.queue_size, len(self.train)),
            ranks=ranks,
            title_tokens=encoder.config.max_title_tokens,
        ).to(device)
        #: Why the image of a product could not be read; such a product is blank in this run.
        self.unreadable: dict[int, str] = {}
        self.ramp_steps = config.soft_target_epochs * self.steps_per_epoch

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The online encoder and the temperature, without frozen layers."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def before_step(self, step: int) -> None:
        """Teacher and temperature; the soft targets ramp up."""
        self.module.before_step(self.config.soft_target_share * min(1.0, step / self.ramp_steps))

    def micro_batches(self, epoch: int, first_step: int) -> Iterator[PretrainBatch]:
        """Products in an order drawn for this epoch; the ragged rest of it waits for another epoch."""
        order = np.random.default_rng((self.config.seed, epoch)).permutation(self.train)
        micro_rows = self.batch_rows // self.config.accumulation

        def load() -> Iterator[PretrainBatch]:
            first = first_step * self.config.accumulation
            for micro in range(first, self.steps_per_epoch * self.config.accumulation):
                rows = order[micro * micro_rows : (micro + 1) * micro_rows]
                index = rows[self.ranks.slice_of(len(rows))]
                draw = int(np.random.default_rng((self.config.seed, epoch, micro)).integers(2**62))
                yield self._batch(index, augmentation=self.config.augmentation, seed=epoch, draw=draw)

        for batch in prefetch(load()):
            yield PretrainBatch(batch.products.to(self.device), batch.group_B.to(self.device), batch.draw)

    def evaluate(self) -> dict[str, float]:
        """Matching loss and accuracy, and how often an image finds its own title in its chunk.

        Chunks and negatives are the same at every evaluation; the first rank's are every rank's.
        """
        sums = torch.zeros(4, dtype=torch.float64)
        rows = min(self.batch_rows, 64)
        chunks = [self.evaluation[start : start + rows] for start in range(0, len(self.evaluation), rows)]
        for number, index in enumerate(chunks):
            if len(index) < 2 or number % self.ranks.count != self.ranks.rank:
                continue
            batch = self._batch(index, augmentation=None, seed=0, draw=number)
            products = batch.products.to(self.device)
            sums += self._measure(PretrainBatch(products, batch.group_B.to(self.device), number))
        loss, correct, pairs, found = sum_over_ranks(sums.to(self.device), self.ranks).tolist()
        return {
            "loss": loss / pairs,
            "matching_accuracy": correct / pairs,
            "image_finds_title": found / len(self.evaluation),
        }

    def _measure(self, batch: PretrainBatch) -> Tensor:
        """Sums over one chunk: matching loss, right answers, pairs, images that find their title."""
        online, products = self.encoder.product, batch.products
        image_BIH = online.image_tokens(products.pixels_BCHW)
        text_BTH = online.text_tokens(products.ids_BT, products.mask_BT)
        similarity_BB = online.image_features(image_BIH).float() @ online.text_features(text_BTH).float().T
        generator = torch.Generator().manual_seed(batch.draw)
        temperature = self.module.temperature
        other_image_B, other_text_B = (
            draw_negatives(
                hard_negative_probabilities(
                    logits_BB / temperature, group_B=batch.group_B, group_C=batch.group_B
                ),
                generator,
            )
            for logits_BB in (similarity_BB.T, similarity_BB)
        )
        found_B = (other_image_B >= 0) & (other_text_B >= 0)
        ids, mask, rows = products.ids_BT, products.mask_BT, len(products.ids_BT)
        logits_N2 = online.match_logits(
            torch.cat([ids, ids[found_B], ids[other_text_B[found_B]]]),
            torch.cat([mask, mask[found_B], mask[other_text_B[found_B]]]),
            torch.cat([image_BIH, image_BIH[other_image_B[found_B]], image_BIH[found_B]]),
        ).float()
        loss = itm_loss(logits_N2[:rows], logits_N2[rows:]) * len(logits_N2)
        matched_N = torch.arange(len(logits_N2), device=logits_N2.device) < rows
        correct = (logits_N2.argmax(dim=1).bool() == matched_N).sum()
        best_B = similarity_BB.argmax(dim=1)
        found = (batch.group_B[best_B] == batch.group_B).sum()
        sums = (float(loss), float(correct), float(len(logits_N2)), float(found))
        return torch.tensor(sums, dtype=torch.float64)

    def _batch(
        self, index: npt.NDArray[Any], *, augmentation: AugmentationConfig | None, seed: int, draw: int
    ) -> PretrainBatch:
        products = load_batch(
            self.catalog,
            self.encoder.tokenizer,
            index,
            image_size=self.encoder.config.image_size,
            max_title_tokens=self.encoder.config.max_title_tokens,
            augmentation=augmentation,
            seed=(self.config.seed, seed),
            unreadable=self._note_unreadable,
        )
        return PretrainBatch(products, torch.from_numpy(self.catalog.group_P[index]), draw)


    def _note_unreadable(self, product: int, error: ImageUnreadable) -> None:
        self.unreadable[product] = error.reason


def _split_by_group(
    usable: npt.NDArray[np.int64], group_P: npt.NDArray[np.int64], *, config: PretrainConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and evaluation products; a group is on one side only."""
    groups = np.unique(group_P[usable])
    shuffled = np.random.default_rng((config.seed, len(groups))).permutation(groups)
    wanted = min(config.evaluation_products, max(2, round(config.evaluation_share * len(usable))))
    sizes = np.cumsum(np.bincount(group_P[usable])[shuffled])
    chosen = shuffled[: int(np.searchsorted(sizes, wanted)) + 1]
    aside = np.isin(group_P[usable], chosen)
    return usable[~aside], usable[aside]
