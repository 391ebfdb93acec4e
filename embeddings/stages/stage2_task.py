"""Stage 2: aligning the query encoder and the product encoder by PQC (paper section 3.2.2).

Tuples (product, positive query, K negative queries) come from the relevance data. A step encodes each
distinct product and query of its batch once, queries in chunks of alike length. With a frozen image encoder
the image tokens of the catalogue are computed once, if they fit.

Shapes: B tuples of a micro-batch, U distinct products and V distinct queries among them, K negatives, P
products of the catalogue, I image tokens, H hidden width, D embedding width.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from embeddings.catalog.images import ImageUnreadable
from embeddings.catalog.products import ProductBatch, ProductCatalog, load_batch, prefetch
from embeddings.catalog.titles import title_query
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import MODERATE, Grades, TupleSet
from embeddings.stages.stage2_model import TEMPERATURE_RANGE, AlignBatch, AlignConfig, Alignment
from embeddings.training.loop import rows_of_a_step
from embeddings.training.losses import NO_GROUP
from embeddings.training.ranks import Ranks, sum_over_ranks

#: Queries that are encoded together; short ones are not padded to the longest of the batch.
QUERY_CHUNK = 256
#: Image tokens of the catalogue are kept in memory up to this size.
IMAGE_CACHE_BYTES = 2 << 30
#: Validation tuples that are looked at, at most: enough for two digits of the loss.
VALIDATION_TUPLES = 20_000


@dataclass(frozen=True, eq=False)
class Tuples:
    """Tuples to train on and tuples to stop early by."""

    train: TupleSet
    validation: TupleSet


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
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Prepare both sides; `grades` are needed for in-batch negatives alone.

        Args:
            query_titles: what title queries are made of, when the catalogue was opened without its titles.

        Raises:
            ValueError: there is no query encoder, too few tuples, grades are missing, or the config does not
                fit the encoder's fusion.
        """
        if encoder.query is None:
            raise ValueError("stage 2 needs a query encoder; call with_query_encoder() first")
        if len(tuples.train) < 2 or not len(tuples.validation):
            raise ValueError(
                f"stage 2 needs at least two training tuples and one validation tuple, got "
                f"{len(tuples.train)} and {len(tuples.validation)}; more graded pairs are needed"
            )
        if not tuples.train.queries.equals(tuples.validation.queries):
            raise ValueError("training and validation tuples must come from the same relevance data")
        if (config.in_batch_negatives or config.product_negatives) and grades is None:
            raise ValueError(
                "in_batch_negatives and product_negatives need the grades, to leave relevant pairs out"
            )
        if encoder.config.fusion == "completion":
            _check_completing(config, catalog)
        self.encoder, self.catalog, self.tuples, self.config = encoder, catalog, tuples, config
        self.device, self.ranks = device, ranks
        self.query_titles = catalog.titles if query_titles is None else query_titles
        self.relevant_PQ = (
            _relevant_matrix(grades, len(catalog)) if config.in_batch_negatives and grades else None
        )
        self.batch_rows = rows_of_a_step(config, len(tuples.train), ranks=ranks)
        self.steps_per_epoch = len(tuples.train) // self.batch_rows
        self.module = Alignment(
            encoder.product, encoder.query, config=config, group_P=catalog.group_P, ranks=ranks
        ).to(device)
        if config.product_negatives and grades is not None:
            self.module.grade_PQ = _grade_matrix(grades, len(catalog))
        #: Why the image of a product could not be read; such a product counts as one without an image.
        self.unreadable: dict[int, str] = {}
        tokens = encoder.tokenizer(
            tuples.train.queries.to_pylist(), max_tokens=encoder.config.max_query_tokens
        )
        self.query_tokens = (tokens.ids_BT, tokens.mask_BT)
        self.query_lengths = tokens.mask_BT.sum(dim=1).numpy()
        self.titles = replace(catalog, image_paths=[None] * len(catalog))
        self.image_slot_P = np.full(len(catalog), -1, np.int64)
        self.image_cache = self._cache_image_tokens() if config.product_side != "all" else None

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the config trains."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Hold the temperature in its range."""
        self.module.temperature.clamp_(*TEMPERATURE_RANGE)

    def micro_batches(self, epoch: int, first_step: int) -> Generator[AlignBatch, None, None]:
        """Tuples in an order drawn for this epoch; the ragged rest of it waits for another epoch."""
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.tuples.train))
        accumulation = self.config.accumulation

        def load() -> Iterator[AlignBatch]:
            for step in range(first_step, self.steps_per_epoch):
                rows = order[step * self.batch_rows : (step + 1) * self.batch_rows]
                for micro in np.split(rows, accumulation):
                    own = micro[self.ranks.slice_of(len(micro))]
                    yield self._batch(
                        self.tuples.train, own, total=len(rows) / accumulation, draw=(epoch, step)
                    )

        yield from prefetch(load())

    def evaluate(self) -> dict[str, float]:
        """Loss on the validation tuples, and how often a product prefers its positive query to all others.

        The loss is the paper's, at the temperature of the config whatever is learned, so that evaluations
        compare.
        """
        count = min(len(self.tuples.validation), VALIDATION_TUPLES)
        rows_N = np.linspace(0, len(self.tuples.validation) - 1, count).astype(np.int64)
        sums = torch.zeros(2, dtype=torch.float64)
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
            first = (logits_BC[:, :1] > logits_BC[:, 1:]).all(dim=1).sum()
            sums += torch.tensor([float(loss), float(first)], dtype=torch.float64)
        loss_sum, first_sum = sum_over_ranks(sums.to(self.device), self.ranks).tolist()
        return {"loss": loss_sum / count, "positive_first": first_sum / count}

    def _batch(
        self,
        tuples: TupleSet,
        rows: npt.NDArray[np.int64],
        *,
        total: float,
        draw: tuple[int, int] | None = None,
    ) -> AlignBatch:
        """One micro-batch; `draw` seeds the queries made of titles, None makes none (an evaluation)."""
        rows = np.sort(rows)  # in the order of the file
        tuple_BC = np.asarray(tuples.tuples_NC[rows], dtype=np.int64)
        product_U, product_B = np.unique(tuple_BC[:, 0], return_inverse=True)
        query_V, query_BC = np.unique(tuple_BC[:, 1:], return_inverse=True)
        chunks, place_V = self._query_chunks(query_V)
        products, image_GIH = self._products(product_U)
        title_queries = None
        if draw is not None and self.config.title_query_weight > 0:
            title_queries = self._title_queries(products, draw)
        relevant_BV = None
        if self.relevant_PQ is not None:
            taken_BV = np.zeros((len(rows), len(query_V)), dtype=bool)
            np.put_along_axis(taken_BV, query_BC.reshape(len(rows), -1), True, axis=1)
            known_BV = self.relevant_PQ[tuple_BC[:, 0]][:, query_V].toarray() | taken_BV
            relevant_BV = torch.from_numpy(known_BV[:, np.argsort(place_V)]).to(self.device)
        return AlignBatch(
            products=products.to(self.device),
            image_GIH=image_GIH,
            query_chunks=chunks,
            product_B=torch.from_numpy(product_B).to(self.device),
            query_BC=torch.from_numpy(place_V[query_BC.reshape(len(rows), -1)]).to(self.device),
            positive_B=tuple_BC[:, 1],
            grade_B=np.asarray(tuples.grades_NC[rows, 0]),
            total=total,
            relevant_BV=relevant_BV,
            title_queries=title_queries,
        )

    def _title_queries(self, products: ProductBatch, draw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids and mask of a query made from each product's title, and the products' groups."""
        rows = products.index_B.tolist()
        queries = [
            title_query(self.query_titles[row], np.random.default_rng((self.config.seed, *draw, row)))
            for row in rows
        ]
        tokens = self.encoder.tokenizer(queries, max_tokens=self.encoder.config.max_query_tokens)
        group_U = torch.from_numpy(self.catalog.group_P[rows]).masked_fill(~tokens.known_B, NO_GROUP)
        return tokens.ids_BT.to(self.device), tokens.mask_BT.to(self.device), group_U.to(self.device)

    def _query_chunks(
        self, query_V: npt.NDArray[np.int64]
    ) -> tuple[list[tuple[Tensor, Tensor]], npt.NDArray[np.int64]]:
        """Token ids of the queries in chunks of alike length, and where each query went."""
        length_V = self.query_lengths[query_V]
        order_V = np.argsort(length_V, kind="stable")
        place_V = np.empty(len(query_V), np.int64)
        place_V[order_V] = np.arange(len(query_V))
        chunks = []
        for start in range(0, len(query_V), QUERY_CHUNK):
            part = query_V[order_V[start : start + QUERY_CHUNK]]
            width = int(self.query_lengths[part].max())
            ids_VT, mask_VT = (tokens_QT[part, :width].to(self.device) for tokens_QT in self.query_tokens)
            chunks.append((ids_VT, mask_VT))
        return chunks, place_V

    def _products(self, product_U: npt.NDArray[np.int64]) -> tuple[ProductBatch, Tensor | None]:
        products = load_batch(
            self.catalog if self.image_cache is None else self.titles,
            self.encoder.tokenizer,
            product_U,
            image_size=self.encoder.config.image_size if self.image_cache is None else 1,
            max_title_tokens=self.encoder.config.max_title_tokens,
            unreadable=self._note_unreadable,
        )
        if self.image_cache is None:
            return products, None
        slot_U = self.image_slot_P[product_U]
        image_GIH = self.image_cache[slot_U[slot_U >= 0]].to(self.device)
        return replace(products, has_image_B=torch.from_numpy(slot_U >= 0)), image_GIH

    @torch.no_grad()
    def _cache_image_tokens(self) -> Tensor | None:
        """Image tokens of the products of all tuples, when the image encoder is frozen and they fit."""
        config = self.encoder.config
        used = np.unique(
            np.concatenate([part.tuples_NC[:, 0] for part in (self.tuples.train, self.tuples.validation)])
        )
        tokens = config.num_image_tokens
        if len(used) * tokens * config.vision_hidden_dim * 4 > IMAGE_CACHE_BYTES:
            return None
        vision, parts = self.encoder.product.eval(), []
        with_image: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(used), QUERY_CHUNK):
            index = used[start : start + QUERY_CHUNK].astype(np.int64)
            batch = load_batch(
                self.catalog,
                self.encoder.tokenizer,
                index,
                image_size=config.image_size,
                max_title_tokens=config.max_title_tokens,
                unreadable=self._note_unreadable,
            )
            has_image_B = batch.has_image_B.numpy()
            with_image.append(index[has_image_B])
            if has_image_B.any():
                pixels = batch.pixels_BCHW[batch.has_image_B].to(self.device)
                parts.append(vision.image_tokens(pixels).cpu())
        self.image_slot_P[np.concatenate(with_image)] = np.arange(sum(map(len, with_image)))
        return torch.cat(parts) if parts else torch.zeros((0, tokens, config.vision_hidden_dim))

    def _note_unreadable(self, product: int, error: ImageUnreadable) -> None:
        self.unreadable[product] = error.reason


def _check_completing(config: AlignConfig, catalog: ProductCatalog) -> None:
    """Images have no part in the training of stage 2 if they complete titles afterwards.

    Raises:
        ValueError: the config gives them one, or there are no titles.
    """
    if config.product_side == "all":
        raise ValueError(
            'with the fusion "completion", stage 2 trains on titles alone: set product_side to "grounded", '
            'or choose fusion = "grounded" in [architecture]'
        )
    if not any(catalog.titles):
        raise ValueError(
            'the fusion "completion" completes titles, and no product has one; choose fusion = "grounded" in '
            "[architecture]"
        )


def _relevant_matrix(grades: Grades, products: int) -> sp.csr_matrix:
    """True where a product has a query with a grade above 0, (P, Q)."""
    relevant_G = grades.grade_G >= MODERATE
    pairs = (grades.product_G[relevant_G], grades.query_G[relevant_G])
    ones = np.ones(int(relevant_G.sum()), dtype=bool)
    return sp.csr_matrix((ones, pairs), shape=(products, len(grades.queries)))


def _grade_matrix(grades: Grades, products: int) -> sp.csr_matrix:
    """Grades by product and query, (P, Q); 0 where there is none."""
    pairs = (grades.product_G, grades.query_G)
    return sp.csr_matrix((grades.grade_G, pairs), shape=(products, len(grades.queries)))
