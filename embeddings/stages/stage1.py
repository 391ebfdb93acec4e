"""Stage 1: continual pre-training of the product encoders on the catalogue (paper section 3.2.1).

The product encoder and its momentum teacher learn ITC with a queue and soft targets, and ITM with hard
negatives, as in ALBEF and BLIP (Li et al. 2021, 2022); early stop at the lowest matching (or contrastive)
loss on products kept aside. Products without image or title say nothing here and are left out, counted.

Shapes: B products of this rank's micro-batch, G those of all ranks, T tokens, I image tokens, H hidden width,
D embedding width, C columns.
"""

import copy
from collections.abc import Generator, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.images import AugmentationConfig
from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import ProductEncoder, freeze_first_layers, pooled, pooled_image
from embeddings.stages.product_parts import ProductParts, has_image_and_title
from embeddings.training.evaluation import (
    AT_CHANCE,
    ROWS,
    Found,
    evaluation_chunks,
    found_in_chunk,
    no_better_than_chance,
)
from embeddings.training.feature_queue import FeatureQueue
from embeddings.training.loop import OptimizerConfig, TrainingOutcome, rows_of_a_step
from embeddings.training.losses import (
    NO_GROUP,
    Columns,
    constant_matching_loss,
    draw_negatives,
    hard_negative_probabilities,
    itc_loss,
    itm_loss,
)
from embeddings.training.prefetch import prefetch
from embeddings.training.ranks import Ranks, gather_rows, gather_rows_with_gradient, sum_over_ranks

#: The range in which the learned temperature is held (BLIP).
TEMPERATURE_RANGE = (0.001, 0.5)
#: Parts of the encoder that the teacher shadows; the others have no say in ITC.
SHADOWED = ("vision", "text", "vision_proj", "text_proj")

Share = Annotated[float, Field(ge=0, le=1)]


class PretrainConfig(OptimizerConfig):
    """Stage 1. Defaults are BLIP's where they do not depend on the size of the catalogue."""

    #: Of the image and of the text encoder; the paper freezes 8 of 12.
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    #: Whether the text encoder is trained at all; its cross-attention always is. From scratch its warm-up is
    #: worth more than what images teach it.
    train_text: bool = True
    #: Share of itself that the momentum teacher keeps at each step.
    embedding_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.995
    #: Pairs of teacher features; at most as many as there are products.
    queue_size: Annotated[int, Field(ge=0)] = 57_600
    #: Weight of the teacher in the soft targets, reached linearly over the first epochs.
    soft_target_share: Share = 0.4
    #: Epochs until the teacher has its whole weight.
    soft_target_epochs: Annotated[float, Field(gt=0)] = 1.0
    #: What cosines are divided by at first; it is learned.
    temperature: Annotated[float, Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])] = 0.07
    augmentation: AugmentationConfig | None = AugmentationConfig()
    #: Which loss on the products kept aside says when to stop and which weights to keep. The paper's is
    #: matching; from scratch it may learn nothing in the time there is, and then its lowest point is a draw.
    early_stop: Annotated[
        Literal["matching", "contrastive"], Field(exclude_if=lambda by: by == "matching")
    ] = "matching"

    @model_validator(mode="after")
    def _epoch_is_long_enough(self) -> Self:
        if self.batch_size // self.accumulation < 2:
            raise ValueError("a micro-batch of one product has no negatives; raise batch_size")
        return self


class PretrainBatch(NamedTuple):
    """Products of one micro-batch; `draw` seeds the hard negatives of all ranks alike.

    Those whose image cannot be read or whose title has no known piece have no group: they take no part. Which
    those are is said on the host, too, since asking the device is to wait for it.
    """

    products: ProductBatch
    group_B: Tensor
    draw: int
    #: `group_B` on the host.
    host_group_B: npt.NDArray[np.int64]

    def rows(self, chosen_B: npt.NDArray[np.bool_]) -> Tensor:
        """Positions of rows chosen on the host, on the device of the batch."""
        return to_device(torch.from_numpy(np.flatnonzero(chosen_B)), self.group_B.device)


class _Features(NamedTuple):
    image_BIH: Tensor
    image_BD: Tensor
    text_BD: Tensor


class Pretraining(nn.Module):
    """The encoder, its momentum teacher, the queue and the temperature; `forward` gives both losses."""

    def __init__(
        self,
        online: ProductEncoder,
        *,
        config: PretrainConfig,
        queue_size: int,
        ranks: Ranks,
        title_tokens: int,
    ) -> None:
        super().__init__()
        self.online = online
        freeze_first_layers(online.vision, config.frozen_layers)
        freeze_first_layers(online.text, config.frozen_layers)
        if not config.train_text:
            online.text_proj.requires_grad_(False)
            for name, parameter in online.text.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and "crossattention" in name)
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
        """Losses of this rank's rows in nats; their mean over ranks is the loss of the global batch."""
        ranks = self.ranks
        features = self._features(batch.products)
        group_G = gather_rows(batch.group_B, ranks)
        own = ranks.slice_of(len(group_G))
        teacher_image_GD, teacher_text_GD = (
            gather_rows(features_BD.to(self.queue.image_QD.dtype), ranks)
            for features_BD in self._teacher_features(batch.products)
        )
        itc = itc_loss(
            features.image_BD,
            features.text_BD,
            self.queue.columns(teacher_image_GD, teacher_text_GD, group_G),
            positive_B=torch.arange(own.start, own.stop, device=group_G.device),
            temperature=self.temperature,
            alpha=self.soft_share,
            total_rows=(group_G != NO_GROUP).sum(),
        ).loss
        matched_B2, unmatched_M2 = self._match(batch, features, ranks, hard=True)
        pairs = matched_B2.new_full((), len(matched_B2) + len(unmatched_M2), dtype=torch.float32)
        itm = itm_loss(matched_B2, unmatched_M2, total_pairs=sum_over_ranks(pairs, ranks))
        if self.training:
            self.queue.push(teacher_image_GD, teacher_text_GD, group_G)
        # Each is this rank's share of the global loss, and DDP averages over ranks.
        itc, itm = itc * ranks.count, itm * ranks.count
        return {"loss": itc + itm, "itc": itc, "itm": itm, "temperature": self.temperature.detach()}

    @torch.no_grad()
    def measure(self, batch: PretrainBatch) -> Tensor:
        """Sums over one batch of one rank, float64 (9,).

        Matching loss, right answers, matched and unmatched pairs, contrastive loss; `Found` of images and
        titles.
        """
        features = self._features(batch.products)
        columns = Columns(features.image_BD, features.text_BD, batch.group_B)
        contrast = itc_loss(
            features.image_BD,
            features.text_BD,
            columns,
            positive_B=torch.arange(len(batch.group_B), device=batch.group_B.device),
            temperature=self.temperature,
            alpha=0.0,
            total_rows=1.0,
        ).loss
        matched_B2, unmatched_M2 = self._match(batch, features, Ranks(), hard=False)
        loss = itm_loss(matched_B2, unmatched_M2, total_pairs=1.0)
        correct = (matched_B2.argmax(dim=1) == 1).sum() + (unmatched_M2.argmax(dim=1) == 0).sum()
        with torch.autocast(loss.device.type, enabled=False):
            similarity_BB = features.image_BD.float() @ features.text_BD.float().T
        matching = (float(loss), float(correct), len(matched_B2), len(unmatched_M2))
        found = found_in_chunk(similarity_BB, batch.group_B)
        return torch.tensor([*matching, float(contrast), *found], dtype=torch.float64)

    def _features(self, products: ProductBatch) -> "_Features":
        image_BIH = self.online.image_tokens(products.pixels_BCHW)
        text_BTH = self.online.text_tokens(products.ids_BT, products.mask_BT)
        return _Features(
            image_BIH,
            self.online.image_features(image_BIH),
            self.online.text_features(text_BTH, products.mask_BT),
        )

    def _match(
        self, batch: PretrainBatch, features: "_Features", ranks: Ranks, *, hard: bool
    ) -> tuple[Tensor, Tensor]:
        """ITM logits of the matched and of the unmatched pairs, both (pairs, 2).

        Every product with another group in the batch of all ranks gives two unmatched pairs: its title with
        another image, and its image with another title, hard ones first (ALBEF), or any without `hard`.
        """
        image_BIH, image_BD, text_BD = features
        ids_BT, mask_BT = batch.products.ids_BT, batch.products.mask_BT
        group_G, image_GIH = gather_rows(batch.group_B, ranks), gather_rows_with_gradient(image_BIH, ranks)
        ids_GT, mask_GT = ids_BT, mask_BT
        if ranks.count > 1:  # one width for all ranks
            missing = self.title_tokens - ids_BT.shape[1]
            ids_GT, mask_GT = (gather_rows(pad(part, (0, missing)), ranks) for part in (ids_BT, mask_BT))
        own = ranks.slice_of(len(group_G))
        image_GD, text_GD = (gather_rows(features_BD, ranks) for features_BD in (image_BD, text_BD))
        # bfloat16 would round cosines to 8 bits before they are divided by the temperature.
        with torch.autocast(image_GD.device.type, enabled=False):
            precise = self.temperature.dtype
            logits_GG = image_GD.to(precise) @ text_GD.to(precise).T / self.temperature.detach()
        generator = torch.Generator().manual_seed(batch.draw)

        def drawn(logits_GG: Tensor) -> Tensor:
            logits_GG = logits_GG if hard else torch.zeros_like(logits_GG)
            share_GG = hard_negative_probabilities(logits_GG, group_B=group_G, group_C=group_G)
            return draw_negatives(share_GG, generator)[own]

        other_image_B, other_text_B = drawn(logits_GG.T), drawn(logits_GG)
        if ranks.count == 1:
            found_F = batch.rows(has_other_group(batch.host_group_B))
        else:  # groups of other ranks are on the device alone
            found_F = ((other_image_B >= 0) & (other_text_B >= 0)).nonzero().squeeze(1)
        other_image_F, other_text_F = other_image_B[found_F], other_text_B[found_F]
        ids_BT, mask_BT = ids_GT[own], mask_GT[own]
        logits_N2 = self.online.match_logits(
            torch.cat([ids_BT, ids_BT[found_F], ids_GT[other_text_F]]),
            torch.cat([mask_BT, mask_BT[found_F], mask_GT[other_text_F]]),
            torch.cat([image_BIH, image_GIH[other_image_F], image_BIH[found_F]]),
        )
        rows = len(ids_BT)
        return logits_N2[:rows][batch.rows(batch.host_group_B != NO_GROUP)], logits_N2[rows:]

    @torch.no_grad()
    def _teacher_features(self, products: ProductBatch) -> tuple[Tensor, Tensor]:
        teacher = self.teacher
        image_BIH = teacher["vision"](pixel_values=products.pixels_BCHW).last_hidden_state
        image_BH = pooled_image(image_BIH, self.online.image_pooling)
        text_BTH = teacher["text"](
            input_ids=products.ids_BT, attention_mask=products.mask_BT
        ).last_hidden_state
        text_BH = pooled(text_BTH, products.mask_BT, self.online.pooling)
        return (
            nn.functional.normalize(teacher["vision_proj"](image_BH), dim=-1),
            nn.functional.normalize(teacher["text_proj"](text_BH), dim=-1),
        )


class PretrainTask:
    """Stage 1 as the training loop sees it."""

    title, rows_name = "stage 1", "products"

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        *,
        config: PretrainConfig,
        parts: ProductParts,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Take the products that have both modalities.

        Raises:
            ValueError: too few products have both an image and a title.
        """
        tokens = encoder.title_tokens(catalog.titles)
        both_P = tokens.known_B.numpy() & has_image_and_title(catalog)
        self.left_out = int(len(catalog) - both_P.sum())
        self.train, self.evaluation = products_of_stage1(parts, both_P)
        self.encoder, self.catalog, self.config = encoder, catalog, config
        self.device, self.ranks = device, ranks
        self.batch_rows = rows_of_a_step(config, len(self.train), ranks=ranks, fewest=2)
        self.steps_per_epoch = len(self.train) // self.batch_rows
        self.module = Pretraining(
            encoder.product,
            config=config,
            queue_size=min(config.queue_size, len(self.train)),
            ranks=ranks,
            title_tokens=encoder.config.max_title_tokens,
        ).to(device)
        #: Why the image of a product could not be read; such a product takes no part in this run.
        self.unreadable: dict[int, str] = {}
        self.ramp_steps = config.soft_target_epochs * self.steps_per_epoch

    def before_step(self, step: int) -> None:
        """Teacher and temperature; the soft targets ramp up."""
        self.module.before_step(self.config.soft_target_share * min(1.0, step / self.ramp_steps))

    def micro_batches(self, epoch: int, first_step: int) -> Generator[PretrainBatch, None, None]:
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

        return self._on_device(load())

    def evaluate(self) -> dict[str, float]:
        """Both losses, the accuracy of matching, and how often an image finds its own title in its chunk.

        Chunks and negatives are the same at every evaluation, on any number of ranks. The negatives are not
        hard ones: those get harder as the encoder learns, and the loss would rise as it gets better.

        Raises:
            ValueError: not one evaluation product has an image that can be read.
        """

        def load() -> Iterator[PretrainBatch]:
            for number, index in enumerate(evaluation_chunks(self.evaluation)):
                if number % self.ranks.count == self.ranks.rank:
                    yield self._batch(index, augmentation=None, seed=0, draw=number)

        sums = torch.zeros(9, dtype=torch.float64)
        for batch in self._on_device(load()):
            sums += self.module.measure(batch)
        sums = sum_over_ranks(sums.to(self.device), self.ranks)
        matching, correct, matched, unmatched, contrast, *of_titles = sums.tolist()
        found, pairs = Found(*of_titles), matched + unmatched
        if not found.rows:
            raise ValueError(
                f"none of the {len(self.evaluation)} evaluation products of stage 1 has an image that can be "
                "read; check the image files of the data folder"
            )
        losses = {"matching": matching / pairs, "contrastive": contrast / found.rows}
        return {
            "loss": losses[self.config.early_stop],
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "matching_accuracy": correct / pairs,
            "image_finds_title": found.hits / found.rows,
            ROWS: found.rows,
            f"matching_loss{AT_CHANCE}": constant_matching_loss(matched, unmatched),
            f"contrastive_loss{AT_CHANCE}": found.loss_at_chance / found.rows,
            f"matching_accuracy{AT_CHANCE}": max(matched, unmatched) / pairs,
            f"image_finds_title{AT_CHANCE}": found.hits_at_chance / found.rows,
        }

    def _on_device(self, batches: Iterator[PretrainBatch]) -> Generator[PretrainBatch, None, None]:
        for batch in prefetch(batches):
            yield batch._replace(
                products=batch.products.to(self.device), group_B=to_device(batch.group_B, self.device)
            )

    def _batch(
        self, index: npt.NDArray[Any], *, augmentation: AugmentationConfig | None, seed: int, draw: int
    ) -> PretrainBatch:
        products = self.encoder.load_batch(
            self.catalog,
            index,
            augmentation=augmentation,
            seed=(self.config.seed, seed),
            unreadable=self.unreadable,
        )
        complete_B = products.has_image_B & products.has_title_B
        group_B = torch.from_numpy(self.catalog.group_P[index]).masked_fill(~complete_B, NO_GROUP)
        return PretrainBatch(products, group_B, draw, host_group_B=group_B.numpy())


def has_other_group(group_B: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows have a group, and a row of another group beside them: those that have negatives, bool [B].

    >>> has_other_group(np.array([4, 4, 7, -1])).tolist(), has_other_group(np.array([4, 4])).tolist()
    ([True, True, True, False], [False, False])
    """
    known_B = group_B != NO_GROUP
    other_BB: npt.NDArray[np.bool_] = (group_B[:, None] != group_B) & known_B
    return known_B & other_BB.any(axis=1)


def advice(outcome: TrainingOutcome, config: PretrainConfig) -> str | None:
    """What to do about a run whose weights were picked by a matching loss that has learned nothing."""
    if config.early_stop != "matching" or "matching_loss" not in no_better_than_chance(outcome.best):
        return None
    return (
        f"step {outcome.best_step:,} was picked by a matching loss that has learned nothing, so by chance; "
        'set early_stop = "contrastive" in [pretrain], or train longer'
    )


def products_of_stage1(
    parts: ProductParts, both_P: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and evaluation products of stage 1, given which have both modalities.

    Raises:
        ValueError: there are fewer than two of each.
    """
    train, evaluation = (np.flatnonzero(both_P & part_P) for part_P in parts)
    if len(train) < 2 or len(evaluation) < 2:
        raise ValueError(
            "stage 1 needs at least four products with an image and a title, got "
            f"{len(train) + len(evaluation)} of {len(both_P)}; without images start at stage 2 "
            "(`dashclip encode align` without --start)"
        )
    return train, evaluation
