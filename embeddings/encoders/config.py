"""The shape of a DashCLIP encoder: BLIP's geometry in three sizes.

`base` is BLIP-base as published (Li et al. 2022: ViT-B/16 at 224 px, BERT-base, 256-d projections); `small`
trains on two CPU cores in minutes; `tiny` is for tests.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from features.artifacts import StrictModel

Size = Literal["tiny", "small", "base"]
#: How the states of a text or an image become one: "cls" takes the first token's ([CLS] or [ENC]), as BLIP
#: was trained; "mean" that of all tokens, which from scratch learns far sooner (experiments/LOG.md).
Pooling = Literal["cls", "mean"]
#: Of images also "flat": the states of all tokens side by side. The mean of a few tokens forgets where on the
#: package a colour or a badge was, and from scratch does not learn to keep it (experiments/LOG.md).
ImagePooling = Literal["cls", "mean", "flat"]
#: What makes patch tokens: one linear layer, as in BLIP, or small convolutions with stride 2.
ImageStem = Literal["linear", "conv"]
Fusion = Literal["grounded", "completion"]
Positive = Annotated[int, Field(ge=1)]


def _stands_apart(prefix: str) -> str:
    if prefix[-1:].isalnum():
        raise ValueError(f"must end in a space or punctuation, or it runs into the text; got {prefix!r}")
    return prefix


#: What some published text encoders were trained to read before each text, such as "query: " of e5.
Prefix = Annotated[str, AfterValidator(_stands_apart), Field(exclude_if=lambda prefix: not prefix)]

#: BERT's uncased vocabulary with [DEC] and [ENC]: what BLIP was trained with.
BLIP_VOCABULARY = 30_524


class EncoderConfig(StrictModel):
    """Widths and depths of the product and the query encoder. Feed-forward layers are four times as wide."""

    #: Tokens of the text encoders; the tokenizer says how many.
    vocab_size: Positive
    #: Side of the square image, in pixels.
    image_size: Positive
    #: Side of one patch, in pixels.
    patch_size: Positive
    #: Width of the image encoder.
    vision_hidden_dim: Positive
    #: Layers of the image encoder.
    vision_layers: Positive
    #: Attention heads of the image encoder.
    vision_heads: Positive
    #: Width of the text encoders.
    text_hidden_dim: Positive
    #: Layers of the text encoders.
    text_layers: Positive
    #: Attention heads of the text encoders.
    text_heads: Positive
    #: Width D of the shared space.
    embedding_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=4)]
    #: Width of product and query vectors after a stage 2 that kept fewer principal components than D; it sets
    #: this (`AlignConfig.kept_dims`).
    kept_dims: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] | None = None
    #: Tokens of a title; a longer one is cut. [CLS] and [SEP] count.
    max_title_tokens: Annotated[int, Field(ge=3, le=512)]
    #: The same for queries.
    max_query_tokens: Annotated[int, Field(ge=3, le=512)]
    #: Before each query, in training and in serving; its pieces count as tokens.
    query_prefix: Prefix = ""
    #: The same for titles.
    title_prefix: Prefix = ""
    #: How the states of a text become one: "cls" takes the first, "mean" the average of all.
    pooling: Pooling = "cls"
    #: The same for images; "flat" puts all states side by side.
    image_pooling: ImagePooling = "cls"
    #: "conv" is beyond the paper (Xiao et al. 2021, "Early convolutions help transformers see better"): a few
    #: thousand pictures are too few to learn edges and letters by one linear layer over whole patches.
    image_stem: ImageStem = "linear"
    #: How images come into product embeddings. "grounded", as in the paper: the state of the image-grounded
    #: text. "completion", beyond it: the state of the text, and what the image adds is learned at the end of
    #: stage 2 (module `completion`). From scratch, cross-attention to a few thousand pictures costs more than
    #: it gives (experiments/LOG.md).
    fusion: Fusion = "grounded"
    #: Beyond the paper: rows of a hashed table of character n-grams, whose sum stands beside the state of the
    #: word pieces (module `ngrams`); 0 leaves it out.
    ngram_buckets: Annotated[int, Field(ge=0)] = 0
    #: Width of that table.
    ngram_dim: Positive = 128
    #: In attention and feed-forward layers of the text encoders; BLIP has none in the image encoder.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: Of layer norms in the image encoder; BLIP was trained with 1e-6.
    vision_layer_norm_eps: float = 1e-6
    #: Of layer norms in the text encoders; BLIP was trained with 1e-12.
    text_layer_norm_eps: float = 1e-12

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        if self.image_stem == "conv" and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                f"image_stem conv halves a patch until one point is left, so patch_size must be 4, 8, 16 ... "
                f"pixels, got {self.patch_size}"
            )
        for part in ("vision", "text"):
            width, heads = getattr(self, f"{part}_hidden_dim"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(
                    f"{part}_hidden_dim must be a multiple of {part}_heads, got {width} and {heads}"
                )
        return self

    @property
    def num_image_tokens(self) -> int:
        """Patches, and [CLS]."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def image_state_dim(self) -> int:
        """Width of what `image_pooling` makes of an image's tokens."""
        return self.vision_hidden_dim * (self.num_image_tokens if self.image_pooling == "flat" else 1)

    @property
    def vector_dim(self) -> int:
        """Width of product and query vectors: D, or what stage 2 kept of it."""
        return self.kept_dims or self.embedding_dim

    @property
    def text_state_dim(self) -> int:
        """Width of what is projected of a text: its state, and its character n-grams if there are any."""
        return self.text_hidden_dim + (self.ngram_dim if self.ngram_buckets else 0)

    @classmethod
    def preset(cls, size: Size, *, vocab_size: int = BLIP_VOCABULARY, **changes: float | str) -> Self:
        """One of the three sizes with the vocabulary of its tokenizer, and any field replaced."""
        return cls.model_validate({"vocab_size": vocab_size, **_PRESETS[size], **changes})


_PRESETS: dict[Size, dict[str, int | str]] = {
    "tiny": {
        "image_size": 32,
        "patch_size": 16,
        "vision_hidden_dim": 32,
        "vision_layers": 2,
        "vision_heads": 2,
        "text_hidden_dim": 32,
        "text_layers": 2,
        "text_heads": 2,
        "embedding_dim": 16,
        "max_title_tokens": 24,
        "max_query_tokens": 16,
        "pooling": "mean",
        "image_pooling": "flat",
        "image_stem": "conv",
        "fusion": "completion",
    },
    "small": {
        "image_size": 96,
        "patch_size": 16,
        "vision_hidden_dim": 128,
        "vision_layers": 1,
        "vision_heads": 4,
        "text_hidden_dim": 128,
        "text_layers": 2,
        "text_heads": 4,
        "embedding_dim": 128,
        "max_title_tokens": 24,
        "max_query_tokens": 16,
        "pooling": "mean",
        "image_pooling": "flat",
        "image_stem": "conv",
        "fusion": "completion",
    },
    "base": {
        "image_size": 224,
        "patch_size": 16,
        "vision_hidden_dim": 768,
        "vision_layers": 12,
        "vision_heads": 12,
        "text_hidden_dim": 768,
        "text_layers": 12,
        "text_heads": 12,
        "embedding_dim": 256,
        "max_title_tokens": 30,
        "max_query_tokens": 30,
    },
}
