"""Graders learn from people's grades of train queries, and are the same after a round trip to disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, TRAIN
from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.agreement import gullibility
from embeddings.grading.graders import FeatureGrader, GraderConfig, train_grader
from embeddings.grading.pairs import GradingError
from embeddings.tables.lsa import embed_lsa
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world


def test_the_stack_learns_the_grades_of_unseen_queries(world: Path, stack: FeatureGrader) -> None:
    _, graded = read_small_world(world)
    test = graded.of_role(TEST)
    predicted = stack.grades(stack.probabilities(test.pairs))
    assert macro_f1(test.grade_N, predicted) > 0.85


def test_probabilities_sum_to_one_and_a_pair_is_graded_alone_as_among_others(
    world: Path, stack: FeatureGrader
) -> None:
    _, graded = read_small_world(world)
    some = graded.pairs.take(np.arange(0, 60, 7))
    together = stack.probabilities(some)
    assert together.sum(axis=1) == pytest.approx(1)
    alone = np.vstack([stack.probabilities(some.take(np.array([row]))) for row in range(len(some))])
    assert alone == pytest.approx(together, abs=1e-6)


def test_a_loaded_grader_says_what_the_trained_one_said(world: Path, stack: FeatureGrader) -> None:
    _, graded = read_small_world(world)
    some = graded.pairs.take(np.arange(0, 300, 11))
    loaded = FeatureGrader.load(stack.folder)
    assert loaded.name == stack.name
    assert loaded.probabilities(some) == pytest.approx(stack.probabilities(some), abs=1e-9)


def test_grades_of_test_queries_change_nothing(world: Path, stack: FeatureGrader, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    grade_N = np.where(graded.role_N == TEST, 2 - graded.grade_N, graded.grade_N)
    poisoned = replace(graded, grade_N=grade_N)
    again = train_grader(poisoned, catalogue, tmp_path / "stack", config=stack.manifest.config)
    assert again.name == stack.name


def test_stuffed_pairs_make_a_grader_hard_to_fool(world: Path, stack: FeatureGrader, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    config = GraderConfig(holdout=HOLDOUT, stuffed_per_query=0)
    naive = train_grader(graded, catalogue, tmp_path / "naive", config=config)
    queries = sorted({*graded.of_role(TEST).pairs.queries})
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    fooled = {
        name: gullibility(grader, queries, catalogue, graded=known)["appended"]
        for name, grader in (("naive", naive), ("stack", stack))
    }
    assert naive.manifest.stuffed_pairs == 0
    assert fooled["stack"] < 0.2 < fooled["naive"]


def test_vectors_read_the_tables_and_overlap_reads_nothing_else(world: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    embed_lsa(world, tmp_path / "lsa", dim=16, seed=0)
    tables = {"lsa": str(tmp_path / "lsa")}
    config = GraderConfig(kind="vectors", tables=tables, holdout=HOLDOUT)
    vectors = train_grader(graded, catalogue, tmp_path / "vectors", config=config)
    assert vectors.manifest.features == ("token_overlap", "cosine_lsa")
    config = GraderConfig(kind="overlap", tables=tables, holdout=HOLDOUT)
    overlap = train_grader(graded, catalogue, tmp_path / "overlap", config=config)
    assert overlap.manifest.features == ("token_overlap",)


def test_vectors_without_tables_are_refused(world: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    with pytest.raises(GradingError, match="embed lsa"):
        train_grader(graded, catalogue, tmp_path / "g", config=GraderConfig(kind="vectors"))


def test_a_grade_that_nobody_gave_is_named(world: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    rows = np.flatnonzero((graded.role_N == TRAIN) & (graded.grade_N != 1))
    with pytest.raises(GradingError, match="none is graded moderate"):
        train_grader(graded.take(rows), catalogue, tmp_path / "g", config=GraderConfig(holdout=HOLDOUT))


def test_a_changed_file_is_refused(stack: FeatureGrader, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in stack.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = (folder / "grader.safetensors").read_bytes()
    (folder / "grader.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(GradingError, match="has changed"):
        FeatureGrader.load(folder)
