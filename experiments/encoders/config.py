"""The config of encoders: what both stages see, and how they learn."""

import difflib
from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.products import Modality
from embeddings.encoders.config import EncoderConfig, Size
from embeddings.relevance.sampling import TupleConfig
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.run_folder import InputConfig
from embeddings.stages.runs import VOCABULARY
from embeddings.stages.stage1 import PretrainConfig
from embeddings.stages.stage2 import check_product_side
from embeddings.stages.warmup import ImageWarmupConfig, WarmupConfig
from experiments.config import KeysOf

#: Parts of an encoder's shape that no config sets: the tokenizer says how many tokens there are, stage 2 what
#: it kept.
LEARNED_SHAPE = ("vocab_size", "kept_dims")


class EncodersConfig(BaseModel):
    """Both stages and what they see; one complete TOML of these trains an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Shape to start from: "tiny" shows that it runs, "small" trains on two CPU cores in minutes, "base" is
    #: BLIP's.
    size: Size = "small"
    #: Tokens learned from titles and queries, special ones included; that of the size if None.
    vocab_size: Annotated[int, Field(ge=100)] | None = None
    #: Fields of EncoderConfig that differ from those of the size, such as embedding_dim.
    architecture: Annotated[
        dict[str, bool | int | float | str],
        KeysOf(EncoderConfig, without=LEARNED_SHAPE, otherwise="as `size` has it"),
    ] = {}
    #: Of the first weights; the stages have seeds of their own.
    seed: Annotated[int, Field(ge=0)] = 0
    #: What product embeddings are made of.
    modalities: tuple[Modality, ...] = ("image", "text")
    #: Columns of products that are read as its text, one after the other.
    text_columns: tuple[str, ...] = ("title",)
    #: Whose grades count; where several grade a pair the first one named here wins. Left out: all that there
    #: are, human first, then llm, then others by name.
    sources: tuple[str, ...] | None = None
    holdout: HoldoutConfig = HoldoutConfig()
    tuples: TupleConfig = TupleConfig()
    #: The text warm-up from scratch; None, and training from published weights, leave it out.
    warmup: WarmupConfig | None = None
    #: The image warm-up after it, and after text weights that came without images; it needs images, titles
    #: and a text encoder that knows them. Without "image" among the modalities it is left out.
    image_warmup: ImageWarmupConfig | None = None
    #: None leaves stage 1 out, as without images.
    pretrain: PretrainConfig | None = None
    #: None leaves stage 2 out, as without grades.
    align: AlignConfig | None = None

    @property
    def lacks_words(self) -> bool:
        """Whether images would learn from titles that nothing has read, in training from scratch."""
        return self.image_warmup is not None and "image" in self.modalities and self.warmup is None

    @model_validator(mode="after")
    def _architecture_fits(self) -> Self:
        known = sorted(set(EncoderConfig.model_fields) - set(LEARNED_SHAPE))
        for name in self.architecture:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
                raise ValueError(f"architecture.{name} is not a part of an encoder; {hint}")
        try:
            encoder = EncoderConfig.preset(self.size, vocab_size=VOCABULARY[self.size], **self.architecture)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(["architecture", *map(str, problem["loc"])])
            sentence = problem["msg"].removeprefix("Value error, ")
            raise ValueError(f"{where}: {sentence} (got {self.architecture})") from None
        if encoder.fusion == "completion" and self.align is not None:
            check_product_side(self.align)
        if self.align is not None and self.align.kept_dims > encoder.embedding_dim:
            kept = self.align.kept_dims
            raise ValueError(f"align.kept_dims ({kept}) exceeds embedding_dim ({encoder.embedding_dim})")
        return self

    @property
    def inputs(self) -> InputConfig:
        """What both stages see of the data."""
        return InputConfig(modalities=self.modalities, text_columns=self.text_columns, holdout=self.holdout)

    @property
    def stage1_inputs(self) -> InputConfig:
        """What stage 1 sees: titles too when products are embedded from images alone, as ITC needs both."""
        return replace(self.inputs, modalities=("image", "text"))

    def with_seed(self, seed: int) -> "EncodersConfig":
        """The same with another seed for weights, batches and tuples; the hold-out stays."""
        names = ("warmup", "image_warmup", "pretrain", "align")
        parts = {
            name: part.model_copy(update={"seed": seed}) for name in names if (part := getattr(self, name))
        }
        return self.model_copy(update={"seed": seed, **parts})
