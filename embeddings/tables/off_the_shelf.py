"""CLIP, BLIP and FLAVA as they are published: the off-the-shelf rows of the paper's table 1.

A product is its image or its title, a query is its text, each through the contrastive head of the model. All
rows see images as our own encoder does (`load_image`: upright, letterboxed, never cropped) at the model's own
size and with its own mean and deviation, so that rows differ by the encoder alone.

Shapes: B texts or images, D embedding width, N products, Q queries, S image side.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel, FlavaModel, PreTrainedModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

from embeddings.catalog.images import ImageUnreadable, OutsideImage, load_image
from embeddings.catalog.inputs import read_distinct_queries
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.blip_checkpoint import load_blip_retrieval
from embeddings.encoders.pretrained import PretrainedError, first_line, load_pretrained, read_model_config
from embeddings.tables.lsa import holds_only_lsa_tables, write_both_tables
from embeddings.training.prefetch import prefetch
from features.artifacts import refuse_foreign_folder, refuse_to_replace_input
from features.progress import Progress, silent

Kind = Literal["clip", "blip", "flava"]
Modality = Literal["image", "text"]
Images = Sequence[npt.NDArray[np.uint8]]

#: CLIP has positions for no more; the others get as many, so that all rows read the same titles.
MAX_TOKENS = 77
#: Rows of the word embeddings that a right tokenizer may leave unused: BLIP's two tokens, or padding to 64.
UNUSED_WORDS = 63

_CLIP_LIKE: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "flava": FlavaModel}
# The processors without "Pil" in their name need torchvision.
_PROCESSORS = {"clip": CLIPImageProcessorPil, "blip": BlipImageProcessorPil, "flava": FlavaImageProcessorPil}


@dataclass(frozen=True, eq=False)
class OffTheShelfTables:
    """The written tables; `queries` is None when the data set has no queries."""

    products: EmbeddingTable
    queries: EmbeddingTable | None
    #: Products without the image or title that the row needs, unreadable images included: zero vectors.
    products_without_input: int
    unreadable: tuple[ImageUnreadable, ...]


@dataclass(frozen=True, eq=False)
class OffTheShelfEncoder:
    """A published two-tower model, in evaluation mode and float32."""

    kind: Kind
    #: CLIPModel, FlavaModel or BlipForImageTextRetrieval, which share no interface.
    model: Any
    tokenizer: Any
    image_processor: Any
    #: Kind and a digest of the weights: the same weights have the same id wherever they lie.
    encoder_id: str

    @classmethod
    def load(cls, kind: Kind, name_or_folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Open a folder in transformers' layout, or a name that the hub knows.

        Raises:
            PretrainedError: it is not there, of another kind, lacks tokenizer or image processor, or leaves
                a weight of the model random.
        """
        if kind not in _PROCESSORS:
            raise PretrainedError(f"kind must be one of {', '.join(_PROCESSORS)}, got {kind!r}")
        if kind == "blip":
            model: Any = load_blip_retrieval(name_or_folder)
        else:
            config = read_model_config(name_or_folder, model_type=kind)
            model = load_pretrained(_CLIP_LIKE[kind], name_or_folder, config=config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
            image_processor = _PROCESSORS[kind].from_pretrained(name_or_folder)
        except (OSError, ValueError, KeyError) as error:
            raise PretrainedError(
                f"{name_or_folder} must hold the tokenizer and preprocessor_config.json of the model, too: "
                f"{first_line(error)}"
            ) from None
        words = model.config.text_config.vocab_size
        if not 0 <= words - len(tokenizer) <= UNUSED_WORDS:
            # transformers makes up a tokenizer of special tokens where the folder has none.
            raise PretrainedError(
                f"{name_or_folder} has a tokenizer of {len(tokenizer):,} tokens for a model of {words:,} "
                "words; copy the tokenizer files that belong to the model into the folder"
            )
        encoder_id = f"{kind}-{_digest(model)}"
        return cls(kind, model.to(device), tokenizer, image_processor, encoder_id)

    @property
    def dim(self) -> int:
        """Embedding width D."""
        head = self.model.text_proj if self.kind == "blip" else self.model.text_projection
        return head.out_features

    @property
    def image_size(self) -> int:
        """Side S of the images that the model takes."""
        config = self.model.config
        return (config.image_config if self.kind == "flava" else config.vision_config).image_size

    @torch.inference_mode()
    def image_vectors(self, images: Images) -> npt.NDArray[np.float32]:
        """Unit vectors of B images, uint8 [3, S, S] each, (B, D)."""
        pixels_BCHW = self.image_processor(
            images=list(images),
            do_resize=False,
            do_center_crop=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )["pixel_values"].to(self.model.device)
        if self.kind == "blip":
            image_BIH = self.model.vision_model(pixel_values=pixels_BCHW).last_hidden_state
            return _unit(self.model.vision_proj(image_BIH[:, 0]))
        return _unit(self._pooled(self.model.get_image_features(pixel_values=pixels_BCHW)))

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors of B texts, (B, D); texts of more than MAX_TOKENS tokens are cut."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.model.device)
        text = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        if self.kind == "blip":
            return _unit(self.model.text_proj(self.model.text_encoder(**text).last_hidden_state[:, 0]))
        return _unit(self._pooled(self.model.get_text_features(**text)))

    def _pooled(self, features: Any) -> Tensor:
        """FLAVA projects every token: its vector is that of [CLS], as in its contrastive loss."""
        return features.pooler_output[:, 0] if self.kind == "flava" else features.pooler_output


def embed_off_the_shelf(
    kind: Kind,
    name_or_folder: str | Path,
    data: Path,
    out: Path,
    *,
    modality: Modality,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> OffTheShelfTables:
    """Embed the products of a data folder by image or by title, and its distinct queries by text.

    Writes `out`/products and `out`/queries, complete or not at all. Products without that input, blank
    queries and unreadable images get zero vectors and are counted.

    Raises:
        PretrainedError: the model cannot be loaded whole.
        ValueError: a table or column is missing, or `out` would replace `data`.
        FileExistsError: `out` holds something else.
    """
    refuse_to_replace_input(out, data)
    refuse_foreign_folder(out, ours=holds_only_lsa_tables)
    catalog = ProductCatalog.open(data, modalities=(modality,))
    queries = read_distinct_queries(data)
    encoder = OffTheShelfEncoder.load(kind, name_or_folder, device=device)
    unreadable: list[ImageUnreadable] = []
    if modality == "image":
        products_ND = _embed_images(encoder, catalog.image_paths, batch_size, unreadable, progress)
    else:
        products_ND = _embed_texts(encoder, catalog.titles, batch_size, "products", progress)
    queries_QD = _embed_texts(encoder, queries.to_pylist(), batch_size, "queries", progress)
    products, query_table = write_both_tables(
        out,
        (catalog.ids, products_ND),
        (queries, queries_QD),
        encoder_id=f"{encoder.encoder_id}-{modality}",
    )
    return OffTheShelfTables(
        products=products,
        queries=query_table,
        products_without_input=int((~products_ND.any(axis=1)).sum()),
        unreadable=tuple(unreadable),
    )


def _embed_texts(
    encoder: OffTheShelfEncoder,
    texts: Sequence[str],
    batch_size: int,
    stage: str,
    progress: Progress,
) -> npt.NDArray[np.float32]:
    known = [row for row, text in enumerate(texts) if text.strip()]
    # Texts of like length share a batch: little padding, and the result is put back in its place.
    known.sort(key=lambda row: len(texts[row]))
    batches = (known[start : start + batch_size] for start in range(0, len(known), batch_size))
    encoded = ((rows, encoder.text_vectors([texts[row] for row in rows])) for rows in batches)
    return _gather(encoder, encoded, len(texts), len(known), stage, progress)


def _embed_images(
    encoder: OffTheShelfEncoder,
    paths: Sequence[Path | OutsideImage | None],
    batch_size: int,
    unreadable: list[ImageUnreadable],
    progress: Progress,
) -> npt.NDArray[np.float32]:
    known = [row for row, path in enumerate(paths) if path is not None]

    def read() -> Iterator[tuple[list[int], list[npt.NDArray[np.uint8]]]]:
        for start in range(0, len(known), batch_size):
            rows, images = [], []
            for row in known[start : start + batch_size]:
                try:
                    images.append(load_image(paths[row], size=encoder.image_size))  # type: ignore[arg-type]
                    rows.append(row)
                except ImageUnreadable as error:
                    unreadable.append(error)
            if rows:
                yield rows, images

    encoded = ((rows, encoder.image_vectors(images)) for rows, images in prefetch(read()))
    return _gather(encoder, encoded, len(paths), len(known), "products", progress)


def _gather(
    encoder: OffTheShelfEncoder,
    encoded: Iterator[tuple[list[int], npt.NDArray[np.float32]]],
    count: int,
    known: int,
    stage: str,
    progress: Progress,
) -> npt.NDArray[np.float32]:
    """Vectors of `count` inputs from batches of (rows, vectors); zeros for the rows that no batch has."""
    vectors_ND = np.zeros((count, encoder.dim), np.float32)
    done = 0
    for rows, vectors_BD in encoded:
        vectors_ND[rows] = vectors_BD
        done += len(rows)
        progress(stage, done, known)
    return vectors_ND


def _unit(vectors_BD: Tensor) -> npt.NDArray[np.float32]:
    return normalize(vectors_BD.float(), dim=-1).cpu().numpy()


def _digest(model: PreTrainedModel) -> str:
    """12 hexadecimal digits of the SHA-256 of all weights with their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
