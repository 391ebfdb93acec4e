"""DashClipEncoder: product encoder, query encoder and tokenizer as one folder that is whole or absent.

`config.json`, `tokenizer.json`, `model.safetensors` and `manifest.json` with the checksums of the others and
what the weights were trained on. Loading runs no code from the folder.

Shapes: B products or queries, D embedding width.
"""

import hashlib
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize, pad

from embeddings.catalog.holdout import HoldoutConfig, recorded_holdout
from embeddings.catalog.products import ProductBatch, ProductCatalog, load_batch
from embeddings.catalog.tokenizer import SEP, SPECIAL_TOKENS, TextTokenizer, TokenBatch, TokenizerError
from embeddings.encoders.completion import Completion
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.modules import ProductEncoder, QueryEncoder, seeded
from embeddings.training.base_loop import autocast
from embeddings.training.length_chunks import CHUNK_TOKENS
from embeddings.training.precision import Precision, resolve_precision
from features.artifacts import (
    MANIFEST,
    StrictModel,
    atomic_folder,
    checksums_of,
    json_file_has,
    read_manifest,
    verify_checksums,
)

#: initial: no training of ours; pretrained: after stage 1; aligned: after stage 2, with a query encoder.
Stage = Literal["initial", "pretrained", "aligned"]

CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"


class EncoderError(ValueError):
    """An encoder folder that cannot be read, or an encoder that cannot do what is asked of it."""


class EncoderManifest(StrictModel):
    """What `manifest.json` says about an encoder."""

    format: Literal[2] = 2
    encoder_id: str
    stage: Stage
    created: datetime
    trained_on: dict[str, Any]
    checksums: dict[str, str]


@dataclass(eq=False)
class DashClipEncoder:
    """Both encoders and their tokenizer, ready to embed.

    Before stage 2 there is no query encoder: then a query is a title to the text encoder, and a product is
    the normalised mean of its image and text features, the only vectors that stage 1 aligns with each other.
    Published text weights have one from the beginning (`embeddings.encoders.bert_checkpoint`).

    Section 3 of https://arxiv.org/abs/2504.07110

    >>> from embeddings.catalog.tokenizer import TextTokenizer
    >>> tokenizer = TextTokenizer.train(["oat milk", "rye bread"] * 2, vocab_size=100)
    >>> config = EncoderConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    >>> encoder = DashClipEncoder.new(config, tokenizer, seed=0)
    >>> encoder.embed_queries(["oat milk", ""]).norm(dim=1).round(decimals=4).tolist()
    [1.0, 0.0]
    """

    config: EncoderConfig
    tokenizer: TextTokenizer
    product: ProductEncoder
    query: QueryEncoder | None
    stage: Stage
    #: Stage, and checksum of weights, config and tokenizer. "unsaved" until they are written.
    encoder_id: str = "unsaved"
    trained_on: dict[str, Any] | None = None
    #: Of the products inside `embed_products` and `embed_queries`, which give float32 in any case.
    precision: Precision = "float32"

    @classmethod
    def new(cls, config: EncoderConfig, tokenizer: TextTokenizer, *, seed: int) -> Self:
        """Random weights from `seed`, no query encoder yet.

        Raises:
            EncoderError: the tokenizer has another number of tokens than the config.
        """
        _check_vocabulary(config, tokenizer)
        product = seeded(lambda: ProductEncoder(config, enc_id=tokenizer.enc_id), seed)
        if product.text.ngrams is not None:
            product.text.ngrams.read_vocabulary(tokenizer.tokens, special=SPECIAL_TOKENS, end=SEP)
        return cls(config=config, tokenizer=tokenizer, product=product, query=None, stage="initial")

    def with_query_encoder(self) -> Self:
        """The same product encoder, and a query encoder that starts as a copy of its text encoder."""
        query = seeded(lambda: QueryEncoder(self.config), 0)
        query.start_from(self.product)
        return type(self)(
            config=self.config,
            tokenizer=self.tokenizer,
            product=self.product,
            query=query,
            stage=self.stage,
            trained_on=self.trained_on,
            precision=self.precision,
        ).to(self.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.product.to(device)
        if self.query is not None:
            self.query.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.product.text_proj.weight.device

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What was kept from its training; None where nothing of ours was trained, or no record says so."""
        return recorded_holdout(self.trained_on)

    def title_tokens(self, titles: Sequence[str | None]) -> TokenBatch:
        """Token ids of titles, with the prefix and the cut of the config."""
        return self.tokenizer(
            titles, max_tokens=self.config.max_title_tokens, prefix=self.config.title_prefix
        )

    def query_tokens(self, queries: Sequence[str | None]) -> TokenBatch:
        """Token ids of queries, with the prefix and the cut of the config."""
        return self.tokenizer(
            queries, max_tokens=self.config.max_query_tokens, prefix=self.config.query_prefix
        )

    def load_batch(
        self, catalog: ProductCatalog, rows_B: npt.ArrayLike, *, image_size: int | None = None, **options: Any
    ) -> ProductBatch:
        """`embeddings.catalog.products.load_batch` with this tokenizer, and at the sizes of the config."""
        return load_batch(
            catalog,
            self.tokenizer,
            rows_B,
            image_size=image_size or self.config.image_size,
            max_title_tokens=self.config.max_title_tokens,
            title_prefix=self.config.title_prefix,
            **options,
        )

    @torch.no_grad()
    def embed_products(self, batch: ProductBatch) -> Tensor:
        """Unit vectors, float32, (B, D); zeros for a product of which the encoder can read nothing."""
        batch = batch.to(self.device)
        ids_BT, mask_BT = self._few_shapes(batch.ids_BT, batch.mask_BT)
        batch = replace(batch, ids_BT=ids_BT, mask_BT=mask_BT)
        self.product.eval()
        if self.query is not None:
            with self._in_precision():
                vectors_BD = self.product(batch)
            return self._exact_length(vectors_BD)
        with self._in_precision():
            image_BD, text_BD = self.unimodal_features(batch)
        return normalize(image_BD + text_BD, dim=-1)

    @torch.no_grad()
    def unimodal_features(self, batch: ProductBatch) -> tuple[Tensor, Tensor]:
        """Image and text features, unit vectors in ITC's space; zeros where a product has none."""
        batch = batch.to(self.device)
        self.product.eval()
        image_BD = self.product.image_features(self.product.image_tokens(batch.pixels_BCHW)).float()
        text_BTH = self.product.text_tokens(batch.ids_BT, batch.mask_BT)
        text_BD = self.product.text_features(text_BTH, batch.mask_BT).float()
        return image_BD * batch.has_image_B.unsqueeze(1), text_BD * batch.has_title_B.unsqueeze(1)

    @torch.no_grad()
    def embed_queries(self, queries: Sequence[str | None]) -> Tensor:
        """Unit vectors, float32, (B, D); zeros for a query without a single known token."""
        tokens = self.query_tokens(queries)
        ids_BT, mask_BT = self._few_shapes(tokens.ids_BT.to(self.device), tokens.mask_BT.to(self.device))
        with self._in_precision():
            if self.query is None:
                self.product.eval()
                vectors_BD = self.product.text_features(self.product.text_tokens(ids_BT, mask_BT), mask_BT)
            else:
                self.query.eval()
                vectors_BD = self.query(ids_BT, mask_BT)
        return self._exact_length(vectors_BD) * tokens.known_B.to(self.device).unsqueeze(1)

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether embedding multiplies in bfloat16 on this device."""
        return resolve_precision(self.precision, self.device) == "bfloat16"

    def _in_precision(self) -> AbstractContextManager[Any]:
        # Float32 must not switch off what a training loop around it asks for.
        return autocast(self.device, self.precision) if self.computes_in_bfloat16 else nullcontext()

    def _few_shapes(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """In bfloat16, tokens filled up to a multiple of `CHUNK_TOKENS`: a kernel is kept for each shape."""
        more = -ids_BT.shape[1] % CHUNK_TOKENS if self.computes_in_bfloat16 else 0
        return pad(ids_BT, (0, more), value=self.tokenizer.pad_id), pad(mask_BT, (0, more))

    def _exact_length(self, vectors_BD: Tensor) -> Tensor:
        """In float32, of length 1 or 0 also where lengths were taken in bfloat16."""
        found_BD = vectors_BD.float()
        return normalize(found_BD, dim=-1) if self.computes_in_bfloat16 else found_BD

    def save(self, folder: Path, *, stage: Stage, trained_on: dict[str, Any]) -> Self:
        """Write the folder and open it; an encoder that stood there is replaced once this one is complete.

        Raises:
            FileExistsError: the folder holds something else.
        """
        folder = Path(folder)
        modules = {"product": self.product, "query": self.query}
        weights = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, module in modules.items()
            if module is not None
            for key, value in module.state_dict().items()
        }
        with atomic_folder(folder, ours=is_encoder) as temporary:
            (temporary / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
            self.tokenizer.save(temporary / TOKENIZER)
            save_file(weights, temporary / MODEL)
            checksums = checksums_of(temporary, (CONFIG, TOKENIZER, MODEL))
            manifest = EncoderManifest(
                encoder_id=f"dashclip-{stage}-{_joint_checksum(checksums)[:12]}",
                stage=stage,
                created=datetime.now(UTC),
                trained_on=trained_on,
                checksums=checksums,
            )
            (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return self.load(folder, verify=False)

    @classmethod
    def load(cls, folder: Path, *, verify: bool = True) -> Self:
        """Open a folder that `save` wrote.

        Raises:
            EncoderError: a file is missing or changed, or the weights do not fit the config.
        """
        folder = Path(folder)
        manifest = read_manifest(
            folder,
            EncoderManifest,
            what="an encoder",
            error=EncoderError,
            advice="`dashclip encode pretrain` makes one",
        )
        verify_checksums(
            folder,
            {name: manifest.checksums.get(name) for name in (CONFIG, TOKENIZER, MODEL)},
            error=EncoderError,
            advice="write the encoder again",
            contents=verify,
        )
        try:
            config = EncoderConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
            weights = load_file(folder / MODEL)
            tokenizer = TextTokenizer.load(folder / TOKENIZER)
        except (ValidationError, UnicodeDecodeError, SafetensorError, TokenizerError) as error:
            raise EncoderError(f"{folder} cannot be read: {error}") from error
        _check_vocabulary(config, tokenizer)
        # Weights on the meta device are never drawn: loading assigns every one of them, or fails.
        with torch.device("meta"):
            product = ProductEncoder(config, enc_id=tokenizer.enc_id)
            query = QueryEncoder(config) if any(name.startswith("query.") for name in weights) else None
            if any(name.startswith("product.completion.") for name in weights):
                product.completion = Completion(
                    config.vector_dim, config.vocab_size, image_dim=config.embedding_dim
                )
        for prefix, module in (("product.", product), ("query.", query)):
            if module is None:
                continue
            own = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
            try:
                module.load_state_dict(own, assign=True)
            except RuntimeError as error:
                reason = textwrap.shorten(str(error), 300, placeholder=" ...")
                raise EncoderError(f"{folder / MODEL} does not fit {folder / CONFIG}: {reason}") from None
            _restore_position_ids(module)
        return cls(
            config=config,
            tokenizer=tokenizer,
            product=product,
            query=query,
            stage=manifest.stage,
            encoder_id=manifest.encoder_id,
            trained_on=manifest.trained_on,
        )


def is_encoder(folder: Path) -> bool:
    """Whether `DashClipEncoder.save` wrote this folder."""
    return json_file_has(folder / MANIFEST, "stage")


def _check_vocabulary(config: EncoderConfig, tokenizer: TextTokenizer) -> None:
    if tokenizer.vocab_size != config.vocab_size:
        raise EncoderError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the encoder config {config.vocab_size:,}; "
            "make the config with vocab_size=tokenizer.vocab_size"
        )


def _joint_checksum(checksums: dict[str, str]) -> str:
    """Equal weights under another config or tokenizer give other vectors, hence another id."""
    return hashlib.sha256(
        "".join(checksums[name] for name in (CONFIG, TOKENIZER, MODEL)).encode()
    ).hexdigest()


def _restore_position_ids(module: ProductEncoder | QueryEncoder) -> None:
    """Position numbers are a buffer that checkpoints leave out, so the meta device left it without values."""
    embeddings = module.text.embeddings
    length = embeddings.position_ids.shape[-1]
    embeddings.register_buffer("position_ids", torch.arange(length).unsqueeze(0), persistent=False)
