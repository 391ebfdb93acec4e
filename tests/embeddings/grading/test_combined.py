"""Graders combined: validation queries and stuffed titles say whom to believe, and nothing else is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION
from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.agreement import gullibility
from embeddings.grading.answers import open_grader
from embeddings.grading.combined import CombinedConfig, CombinedGrader, combine_graders
from embeddings.grading.decision import Decision, logs
from embeddings.grading.graders import FeatureGrader, GraderConfig, train_grader
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.grading.trained import TrainedGrader
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world
from tests.embeddings.grading.word_bags import WordBags


@pytest.fixture(scope="module")
def graders(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureGrader]:
    """Two weak ones: one counts words, the other was told of no stuffed title."""
    catalogue, graded = read_small_world(world)
    out = tmp_path_factory.mktemp("members")
    configs = {"overlap": GraderConfig(kind="overlap", holdout=HOLDOUT)}
    configs["naive"] = GraderConfig(classifier="logistic", stuffed_per_query=0, holdout=HOLDOUT)
    return {
        name: train_grader(graded, catalogue, out / name, config=config) for name, config in configs.items()
    }


def config_of(members: dict[str, TrainedGrader], *, stuffed: int = 1) -> CombinedConfig:
    folders = {name: str(one.folder) for name, one in members.items()}
    return CombinedConfig(graders=folders, holdout=HOLDOUT, stuffed_per_query=stuffed)


def combined(
    world: Path, out: Path, members: dict[str, TrainedGrader], *, stuffed: int = 1
) -> CombinedGrader:
    catalogue, graded = read_small_world(world)
    return combine_graders(
        graded, catalogue, out, config=config_of(members, stuffed=stuffed), members=members
    )


def test_it_is_the_calibration_over_what_each_grader_says(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    _, graded = read_small_world(world)
    both = combined(world, tmp_path / "both", {**graders}, stuffed=0)
    validation, test = graded.of_role(VALIDATION), graded.of_role(TEST)
    assert (both.manifest.validation_pairs, both.manifest.stuffed_pairs) == (len(validation), 0)
    assert both.manifest.train_pairs == len(graded.of_role(TRAIN))
    first, second = (one.probabilities(validation.pairs) for one in graders.values())
    expected = Decision.learn(first, validation.grade_N, logs(second))
    one, other = (one.probabilities(test.pairs) for one in graders.values())
    assert both.probabilities(test.pairs) == pytest.approx(expected.probabilities(one, logs(other)), abs=1e-9)
    found = both.grades(both.probabilities(test.pairs))
    alone = [macro_f1(test.grade_N, one.grades(one.probabilities(test.pairs))) for one in graders.values()]
    assert macro_f1(test.grade_N, found) > min(alone)


def test_opened_again_it_says_the_same_under_the_same_name(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    _, graded = read_small_world(world)
    both = combined(world, tmp_path / "both", {**graders})
    again = open_grader(tmp_path / "both")
    some = graded.pairs.take(np.arange(0, len(graded), 17))
    assert isinstance(again, CombinedGrader)
    assert again.name == both.name
    assert again.holdout == HOLDOUT
    assert again.probabilities(some) == pytest.approx(both.probabilities(some), abs=1e-9)


def test_grades_of_train_and_test_queries_change_nothing(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    grade_N = np.where(graded.role_N == VALIDATION, graded.grade_N, 2 - graded.grade_N)
    both = combined(world, tmp_path / "both", {**graders})
    members: dict[str, TrainedGrader] = {**graders}
    again = combine_graders(
        replace(graded, grade_N=grade_N),
        catalogue,
        tmp_path / "x",
        config=config_of(members),
        members=members,
    )
    assert again.name == both.name


def test_stuffed_titles_teach_it_not_to_believe_who_is_fooled(
    world: Path, stack: FeatureGrader, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    members: dict[str, TrainedGrader] = {"naive": graders["naive"], "stack": stack}
    queries = sorted({*graded.of_role(TEST).pairs.queries})
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    fooled = {
        stuffed: gullibility(
            combined(world, tmp_path / f"of_{stuffed}", members, stuffed=stuffed),
            queries,
            catalogue,
            graded=known,
        )["appended"]
        for stuffed in (0, 8)
    }
    assert fooled[8] is not None
    assert fooled[0] is not None
    assert fooled[8] < fooled[0]


def test_a_grader_that_was_trained_again_is_refused(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    config = GraderConfig(kind="overlap", holdout=HOLDOUT)
    members: dict[str, TrainedGrader] = {**graders}
    members["overlap"] = train_grader(graded, catalogue, tmp_path / "overlap", config=config)
    combined(world, tmp_path / "both", members)
    fewer = graded.take(np.flatnonzero(np.arange(len(graded)) % 2 == 0))
    again = train_grader(fewer, catalogue, tmp_path / "overlap", config=config)
    with pytest.raises(GradingError, match=f"holds {again.name}; combine the graders again"):
        open_grader(tmp_path / "both")


def test_without_grades_of_validation_queries_there_is_nothing_to_learn_from(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    members: dict[str, TrainedGrader] = {**graders}
    train = graded.take(np.flatnonzero(graded.role_N == TRAIN))
    with pytest.raises(GradingError, match="none has a graded pair"):
        combine_graders(train, catalogue, tmp_path / "x", config=config_of(members), members=members)
    assert not (tmp_path / "x").exists()


def with_bags(graded: GradedPairs, catalogue: Catalogue, out: Path) -> tuple[WordBags, FeatureGrader]:
    """A grader whose calibration reads vectors that count words."""
    bags = WordBags(catalogue)
    bags.write(out / "bags", catalogue, sorted({*graded.pairs.queries}))
    config = GraderConfig(holdout=HOLDOUT, aligned={"bags": str(out / "bags")}, classifier="logistic")
    return bags, train_grader(graded, catalogue, out / "stack", config=config, readers={"bags": bags})


def test_stuffed_titles_are_read_by_the_encoders_of_the_graders_tables(
    world: Path, graders: dict[str, FeatureGrader], tmp_path: Path
) -> None:
    catalogue, graded = read_small_world(world)
    bags, stack = with_bags(graded, catalogue, tmp_path)
    members: dict[str, TrainedGrader] = {"stack": stack, "overlap": graders["overlap"]}
    config, given = config_of(members), {"config": config_of(members), "members": members}
    with pytest.raises(GradingError, match="that of bags is not there"):
        combine_graders(graded, catalogue, tmp_path / "x", config=config, members=members)
    with pytest.raises(GradingError, match="no grader reads a table named 'other'"):
        combine_graders(graded, catalogue, tmp_path / "x", readers={"bags": bags, "other": bags}, **given)
    bags.read = []
    both = combine_graders(graded, catalogue, tmp_path / "both", readers={"bags": bags}, **given)
    queries = {*graded.of_role(VALIDATION).pairs.queries}
    # A quarter of the foreign titles stay as they are, and have vectors.
    assert 0 < len(bags.read) < both.manifest.stuffed_pairs == len(queries)
    assert both.tables == {"bags": str(tmp_path / "bags")}
    assert both.manifest.read_anew == ("bags",)
    nested: dict[str, TrainedGrader] = {"both": both, "overlap": graders["overlap"]}
    with pytest.raises(GradingError, match="that of bags is not there"):
        combine_graders(graded, catalogue, tmp_path / "x", config=config_of(nested), members=nested)


def test_one_name_for_two_tables_is_refused(world: Path, tmp_path: Path) -> None:
    catalogue, graded = read_small_world(world)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bags, one = with_bags(graded, catalogue, tmp_path / "a")
    _, other = with_bags(graded, catalogue, tmp_path / "b")
    members: dict[str, TrainedGrader] = {"one": one, "other": other}
    with pytest.raises(GradingError, match="other reads a table 'bags' in "):
        combine_graders(
            graded,
            catalogue,
            tmp_path / "x",
            config=config_of(members),
            members=members,
            readers={"bags": bags},
        )
