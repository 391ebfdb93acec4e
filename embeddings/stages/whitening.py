"""Whitening: what ends stage 2, folded into the two projections.

Contrastive losses compare similarities with each other, so they never see a part that all vectors share, and
short training leaves most of the variance to a few directions, such as the product type. Cosines then crowd
together near one, and brands and flavours hardly count. So the mean product and the mean query move to the
origin (Mu and Viswanath 2018), the axes become the principal axes of the products, and the variance of each
is raised to the power 1 - `power`: 0 only centres and rotates, 1 whitens (Su et al. 2021). Layers and format
stay as they are, and the first d coordinates are the d leading principal components, so that vectors may be
trained wider than they are kept.

Shapes: N rows, H state width, D embedding width, K dimensions kept of it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.training.losses import unit_vectors
from features.progress import Progress, silent

#: Products and queries that are looked at, at most; a mean of that many unit vectors is exact to 0.01.
WHITENING_ROWS = 10_000
#: Directions with less than this share of the largest variance are noise and are not blown up further.
SMALLEST_VARIANCE = 1e-3
BATCH = 256


class Whitening(NamedTuple):
    """What was found and changed.

    The length of a mean of unit vectors is 1 if all are equal and near 0 if they are centred. The effective
    dimensions of variances v are (sum v)^2 / sum v^2: D if all are equal, 1 if one has everything.
    """

    product_mean_length: float
    query_mean_length: float
    effective_dims_before: float
    effective_dims_after: float


@torch.no_grad()
def whiten(
    encoder: DashClipEncoder,
    catalog: ProductCatalog,
    *,
    product_N: npt.NDArray[np.int64],
    queries: list[str],
    power: float,
    kept: int | None = None,
    seed: int,
    progress: Progress = silent,
) -> Whitening:
    """Change both projections of `encoder` by what these products and queries look like.

    Vectors keep `kept` leading principal components, all if None.

    Products without image and title, unreadable images and queries without a known token are left out. Of
    more than `WHITENING_ROWS` a sample drawn by `seed` is taken.

    Raises:
        ValueError: there is no query encoder, nothing to take a mean over, or fewer components than `kept`.
    """
    if encoder.query is None:
        raise ValueError("whitening comes after stage 2; this encoder has no query encoder")
    wide = encoder.config.embedding_dim
    if kept is not None and kept > wide:
        raise ValueError(f"kept_dims ({kept}) must not exceed embedding_dim ({wide}), of which it is a part")
    generator = np.random.default_rng((seed, len(product_N), len(queries)))
    product_N = np.sort(generator.permutation(product_N)[:WHITENING_ROWS])
    chosen = np.sort(generator.permutation(len(queries))[:WHITENING_ROWS])
    product_ND = _projected_products(encoder, catalog, product_N, progress)
    query_ND = _projected_queries(encoder, [queries[row] for row in chosen.tolist()], progress)
    if not len(product_ND) or not len(query_ND):
        raise ValueError("whitening needs at least one product with an image or a title, and a known query")
    product_mean_D, query_mean_D = (unit_vectors(part_ND).mean(dim=0) for part_ND in (product_ND, query_ND))
    map_KD, before, after = whitening_map(unit_vectors(product_ND) - product_mean_D, power=power, kept=kept)
    for projection, mean_D, part_ND in (
        (encoder.product.product_proj, product_mean_D, product_ND),
        (encoder.query.query_proj, query_mean_D, query_ND),
    ):
        fold(projection, map_KD, mean_D * part_ND.norm(dim=1).mean())
    encoder.config = encoder.config.model_copy(update={"kept_dims": kept})
    return Whitening(float(product_mean_D.norm()), float(query_mean_D.norm()), before, after)


def whitening_map(
    centred_ND: Tensor, *, power: float, kept: int | None = None
) -> tuple[Tensor, float, float]:
    """The linear map of centred rows to principal axes with variances to the power 1 - `power`, (K, D).

    K is `kept`, the leading ones, or D. Over all of D it keeps the total variance. Also the effective
    dimensions before and after.
    """
    covariance_DD = centred_ND.double().T @ centred_ND.double() / len(centred_ND)
    variance_D, axis_DD = torch.linalg.eigh(covariance_DD)
    variance_D, axis_DD = variance_D.flip(0).clamp_min(0), axis_DD.flip(1)
    # An axis has no sign of its own; this one makes equal data give equal tables.
    largest_1D = axis_DD.gather(0, axis_DD.abs().argmax(dim=0, keepdim=True))
    axis_DD = axis_DD * largest_1D.sign()
    floor = float(variance_D[0]) * SMALLEST_VARIANCE or 1.0
    scale_D = (variance_D + floor) ** (-power / 2)
    changed_D = variance_D * scale_D**2
    if changed_D.sum() > 0:
        scale_D = scale_D * (variance_D.sum() / changed_D.sum()).sqrt()
    map_KD = (scale_D[:, None] * axis_DD.T)[:kept]
    return map_KD, _effective_dims(variance_D), _effective_dims(changed_D[:kept])


def fold(projection: nn.Linear, map_KD: Tensor, shift_D: Tensor) -> None:
    """Make `projection` give `map_KD` times (what it gave - `shift_D`)."""
    weight_DH, bias_D = projection.weight.double(), projection.bias.double()
    map_KD = map_KD.to(weight_DH)
    for name, value in (("weight", map_KD @ weight_DH), ("bias", map_KD @ (bias_D - shift_D.to(bias_D)))):
        old = getattr(projection, name)
        setattr(projection, name, nn.Parameter(value.to(old), requires_grad=old.requires_grad))
    projection.out_features = len(map_KD)


def _projected_products(
    encoder: DashClipEncoder, catalog: ProductCatalog, product_N: npt.NDArray[np.int64], tell: Progress
) -> Tensor:
    """Product embeddings before they are made unit vectors, float64, (N, D)."""
    encoder.product.eval()
    parts = [torch.empty(0, encoder.config.embedding_dim, dtype=torch.float64)]
    for start in range(0, len(product_N), BATCH):
        batch = encoder.load_batch(catalog, product_N[start : start + BATCH], unreadable={})
        known_B = batch.has_image_B | batch.has_title_B
        parts.append(encoder.product.projected(batch.to(encoder.device)).double().cpu()[known_B])
        tell("whitening, products", min(start + BATCH, len(product_N)), len(product_N))
    return torch.cat(parts)


def _projected_queries(encoder: DashClipEncoder, queries: list[str], tell: Progress) -> Tensor:
    """Query embeddings before they are made unit vectors, float64, (N, D)."""
    assert encoder.query is not None
    encoder.query.eval()
    parts = [torch.empty(0, encoder.config.embedding_dim, dtype=torch.float64)]
    for start in range(0, len(queries), BATCH):
        texts = queries[start : start + BATCH]
        tokens = encoder.query_tokens(texts)
        ids_BT, mask_BT = tokens.ids_BT.to(encoder.device), tokens.mask_BT.to(encoder.device)
        parts.append(encoder.query.projected(ids_BT, mask_BT).double().cpu()[tokens.known_B])
        tell("whitening, queries", min(start + BATCH, len(queries)), len(queries))
    return torch.cat(parts)


def _effective_dims(variance_D: Tensor) -> float:
    return float(variance_D.sum() ** 2 / (variance_D**2).sum().clamp_min(1e-300))
