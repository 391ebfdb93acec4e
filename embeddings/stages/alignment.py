"""Both encoders and the losses of stage 2 (paper section 3.2.2): PQC, and what goes beyond it.

Shapes: B tuples of a micro-batch, U distinct products and V distinct queries among them, K negatives and
C = 1 + K queries of a tuple, P products of the catalogue, Q queries, G products with an image, I image
tokens, H hidden width, D embedding width; for queries that pick products, C candidate products.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.products import ProductBatch
from embeddings.encoders.modules import ProductEncoder, QueryEncoder, freeze_first_layers
from embeddings.stages.completion_training import CompletionConfig
from embeddings.training.feature_queue import FeatureQueue
from embeddings.training.loop import OptimizerConfig
from embeddings.training.losses import NO_GROUP, InBatch, grade_loss, pqc_loss
from embeddings.training.ranks import Ranks

TEMPERATURE_RANGE = (0.01, 0.5)
#: A cosine times 10 minus 5 says the grade, at first; both move so many times as fast as weights do.
GRADE_START = (10.0, -5.0)
GRADE_PACE = 100.0

#: Which part of the product encoder stage 2 trains.
ProductSide = Literal["frozen", "projection", "grounded", "all"]


class AlignConfig(OptimizerConfig):
    """Stage 2. What the paper leaves open, with the defaults that docs/paper_map.md argues for."""

    #: "projection": the last linear layer; "grounded": the image-grounded text encoder, too; "all": the image
    #: encoder, too.
    product_side: ProductSide = "grounded"
    #: Of the query encoder; the paper freezes 8 of 12.
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    #: Cosines are divided by it before the softmax.
    temperature: Annotated[float, Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])] = 0.05
    #: Whether the temperature is trained as well.
    learn_temperature: bool = False
    #: Beyond the paper: the other queries of the rank's micro-batch as negatives, but for those with a grade
    #: above 0, in this or another spelling.
    in_batch_negatives: bool = False
    #: Beyond the paper: the positive query of each tuple also picks its product, among those of the batch and
    #: the last so many before; 0 leaves that loss out. Lookalikes, and products with at least the same grade
    #: for the query, are no negatives. Title queries pick from them, too. Each rank remembers its own.
    product_negatives: Annotated[int, Field(ge=0)] = 0
    #: Beyond the paper: weight of a second loss, for queries made from titles (`title_queries`): each product
    #: of the micro-batch picks its own. It needs no grades, and keeps rare words apart.
    title_query_weight: Annotated[float, Field(ge=0)] = 0.0
    #: Beyond the paper: weight of a further loss, by which a cosine says its pair's grade: binary
    #: cross-entropy of the scaled cosine against grade / 2, over as many graded pairs of any grade as there
    #: are tuples. PQC hardly reads pairs that people call irrelevant where a product has one graded query.
    graded_pairs_weight: Annotated[float, Field(ge=0)] = 0.0
    #: Beyond the paper: centre the vectors at the end, turn them to principal axes and raise the variances to
    #: the power 1 - `whitening_power` (module `whitening`).
    whitening: bool = True
    #: 1 makes all variances equal, 0 leaves them as they are.
    whitening_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    #: Beyond the paper: leading principal components that the whitening keeps, all if 0: what is trained
    #: wide is served, and read by rankers, narrow. A multiple of 4.
    kept_dims: Annotated[int, Field(ge=0, multiple_of=4)] = 0
    #: Beyond the paper: after that, learn to add what images say and titles leave out. For encoders with the
    #: fusion "completion".
    completion: CompletionConfig = CompletionConfig()

    @model_validator(mode="after")
    def _whitening_finds_what_is_kept(self) -> Self:
        if self.kept_dims and not self.whitening:
            raise ValueError(
                "kept_dims keeps components that whitening finds; set whitening = true, or kept_dims = 0"
            )
        return self


class GradedPairs(NamedTuple):
    """Graded pairs of a micro-batch: places among its distinct products and queries, and grades, (B,)."""

    product_B: Tensor
    query_B: Tensor
    grade_B: Tensor


class TitleQueries(NamedTuple):
    """A query made from the title of each distinct product.

    Token ids and mask, and the products' groups (none without a title), on the device; on the host those
    groups again, and which queries are one and the same.
    """

    ids_UT: Tensor
    mask_UT: Tensor
    group_U: Tensor
    host_group_U: npt.NDArray[np.int64]
    same_UU: npt.NDArray[np.bool_]


class AlignBatch(NamedTuple):
    """One micro-batch with each distinct product and query once."""

    products: ProductBatch
    #: Which of them are encoded together, and how many tokens their titles have at most.
    product_chunks: list[tuple[slice, int]]
    #: Image tokens of the products that have an image, when the image encoder is frozen; else None.
    image_GIH: Tensor | None
    #: Token ids and masks of the distinct queries, chunk by chunk, in the order of the query numbers.
    query_chunks: list[tuple[Tensor, Tensor]]
    #: Positions of a tuple's product and queries among the distinct ones; the positive query comes first.
    product_B: Tensor
    query_BC: Tensor
    #: On the host: places of the distinct products in the catalogue, and `product_B`. Looked up there, nobody
    #: has to wait for the device.
    host_index_U: npt.NDArray[np.int64]
    host_product_B: npt.NDArray[np.int64]
    #: The positive query's number in the relevance data, and its grade for the product.
    positive_B: npt.NDArray[np.int64]
    grade_B: npt.NDArray[np.int8]
    #: Tuples of the step over all ranks; of one micro-batch on average.
    total: float
    #: Whether a product may not have a query as an in-batch negative; None without in-batch negatives.
    relevant_BV: Tensor | None
    #: None without that loss.
    title_queries: TitleQueries | None
    #: None without their loss.
    graded: GradedPairs | None


class Candidates(NamedTuple):
    """Products that a query picks from: vectors, places in the catalogue and groups; -1 in empty places."""

    vectors_CD: Tensor
    product_C: npt.NDArray[np.int64]
    group_C: npt.NDArray[np.int64]


class Alignment(nn.Module):
    """Both encoders and the temperature; `forward` gives the PQC loss."""

    grade_start_2: Tensor

    def __init__(
        self,
        product: ProductEncoder,
        query: QueryEncoder,
        *,
        config: AlignConfig,
        group_P: npt.NDArray[np.int64],
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.product, self.query = product, query
        freeze_product_side(product, config.product_side)
        freeze_first_layers(query.text, config.frozen_layers)
        self.temperature = nn.Parameter(
            torch.tensor(config.temperature), requires_grad=config.learn_temperature
        )
        self.title_query_weight = config.title_query_weight
        self.graded_pairs_weight = config.graded_pairs_weight
        if config.graded_pairs_weight:
            #: Moves scale and shift of the cosine away from `GRADE_START`.
            self.grade_moves_2 = nn.Parameter(torch.zeros(2))
            self.register_buffer("grade_start_2", torch.tensor(GRADE_START), persistent=False)
        self.remembered = FeatureQueue(config.product_negatives, product.product_proj.out_features)
        #: Its groups once more on the host, where they are looked up; None until that is asked for.
        self._host_groups: HostGroups | None = None
        self.register_load_state_dict_post_hook(_forget_host_groups)
        self.ranks = ranks
        #: Grades by product and query; what it takes to know which remembered product is a negative.
        self.grade_PQ: sp.csr_matrix | None = None
        #: Lookalike groups of the catalogue.
        self.group_P = group_P

    def forward(self, batch: AlignBatch) -> dict[str, Tensor]:
        """The share of this rank in the loss of the global batch, times the ranks, since DDP averages."""
        product_UD, query_VD = self.vectors(batch)
        chosen_BCD = query_VD[batch.query_BC]
        value = self.ranks.count * pqc_loss(
            product_UD[batch.product_B],
            chosen_BCD[:, 0],
            chosen_BCD[:, 1:],
            temperature=self.temperature,
            in_batch=None if batch.relevant_BV is None else InBatch(query_VD, batch.relevant_BV),
            total_weight=batch.total,
        )
        found = {"pqc": value.detach(), "temperature": self.temperature.detach()}
        candidates = None
        if self.grade_PQ is not None or batch.title_queries is not None:
            candidates = self._candidates(batch, product_UD)
        if self.grade_PQ is not None and candidates is not None:
            picked = self._product_loss(candidates, query_VD, batch)
            value = value + picked
            found["products"] = picked.detach()
        if batch.title_queries is not None and candidates is not None:
            contrast = self._title_query_loss(candidates, product_UD, batch.title_queries)
            value = value + self.title_query_weight * contrast
            found["title_queries"] = contrast.detach()
        if batch.graded is not None:
            graded = self.ranks.count * self._graded_loss(batch.graded, product_UD, query_VD, batch.total)
            value = value + self.graded_pairs_weight * graded
            found["graded"] = graded.detach()
        if self.training:
            self.remembered.push(product_UD, product_UD, batch.products.index_B)
            if self._host_groups is not None:
                self._host_groups.push(batch.host_index_U)
        return {"loss": value, **found}

    def _candidates(self, batch: AlignBatch, product_UD: Tensor) -> Candidates:
        """The products of the batch, then the remembered ones; those have no gradient."""
        columns = self.remembered.columns(product_UD, product_UD, batch.products.index_B)
        vectors_CD = torch.cat([product_UD, columns.image_CD[len(product_UD) :].to(product_UD)])
        if self._host_groups is None:
            self._host_groups = HostGroups.of(self.remembered)
        product_C = np.concatenate([batch.host_index_U, self._host_groups.group_Q])
        group_C = self.group_P[product_C]
        group_C[product_C == NO_GROUP] = NO_GROUP
        return Candidates(vectors_CD, product_C, group_C)

    def _product_loss(self, candidates: Candidates, query_VD: Tensor, batch: AlignBatch) -> Tensor:
        """Each positive query picks its product among the candidates; mean in nats, times the ranks."""
        assert self.grade_PQ is not None
        grade_CB = self.grade_PQ[np.maximum(candidates.product_C, 0)][:, batch.positive_B].toarray()
        group_B = candidates.group_C[batch.host_product_B]
        excluded_BC = batch.grade_B[:, None] <= grade_CB.T
        excluded_BC |= (group_B[:, None] == candidates.group_C) | (candidates.group_C == NO_GROUP)
        picked = self._pick(
            candidates,
            query_VD[batch.query_BC[:, 0]],
            batch.product_B,
            excluded_BC,
            total_weight=batch.total,
        )
        return picked * self.ranks.count

    def _title_query_loss(self, candidates: Candidates, product_UD: Tensor, queries: TitleQueries) -> Tensor:
        """Each product picks the query made of its title, each such query its product; mean in nats.

        The product picks among the queries of the batch, the query among all candidates.
        """
        ids_UT, mask_UT, group_U, group, same_UU = queries
        query_UD = self.query(ids_UT, mask_UT)
        used_U = group_U != NO_GROUP
        own_U = torch.arange(len(group_U), device=group_U.device)
        # A query made of two titles asks for both products.
        is_one_UU = to_device(torch.from_numpy(same_UU), group_U.device)
        product_picks = pqc_loss(
            product_UD,
            query_UD,
            product_UD.new_zeros((len(own_U), 0, product_UD.shape[1])),
            temperature=self.temperature.detach(),
            weight_B=used_U.to(product_UD),
            in_batch=InBatch(query_UD, (group_U[:, None] == group_U) | ~used_U | is_one_UU),
        )
        excluded_UC = (group[:, None] == candidates.group_C) | (candidates.group_C == NO_GROUP)
        excluded_UC[:, : len(group)] |= same_UU
        query_picks = self._pick(candidates, query_UD, own_U, excluded_UC, weight_B=used_U.to(query_UD))
        return (product_picks + query_picks) / 2

    def _graded_loss(self, pairs: GradedPairs, product_UD: Tensor, query_VD: Tensor, total: float) -> Tensor:
        """Binary cross-entropy in nats of what the cosines of graded pairs say against what people said."""
        scale, shift = GRADE_PACE * self.grade_moves_2 + self.grade_start_2
        return grade_loss(
            product_UD[pairs.product_B],
            query_VD[pairs.query_B],
            pairs.grade_B,
            scale=scale,
            shift=shift,
            total_rows=total,
        )

    def _pick(
        self,
        candidates: Candidates,
        query_BD: Tensor,
        own_B: Tensor,
        excluded_BC: npt.NDArray[np.bool_],
        *,
        weight_B: Tensor | None = None,
        total_weight: float | None = None,
    ) -> Tensor:
        """PQC with the sides exchanged: each query picks candidate `own_B` out of those not excluded."""
        return pqc_loss(
            query_BD,
            candidates.vectors_CD[own_B],
            query_BD.new_zeros((len(query_BD), 0, query_BD.shape[1])),
            temperature=self.temperature,
            weight_B=weight_B,
            in_batch=InBatch(
                candidates.vectors_CD, to_device(torch.from_numpy(excluded_BC), query_BD.device)
            ),
            total_weight=total_weight,
        )

    def vectors(self, batch: AlignBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors of the distinct products (U, D) and queries (V, D)."""
        parts, images = [], 0
        for rows, tokens in batch.product_chunks:
            chunk = batch.products.take(rows, tokens=tokens)
            if batch.image_GIH is None:
                parts.append(self.product(chunk))
                continue
            with_image = chunk.image_rows()
            image_GIH = batch.image_GIH[images : images + len(with_image)]
            images += len(with_image)
            parts.append(self.product.embed(chunk, image_GIH, with_image))
        return torch.cat(parts), torch.cat([self.query(ids, mask) for ids, mask in batch.query_chunks])


@dataclass
class HostGroups:
    """The groups of a `FeatureQueue` on the host, pushed alike."""

    group_Q: npt.NDArray[np.int64]
    next_slot: int

    @classmethod
    def of(cls, queue: FeatureQueue) -> Self:
        """What the queue holds now; waits for the device."""
        return cls(queue.group_Q.cpu().numpy().copy(), int(queue.next_slot))

    def push(self, group_B: npt.NDArray[np.int64]) -> None:
        """See `FeatureQueue.push`."""
        size = len(self.group_Q)
        if not size:
            return
        new_R = group_B[group_B != NO_GROUP][-size:]
        self.group_Q[(self.next_slot + np.arange(len(new_R))) % size] = new_R
        self.next_slot = (self.next_slot + len(new_R)) % size


def _forget_host_groups(module: nn.Module, _keys: Any) -> None:
    """A checkpoint has brought another queue."""
    assert isinstance(module, Alignment)
    module._host_groups = None


def freeze_product_side(product: ProductEncoder, side: ProductSide) -> None:
    """Leave trainable what `side` names; the heads of stage 1 have no part in stage 2."""
    product.requires_grad_(False)
    trained = {
        "frozen": (),
        "projection": (product.product_proj,),
        "grounded": (product.product_proj, product.text),
        "all": (product.product_proj, product.text, product.vision),
    }[side]
    for part in trained:
        part.requires_grad_(True)
    if product.fusion == "completion":  # images wait for the end of stage 2
        product.vision.requires_grad_(False)
        for name, parameter in product.text.named_parameters():
            if "crossattention" in name:
                parameter.requires_grad_(False)
