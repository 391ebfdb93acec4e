"""A run of grading loses nothing and repeats nothing, wherever it is killed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import (
    CostLimit,
    Price,
    keys_of,
    parts_of,
    plan_run,
    run_grader,
)
from features.artifacts import BusyError, file_lock

ROOT = Path(__file__).resolve().parents[3]


class LengthGrader:
    """Grades by the length of the text; remembers what it was asked; may leave pairs unanswered."""

    remarks = ""

    def __init__(self, *, prompt_sha: str | None = None, unanswered: frozenset[str] = frozenset()) -> None:
        self.name, self.prompt_sha, self.holdout, self.tokens = "length", prompt_sha, None, 0
        self.asked: list[str] = []
        self.unanswered = unanswered

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        self.asked += pairs.queries
        self.tokens += 100 * len(pairs) if self.prompt_sha else 0
        rows = np.full((len(pairs), 3), 0.1)
        rows[np.arange(len(pairs)), [len(text) % 3 for text in pairs.texts]] = 0.8
        rows[[query in self.unanswered for query in pairs.queries]] = np.nan
        return rows

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return probabilities_NC.argmax(axis=1).astype(np.int8)


def some_pairs(count: int = 50) -> Pairs:
    return Pairs([f"q{n}" for n in range(count)], ["x" * n for n in range(count)], pa.array(range(count)))


def rows_of(out: Path) -> list[dict]:
    return [row for part in parts_of(out) for row in pq.read_table(part).to_pylist()]


def test_each_pair_gets_one_row_of_relevance_with_probabilities(tmp_path: Path) -> None:
    pairs = some_pairs(5)
    twice = pairs + pairs
    manifest = run_grader(twice, tmp_path / "out", LengthGrader(prompt_sha="abc"), shard_pairs=2)
    rows = rows_of(tmp_path / "out")
    assert (manifest.pairs, manifest.graded) == (5, 5)
    assert [(row["query"], row["product_id"], row["grade"]) for row in rows] == [
        (f"q{n}", n, n % 3) for n in range(5)
    ]
    assert {(row["source"], row["grader"], row["prompt_sha"]) for row in rows} == {("llm", "length", "abc")}
    assert (rows[1]["p_ir"], rows[1]["p_mr"], rows[1]["p_hr"]) == pytest.approx((0.1, 0.8, 0.1))


def test_a_second_call_asks_only_what_is_new_or_changed(tmp_path: Path) -> None:
    run_grader(some_pairs(10), tmp_path / "out", LengthGrader())
    again = LengthGrader()
    more = some_pairs(12)
    more.texts[3] = "another text"
    run_grader(more, tmp_path / "out", again)
    assert again.asked == ["q3", "q10", "q11"]


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.embeddings.grading.test_run as t
from embeddings.grading.run import run_grader
where, out = sys.argv[1], Path(sys.argv[2])
grader, calls = t.LengthGrader(), []
def die():
    calls.append(1)
    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)
if where == "asking":
    ask = grader.probabilities
    grader.probabilities = lambda pairs: (die(), ask(pairs))[1]
else:
    rename = Path.replace
    def replace(self, target):
        if str(target).endswith(where): die()
        return rename(self, target)
    Path.replace = replace
run_grader(t.some_pairs(), out, grader, shard_pairs=7)
"""


@pytest.mark.parametrize("where", ["asking", ".parquet", "grading.json"])
def test_killed_while_it_asks_or_writes_a_run_continues_without_a_lost_or_repeated_pair(
    tmp_path: Path, where: str
) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, where, str(out)], cwd=ROOT, check=False)
    assert done.returncode == -9
    before = len(rows_of(out))
    assert 0 < before < 50
    again = LengthGrader()
    manifest = run_grader(some_pairs(), out, again, shard_pairs=7)
    assert len(again.asked) == 50 - before
    assert manifest.graded == 50
    keys = [row["key"] for row in rows_of(out)]
    assert sorted(keys) == sorted(keys_of(some_pairs(), "length", None))


def test_unanswered_pairs_have_no_row_and_are_asked_again(tmp_path: Path) -> None:
    silent = LengthGrader(unanswered=frozenset({"q2", "q4"}))
    manifest = run_grader(some_pairs(6), tmp_path / "out", silent, shard_pairs=3)
    assert (manifest.graded, manifest.unanswered) == (4, 2)
    again = LengthGrader()
    assert run_grader(some_pairs(6), tmp_path / "out", again).graded == 6
    assert again.asked == ["q2", "q4"]


def test_a_shard_without_any_answer_stops_the_run(tmp_path: Path) -> None:
    silent = LengthGrader(unanswered=frozenset({"q3", "q4", "q5"}))
    with pytest.raises(GradingError, match="stopped after 3 of 9 pairs"):
        run_grader(some_pairs(9), tmp_path / "out", silent, shard_pairs=3)
    assert silent.asked[-1] == "q5"


def test_the_cost_limit_stops_before_it_is_passed_and_counts_what_was_spent_before(tmp_path: Path) -> None:
    price = Price(per_million_tokens=10_000)  # 1 a hundred tokens
    grader = LengthGrader(prompt_sha="p")
    with pytest.raises(CostLimit, match="raise the limit"):
        run_grader(
            some_pairs(50), tmp_path / "out", grader, price=price, cost_limit=20.5, shard_pairs=5,
            prompt_characters=390,
        )  # fmt: skip
    assert len(grader.asked) == 20  # 5 pairs cost 5 and a little; the fifth shard would pass 20.5
    again = LengthGrader(prompt_sha="p")
    with pytest.raises(CostLimit):
        run_grader(some_pairs(50), tmp_path / "out", again, price=price, cost_limit=20.2, shard_pairs=5)
    assert again.asked == []


def test_a_plan_counts_pairs_tokens_and_cost_and_asks_nothing(tmp_path: Path) -> None:
    grader = LengthGrader(prompt_sha="p")
    run_grader(some_pairs(2), tmp_path / "out", grader)
    asked = len(grader.asked)
    pairs = Pairs(["q0", "q1", "oats"], ["", "x", "y" * 16], pa.array([0, 1, 2]))
    plan = plan_run(
        pairs, tmp_path / "out", grader, price=Price(per_million_tokens=1e6), prompt_characters=20
    )
    assert (plan.pairs, plan.done, plan.todo) == (3, 2, 1)
    assert (plan.tokens, plan.cost) == (11, 11)  # 40 characters are 10 tokens, and one answers
    assert len(grader.asked) == asked


def test_another_grader_prompt_or_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_grader(some_pairs(2), out, LengthGrader())
    with pytest.raises(GradingError, match="choose another folder"):
        run_grader(some_pairs(3), out, LengthGrader(prompt_sha="other"))
    with (
        file_lock(out / ".lock", busy=AssertionError()),
        pytest.raises(BusyError, match="another process"),
    ):
        run_grader(some_pairs(3), out, LengthGrader())


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="of another kind"):
        run_grader(some_pairs(2), tmp_path, LengthGrader())
