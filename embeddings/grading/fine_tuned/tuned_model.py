"""A causal language model fine-tuned on people's grades by LoRA (paper section 2.2), as a grader of its own.

Only small matrices beside the linear layers are learnt (Hu et al., arXiv:2106.09685), by the loss on the
logits of the three labels at the place of the answer: the model is taught exactly what `LocalGrader` reads of
it. What all prompts begin with is read once a batch, forward and backward, not once a pair. The adapter is
stored as peft stores it, so servers read it, too; for grading it is added to the weights.

Shapes: N pairs, B pairs of a batch, C = 3 grades.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from embeddings.catalog.holdout import VALIDATION
from embeddings.grading.decision import Decision
from embeddings.grading.fine_tuned.training import (
    FineTunedManifest,
    FineTuningConfig,
    GradeTask,
    checkpoints_of,
    fine_tune,
    refuse_before_training,
)
from embeddings.grading.language_models.local_model import (
    LocalGrader,
    PaddedTokens,
    read_start,
    shared_start,
)
from embeddings.grading.language_models.prompt import Prompt
from embeddings.grading.lessons import lessons_of
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs
from embeddings.grading.trained import (
    ADVICE,
    WEIGHTS,
    TrainedGrader,
    is_grader,
)
from embeddings.relevance.grades import GRADES
from embeddings.training.loop import OptimizerConfig, Report
from features.artifacts import (
    MANIFEST,
    atomic_folder,
    checksums_of,
    read_manifest,
    remove_folder,
    verify_checksums,
)

FloatArray = npt.NDArray[np.float64]

#: Folder of the adapter within that of the grader, and its weights.
ADAPTER = "adapter"
ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"


class TunedModelConfig(FineTuningConfig):
    """How a language model is tuned."""

    kind: Literal["tuned-model"] = "tuned-model"
    #: Folder of a causal language model in transformers' layout.
    start: str
    #: Rank of the learnt matrices, and the strength that they are added with, divided by the rank.
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    #: Reading all of them four times an epoch may take longer than learning from some thousand pairs.
    evaluated_pairs: Annotated[int, Field(ge=1)] | None = 600
    optimizer: OptimizerConfig = OptimizerConfig(
        epochs=1,
        batch_size=16,
        learning_rate=5e-4,
        weight_decay=0.0,
        evaluations_per_epoch=4,
        checkpoint_every_steps=500,
    )


class TunedModelManifest(FineTunedManifest):
    """What `manifest.json` of a tuned model says."""

    format: Literal["tuned-model-1"] = "tuned-model-1"
    config: TunedModelConfig
    #: What it was taught to answer; asked otherwise it would not know what to say.
    prompt: Prompt
    prompt_sha: str
    #: Name of the model that the adapter belongs to, with a digest of its files.
    base: str


class LabelLogits(nn.Module):
    """A language model as logits [B, C] of the labels, after a beginning that all texts have in common."""

    def __init__(self, model: Any, start: Sequence[int]) -> None:
        super().__init__()
        self.model, self.start = model, list(start)

    def forward(self, inputs: PaddedTokens) -> Tensor:
        """Logits after the beginning and each text."""
        return inputs.label_logits(self.model, read_start(self.model, self.start))


@dataclass(frozen=True, eq=False)
class TunedModelGrader(TrainedGrader):
    """A tuned model in memory, its adapter within its weights."""

    manifest: TunedModelManifest
    asked: LocalGrader

    @property
    def name(self) -> str:
        """Kind and the first digits of the adapter's checksum."""
        return f"{self.manifest.config.kind}-{self.manifest.checksums[ADAPTER_WEIGHTS][:12]}"

    @property
    def prompt_sha(self) -> str:
        """Checksum of the prompt that it was taught with."""
        return self.manifest.prompt_sha

    @property
    def remarks(self) -> str:
        """What went wrong, in one sentence."""
        return self.asked.remarks

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Calibrated probabilities [N, C], NaN for a prompt longer than the model reads."""
        raw_NC = self.asked.probabilities(pairs)
        found_NC = np.full((len(pairs), len(GRADES)), np.nan)
        answered_N = ~np.isnan(raw_NC).any(axis=1)
        found_NC[answered_N] = self.decision.probabilities(raw_NC[answered_N])
        return found_NC

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "TunedModelGrader":
        """Open a tuned model; its base model must lie where it lay.

        Raises:
            GradingError: it is none, a file is missing or changed, the base model is another, or peft is not
                installed.
            PretrainedError: there is no base model.
        """
        peft = _peft()
        manifest = read_manifest(
            folder, TunedModelManifest, what="a tuned model", error=GradingError, advice=ADVICE
        )
        verify_checksums(folder, manifest.checksums, error=GradingError, advice="train it again")
        asked = LocalGrader.load(Path(manifest.config.start), manifest.prompt, device=device)
        if asked.name != manifest.base:
            raise GradingError(
                f"{folder} was tuned from {manifest.base}, but {manifest.config.start} now holds "
                f"{asked.name}; put the model back or train it again"
            )
        adapted = peft.PeftModel.from_pretrained(asked.model, str(folder / ADAPTER))
        asked.model = adapted.merge_and_unload().eval()
        return cls(folder, manifest, Decision.from_arrays(load_file(folder / WEIGHTS)), asked)


def tune_model(
    graded: GradedPairs,
    catalogue: Catalogue,
    out: Path,
    *,
    config: TunedModelConfig,
    prompt: Prompt,
    device: str = "cpu",
    progress: Callable[[Report], None] | None = None,
) -> TunedModelGrader:
    """Tune on pairs of train queries; those of validation queries stop it and set its thresholds.

    A call that is killed goes on from its last checkpoint. Test queries are not looked at.

    Raises:
        PretrainedError: the start cannot be read.
        CheckpointError: the checkpoints beside `out` are of another training.
        GradingError: peft is not installed, grades are missing, the prompt chooses examples by the pair, or
            makes a text longer than the model reads.
        FileExistsError: `out` holds something else.
    """
    peft = _peft()
    refuse_before_training(int((graded.role_N == VALIDATION).sum()), out)
    if prompt.examples_from == "nearest":
        raise GradingError(
            'a model is tuned with a prompt that is the same for all pairs; remove examples_from = "nearest"'
        )
    lessons = lessons_of(graded, catalogue, config, most_pairs=config.most_pairs)
    asked = LocalGrader.load(Path(config.start), prompt, device=device)
    ids_of = tuple(asked.prompt_ids(pairs) for pairs in (lessons.pairs, lessons.validation.pairs))
    lengths = tuple(np.array([len(ids) for ids in texts], np.int64) for texts in ids_of)
    longest = max(int(length_N.max()) for length_N in lengths)
    if asked.most_tokens is not None and longest > asked.most_tokens:
        raise GradingError(
            f"a pair takes {longest:,} tokens with this prompt, {asked.name} reads {asked.most_tokens:,}; "
            "shorten the prompt, or lower its max_text_characters"
        )
    shared = shared_start([ids for texts in ids_of for ids in texts])
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    place = asked.model.device
    if place.type == "cpu":
        # Torch's fused attention in bfloat16 is slow there for short texts: a step took 1.4 times as long.
        asked.model.set_attn_implementation("eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapted = peft.get_peft_model(asked.model, settings)

    def collate(rows: npt.NDArray[np.int64], validation: bool) -> PaddedTokens:
        texts = ids_of[validation]
        return PaddedTokens.of([texts[row][shared:] for row in rows.tolist()], place)

    task = GradeTask(
        "tuned model",
        LabelLogits(adapted, ids_of[0][0][:shared]),
        lessons,
        collate=collate,
        lengths=(lengths[0], lengths[1]),
        config=config,
        device=place,
    )
    start = f"{asked.name} {prompt.sha256}"
    outcome = fine_tune(task, lessons, out, config=config, start=start, progress=progress)
    with atomic_folder(out, ours=is_grader) as temporary:
        adapted.save_pretrained(str(temporary / ADAPTER))
        asked.model = adapted.merge_and_unload().eval()
        validation = lessons.validation
        decision = Decision.learn(asked.probabilities(validation.pairs), validation.grade_N)
        save_file(decision.to_arrays(), temporary / WEIGHTS)
        manifest = TunedModelManifest(
            config=config,
            prompt=prompt,
            prompt_sha=prompt.sha256,
            base=asked.name,
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
    return TunedModelGrader(out, manifest, decision, asked)


def _peft() -> Any:
    """The library of adapters, an extra.

    Raises:
        GradingError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise GradingError(
            "a language model is tuned, and opened again, by peft, which is not installed; the extra `lora` "
            "adds it, or tune the model elsewhere on what `dashclip grade export` writes"
        ) from None
    return peft
