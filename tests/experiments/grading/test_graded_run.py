"""Shares of grades of a run: what people did not grade is inferred, and pairs of another kind are named."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.grading.run import run_grader
from embeddings.grading.stuffing import foreign_pairs
from experiments.grading.graded_run import measure_run
from tests.embeddings.grading.small_world import read_small_world, write_small_world
from tests.experiments.grading.word_grader import WordGrader

World = tuple[Catalogue, GradedPairs, GradedPairs, frozenset[tuple[str, object]]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Of the pairs of the small world people have graded a third, those of test queries apart."""
    catalogue, every = read_small_world(write_small_world(tmp_path / "data"))
    graded = every.take(np.flatnonzero(np.random.default_rng(0).random(len(every)) < 0.33))
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    return catalogue, every, graded.of_role(TEST), known


def test_shares_of_pairs_that_nobody_graded_are_sharper_with_a_grader(world: World, tmp_path: Path) -> None:
    _, every, kept, known = world
    grader = WordGrader()
    run_grader(every.pairs, tmp_path / "run", grader)
    found = measure_run(tmp_path / "run", kept, known, {"words": grader.probabilities(kept.pairs)})
    assert (found.grader, found.people_pairs) == ("words", len(kept))
    assert found.graded_pairs == len(every) - len(known)
    truth = {name: (every.grade_N == grade).mean() for grade, name in enumerate(found.people_shares)}
    for name, share in truth.items():
        people, powered = found.people_shares[name], found.powered_shares[name]
        assert people.mean == pytest.approx((kept.grade_N == list(truth).index(name)).mean())
        # The probabilities are .1 or .8: they know all, and say so too softly.
        assert found.grader_shares[name] == pytest.approx(0.1 + 0.7 * share, abs=0.02)
        assert found.tuning[name] > 0.8
        assert powered.low is not None
        assert powered.high is not None
        assert people.high is not None
        assert people.low is not None
        assert powered.low < share < powered.high
        assert powered.high - powered.low < 0.7 * (people.high - people.low)
    assert found.of_one_kind


def test_a_grader_that_is_not_reported_counts_by_its_own_answers(world: World, tmp_path: Path) -> None:
    _, every, kept, known = world
    grader = WordGrader()
    run_grader(every.pairs, tmp_path / "run", grader)
    said = measure_run(tmp_path / "run", kept, known, {"words": grader.probabilities(kept.pairs)})
    own = measure_run(tmp_path / "run", kept, known, {"another": np.ones((len(kept), 3)) / 3})
    for name, interval in said.powered_shares.items():
        assert own.powered_shares[name].mean == pytest.approx(interval.mean, abs=1e-6)


def test_pairs_of_another_kind_are_named(world: World, tmp_path: Path) -> None:
    catalogue, every, kept, known = world
    rng = np.random.default_rng(0)
    foreign = foreign_pairs(every.pairs.queries[::3], catalogue, stuffing="none", generator=rng, graded=known)
    grader = WordGrader()
    run_grader(foreign, tmp_path / "run", grader)
    found = measure_run(tmp_path / "run", kept, known, {"words": grader.probabilities(kept.pairs)})
    assert found.shift["high"].high is not None
    assert found.shift["high"].high < 0 < found.shift["irrelevant"].mean
    assert not found.of_one_kind


def test_what_a_run_cost_and_would_cost_follows_from_its_tokens(world: World, tmp_path: Path) -> None:
    _, every, kept, known = world
    grader = WordGrader(tokens_a_pair=150)
    run_grader(every.pairs, tmp_path / "run", grader)
    found = measure_run(tmp_path / "run", kept, known, {}, price_per_million_tokens=0.5)
    assert found.tokens_per_pair == 150
    assert found.money_for_32m_pairs == pytest.approx(150 * 32 * 0.5)
    assert measure_run(tmp_path / "run", kept, known, {}).money_for_32m_pairs is None


def test_runs_that_say_nothing_are_refused(world: World, tmp_path: Path) -> None:
    _, every, kept, known = world
    with pytest.raises(GradingError, match="holds no grades yet"):
        measure_run(tmp_path / "none", kept, known, {})
    run_grader(every.of_role(0).pairs, tmp_path / "train", WordGrader())
    with pytest.raises(GradingError, match="words has graded none of the test pairs"):
        measure_run(tmp_path / "train", kept, known, {})
    run_grader(kept.pairs, tmp_path / "kept", WordGrader())
    with pytest.raises(GradingError, match="people graded every pair"):
        measure_run(tmp_path / "kept", kept, known, {})
