"""Stage 1: continual pre-training of the product encoders on the catalogue (paper section 3.2.1).

Batches and evaluation of the module `pretraining`; early stop at the lowest matching (or contrastive) loss on
products kept aside. Products without image or title say nothing here and are left out, counted.
"""

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embeddings.catalog.images import AugmentationConfig, ImageUnreadable
from embeddings.catalog.products import ProductCatalog, load_batch, prefetch
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.stage1_model import PretrainBatch, PretrainConfig, Pretraining
from embeddings.training.loop import TrainingOutcome, rows_of_a_step
from embeddings.training.losses import CONSTANT_MATCHING_LOSS, NO_GROUP
from embeddings.training.ranks import Ranks, sum_over_ranks

#: Products that one another's images and titles are found among when a model is measured.
EVALUATION_CHUNK = 64


class PretrainTask:
    """Stage 1 as the training loop sees it."""

    title, rows_name = "stage 1", "products"

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
        tokens = encoder.tokenizer(catalog.titles, max_tokens=encoder.config.max_title_tokens)
        both_P = tokens.known_B.numpy() & np.array([path is not None for path in catalog.image_paths], bool)
        usable = np.flatnonzero(both_P & usable_P)
        self.left_out = int(len(catalog) - both_P.sum())
        self.train, self.evaluation = _split_by_group(usable, catalog.group_P, config=config)
        if len(self.train) < 2 or len(self.evaluation) < 2:
            raise ValueError(
                f"stage 1 needs at least four products with an image and a title, got {len(usable)} of "
                f"{len(catalog)}; without images start at stage 2 (`dashclip encode align` without --start)"
            )
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

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The online encoder and the temperature, without frozen layers."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

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
        rows = min(self.batch_rows, EVALUATION_CHUNK)

        def load() -> Iterator[PretrainBatch]:
            for number, start in enumerate(range(0, len(self.evaluation), rows)):
                if number % self.ranks.count == self.ranks.rank:
                    index = self.evaluation[start : start + rows]
                    yield self._batch(index, augmentation=None, seed=0, draw=number)

        sums = torch.zeros(6, dtype=torch.float64)
        for batch in self._on_device(load()):
            sums += self.module.measure(batch)
        sums = sum_over_ranks(sums.to(self.device), self.ranks)
        matching, correct, pairs, contrast, known, found = sums.tolist()
        if not known:
            raise ValueError(
                f"none of the {len(self.evaluation)} evaluation products of stage 1 has an image that can be "
                "read; check the image files of the data folder"
            )
        losses = {"matching": matching / pairs, "contrastive": contrast / known}
        return {
            "loss": losses[self.config.early_stop],
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "matching_accuracy": correct / pairs,
            "image_finds_title": found / known,
        }

    def _on_device(self, batches: Iterator[PretrainBatch]) -> Generator[PretrainBatch, None, None]:
        for products, group_B, draw in prefetch(batches):
            yield PretrainBatch(products.to(self.device), group_B.to(self.device), draw)

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
        complete_B = products.has_image_B & products.has_title_B
        group_B = torch.from_numpy(self.catalog.group_P[index]).masked_fill(~complete_B, NO_GROUP)
        return PretrainBatch(products, group_B, draw)

    def _note_unreadable(self, product: int, error: ImageUnreadable) -> None:
        self.unreadable[product] = error.reason


def advice(outcome: TrainingOutcome, config: PretrainConfig) -> str | None:
    """What to do about a run whose weights were picked by a matching loss that has learned nothing."""
    if config.early_stop != "matching" or outcome.best["loss"] < CONSTANT_MATCHING_LOSS:
        return None
    return (
        f"matching has learned nothing: its lowest loss is {outcome.best['loss']:.4f}, and saying the same "
        f"to every pair costs {CONSTANT_MATCHING_LOSS:.4f}. So step {outcome.best_step:,} was picked by "
        'chance; set early_stop = "contrastive" in [pretrain], or train longer'
    )


def _split_by_group(
    usable: npt.NDArray[np.int64], group_P: npt.NDArray[np.int64], *, config: PretrainConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and evaluation products; a group is on one side only, and two or more are for evaluation.

    With `evaluation_within_groups` products are drawn one by one, and a group may be on both sides.
    """
    if config.evaluation_within_groups:
        wanted = min(config.evaluation_products, max(2, round(config.evaluation_share * len(usable))))
        shuffled = np.random.default_rng((config.seed, len(usable))).permutation(usable)
        return np.sort(shuffled[wanted:]), np.sort(shuffled[:wanted])
    groups = np.unique(group_P[usable])
    shuffled = np.random.default_rng((config.seed, len(groups))).permutation(groups)
    wanted = min(config.evaluation_products, max(2, round(config.evaluation_share * len(usable))))
    sizes = np.cumsum(np.bincount(group_P[usable])[shuffled])
    chosen = shuffled[: max(2, int(np.searchsorted(sizes, wanted)) + 1)]
    aside = np.isin(group_P[usable], chosen)
    return usable[~aside], usable[aside]
