"""Stage 2: aligning the query encoder and the product encoder by PQC (paper section 3.2.2).

Tuples (product, positive query, K negative queries) come from the relevance data. A step encodes each
distinct product and query of its batch once, in chunks of alike length. With a frozen image encoder the
image tokens of the catalogue are computed once, if they fit.

Shapes: B tuples of a micro-batch, U distinct products and V distinct queries among them, K negatives and
C = 1 + K queries of a tuple, P products of the catalogue, G products with an image, I image tokens, H hidden
width, D embedding width; for queries that pick products, C candidate products.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.holdout import query_groups
from embeddings.catalog.products import HostFlags, ProductBatch, ProductCatalog
from embeddings.catalog.titles import title_query
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import MODERATE, Grades, TupleSet
from embeddings.stages.alignment import (
    TEMPERATURE_RANGE,
    AlignBatch,
    AlignConfig,
    Alignment,
    GradedPairs,
    TitleQueries,
)
from embeddings.training.evaluation import AT_CHANCE, ROWS
from embeddings.training.length_chunks import length_chunks
from embeddings.training.loop import rows_of_a_step
from embeddings.training.losses import NO_GROUP
from embeddings.training.prefetch import prefetch
from embeddings.training.ranks import Ranks, sum_over_ranks

#: Products whose images are encoded together.
IMAGE_CHUNK = 256
#: Image tokens of the catalogue are kept in memory up to this size.
IMAGE_CACHE_BYTES = 2 << 30
#: Validation tuples that are looked at, at most: enough for two digits of the loss.
VALIDATION_TUPLES = 20_000


@dataclass(frozen=True, eq=False)
class Tuples:
    """Tuples to train on and tuples to stop early by, from the same relevance data.

    Raises:
        ValueError: there are too few, or they are of two data sets.
    """

    train: TupleSet
    validation: TupleSet

    def __post_init__(self) -> None:
        if len(self.train) < 2 or not len(self.validation):
            raise ValueError(
                f"stage 2 needs at least two training tuples and one validation tuple, got "
                f"{len(self.train)} and {len(self.validation)}; more graded pairs are needed"
            )
        if not self.train.queries.equals(self.validation.queries):
            raise ValueError("training and validation tuples must come from the same relevance data")


class AlignTask:
    """Stage 2 as the training loop sees it."""

    title, rows_name = "stage 2", "tuples"

    def __init__(
        self,
        encoder: DashClipEncoder,
        catalog: ProductCatalog,
        tuples: Tuples,
        *,
        config: AlignConfig,
        grades: Grades | None = None,
        query_titles: Sequence[str] | None = None,
        validation_P: npt.NDArray[np.bool_] | None = None,
        trained_G: npt.NDArray[np.bool_] | None = None,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Prepare both sides; `grades` are needed for in-batch negatives, products and graded pairs alone.

        Args:
            trained_G: which of `grades` are of products and queries to train on; graded pairs come from them.
            query_titles: what title queries are made of, when the catalogue was opened without its titles.
            validation_P: products that no stage is trained on; those of validation tuples are measured apart.

        Raises:
            ValueError: there is no query encoder, grades are missing, or the config does not fit the
                encoder's fusion.
        """
        if encoder.query is None:
            raise ValueError("stage 2 needs a query encoder; call with_query_encoder() first")
        if (config.in_batch_negatives or config.product_negatives) and grades is None:
            raise ValueError(
                "in_batch_negatives and product_negatives need the grades, to leave relevant pairs out"
            )
        self.graded_G3 = np.empty((0, 3), np.int64)
        if config.graded_pairs_weight:
            self.graded_G3 = _graded_to_train_on(grades, trained_G)
        if encoder.config.fusion == "completion":
            _check_completing(config, catalog)
        self.encoder, self.catalog, self.tuples, self.config = encoder, catalog, tuples, config
        self.device, self.ranks = device, ranks
        self.query_titles = catalog.titles if query_titles is None else query_titles
        self.validation_P = np.zeros(len(catalog), bool) if validation_P is None else validation_P
        #: Spellings of one query have one group.
        self.group_Q = query_groups(tuples.train.queries, encoder.query_tokens)
        grade_PQ = None
        if (config.in_batch_negatives or config.product_negatives) and grades is not None:
            grade_PQ = _grade_matrix(grades, self.group_Q, len(catalog))
        self.relevant_PQ = None
        if config.in_batch_negatives and grade_PQ is not None:
            self.relevant_PQ = grade_PQ >= MODERATE
        self.batch_rows = rows_of_a_step(config, len(tuples.train), ranks=ranks)
        self.steps_per_epoch = len(tuples.train) // self.batch_rows
        self.module = Alignment(
            encoder.product, encoder.query, config=config, group_P=catalog.group_P, ranks=ranks
        ).to(device)
        if config.product_negatives:
            self.module.grade_PQ = grade_PQ
        #: Why the image of a product could not be read; such a product counts as one without an image.
        self.unreadable: dict[int, str] = {}
        tokens = encoder.query_tokens(tuples.train.queries.to_pylist())
        self.query_tokens = (tokens.ids_BT, tokens.mask_BT)
        self.query_lengths = tokens.mask_BT.sum(dim=1).numpy()
        self.titles = catalog.only(("text",))
        self.image_slot_P = np.full(len(catalog), -1, np.int64)
        self.image_cache = self._cache_image_tokens() if config.product_side != "all" else None

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Hold the temperature in its range."""
        self.module.temperature.clamp_(*TEMPERATURE_RANGE)

    def micro_batches(self, epoch: int, first_step: int) -> Generator[AlignBatch, None, None]:
        """Tuples in an order drawn for this epoch; the ragged rest of it waits for another epoch."""
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.tuples.train))
        order_G = np.random.default_rng((self.config.seed, epoch, 1)).permutation(len(self.graded_G3))
        accumulation = self.config.accumulation

        def load() -> Iterator[AlignBatch]:
            for step in range(first_step, self.steps_per_epoch):
                places = np.arange(step * self.batch_rows, (step + 1) * self.batch_rows)
                for micro in np.split(places, accumulation):
                    own = micro[self.ranks.slice_of(len(micro))]
                    yield self._batch(
                        self.tuples.train,
                        order[own],
                        total=len(places) / accumulation,
                        draw=(epoch, step),
                        graded_B3=self.graded_G3[order_G[own % len(order_G)]] if len(order_G) else None,
                    )

        yield from prefetch(load())

    def evaluate(self) -> dict[str, float]:
        """Loss on the validation tuples, and how often a product prefers its positive query to all others.

        The loss is the paper's, at the temperature of the config whatever is learned, so that evaluations
        compare. What is new in all these tuples is the query; how often the right one comes first is said
        again for those tuples whose product is new, too. By chance each distinct query is as likely.
        """
        count = min(len(self.tuples.validation), VALIDATION_TUPLES)
        rows_N = np.linspace(0, len(self.tuples.validation) - 1, count).astype(np.int64)
        sums = torch.zeros(6, dtype=torch.float64)
        for number, start in enumerate(range(0, count, self.batch_rows)):
            if number % self.ranks.count != self.ranks.rank:
                continue
            rows = rows_N[start : start + self.batch_rows]
            batch = self._batch(self.tuples.validation, rows, total=float(len(rows)))
            product_UD, query_VD = (
                vectors.to(self.module.temperature.dtype) for vectors in self.module.vectors(batch)
            )
            with torch.autocast(self.device.type, enabled=False):
                logits_BC = torch.einsum("bd,bcd->bc", product_UD[batch.product_B], query_VD[batch.query_BC])
            logits_BC = logits_BC / self.config.temperature
            loss = -logits_BC.log_softmax(dim=1)[:, 0].sum()
            first_B = (logits_BC[:, :1] > logits_BC[:, 1:]).all(dim=1).double().cpu()
            queries_BC = batch.query_BC.sort(dim=1).values
            distinct_B = 1 + (queries_BC[:, 1:] != queries_BC[:, :-1]).sum(dim=1)
            chance_B = 1 / distinct_B.double().cpu()
            products = batch.products.index_B[batch.product_B].cpu().numpy()
            new_B = torch.from_numpy(self.validation_P[products]).double()
            sums += torch.stack(
                [
                    loss.double().cpu(),
                    first_B.sum(),
                    chance_B.sum(),
                    new_B.sum(),
                    (new_B * first_B).sum(),
                    (new_B * chance_B).sum(),
                ]
            )
        loss_sum, first, chance, new, new_first, new_chance = sum_over_ranks(
            sums.to(self.device), self.ranks
        ).tolist()
        of_new = {}
        if new:
            of_new = {
                "positive_first_new_products": new_first / new,
                f"positive_first_new_products_{ROWS}": new,
                f"positive_first_new_products{AT_CHANCE}": new_chance / new,
            }
        return {
            "loss": loss_sum / count,
            "positive_first": first / count,
            ROWS: float(count),
            f"loss{AT_CHANCE}": math.log(self.tuples.validation.tuples_NC.shape[1] - 1),
            f"positive_first{AT_CHANCE}": chance / count,
            **of_new,
        }

    def _batch(
        self,
        tuples: TupleSet,
        rows: npt.NDArray[np.int64],
        *,
        total: float,
        draw: tuple[int, int] | None = None,
        graded_B3: npt.NDArray[np.int64] | None = None,
    ) -> AlignBatch:
        """One micro-batch; `draw` seeds the queries made of titles, None makes none (an evaluation)."""
        rows = np.sort(rows)  # in the order of the file
        tuple_BC = np.asarray(tuples.tuples_NC[rows], dtype=np.int64)
        pair_B3 = np.empty((0, 3), np.int64) if graded_B3 is None else graded_B3
        product_U, product_B = np.unique(np.concatenate([tuple_BC[:, 0], pair_B3[:, 0]]), return_inverse=True)
        query_V, query_BC = np.unique(
            np.concatenate([tuple_BC[:, 1:].ravel(), pair_B3[:, 1]]), return_inverse=True
        )
        query_BC, pair_query_B = np.split(query_BC, [len(rows) * (tuple_BC.shape[1] - 1)])
        chunks, place_V = self._query_chunks(query_V)
        products, image_GIH, place_U, product_chunks = self._products(product_U)
        product_B, pair_product_B = np.split(place_U[product_B], [len(rows)])
        title_queries = None
        if draw is not None and self.config.title_query_weight > 0:
            title_queries = self._title_queries(products, draw)
        relevant_BV = None
        if self.relevant_PQ is not None:
            group_V = np.unique(self.group_Q[query_V], return_inverse=True)[1]
            taken_BG = np.zeros((len(rows), len(query_V)), dtype=bool)
            np.put_along_axis(taken_BG, group_V[query_BC.reshape(len(rows), -1)], True, axis=1)
            known_BV = self.relevant_PQ[tuple_BC[:, 0]][:, query_V].toarray() | taken_BG[:, group_V]
            relevant_BV = self._sent(known_BV[:, np.argsort(place_V)])
        return AlignBatch(
            products=products.to(self.device),
            product_chunks=product_chunks,
            image_GIH=image_GIH,
            query_chunks=chunks,
            product_B=self._sent(product_B),
            query_BC=self._sent(place_V[query_BC.reshape(len(rows), -1)]),
            host_index_U=products.index_B.numpy(),
            host_product_B=product_B,
            positive_B=tuple_BC[:, 1],
            grade_B=np.asarray(tuples.grades_NC[rows, 0]),
            total=total,
            relevant_BV=relevant_BV,
            title_queries=title_queries,
            graded=None
            if graded_B3 is None
            else GradedPairs(*map(self._sent, (pair_product_B, place_V[pair_query_B], pair_B3[:, 2]))),
        )

    def _title_queries(self, products: ProductBatch, draw: tuple[int, int]) -> TitleQueries:
        """A query made from each product's title."""
        rows = products.index_B.tolist()
        queries = [
            title_query(self.query_titles[row], np.random.default_rng((self.config.seed, *draw, row)))
            for row in rows
        ]
        tokens = self.encoder.query_tokens(queries)
        group_U = torch.from_numpy(self.catalog.group_P[rows]).masked_fill(~tokens.known_B, NO_GROUP)
        return TitleQueries(
            ids_UT=to_device(tokens.ids_BT, self.device),
            mask_UT=to_device(tokens.mask_BT, self.device),
            group_U=to_device(group_U, self.device),
            host_group_U=group_U.numpy(),
            same_UU=(tokens.ids_BT[:, None] == tokens.ids_BT).all(dim=2).numpy(),
        )

    def _sent(self, values: npt.NDArray[Any]) -> Tensor:
        """An array as a tensor on the device."""
        return to_device(torch.from_numpy(values), self.device)

    def _query_chunks(
        self, query_V: npt.NDArray[np.int64]
    ) -> tuple[list[tuple[Tensor, Tensor]], npt.NDArray[np.int64]]:
        """Token ids of the queries in chunks of alike length, and where each query went."""
        order_V, parts = length_chunks(self.query_lengths[query_V])
        chunks = []
        for rows, width in parts:
            part = query_V[order_V[rows]]
            ids_VT, mask_VT = (to_device(of_QT[part, :width], self.device) for of_QT in self.query_tokens)
            chunks.append((ids_VT, mask_VT))
        place_V = np.argsort(order_V)
        return chunks, place_V

    def _products(
        self, product_U: npt.NDArray[np.int64]
    ) -> tuple[ProductBatch, Tensor | None, npt.NDArray[np.int64], list[tuple[slice, int]]]:
        """The products by length of title, cached image tokens, where each product went, and the chunks."""
        if self.image_cache is None:
            products = self.encoder.load_batch(self.catalog, product_U, unreadable=self.unreadable)
        else:
            products = self.encoder.load_batch(self.titles, product_U, image_size=1)
        order_U, chunks = length_chunks(products.mask_BT.sum(dim=1).numpy())
        products = products.take(torch.from_numpy(order_U))
        if self.image_cache is None:
            return products, None, np.argsort(order_U), chunks
        slot_U = self.image_slot_P[product_U[order_U]]
        image_GIH = to_device(self.image_cache[slot_U[slot_U >= 0]], self.device)
        flags = HostFlags(slot_U >= 0, products.has_title_B.numpy())
        products = replace(products, has_image_B=torch.from_numpy(flags.has_image_B), on_host=flags)
        return products, image_GIH, np.argsort(order_U), chunks

    @torch.no_grad()
    def _cache_image_tokens(self) -> Tensor | None:
        """Image tokens of the products of all tuples and pairs, when that encoder is frozen and they fit.

        Products without an image take no room: among any number of those the cache is empty, and no pixels
        are made for them.
        """
        config = self.encoder.config
        of_tuples = [part.tuples_NC[:, 0] for part in (self.tuples.train, self.tuples.validation)]
        used = np.unique(np.concatenate([*of_tuples, self.graded_G3[:, 0]]))
        shown_P = np.array([path is not None for path in self.catalog.image_paths], bool)
        used = used[shown_P[used]]
        tokens = config.num_image_tokens
        if len(used) * tokens * config.vision_hidden_dim * 4 > IMAGE_CACHE_BYTES:
            return None
        vision, parts = self.encoder.product.eval(), []
        with_image: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(used), IMAGE_CHUNK):
            index = used[start : start + IMAGE_CHUNK].astype(np.int64)
            batch = self.encoder.load_batch(self.catalog, index, unreadable=self.unreadable)
            has_image_B = batch.has_image_B.numpy()
            with_image.append(index[has_image_B])
            if has_image_B.any():
                pixels = batch.pixels_BCHW[batch.has_image_B].to(self.device)
                parts.append(vision.image_tokens(pixels).cpu())
        slots = np.concatenate([*with_image, np.empty(0, np.int64)])
        self.image_slot_P[slots] = np.arange(len(slots))
        return torch.cat(parts) if parts else torch.zeros((0, tokens, config.vision_hidden_dim))


def check_product_side(config: AlignConfig) -> None:
    """Images have no part in the training of stage 2 if they complete titles afterwards.

    Raises:
        ValueError: the config gives them one.
    """
    if config.product_side == "all":
        raise ValueError(
            'with the fusion "completion", stage 2 trains on titles alone: set product_side to "grounded", '
            'or choose fusion = "grounded" in [architecture]'
        )


def _check_completing(config: AlignConfig, catalog: ProductCatalog) -> None:
    """An encoder whose images complete titles needs titles, and trains on them alone.

    Raises:
        ValueError: the config or the catalogue does not allow that.
    """
    check_product_side(config)
    if not any(catalog.titles):
        raise ValueError(
            'the fusion "completion" completes titles, and no product has one; choose fusion = "grounded" in '
            "[architecture]"
        )


def _graded_to_train_on(
    grades: Grades | None, trained_G: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.int64]:
    """Product, query and grade of the pairs to train on, (G, 3).

    Raises:
        ValueError: there are none, or nobody said which they are.
    """
    if grades is None or trained_G is None:
        raise ValueError("graded_pairs_weight needs the grades, and which of them are to train on")
    columns = (grades.product_G, grades.query_G, grades.grade_G)
    graded_G3 = np.stack([column[trained_G].astype(np.int64) for column in columns], axis=1)
    if not len(graded_G3):
        raise ValueError(
            "graded_pairs_weight is set, and no graded pair is of a query and a product to train on; grade "
            "more pairs, or set it to 0"
        )
    return graded_G3


def _grade_matrix(grades: Grades, group_Q: npt.NDArray[np.int64], products: int) -> sp.csr_matrix:
    """Grades by product and query, (P, Q); 0 where there is none. Of spellings of a query the best counts."""
    group_G = group_Q[grades.query_G]
    order_G = np.lexsort((grades.grade_G, group_G, grades.product_G))
    product_G, group_G, grade_G = grades.product_G[order_G], group_G[order_G], grades.grade_G[order_G]
    last_G = (np.diff(product_G, append=-1) != 0) | (np.diff(group_G, append=-1) != 0)
    pairs = (product_G[last_G], group_G[last_G])
    best_PQ = sp.csr_matrix((grade_G[last_G], pairs), shape=(products, len(group_Q)))
    return best_PQ[:, group_Q]
