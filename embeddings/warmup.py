"""Text warm-up: what an encoder without published weights does first.

The paper starts from BLIP, whose text encoder knows language. From scratch, a few thousand titles and graded
pairs are too few to learn even that equal words are equal. So titles are contrasted with queries made from
them (`title_queries`), in the batch and both ways: InfoNCE, with lookalike products left out.

Shapes: B products, T tokens, D embedding width.
"""

from collections.abc import Generator, Iterator
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from embeddings.catalog import ProductCatalog, prefetch
from embeddings.dashclip import DashClipEncoder
from embeddings.distributed import Ranks
from embeddings.encoders import ProductEncoder
from embeddings.losses import Columns, itc_loss
from embeddings.title_queries import title_query
from embeddings.tokenizer import TokenBatch
from embeddings.training import OptimizerConfig


class WarmupConfig(OptimizerConfig):
    """The text warm-up."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    #: Share of products kept aside, to stop at the lowest loss.
    evaluation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05


class WarmupBatch(NamedTuple):
    """Titles, queries made of them, and the groups that are no negatives of each other."""

    titles: TokenBatch
    queries: TokenBatch
    group_B: Tensor


class TextWarmup(nn.Module):
    """The text encoder with its projection; `forward` gives the loss."""

    def __init__(self, product: ProductEncoder, *, temperature: float) -> None:
        super().__init__()
        self.product = product
        product.requires_grad_(False)
        for name, parameter in product.text.named_parameters():
            parameter.requires_grad_("crossattention" not in name)
        product.text_proj.requires_grad_(True)
        self.temperature = temperature

    def forward(self, batch: WarmupBatch) -> dict[str, Tensor]:
        """InfoNCE between titles and their queries, in nats."""
        title_BD, query_BD = (
            self.product.text_features(self.product.text_tokens(tokens.ids_BT, tokens.mask_BT)).float()
            for tokens in (batch.titles, batch.queries)
        )
        loss = itc_loss(
            title_BD,
            query_BD,
            Columns(title_BD, query_BD, batch.group_B),
            positive_B=torch.arange(len(title_BD), device=title_BD.device),
            temperature=self.temperature,
            alpha=0.0,
        ).loss
        return {"loss": loss}


class WarmupTask:
    """The warm-up as the training loop sees it."""

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
        """Split the usable products that have a title.

        Raises:
            ValueError: fewer than four products have a title.
        """
        titled_P = np.array([bool(title) for title in catalog.titles])
        usable = np.flatnonzero(titled_P & usable_P)
        if len(usable) < 4:
            raise ValueError(f"the text warm-up needs at least four products with a title, got {len(usable)}")
        shuffled = np.random.default_rng((config.seed, len(usable))).permutation(usable)
        aside = max(2, round(config.evaluation_share * len(usable)))
        self.evaluation, self.train = np.sort(shuffled[:aside]), np.sort(shuffled[aside:])
        self.encoder, self.catalog, self.config = encoder, catalog, config
        self.device, self.ranks = device, ranks
        self.batch_rows = min(config.batch_size, len(self.train) // ranks.count * ranks.count)
        self.steps_per_epoch = max(1, len(self.train) // self.batch_rows)
        self.module = TextWarmup(encoder.product, temperature=config.temperature).to(device)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The text encoder without cross-attention, and its projection."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def before_step(self, step: int) -> None:
        """Nothing to do."""

    def micro_batches(self, epoch: int, first_step: int) -> Generator[WarmupBatch, None, None]:
        """Products in an order drawn for this epoch, each with a new query of its title."""
        order = np.random.default_rng((self.config.seed, epoch)).permutation(self.train)
        micro_rows = self.batch_rows // self.config.accumulation

        def load() -> Iterator[WarmupBatch]:
            first = first_step * self.config.accumulation
            for micro in range(first, self.steps_per_epoch * self.config.accumulation):
                rows = order[micro * micro_rows : (micro + 1) * micro_rows]
                yield self._batch(rows[self.ranks.slice_of(len(rows))], epoch)

        yield from prefetch(load())

    def evaluate(self) -> dict[str, float]:
        """Loss on the products kept aside, and how often a query finds its own title among them."""
        rows = self.evaluation[: self.batch_rows]
        batch = self._batch(rows, -1)
        loss = float(self.module(batch)["loss"])
        product = self.encoder.product
        title_BD, query_BD = (
            product.text_features(product.text_tokens(tokens.ids_BT, tokens.mask_BT)).float()
            for tokens in (batch.titles, batch.queries)
        )
        best_B = (query_BD @ title_BD.T).argmax(dim=1)
        found = (batch.group_B[best_B] == batch.group_B).float().mean()
        return {"loss": loss, "query_finds_title": float(found)}

    def _batch(self, rows: npt.NDArray[np.int64], epoch: int) -> WarmupBatch:
        titles = [self.catalog.titles[row] for row in rows.tolist()]
        queries = [
            title_query(title, np.random.default_rng((self.config.seed, epoch + 1, row)))
            for title, row in zip(titles, rows.tolist(), strict=True)
        ]
        config, tokenizer = self.encoder.config, self.encoder.tokenizer
        return WarmupBatch(
            titles=_to(tokenizer(titles, max_tokens=config.max_title_tokens), self.device),
            queries=_to(tokenizer(queries, max_tokens=config.max_query_tokens), self.device),
            group_B=torch.from_numpy(self.catalog.group_P[rows]).to(self.device),
        )


def _to(tokens: TokenBatch, device: torch.device) -> TokenBatch:
    return TokenBatch(tokens.ids_BT.to(device), tokens.mask_BT.to(device), tokens.known_B.to(device))
