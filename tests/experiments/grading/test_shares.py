"""Data in which people graded a share of the pairs and a grader the rest, and what trains on it."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, HoldoutConfig
from embeddings.grading.graders import FeatureGrader
from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
from embeddings.relevance.grades import read_grades
from experiments.ablation.plan import AblationConfig, plan
from experiments.config import load_config
from experiments.grading.shares import SharePlan, Shares, ablation_toml, drawn, write_shares
from tests.embeddings.grading.small_world import write_small_world

Pair = tuple[str, object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Shares]:
    folder = tmp_path_factory.mktemp("shares")
    data = write_small_world(folder / "data")
    return data, folder / "out", write_shares(data, folder / "out", SharePlan(shares=(0.25, 0.5)))


def graded(data: Path, *sources: str) -> dict[Pair, int]:
    grades = read_grades(data, sources=sources)
    queries, products = grades.queries.to_pylist(), grades.product_ids.to_pylist()
    rows = zip(grades.query_G.tolist(), grades.product_G.tolist(), grades.grade_G.tolist(), strict=True)
    return {(queries[query], products[product]): grade for query, product, grade in rows}


def held_out(data: Path) -> set[Pair]:
    pairs = read_graded_pairs(data, HoldoutConfig(), catalogue=Catalogue.read(data))
    rows = np.flatnonzero(pairs.role_N == TEST)
    found = pairs.take(rows).pairs
    return set(zip(found.queries, found.product_ids.to_pylist(), strict=True))


def test_people_keep_their_grades_and_a_larger_share_has_all_of_a_smaller_one(
    written: tuple[Path, Path, Shares],
) -> None:
    data, out, found = written
    before = graded(data, "human")
    assert graded(out / "data", "human") == before
    small, large = graded(out / "data", "people_25"), graded(out / "data", "people_50")
    assert small.items() < large.items() < before.items()
    assert [row.people_pairs for row in found.shares] == [len(small), len(large)]
    known = len(before) - len(held_out(data))
    assert 0.18 < len(small) / known < 0.32
    assert 0.43 < len(large) / known < 0.57


def test_no_grade_of_a_test_query_is_trained_on_and_the_model_grades_all_others(
    written: tuple[Path, Path, Shares],
) -> None:
    data, out, found = written
    tested, before = held_out(data), graded(data, "human")
    assert tested
    for row in found.shares:
        assert graded(out / "data", row.people_source).keys().isdisjoint(tested)
        assert graded(out / "data", row.model_source).keys() == before.keys() - tested
        assert row.model_pairs == found.pairs == len(before) - found.test_pairs


def test_agreement_is_of_pairs_that_the_grader_did_not_see(written: tuple[Path, Path, Shares]) -> None:
    """Recomputed from the written tables; with the pairs it learnt from it is another figure."""
    from sklearn.metrics import f1_score

    data, out, found = written
    before = graded(data, "human")
    for row in found.shares:
        people = graded(out / "data", row.people_source)
        model = graded(out / "data", row.model_source)
        unseen = [pair for pair in model if pair not in people]
        truth, said = [before[pair] for pair in unseen], [model[pair] for pair in unseen]
        assert row.macro_f1 == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-9)
        assert row.macro_f1 > 0.6, "the grades follow from words, so even a share teaches them"


def test_the_variants_differ_in_whose_grades_they_train_on_and_in_nothing_else(
    written: tuple[Path, Path, Shares],
) -> None:
    _, out, _ = written
    runs = plan(load_config(out / "ablation.toml", AblationConfig), out / "runs")
    sources = {run.variant: run.config.sources for run in runs if run.seed == 1 and run.config.align}
    assert sources == {
        "people": ("human",),
        "people_25": ("people_25",),
        "people_25_model_25": ("people_25", "model_25"),
        "model_25": ("model_25",),
        "people_50": ("people_50",),
        "people_50_model_50": ("people_50", "model_50"),
        "model_50": ("model_50",),
    }
    first = runs[0].config
    graded = [run for run in runs if run.config.align]
    assert all(run.config.model_copy(update={"sources": first.sources}) == first for run in graded[:7])
    [none] = [run for run in runs if run.seed == 1 and run.config.align is None]
    assert none.variant == "no_grades"
    assert none.config == first.model_copy(update={"align": None, "sources": None})
    assert none.stage_1_folder == runs[0].stage_1_folder
    assert len({run.stage_1_folder for run in runs}) == 5, "one stage 1 for each seed"


def test_without_anything_before_stage_2_there_is_no_variant_without_grades() -> None:
    assert "no_grades" not in ablation_toml(SharePlan(shares=(0.5,), config="encoders_home_depot_published"))


def test_probabilities_of_the_model_can_be_drawn_from(written: tuple[Path, Path, Shares]) -> None:
    _, out, _ = written
    data = out / "data"
    most_fitting = read_grades(data, sources=("people_25", "model_25"))
    draw = read_grades(data, sources=("people_25", "model_25"), draw_seed=1)
    people = most_fitting.source_G == 0
    assert (draw.grade_G[people] == most_fitting.grade_G[people]).all()
    assert (draw.grade_G[~people] != most_fitting.grade_G[~people]).any()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 5.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(GradingError, match=r"between 0 and 1, got .*0\.05 is 5 %"):
        SharePlan(shares=(share,))


def test_too_small_a_share_says_how_many_grades_it_has(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    with pytest.raises(GradingError, match=r"0\.01 of the .* at least 100, so name a larger share"):
        write_shares(data, tmp_path / "out", SharePlan(shares=(0.01,)))
    assert not (tmp_path / "out" / "data").exists()


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out"):
        write_shares(data, tmp_path / "out", SharePlan(shares=(0.5,)))


def test_another_seed_draws_other_pairs(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    pairs = read_graded_pairs(data, HoldoutConfig(), catalogue=Catalogue.read(data)).pairs
    assert (drawn(pairs, 0.5, 0) != drawn(pairs, 0.5, 1)).mean() == pytest.approx(0.5, abs=0.1)


def test_the_grader_and_the_encoders_hold_out_the_same_queries(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    config = tmp_path / "encoders.toml"
    config.write_text("[holdout]\ntest_query_share = 0.3\nseed = 3\n")
    holdout = HoldoutConfig(test_query_share=0.3, seed=3)
    plan = SharePlan(shares=(0.5,), config=str(config))
    found = write_shares(data, tmp_path / "out", plan)
    pairs = read_graded_pairs(data, holdout, catalogue=Catalogue.read(data))
    assert found.test_pairs == (pairs.role_N == TEST).sum()
    assert FeatureGrader.load(tmp_path / "out" / "graders" / "50").holdout == holdout
    tested = {*pairs.of_role(TEST).pairs.queries}
    assert not tested & {query for query, _ in graded(tmp_path / "out" / "data", "people_50", "model_50")}
