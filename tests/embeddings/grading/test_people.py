"""People's queue and answers, and how their grades stand beside a model's."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.people import import_grades, write_queue
from embeddings.grading.run import write_part
from embeddings.relevance.grades import read_grades
from tests.embeddings.small_grades import write_data


def data_with_titles(folder: Path) -> Path:
    write_data(folder, [("tea", 1, 2, "human"), ("tea", 2, 0, "human")], products=[1, 2, 3])
    titles = {"product_id": pa.array([1, 2, 3], pa.int64()), "title": pa.array(["Tea", "Ink", "Green tea"])}
    pq.write_table(pa.table(titles), folder / "products.parquet")
    return folder


def model_run(folder: Path) -> Path:
    """A model says irrelevant of (tea, 1), which people grade high, and of two pairs that nobody grades."""
    (folder / "relevance").mkdir(parents=True)
    pairs = Pairs(["tea", "tea", "ink"], ["Tea", "Green tea", "Ink"], pa.array([1, 3, 2], pa.int64()))
    p_NC = np.array([[0.9, 0.05, 0.05], [0.1, 0.4, 0.5], [0.4, 0.3, 0.3]])
    write_part(folder, pairs, ["a", "b", "c"], p_NC, p_NC.argmax(axis=1), grader="g", prompt_sha=None)
    return folder


def test_people_beat_the_model_and_the_model_fills_the_rest(tmp_path: Path) -> None:
    data, run = data_with_titles(tmp_path / "data"), model_run(tmp_path / "run")
    answers = tmp_path / "answers.csv"
    answers.write_text("query,product_id,text,grade\nink,2,Ink,high\ntea,2,Ink,2\ntea,3,Green tea,\n")
    found = import_grades(data, tmp_path / "more", answers=[answers], runs=[run])
    assert (found.before, found.people, found.models, found.left_blank, found.known) == (2, 1, 3, 1, 1)
    grades = read_grades(tmp_path / "more")
    texts, ids = grades.queries.to_pylist(), grades.product_ids.to_pylist()
    rows = zip(grades.query_G.tolist(), grades.product_G.tolist(), grades.grade_G.tolist(), strict=True)
    assert {(texts[query], ids[product]): grade for query, product, grade in rows} == {
        ("tea", 1): 2,
        ("tea", 2): 0,
        ("tea", 3): 2,
        ("ink", 2): 2,
    }
    assert grades.report.pairs_by_source == {"human": 3, "llm": 1}


def test_an_answer_to_an_audit_takes_the_place_of_the_given_grade(tmp_path: Path) -> None:
    """People graded (tea, 1) twice, once in each file; one corrected grade is left, and the model's own."""
    data = data_with_titles(tmp_path / "data")
    (data / "relevance").mkdir()
    (data / "relevance.parquet").unlink()
    columns = {"query": ["tea", "tea"], "product_id": pa.array([1, 2], pa.int64()), "mean_grade": [3.0, 1.0]}
    grades = {"grade": pa.array([2, 0], pa.int8()), "source": ["human", "human"]}
    pq.write_table(pa.table(columns | grades), data / "relevance" / "a.parquet")
    columns |= {"product_id": pa.array([1, 1], pa.int64())}
    grades = {"grade": pa.array([1, 2], pa.int8()), "source": ["human", "llm"]}
    pq.write_table(pa.table(columns | grades), data / "relevance" / "b.parquet")
    audited = tmp_path / "audit.csv"
    audited.write_text("query,product_id,text,given,suggested,grade\ntea,1,Tea,1,0,0\ntea,2,Ink,0,2,\n")
    found = import_grades(data, tmp_path / "more", answers=[audited], runs=[])
    assert (found.people, found.left_blank, found.known, found.corrected) == (0, 1, 0, 1)
    rows = pq.read_table(tmp_path / "more" / "relevance").to_pylist()
    assert sorted((row["product_id"], row["grade"], row["source"], row["mean_grade"]) for row in rows) == [
        (1, 0, "human", 3.0),
        (1, 2, "llm", 1.0),
        (2, 0, "human", 1.0),
    ]
    assert pq.read_table(data / "relevance")["grade"].to_pylist() == [2, 0, 1, 2]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("tea,1,Tea,3", "line 2: grade must be 0"),
        ("tea,9,Tea,1", "line 2: product '9' is not in the catalogue"),
        (" ,1,Tea,1", "line 2: the query is blank"),
    ],
)
def test_a_bad_answer_is_refused_with_its_line(tmp_path: Path, row: str, says: str) -> None:
    data = data_with_titles(tmp_path / "data")
    (tmp_path / "answers.csv").write_text(f"query,product_id,text,grade\n{row}\n")
    with pytest.raises(GradingError, match=says):
        import_grades(data, tmp_path / "more", answers=[tmp_path / "answers.csv"], runs=[])
    assert not (tmp_path / "more").exists()


def test_the_data_themselves_are_never_replaced(tmp_path: Path) -> None:
    data = data_with_titles(tmp_path / "data")
    with pytest.raises(ValueError, match="replace the input"):
        import_grades(data, data, answers=[], runs=[])


def test_the_queue_asks_first_for_uncertain_pairs_of_frequent_queries(tmp_path: Path) -> None:
    run = model_run(tmp_path / "run")
    columns = {
        "query": ["tea", "tea", "ink"],
        "product_id": pa.array([1, 3, 2], pa.int64()),
        "text": ["Tea", "Green tea", "Ink"],
        "volume": pa.array([100, 100, 1], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    assert write_queue(run, tmp_path / "pairs.parquet", tmp_path / "queue.csv", count=2) == 2
    with (tmp_path / "queue.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # (tea, 3): .9 * ln 101 = 4.2; (ink, 2): .9 * ln 2 = .6; (tea, 1): .15 * ln 101 = .7
    assert [(row["query"], row["product_id"], row["grade"]) for row in rows] == [
        ("tea", "3", ""),
        ("tea", "1", ""),
    ]
