"""A grader that reads query and title together: a published text encoder, fine-tuned on people's grades.

The model reads "[CLS] query [SEP] title [SEP]", so each word of one attends to each of the other. Its head
compares the mean state of the query's tokens with that of the title's. So it begins near the cosine that a
sentence encoder was trained for, which the state of [CLS] knows nothing of.

Shapes: N pairs, B pairs of a batch, T tokens, H hidden width, C = 3 grades.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.holdout import VALIDATION
from embeddings.encoders.pretrained import PretrainedError, first_line, load_pretrained
from embeddings.encoders.published_weights import find_published
from embeddings.encoders.sentence_files import modules_of
from embeddings.grading.classifiers import softmax
from embeddings.grading.decision import Decision
from embeddings.grading.fine_tuned.training import (
    FineTunedManifest,
    FineTuningConfig,
    GradeTask,
    checkpoints_of,
    fine_tune,
    refuse_before_training,
)
from embeddings.grading.lessons import lessons_of
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs
from embeddings.grading.trained import (
    ADVICE,
    WEIGHTS,
    TrainedGrader,
    is_grader,
)
from embeddings.relevance.grades import GRADES
from embeddings.training.base_loop import autocast
from embeddings.training.length_chunks import by_length
from embeddings.training.loop import OptimizerConfig, Report
from features.artifacts import (
    MANIFEST,
    atomic_folder,
    checksums_of,
    read_manifest,
    remove_folder,
    sha256_of,
    verify_checksums,
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Folder of the text encoder's config and tokenizer within that of the grader.
MODEL = "model"
#: Pairs that are read at a time when grading.
BATCH_SIZE = 64
#: The state of [CLS] after one more layer, which some encoders have; the head does not read it.
_POOLER = "pooler."


class CrossEncoderConfig(FineTuningConfig):
    """How a cross-encoder is trained."""

    kind: Literal["cross-encoder"] = "cross-encoder"
    #: Folder of a text encoder in transformers' layout, or the name of one that an installed package holds.
    start: str
    #: Of query, title and the three special tokens; a longer pair is cut.
    max_tokens: Annotated[int, Field(ge=8)] = 64
    optimizer: OptimizerConfig = OptimizerConfig(
        epochs=2, batch_size=32, learning_rate=1e-4, evaluations_per_epoch=4, checkpoint_every_steps=500
    )


class CrossEncoderManifest(FineTunedManifest):
    """What `manifest.json` of a cross-encoder says."""

    format: Literal["cross-encoder-1"] = "cross-encoder-1"
    config: CrossEncoderConfig


class PairClassifier(nn.Module):
    """Logits [B, C] of the grades from query and title read together."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.head = nn.Linear(4 * encoder.config.hidden_size, len(GRADES))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of what `TokenPairs.batch` gives."""
        read = {name: value for name, value in inputs.items() if name != "segment"}
        state_BTH = self.encoder(**read).last_hidden_state
        query_BH, title_BH = (_mean(state_BTH, inputs["segment"] == part) for part in (0, 1))
        both = [query_BH, title_BH, query_BH * title_BH, (query_BH - title_BH).abs()]
        return self.head(torch.cat(both, dim=1))


def _mean(state_BTH: Tensor, chosen_BT: Tensor) -> Tensor:
    """Direction of the mean state of the chosen tokens, entries near 1; zeros where none is chosen."""
    sum_BH = (state_BTH * chosen_BT.unsqueeze(2).to(state_BTH)).sum(dim=1)
    return normalize(sum_BH.float(), dim=1) * sum_BH.shape[1] ** 0.5


class TokenPairs:
    """Pairs as tokens of a tokenizer."""

    def __init__(self, tokenizer: Any, pairs: Pairs, *, max_tokens: int) -> None:
        self._pad_id = tokenizer.pad_token_id or 0
        self._typed = "token_type_ids" in tokenizer.model_input_names
        self._read: list[Any] = []
        if len(pairs):
            read = tokenizer(pairs.queries, pairs.texts, truncation=True, max_length=max_tokens)
            self._read = list(read.encodings)
        self.length_N = np.array([len(encoding.ids) for encoding in self._read], np.int64)

    def batch(self, rows: IntArray, device: torch.device) -> dict[str, Tensor]:
        """What the encoder reads of these rows, and `segment`: 0 of the query, 1 of the title, else -1."""
        length = int(self.length_N[rows].max())
        shape = (len(rows), length)
        ids_BT, mask_BT, type_BT = (np.full(shape, value, np.int64) for value in (self._pad_id, 0, 0))
        segment_BT = np.full(shape, -1, np.int64)
        for place, row in enumerate(rows.tolist()):
            encoding, count = self._read[row], int(self.length_N[row])
            ids_BT[place, :count] = encoding.ids
            mask_BT[place, :count] = 1
            type_BT[place, :count] = encoding.type_ids
            segment_BT[place, :count] = [-1 if part is None else part for part in encoding.sequence_ids]
        found = {"input_ids": ids_BT, "attention_mask": mask_BT, "segment": segment_BT}
        if self._typed:
            found["token_type_ids"] = type_BT
        return {name: to_device(torch.from_numpy(value), device) for name, value in found.items()}


@dataclass(frozen=True, eq=False)
class CrossEncoderGrader(TrainedGrader):
    """A trained cross-encoder, in evaluation mode."""

    manifest: CrossEncoderManifest
    model: PairClassifier
    tokenizer: Any

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Calibrated probabilities [N, C]."""
        return self.decision.probabilities(
            _raw(self.model, self.tokenizer, pairs, config=self.manifest.config)
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "CrossEncoderGrader":
        """Open a cross-encoder; nothing in the folder is executed.

        Raises:
            GradingError: it is none, a file is missing or changed, or the device is not there.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        manifest = read_manifest(
            folder, CrossEncoderManifest, what="a cross-encoder", error=GradingError, advice=ADVICE
        )
        verify_checksums(folder, manifest.checksums, error=GradingError, advice="train it again")
        arrays = load_file(folder / WEIGHTS)
        decision = Decision.from_arrays({name: arrays.pop(name).numpy() for name in Decision.NAMES})
        with torch.random.fork_rng(devices=[]):  # the weights are drawn before they are read
            model = PairClassifier(AutoModel.from_config(AutoConfig.from_pretrained(folder / MODEL)))
        model.load_state_dict(arrays)
        model = _on(model, device).eval()
        return cls(folder, manifest, decision, model, AutoTokenizer.from_pretrained(folder / MODEL))


def train_cross_encoder(
    graded: GradedPairs,
    catalogue: Catalogue,
    out: Path,
    *,
    config: CrossEncoderConfig,
    device: str = "cpu",
    progress: Callable[[Report], None] | None = None,
) -> CrossEncoderGrader:
    """Fine-tune on pairs of train queries; those of validation queries stop it and set its thresholds.

    A call that is killed goes on from its last checkpoint. Test queries are not looked at.

    Raises:
        PretrainedError: the start cannot be read, or the checkpoints beside `out` are of another training.
        GradingError: train queries lack a grade, or validation queries have none.
        FileExistsError: `out` holds something else.
    """
    refuse_before_training(int((graded.role_N == VALIDATION).sum()), out)
    lessons = lessons_of(graded, catalogue, config, most_pairs=config.most_pairs)
    folder = start_folder(config.start)
    encoder, tokenizer = _open_start(folder, max_tokens=config.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _on(PairClassifier(encoder), device)
    both = tuple(
        TokenPairs(tokenizer, pairs, max_tokens=config.max_tokens)
        for pairs in (lessons.pairs, lessons.validation.pairs)
    )
    place = next(model.parameters()).device
    task = GradeTask(
        "cross-encoder",
        model,
        lessons,
        collate=lambda rows, validation: both[validation].batch(rows, place),
        lengths=(both[0].length_N, both[1].length_N),
        config=config,
        device=place,
    )
    start = _digest(folder)
    outcome = fine_tune(task, lessons, out, config=config, start=start, progress=progress)
    model.eval()
    validation = lessons.validation
    raw_NC = _raw(model, tokenizer, validation.pairs, config=config)
    decision = Decision.learn(raw_NC, validation.grade_N)
    with atomic_folder(out, ours=is_grader) as temporary:
        encoder.config.save_pretrained(temporary / MODEL)
        tokenizer.save_pretrained(temporary / MODEL)
        arrays = {name: torch.from_numpy(value) for name, value in decision.to_arrays().items()}
        stored = {**model.state_dict(), **arrays}
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in stored.items()}, temporary / WEIGHTS
        )
        manifest = CrossEncoderManifest(
            config=config,
            train_pairs=lessons.people,
            stuffed_pairs=lessons.stuffed,
            validation_pairs=len(validation),
            steps=outcome.best_step,
            validation_loss=outcome.best["loss"],
            validation_loss_at_chance=outcome.best["loss_at_chance"],
            checksums=checksums_of(temporary),
        )
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    remove_folder(checkpoints_of(out))
    return CrossEncoderGrader(out, manifest, decision, model, tokenizer)


def start_folder(start: str) -> Path:
    """The folder of a text encoder, or that of the published one which has this name.

    Raises:
        PretrainedError: there is neither.
    """
    folder = Path(start)
    if not folder.exists():
        return find_published(start)
    modules = modules_of(folder)
    return folder / modules[0][1] if modules else folder


def _open_start(folder: Path, *, max_tokens: int) -> tuple[Any, Any]:
    """The encoder and its tokenizer.

    Raises:
        PretrainedError: it is no text encoder, leaves a weight random, or has too few positions.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise PretrainedError(
            f"{folder} must be a folder with config.json, weights and tokenizer of a text encoder: "
            f"{first_line(error)}"
        ) from None
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise PretrainedError(f"{folder} reads from left to right; a cross-encoder starts from an encoder")
    if not getattr(tokenizer, "is_fast", False):
        raise PretrainedError(
            f"{folder} has a tokenizer that cannot tell query from title; it needs a fast one"
        )
    positions = min(
        getattr(config, "max_position_embeddings", None) or max_tokens, tokenizer.model_max_length
    )
    if max_tokens > positions:
        raise PretrainedError(
            f"{folder} reads {positions} tokens, so max_tokens must not exceed that; got {max_tokens}"
        )
    return load_pretrained(AutoModel, folder, config=config, unused=_POOLER), tokenizer


@torch.inference_mode()
def _raw(model: PairClassifier, tokenizer: Any, pairs: Pairs, *, config: CrossEncoderConfig) -> FloatArray:
    """Probabilities [N, C] before calibration; the model is in evaluation mode."""
    tokens = TokenPairs(tokenizer, pairs, max_tokens=config.max_tokens)
    device = model.head.weight.device
    found_NC = np.empty((len(pairs), len(GRADES)))
    with _precision(device, config):
        for rows in by_length(tokens.length_N, BATCH_SIZE):
            logits_BC = model(tokens.batch(rows, device)).float().cpu().numpy()
            found_NC[rows] = softmax(logits_BC.astype(np.float64))
    return found_NC


def _precision(device: torch.device, config: CrossEncoderConfig) -> AbstractContextManager[Any]:
    """It grades as it was trained."""
    return autocast(device, config.optimizer.precision)


def _on(model: PairClassifier, device: str) -> PairClassifier:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise GradingError(f"the model cannot be put on {device!r}: {first_line(error)}") from None


def _digest(folder: Path) -> str:
    """Of what the training starts with."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    return json.dumps({name: sha256_of(folder / name) for name in names})
