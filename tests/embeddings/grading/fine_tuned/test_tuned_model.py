"""A tuned language model learns people's grades by its adapter alone, and is asked as it was taught."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embeddings.catalog.holdout import TEST, VALIDATION
from embeddings.grading.answers import open_grader
from embeddings.grading.fine_tuned.training import checkpoints_of
from embeddings.grading.fine_tuned.tuned_model import (
    LabelLogits,
    TunedModelConfig,
    TunedModelGrader,
    tune_model,
)
from embeddings.grading.language_models.examples import NearestExamples
from embeddings.grading.language_models.local_model import LocalGrader, PaddedTokens, shared_start
from embeddings.grading.language_models.prompt import Prompt
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.training.evaluation import ROWS
from embeddings.training.loop import OptimizerConfig, Report
from tests.embeddings.grading.language_models.small_models import write_model, write_prompt
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world
from tests.tolerances import float32_drift

#: Short, as the whole prompt is read for every pair.
PROMPT = """
version = "1"
role = "Grade"
max_text_characters = 25
[definitions]
high = "same"
moderate = "near"
irrelevant = "other"
"""
#: As in test_local_model: two layers of width 16 and at most 64 tokens here, then the adapter's 8.
TERMS = 2 * (4 * 16 + 32 + 64) + 16 + 8


def config_of(start: Path, *, epochs: int = 1, most_pairs: int | None = 160) -> TunedModelConfig:
    optimizer = OptimizerConfig(
        epochs=epochs, batch_size=16, learning_rate=1e-2, weight_decay=0.0, checkpoint_every_steps=4
    )
    return TunedModelConfig(
        start=str(start),
        rank=8,
        alpha=16,
        optimizer=optimizer,
        holdout=HOLDOUT,
        most_pairs=most_pairs,
        stuffed_per_query=0,
    )


@pytest.fixture(scope="module")
def small(world: Path) -> tuple[GradedPairs, Catalogue]:
    """Few held-out pairs, so that measuring costs little."""
    catalogue, graded = read_small_world(world)
    held = np.flatnonzero((graded.role_N == TEST) | (graded.role_N == VALIDATION))
    return graded.take(np.setdiff1d(np.arange(len(graded)), held[held % 4 > 0])), catalogue


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    path = tmp_path_factory.mktemp("prompts") / "prompt.toml"
    path.write_text(PROMPT)
    return Prompt.read(path)


@pytest.fixture(scope="module")
def tuned(
    small: tuple[GradedPairs, Catalogue],
    model: Path,
    prompt: Prompt,
    tmp_path_factory: pytest.TempPathFactory,
) -> TunedModelGrader:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    out = tmp_path_factory.mktemp("tuned") / "grader"
    return tune_model(*small, out, config=config_of(model, epochs=2, most_pairs=320), prompt=prompt)


def test_it_learns_by_the_adapter_alone_and_grades_by_what_it_learnt(
    tuned: TunedModelGrader, model: Path, small: tuple[GradedPairs, Catalogue]
) -> None:
    manifest, validation = tuned.manifest, small[0].of_role(VALIDATION)
    rows = np.arange(len(validation))
    losses = [
        float(-np.log(asked.probabilities(validation.pairs)[rows, validation.grade_N]).mean())
        for asked in (LocalGrader.load(model, manifest.prompt), tuned.asked)
    ]
    assert manifest.validation_loss == pytest.approx(losses[1], abs=1e-4)
    assert losses[1] < losses[0] - 0.1
    assert losses[1] < manifest.validation_loss_at_chance
    assert not checkpoints_of(tuned.folder).exists()
    adapter = load_file(tuned.folder / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in adapter)
    # Two layers of seven linear maps, two matrices each.
    assert len(adapter) == 2 * 7 * 2
    assert LocalGrader.load(model, manifest.prompt).name == manifest.base  # its files are as they were


def test_merged_weights_answer_as_the_base_with_the_adapter_beside_it(
    tuned: TunedModelGrader, small: tuple[GradedPairs, Catalogue]
) -> None:
    some = small[0].pairs.take(np.arange(0, 40, 7))
    asked = LocalGrader.load(Path(tuned.manifest.config.start), tuned.manifest.prompt)
    adapter = load_file(tuned.folder / "adapter" / "adapter_model.safetensors")
    changed = 0
    with torch.no_grad():
        for name, value in adapter.items():
            if ".lora_A." in name:
                other = adapter[name.replace(".lora_A.", ".lora_B.")]
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                asked.model.get_submodule(layer).weight += 16 / 8 * other @ value
                changed += 1
    assert changed == 14
    slow = asked.probabilities(some)
    np.testing.assert_allclose(tuned.asked.probabilities(some), slow, rtol=0, atol=4 * float32_drift(TERMS))
    assert tuned.probabilities(some) == pytest.approx(tuned.decision.probabilities(slow), abs=1e-4)


def test_a_loaded_grader_says_what_the_tuned_one_said(
    tuned: TunedModelGrader, small: tuple[GradedPairs, Catalogue]
) -> None:
    some = small[0].pairs.take(np.arange(0, 60, 7))
    loaded = open_grader(tuned.folder)
    assert isinstance(loaded, TunedModelGrader)
    assert (loaded.name, loaded.prompt_sha) == (tuned.name, tuned.manifest.prompt.sha256)
    found = loaded.probabilities(some)
    assert found == pytest.approx(tuned.probabilities(some), abs=1e-5)
    assert loaded.grades(found).tolist() == tuned.grades(tuned.probabilities(some)).tolist()
    some.queries[2] = "red " * 400
    assert np.isnan(loaded.probabilities(some)).any(axis=1).tolist() == [row == 2 for row in range(len(some))]


def test_a_base_model_that_is_another_now_is_refused(tuned: TunedModelGrader, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "adapter").mkdir()
    for path in tuned.folder.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tuned.folder)).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["start"] = str(write_model(tmp_path / "base", seed=1))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GradingError, match="now holds lm-base-"):
        TunedModelGrader.load(folder)


def test_a_beginning_read_once_for_a_batch_teaches_as_if_each_text_had_its_own(
    small: tuple[GradedPairs, Catalogue], model: Path, prompt: Prompt
) -> None:
    texts = LocalGrader.load(model, prompt).prompt_ids(small[0].pairs.take(np.arange(6)))
    common = shared_start(texts)
    assert common > 10
    found = []
    for shared in (0, common):
        asked = LocalGrader.load(model, prompt)
        asked.model.requires_grad_(True)
        read: list[tuple[int, ...]] = []
        asked.model.get_input_embeddings().register_forward_hook(
            lambda _module, inputs, _output, read=read: read.append(tuple(inputs[0].shape))
        )
        batch = PaddedTokens.of([ids[shared:] for ids in texts], asked.model.device)
        logits_BC = LabelLogits(asked.model, texts[0][:shared])(batch)
        torch.nn.functional.cross_entropy(logits_BC, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        weight = asked.model.model.layers[0].self_attn.k_proj.weight
        found.append((logits_BC.detach(), weight.grad.clone(), read))
    longest = max(map(len, texts))
    assert [read for *_, read in found] == [[(6, longest)], [(1, common), (6, longest - common)]]
    for slow, fast in zip(*(part[:2] for part in found), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_an_evaluation_reads_as_many_validation_pairs_as_the_config_says(
    small: tuple[GradedPairs, Catalogue], model: Path, prompt: Prompt, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    config = config_of(model, most_pairs=64).model_copy(update={"evaluated_pairs": 5})
    seen: list[float] = []

    def note(report: Report) -> None:
        if report.evaluation is not None:
            seen.append(report.evaluation[ROWS])

    grader = tune_model(*small, tmp_path / "few", config=config, prompt=prompt, progress=note)
    assert seen
    assert set(seen) == {5.0}
    assert grader.manifest.validation_pairs == len(small[0].of_role(VALIDATION)) > 5


class Killed(Exception):
    """Stands for a kill between two steps."""


def test_a_killed_tuning_goes_on_and_ends_with_the_same_adapter(
    small: tuple[GradedPairs, Catalogue], model: Path, prompt: Prompt, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    config = config_of(model)
    whole = tune_model(*small, tmp_path / "whole", config=config, prompt=prompt)
    steps: list[int] = []

    def kill(report: Report) -> None:
        steps.append(report.step)
        if len(steps) == 6:
            raise Killed

    with pytest.raises(Killed):
        tune_model(*small, tmp_path / "part", config=config, prompt=prompt, progress=kill)
    checkpoints = checkpoints_of(tmp_path / "part")
    # A checkpoint holds no weight of the base model.
    stored = load_file(next(checkpoints.glob("step-*")) / "module.safetensors")
    assert all(".lora_" in name for name in stored)
    part = tune_model(*small, tmp_path / "part", config=config, prompt=prompt, progress=kill)
    assert steps[6] == 5
    assert part.name == whole.name


def test_what_cannot_be_tuned_is_refused(
    small: tuple[GradedPairs, Catalogue], model: Path, prompt: Prompt, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    config = config_of(model)
    nearest = prompt.model_copy(update={"examples_from": "nearest"})
    with pytest.raises(GradingError, match="the same for all pairs"):
        tune_model(*small, tmp_path / "out", config=config, prompt=nearest)
    pool = nearest.with_nearest(NearestExamples(small[0], 2))
    with pytest.raises(GradingError, match="the same for all pairs"):
        tune_model(*small, tmp_path / "out", config=config, prompt=pool)
    long = prompt.model_copy(update={"role": "red " * 400})
    with pytest.raises(GradingError, match=r"tokens with this prompt, lm-base-.* reads 400"):
        tune_model(*small, tmp_path / "out", config=config, prompt=long)


def test_without_peft_the_extra_is_named(
    small: tuple[GradedPairs, Catalogue], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    prompt = write_prompt(tmp_path / "p.toml")
    with pytest.raises(GradingError, match="the extra `lora` adds it"):
        tune_model(*small, tmp_path / "out", config=config_of(model), prompt=prompt)
    with pytest.raises(GradingError, match="the extra `lora` adds it"):
        TunedModelGrader.load(tmp_path / "out")
