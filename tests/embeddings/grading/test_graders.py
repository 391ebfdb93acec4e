"""Graders learn from people's grades of train queries, and are the same after a round trip to disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION
from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.agreement import gullibility
from embeddings.grading.graders import FeatureGrader, GraderConfig, train_grader
from embeddings.grading.lessons import lessons_of
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.tables.lsa import embed_lsa, write_both_tables
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world
from tests.embeddings.grading.word_bags import WordBags


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


def disputed(world: Path) -> tuple[Catalogue, GradedPairs]:
    """The small world with two of five grades drawn at random: words alone do not say them."""
    catalogue, graded = read_small_world(world)
    rng = np.random.default_rng(0)
    random_N = rng.integers(3, size=len(graded))
    return catalogue, replace(
        graded, grade_N=np.where(rng.random(len(graded)) < 0.4, random_N, graded.grade_N)
    )


def knowing(folder: Path, world: Path, roles: tuple[int, ...]) -> Path:
    """Tables whose cosine follows the grades of these roles' queries, and is random for the other queries."""
    catalogue, graded = disputed(world)
    rng = np.random.default_rng(0)
    queries = sorted({*graded.pairs.queries})
    place = {query: row for row, query in enumerate(queries)}
    known = {query for query, role in zip(graded.pairs.queries, graded.role_N, strict=True) if role in roles}
    rows = pc.index_in(graded.pairs.product_ids, value_set=catalogue.product_ids).to_numpy()
    product_PD = rng.random((len(catalogue.texts), -(-len(queries) // 4) * 4), dtype=np.float32)
    for query, row, grade in zip(graded.pairs.queries, rows.tolist(), graded.grade_N.tolist(), strict=True):
        if query in known:
            product_PD[row, place[query]] = grade
    query_QD = np.eye(len(queries), product_PD.shape[1], dtype=np.float32)
    product_PD /= np.linalg.norm(product_PD, axis=1, keepdims=True)
    write_both_tables(
        folder, (catalogue.product_ids, product_PD), (pa.array(queries), query_QD), encoder_id="knowing"
    )
    return folder


def f1_on_test(world: Path, out: Path, **config: Any) -> float:
    catalogue, graded = disputed(world)
    train_grader(graded, catalogue, out, config=GraderConfig(holdout=HOLDOUT, **config))
    test = graded.of_role(TEST)
    grader = FeatureGrader.load(out)
    return macro_f1(test.grade_N, grader.grades(grader.probabilities(test.pairs)))


def test_tables_that_know_train_grades_by_heart_mislead_a_classifier_and_not_the_calibration(
    world: Path, tmp_path: Path
) -> None:
    tables = {"knowing": str(knowing(tmp_path / "knowing", world, (TRAIN,)))}
    misled = f1_on_test(world, tmp_path / "misled", tables=tables)
    alone = f1_on_test(world, tmp_path / "alone")
    careful = f1_on_test(world, tmp_path / "careful", aligned=tables)
    assert misled < alone - 0.02
    assert careful > alone - 0.015


def test_what_an_aligned_table_knows_of_held_out_queries_raises_the_grades(
    world: Path, tmp_path: Path
) -> None:
    tables = {"knowing": str(knowing(tmp_path / "knowing", world, (TRAIN, VALIDATION, TEST)))}
    alone = f1_on_test(world, tmp_path / "alone", kind="overlap")
    assert f1_on_test(world, tmp_path / "aligned", kind="overlap", aligned=tables) > alone + 0.2


def test_a_name_of_two_folders_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(GradingError, match="lsa names two folders"):
        f1_on_test(world, tmp_path / "out", tables={"lsa": "one"}, aligned={"lsa": "other"})


def test_a_calibration_that_sees_stuffed_titles_by_their_own_vectors_is_not_fooled_by_their_cosine(
    world: Path, tmp_path: Path
) -> None:
    catalogue, graded = disputed(world)
    bags = WordBags(catalogue)
    bags.write(tmp_path / "bags", catalogue, sorted({*graded.pairs.queries}))
    config = GraderConfig(holdout=HOLDOUT, classifier="logistic", aligned={"bags": str(tmp_path / "bags")})
    test = graded.of_role(TEST)
    queries = sorted({*test.pairs.queries})
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    fooled, f1 = {}, {}
    for name, readers in (("naive", {}), ("wary", {"bags": bags})):
        train_grader(graded, catalogue, tmp_path / name, config=config, readers=readers)
        grader = FeatureGrader.load(tmp_path / name)
        reading = grader.reading({"bags": bags})
        fooled[name] = gullibility(reading, queries, catalogue, graded=known)["appended"]
        f1[name] = macro_f1(test.grade_N, grader.grades(grader.probabilities(test.pairs)))
    assert fooled["wary"] < 0.1 < 0.9 < fooled["naive"]
    assert f1["wary"] > f1["naive"] - 0.03
    assert grader.manifest.read_anew == ("bags",)
    assert grader.manifest.calibration_stuffed == len({*graded.of_role(VALIDATION).pairs.queries})
    assert "stuffed titles by the encoder of bags, 14 of them for the calibration" in grader.manifest.read


def test_a_classifier_learns_stuffed_titles_by_their_own_vectors_and_peoples_pairs_by_the_table(
    world: Path, tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    bags = WordBags(catalogue)
    some = catalogue.take(np.flatnonzero(np.arange(len(catalogue.texts)) % 3 > 0))
    bags.write(tmp_path / "bags", some, sorted({*graded.pairs.queries}))
    config = GraderConfig(holdout=HOLDOUT, tables={"bags": str(tmp_path / "bags")})
    blind = train_grader(graded, catalogue, tmp_path / "blind", config=config)
    reading = train_grader(graded, catalogue, tmp_path / "reading", config=config, readers={"bags": bags})
    stuffed = lessons_of(graded, catalogue, config)
    titles = stuffed.pairs.texts[stuffed.people :]
    assert {*bags.read} <= {*titles}
    assert sum(text not in catalogue.texts for text in bags.read) > len(titles) / 2
    assert blind.name != reading.name
    assert reading.manifest.calibration_stuffed == 0, "no aligned table, nothing that the calibration adds"
    queries = sorted({*graded.of_role(TEST).pairs.queries})
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    fooled = [
        gullibility(grader.reading({"bags": bags}), queries, catalogue, graded=known)["appended"]
        for grader in (blind, reading)
    ]
    assert fooled[1] <= fooled[0]


def test_an_encoder_that_would_read_nothing_or_one_of_two_aligned_tables_is_refused(
    world: Path, tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    bags = WordBags(catalogue)
    folders = {name: str(tmp_path / name) for name in ("one", "other")}
    for folder in folders.values():
        bags.write(Path(folder), catalogue, sorted({*graded.pairs.queries}))

    def refused(match: str, readers: dict[str, WordBags], **config: Any) -> None:
        with pytest.raises(GradingError, match=match):
            train_grader(
                graded, catalogue, tmp_path / "g", readers=readers,
                config=GraderConfig(holdout=HOLDOUT, **config),
            )  # fmt: skip

    refused("but other has none; name its encoder, too", {"one": bags}, aligned=folders)
    refused("this overlap learns from none", {"one": bags}, kind="overlap", aligned=folders)
    refused("this stack learns from none", {"one": bags}, stuffed_per_query=0, tables=folders)
    refused("no table is named 'third'", {"third": bags}, tables=folders)
