"""Graders compared on queries of one role, and the page that says so."""

import json
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, VALIDATION
from embeddings.grading.answers import RunAnswers
from embeddings.grading.graders import GraderConfig, train_grader
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import run_grader
from experiments.grading.page import to_markdown
from experiments.grading.report import GradingReport, measure_graders
from experiments.statistics.cells import NONE
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world, write_small_world
from tests.embeddings.grading.word_bags import WordBags
from tests.experiments.grading.word_grader import WordGrader


class ShyGrader(WordGrader):
    """Says moderate of everything, and nothing of every other pair."""

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        rows = np.tile([0.2, 0.6, 0.2], (len(pairs), 1))
        rows[1::2] = np.nan
        return rows

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return np.ones(len(probabilities_NC), np.int8)


def test_graders_are_compared_on_the_queries_of_one_role_alone(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    words = WordGrader()
    found = measure_graders(
        world, {"shy": ShyGrader(), "words": words}, graded, catalogue,
        role=VALIDATION, holdout=HOLDOUT, resamples=50,
    )  # fmt: skip
    kept = graded.of_role(VALIDATION)
    assert set(words.asked) == set(kept.pairs.queries)
    assert found.chosen == "words"
    best = found.graders["words"]
    assert best.macro_f1.mean == pytest.approx(1)
    assert np.trace(best.confusion) == np.sum(best.confusion) == found.pairs == len(kept)
    assert best.gullibility == 1 > best.gullibility_by_place["none"]
    assert found.graders["shy"].unanswered == len(kept) // 2
    assert found.differences["words - shy"]["macro_f1"].mean > 0.5
    assert found.human_ceiling is None
    found.write(tmp_path / "choice.json")
    assert GradingReport.model_validate_json((tmp_path / "choice.json").read_text()) == found
    page = to_markdown(found)
    assert "**words**" in page
    assert "pairs got no answer" in page
    assert "100.0%" in page


def test_grading_json_has_a_flat_row_of_figures_for_each_grader(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    grader = WordGrader(tokens_a_pair=100)
    found = measure_graders(
        world, {"words": grader}, graded, catalogue,
        role=TEST, holdout=HOLDOUT, chosen="words", price_per_million_tokens=2.0, resamples=20,
    )  # fmt: skip
    found.write(tmp_path / "grading.json")
    content = json.loads((tmp_path / "grading.json").read_text())
    assert (content["chosen"], content["human_ceiling"]) == ("words", None)
    row = content["graders"]["words"]
    assert [row[name] for name in ("macro_f1", "macro_f1_low", "qwk", "auc", "gullibility")] == [1] * 5
    assert row["core_hours_for_32m_pairs"] * row["pairs_per_core_minute"] * 60 == pytest.approx(32e6)
    assert (row["tokens_per_pair"], row["money_for_32m_pairs"]) == (100, 100 * 32 * 2)
    assert row["by_segment"]["1 or 2 words"] == {
        "pairs": content["pairs"], "macro_f1": 1, "macro_f1_low": 1, "macro_f1_high": 1,
    }  # fmt: skip
    assert row["by_segment"]["3 words"] == {"pairs": 0, "macro_f1": None}
    lengths = row["by_length"]
    assert sum(part["pairs"] for part in lengths.values()) == content["pairs"]
    assert {(part["agreement"], part["signed_error"]) for part in lengths.values()} == {(1, 0)}
    assert GradingReport.model_validate_json((tmp_path / "grading.json").read_text()) == found


def test_the_answers_of_a_run_stand_beside_the_grader_that_gave_them(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    kept = graded.of_role(TEST)
    run_grader(kept.pairs.take(np.arange(len(kept) - 5)), tmp_path / "run", WordGrader(tokens_a_pair=70))
    found = measure_graders(
        world, {"words": WordGrader(), "run": RunAnswers.load(tmp_path / "run")}, graded, catalogue,
        role=TEST, holdout=HOLDOUT, price_per_million_tokens=2.0, resamples=10,
    )  # fmt: skip
    words, run = found.graders["words"], found.graders["run"]
    assert (words.unanswered, run.unanswered) == (0, 5)
    assert run.macro_f1.mean == words.macro_f1.mean == 1
    assert np.sum(run.confusion) == len(kept) - 5
    assert (run.gullibility, run.pairs_per_core_minute, run.core_hours_for_32m_pairs) == (None, None, None)
    assert (run.tokens_per_pair, run.money_for_32m_pairs) == (70, 70 * 32 * 2)
    assert set(run.gullibility_by_place) == set(words.gullibility_by_place)
    first, second, *_ = [line for line in to_markdown(found).splitlines() if line.startswith("| run |")]
    assert first.rstrip(" |").endswith(NONE)
    assert second.count(NONE) == 4


def test_test_queries_choose_nothing(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    found = measure_graders(
        world, {"words": WordGrader()}, graded, catalogue, role=TEST, holdout=HOLDOUT, resamples=10
    )
    assert (found.queries_of, found.chosen) == ("test", None)


def test_a_role_without_pairs_is_refused(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    train = graded.of_role(0)
    with pytest.raises(GradingError, match="no test query"):
        measure_graders(world, {"words": WordGrader()}, train, catalogue, role=TEST, holdout=HOLDOUT)


def test_foreign_products_have_vectors_and_stuffed_titles_too_where_their_encoder_is_given(
    tmp_path: Path,
) -> None:
    """A table of some products alone once gave foreign ones a cosine of 0, and its grader looked honest."""
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    bags = WordBags(catalogue)
    queries = sorted({*graded.pairs.queries})
    # All but every third product: people graded some of those that are missing, too.
    some = catalogue.take(np.flatnonzero(np.arange(len(catalogue.texts)) % 3 > 0))
    bags.write(tmp_path / "bags", some, queries)
    config = GraderConfig(kind="overlap", aligned={"bags": str(tmp_path / "bags")}, holdout=HOLDOUT)
    grader = train_grader(graded, catalogue, tmp_path / "grader", config=config)
    asked = WordGrader()

    def measured(**options: object) -> GradingReport:
        return measure_graders(
            world, {"bags": grader, "words": asked}, graded, catalogue,
            role=TEST, holdout=HOLDOUT, chosen="words", resamples=5, **options,
        )  # fmt: skip

    kept = measured()
    assert kept.foreign_products == len(some.texts) < len(catalogue.texts)
    assert kept.read_anew == []
    assert "Foreign products were drawn from" in to_markdown(kept)
    read = measured(readers={"bags": bags})
    assert read.foreign_products == len(catalogue.texts)
    assert read.read_anew == ["bags"]
    assert "vectors of their own in bags" in to_markdown(read)
    assert any(" ".join(text.split()[-2:]) in queries for text in bags.read)
    with pytest.raises(GradingError, match="no grader reads a table named 'other'"):
        measured(readers={"other": bags})
    assert GradingReport.model_validate_json(read.model_dump_json()) == read
