"""A cross-encoder learns people's grades, reads each pair for itself, and survives a kill and the disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, BertModel, BertTokenizer

from embeddings.catalog.holdout import TEST, VALIDATION
from embeddings.encoders.pretrained import PretrainedError
from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.answers import open_grader
from embeddings.grading.fine_tuned.cross_encoder import (
    CrossEncoderConfig,
    CrossEncoderGrader,
    PairClassifier,
    TokenPairs,
    train_cross_encoder,
)
from embeddings.grading.fine_tuned.training import checkpoints_of
from embeddings.grading.graders import FeatureGrader
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.training.checkpoint import CheckpointError
from embeddings.training.loop import OptimizerConfig, Report
from tests.embeddings.grading.fine_tuned.small_encoder import save_encoder
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world
from tests.tolerances import float32_drift

#: Width 32, layers of 128, at most 64 tokens to attend to, two layers; then a head of 4 * 32.
TERMS = 2 * (4 * 32 + 128 + 64) + 128


def config_of(start: Path, *, epochs: int = 1, **changes: Any) -> CrossEncoderConfig:
    optimizer = OptimizerConfig(
        epochs=epochs, batch_size=32, learning_rate=2e-3, evaluations_per_epoch=2, checkpoint_every_steps=10
    )
    return CrossEncoderConfig(start=str(start), holdout=HOLDOUT, optimizer=optimizer, **changes)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("start") / "bert")


@pytest.fixture(scope="module")
def trained(world: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossEncoderGrader:
    catalogue, graded = read_small_world(world)
    out = tmp_path_factory.mktemp("graders") / "ce"
    return train_cross_encoder(graded, catalogue, out, config=config_of(start, epochs=12))


def test_it_learns_the_grades_of_unseen_queries(world: Path, trained: CrossEncoderGrader) -> None:
    _, graded = read_small_world(world)
    test = graded.of_role(TEST)
    assert macro_f1(test.grade_N, trained.grades(trained.probabilities(test.pairs))) > 0.6
    manifest = trained.manifest
    assert manifest.validation_loss < 0.8 * manifest.validation_loss_at_chance
    assert (manifest.train_pairs, manifest.validation_pairs) == (
        int((graded.role_N == 0).sum()),
        int((graded.role_N == VALIDATION).sum()),
    )
    assert not checkpoints_of(trained.folder).exists()


def test_logits_are_those_of_each_pair_read_alone_with_transformers(start: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(start)
    torch.manual_seed(1)
    model = PairClassifier(AutoModel.from_pretrained(start)).eval()
    queries, texts = (
        ["red lamp", "door", ""],
        ["Acme Red Lamp for lamps", "", "Borg Blue Door for doors in 7"],
    )
    pairs = Pairs(queries, texts, pa.array([1, 2, 3]))
    with torch.no_grad():
        tokens = TokenPairs(tokenizer, pairs, max_tokens=64)
        found = model(tokens.batch(np.arange(3), torch.device("cpu"))).numpy()
        bert = BertModel.from_pretrained(start).eval()
        for row, (query, text) in enumerate(zip(queries, texts, strict=True)):
            q, t = (tokenizer.encode(part, add_special_tokens=False) for part in (query, text))
            ids = torch.tensor([[2, *q, 3, *t, 3]])
            types = torch.tensor([[0] * (len(q) + 2) + [1] * (len(t) + 1)])
            state = bert(input_ids=ids, token_type_ids=types).last_hidden_state[0]
            means = []
            for first, count in ((1, len(q)), (len(q) + 2, len(t))):
                mean = state[first : first + count].sum(dim=0)
                means.append(mean / mean.norm() * 32**0.5 if count else torch.zeros(32))
            both = torch.cat([*means, means[0] * means[1], (means[0] - means[1]).abs()])
            slow = model.head.weight @ both + model.head.bias
            np.testing.assert_allclose(found[row], slow.numpy(), rtol=0, atol=4 * float32_drift(TERMS))


def test_a_pair_is_graded_alone_as_among_others_and_order_matters_not(
    world: Path, trained: CrossEncoderGrader
) -> None:
    _, graded = read_small_world(world)
    some = graded.pairs.take(np.arange(0, 60, 7))
    together = trained.probabilities(some)
    assert together.sum(axis=1) == pytest.approx(1)
    assert np.ptp(together, axis=0).min() > 0.05  # pairs differ, or anything would do
    alone = np.vstack([trained.probabilities(some.take(np.array([row]))) for row in range(len(some))])
    assert alone == pytest.approx(together, abs=1e-4)
    backwards = trained.probabilities(some.take(np.arange(len(some))[::-1]))
    assert backwards[::-1] == pytest.approx(together, abs=1e-4)
    assert trained.probabilities(some.take(np.arange(0))).shape == (0, 3)


def test_a_loaded_grader_says_what_the_trained_one_said(world: Path, trained: CrossEncoderGrader) -> None:
    _, graded = read_small_world(world)
    some = graded.pairs.take(np.arange(0, 300, 11))
    state = torch.get_rng_state()
    loaded = open_grader(trained.folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(loaded, CrossEncoderGrader)
    assert loaded.name == trained.name
    assert loaded.name.startswith("cross-encoder-")
    assert loaded.probabilities(some) == pytest.approx(trained.probabilities(some), abs=1e-6)
    assert (
        loaded.grades(loaded.probabilities(some)).tolist()
        == trained.grades(trained.probabilities(some)).tolist()
    )


def test_grades_of_test_queries_change_nothing(world: Path, start: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    grade_N = np.where(graded.role_N == TEST, 2 - graded.grade_N, graded.grade_N)
    names = [
        train_cross_encoder(
            some, catalogue, tmp_path / name, config=config_of(start, most_pairs=96, stuffed_per_query=0)
        ).name
        for name, some in (("as they are", graded), ("poisoned", replace(graded, grade_N=grade_N)))
    ]
    assert names[0] == names[1]


class Killed(Exception):
    """Stands for a kill between two steps."""


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    world: Path, start: Path, tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    config = config_of(start, epochs=2, most_pairs=240)
    whole = train_cross_encoder(graded, catalogue, tmp_path / "whole", config=config)
    steps: list[int] = []

    def kill(report: Report) -> None:
        steps.append(report.step)
        if len(steps) == 12:
            raise Killed

    with pytest.raises(Killed):
        train_cross_encoder(graded, catalogue, tmp_path / "part", config=config, progress=kill)
    assert not (tmp_path / "part").exists()
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(CheckpointError, match="other settings or inputs"):
        train_cross_encoder(graded, catalogue, tmp_path / "part", config=other)
    part = train_cross_encoder(graded, catalogue, tmp_path / "part", config=config, progress=kill)
    assert 1 < steps[12] <= 12
    assert part.name == whole.name


def test_a_start_without_the_pooler_that_nobody_reads_is_taken_and_one_without_a_layer_is_not(
    world: Path, tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    bare = save_encoder(tmp_path / "bare", pooler=False)
    config = config_of(bare, most_pairs=64, stuffed_per_query=0)
    train_cross_encoder(graded, catalogue, tmp_path / "out", config=config)
    content = json.loads((bare / "config.json").read_text()) | {"num_hidden_layers": 3}
    (bare / "config.json").write_text(json.dumps(content))
    with pytest.raises(PretrainedError, match="leaves 16 weights of AutoModel random"):
        train_cross_encoder(graded, catalogue, tmp_path / "out", config=config)


def test_what_cannot_be_a_start_is_refused_by_name(world: Path, start: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)

    def refused(config: CrossEncoderConfig, match: str, error: type[Exception] = PretrainedError) -> None:
        with pytest.raises(error, match=match):
            train_cross_encoder(graded, catalogue, tmp_path / "out", config=config)

    (tmp_path / "nothing").mkdir()
    refused(config_of(tmp_path / "nothing"), r"must be a folder with config\.json")
    refused(config_of(tmp_path / "nowhere"), "is no model that comes as a package")
    refused(config_of(start, max_tokens=65), "reads 64 tokens, so max_tokens must not exceed that; got 65")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    refused(config_of(start), "holds something of another kind", FileExistsError)
    with pytest.raises(GradingError, match="no validation query"):
        train_cross_encoder(
            graded.take(np.flatnonzero(graded.role_N != VALIDATION)),
            catalogue,
            tmp_path / "new",
            config=config_of(start),
        )


def test_one_kind_of_grader_is_not_opened_as_the_other(
    trained: CrossEncoderGrader, stack: FeatureGrader
) -> None:
    with pytest.raises(GradingError, match="format 'cross-encoder-1', this version reads grader-1"):
        FeatureGrader.load(trained.folder)
    with pytest.raises(GradingError, match="format 'grader-1', this version reads cross-encoder-1"):
        CrossEncoderGrader.load(stack.folder)
