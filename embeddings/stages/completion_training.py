"""Training of the completion (module `completion`), the last step of stage 2.

Everything it needs is computed once: image features, and product vectors of whole and of shortened titles.
What is trained are small networks on those, so it takes seconds where the stages take minutes.

Shapes: N products, S shortened titles of each, D embedding width, V vocabulary, K components.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.catalog.titles import shortened_title
from embeddings.catalog.tokenizer import TokenBatch
from embeddings.encoders.completion import COMPONENTS, Completion
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import seeded
from embeddings.stages.product_parts import ProductParts
from embeddings.training.losses import rarity, title_token_loss
from features.artifacts import StrictModel
from features.progress import Progress, silent

#: Products that are learned from, at most: their vectors are held in memory.
COMPLETION_ROWS = 50_000
BATCH = 256
#: Products that principal components are computed from, at most.
COMPONENT_ROWS = 5_000
#: Products that it takes to learn a completion at all.
FEWEST_ROWS = 20
#: Below this mean standard deviation of the components, images do not differ.
SMALLEST_DEVIATION = 1e-5
#: Mean standard deviation of the components, so that they weigh as much as coordinates of unit vectors.
COMPONENT_DEVIATION = 0.07
WEIGHT_DECAY = 0.1


class CompletionConfig(StrictModel):
    """How the completion is trained."""

    #: Passes over the products.
    epochs: Annotated[int, Field(ge=1)] = 20
    #: Peak learning rate of AdamW.
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    #: Of the head that predicts tokens, which is trained before.
    token_learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    #: Chance that a word of a title is left out.
    drop_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    #: Shortened titles of each product.
    draws: Annotated[int, Field(ge=1)] = 8


class Completed(NamedTuple):
    """What the completion learned from, and what it does to products that no stage was trained on.

    The cosines are those of a vector made of the shortened title and the image with that of the whole title;
    None without products to learn from or to measure it on.
    """

    completion_products: int
    unreadable_images: int
    cosine_before: float | None = None
    cosine_after: float | None = None


class Vectors(NamedTuple):
    """What the locked encoders make of the products; `product_N` says which have image and title."""

    whole_ND: Tensor
    short_SND: Tensor
    image_ND: Tensor
    titles: TokenBatch
    product_N: npt.NDArray[np.int64]
    unreadable: int


def complete(
    encoder: DashClipEncoder,
    catalog: ProductCatalog,
    *,
    whole_titles: Sequence[str],
    parts: ProductParts,
    config: CompletionConfig,
    seed: int,
    progress: Progress = silent,
) -> Completed:
    """Give the product encoder a completion learned from the training products, if there are `FEWEST_ROWS`.

    Products without a readable image or without a title are left out. Of more than `COMPLETION_ROWS` a sample
    drawn by `seed` is taken. Beside a title, a completion that brings the validation products no nearer to
    their whole titles adds nothing.

    Args:
        catalog: images and titles that product embeddings are made of.
        whole_titles: titles to learn from, also when the catalogue was opened without its own.
        parts: which products to learn from, and which to measure what was learned on.
        progress: called with what is being done, and how many products or epochs of how many are done.

    Raises:
        ValueError: images have another part in the embeddings of this encoder.
    """
    if encoder.config.fusion != "completion":
        raise ValueError(f"only the fusion completion is completed, not {encoder.config.fusion}")
    encoder.product.completion = None
    shown_P = np.array([bool(path) for path in catalog.image_paths]) & np.array([*map(bool, whole_titles)])
    learned_N, aside_N = (np.flatnonzero(shown_P & part_P) for part_P in parts)
    generator = np.random.default_rng((seed, len(learned_N)))
    product_N = np.sort(
        np.concatenate([generator.permutation(learned_N)[:COMPLETION_ROWS], aside_N[:COMPLETION_ROWS]])
    )
    vectors = _vectors(encoder, catalog, whole_titles, product_N, config=config, seed=seed, tell=progress)
    aside_B = torch.from_numpy(parts.validation_P[vectors.product_N])
    evaluation, train = aside_B.nonzero().squeeze(1), (~aside_B).nonzero().squeeze(1)
    if len(train) < FEWEST_ROWS:
        return Completed(0, vectors.unreadable)
    shape = encoder.config
    completion = seeded(
        lambda: Completion(shape.vector_dim, shape.vocab_size, image_dim=shape.embedding_dim), seed
    ).to(encoder.device)
    cuda = [encoder.device] if encoder.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # dropout draws from the global state
        torch.manual_seed(seed)
        _learn_tokens(completion, vectors, train, config=config, generator=generator, tell=progress)
        foretold_NK = _set_components(completion, vectors.image_ND, train)
        _learn_networks(
            completion, vectors, foretold_NK, train, config=config, generator=generator, tell=progress
        )
    completion.eval()
    encoder.product.completion = completion.requires_grad_(False)
    if not len(evaluation):
        return Completed(len(train), vectors.unreadable)
    with torch.no_grad():
        short_ND = vectors.short_SND[0, evaluation]
        whole_ND = vectors.whole_ND[evaluation]
        completed_ND = completion.added(short_ND, foretold_NK[evaluation])
        before, after = (
            float(cosine_similarity(part_ND, whole_ND).mean()) for part_ND in (short_ND, completed_ND)
        )
        if after <= before:
            completion.forget_titles()
    return Completed(len(train), vectors.unreadable, before, after)


def learned_no_completion(counts: Mapping[str, float | None]) -> str | None:
    """What to say of a run whose images bring shortened titles no nearer to whole ones; else None."""
    before, after = counts.get("cosine_before"), counts.get("cosine_after")
    if before is None or after is None or after > before:
        return None
    return (
        "completion has learned nothing: with the image a shortened title has the cosine "
        f"{after:.4f} with the whole one, without it {before:.4f}. So images add nothing beside titles; they "
        "stand in where there is no title"
    )


@torch.no_grad()
def _vectors(
    encoder: DashClipEncoder,
    catalog: ProductCatalog,
    whole_titles: Sequence[str],
    product_N: npt.NDArray[np.int64],
    *,
    config: CompletionConfig,
    seed: int,
    tell: Progress,
) -> Vectors:
    """Encode whole and shortened titles of the products that have image and title."""
    product, shape = encoder.product.eval(), encoder.config

    def encoded(titles: list[str]) -> Tensor:
        tokens = encoder.title_tokens(titles)
        no_image_B = torch.zeros(len(titles), dtype=torch.bool)
        batch = ProductBatch(
            pixels_BCHW=torch.zeros(len(titles), 3, 1, 1),
            has_image_B=no_image_B,
            ids_BT=tokens.ids_BT,
            mask_BT=tokens.mask_BT,
            has_title_B=tokens.known_B,
            index_B=torch.arange(len(titles)),
        )
        return product(batch.to(encoder.device)).float()

    def shortened(row: int, draw: int) -> str:
        generator = np.random.default_rng((seed, draw, row))
        return shortened_title(catalog.titles[row], generator, drop_share=config.drop_share)

    whole = [torch.empty(0, shape.vector_dim, device=encoder.device)]
    image = [torch.empty(0, shape.embedding_dim, device=encoder.device)]
    short = [torch.empty(config.draws, 0, shape.vector_dim, device=encoder.device)]
    kept: list[int] = []
    unreadable: dict[int, str] = {}
    for start in range(0, len(product_N), BATCH):
        tell("completion, vectors", start, len(product_N))
        rows = product_N[start : start + BATCH]
        batch = encoder.load_batch(catalog, rows, unreadable=unreadable)
        texts = [whole_titles[row] for row in rows.tolist()]
        known_B = encoder.title_tokens(texts).known_B
        both = (batch.has_image_B & known_B).nonzero().squeeze(1)
        if not len(both):
            continue
        rows_here = rows[both.numpy()].tolist()
        pixels_BCHW = batch.pixels_BCHW[both].to(encoder.device)
        image.append(product.image_features(product.image_tokens(pixels_BCHW)).float())
        titles = [whole_titles[row] for row in rows_here]
        whole.append(encoded(titles))
        draws = [[shortened(row, draw) for row in rows_here] for draw in range(config.draws)]
        short.append(torch.stack([encoded(texts) for texts in draws]))
        kept += rows_here
    tell("completion, vectors", len(product_N), len(product_N))
    tokens = encoder.title_tokens([whole_titles[row] for row in kept])
    return Vectors(
        torch.cat(whole),
        torch.cat(short, dim=1),
        torch.cat(image),
        tokens,
        np.array(kept, np.int64),
        len(unreadable),
    )


def _learn_tokens(
    completion: Completion,
    vectors: Vectors,
    train: Tensor,
    *,
    config: CompletionConfig,
    generator: np.random.Generator,
    tell: Progress,
) -> None:
    """Fit the head: the tokens of a title from the features of its image."""
    device = vectors.image_ND.device
    ids_NT, mask_NT = vectors.titles.ids_BT, vectors.titles.mask_BT
    known = TokenBatch(ids_NT[train], mask_NT[train], vectors.titles.known_B[train])
    rarity_V = rarity(known, completion.token_head.out_features).to(device)
    ids_NT, mask_NT = ids_NT.to(device), mask_NT.to(device)

    def loss_of(rows: Tensor) -> Tensor:
        logits_BV = completion.token_logits(vectors.image_ND[rows])
        return title_token_loss(logits_BV, ids_NT[rows], mask_NT[rows], rarity_V).mean()

    _descend(
        completion.token_head,
        train,
        loss_of,
        epochs=config.epochs,
        learning_rate=config.token_learning_rate,
        generator=generator,
        after_epoch=functools.partial(tell, "completion, tokens"),
    )


def _learn_networks(
    completion: Completion,
    vectors: Vectors,
    foretold_NK: Tensor,
    train: Tensor,
    *,
    config: CompletionConfig,
    generator: np.random.Generator,
    tell: Progress,
) -> None:
    """Fit both networks: the vector of the whole title from the image, with a shortened title and alone."""

    def with_title(rows: Tensor) -> Tensor:
        draw = to_device(
            torch.from_numpy(generator.integers(len(vectors.short_SND), size=len(rows))), rows.device
        )
        return loss_of(vectors.short_SND[draw, rows], rows)

    def alone(rows: Tensor) -> Tensor:
        return loss_of(torch.zeros_like(vectors.whole_ND[rows]), rows)

    def loss_of(product_BD: Tensor, rows: Tensor) -> Tensor:
        completed_BD = completion.added(product_BD, foretold_NK[rows])
        return 1 - cosine_similarity(completed_BD, vectors.whole_ND[rows]).mean()

    completion.train()
    for network, loss, what in (
        (completion.beside_title, with_title, "completion, titles"),
        (completion.alone, alone, "completion, images"),
    ):
        _descend(
            network,
            train,
            loss,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            generator=generator,
            after_epoch=functools.partial(tell, what),
        )


@torch.no_grad()
def _set_components(completion: Completion, image_ND: Tensor, train: Tensor) -> Tensor:
    """Set the principal components of what the images predict, and give them for all products, (N, K)."""
    sample_NV = completion.roots(image_ND[train[:COMPONENT_ROWS]])
    mean_V = sample_NV.mean(dim=0)
    count = min(COMPONENTS, *sample_NV.shape)
    _, length_K, axis_VK = torch.svd_lowrank(sample_NV - mean_V, q=count, niter=4)
    deviation = length_K.mean() / len(sample_NV) ** 0.5
    completion.components.weight.zero_()
    if deviation > SMALLEST_DEVIATION:  # images that all predict the same say nothing
        completion.components.weight[:count] = axis_VK.T * (COMPONENT_DEVIATION / deviation)
    completion.components.bias.copy_(-(completion.components.weight @ mean_V))
    return torch.cat([completion.foretold(part) for part in image_ND.split(BATCH)])


def _descend(
    module: nn.Module,
    train: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    epochs: int,
    learning_rate: float,
    generator: np.random.Generator,
    after_epoch: Callable[[int, int], None],
) -> None:
    """AdamW over shuffled rows, with a rate that falls to zero."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    device = next(module.parameters()).device
    train = train.to(device)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs)
    for epoch in range(1, epochs + 1):
        order = to_device(torch.from_numpy(generator.permutation(len(train))), device)
        shuffled = train[order]
        for rows in shuffled.split(BATCH):
            optimizer.zero_grad()
            loss_of(rows).backward()
            optimizer.step()
        schedule.step()
        after_epoch(epoch, epochs)
