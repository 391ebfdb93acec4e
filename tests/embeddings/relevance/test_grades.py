"""Graded pairs as they come, one grade each as they are used."""

import random
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.relevance.build_tuples import Grades, RelevanceError, read_grades
from embeddings.relevance.grades import sources_of
from features.inputs.tables import InputError
from tests.embeddings.small_grades import Row, write_data


def as_dict(grades: Grades) -> dict[tuple[str, int], tuple[int, str]]:
    """(query, product id) -> (grade, source), whatever the order."""
    queries, ids = grades.queries.to_pylist(), grades.product_ids.to_pylist()
    rows = zip(grades.query_G, grades.product_G, grades.grade_G, grades.source_G, strict=True)
    return {(queries[q], ids[p]): (int(g), grades.sources[s]) for q, p, g, s in rows}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "B", "é", "", "  ", None]),
            st.sampled_from([7, 3, 99, None]),
            st.sampled_from([0, 1, 2, None]),
            st.sampled_from(["human", "llm", "guess", None]),
        ),
        max_size=40,
    )
)
def test_grades_equal_a_loop_over_the_rows(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), rows, products=[7, 3, 5])
        grades = read_grades(data, sources=("human", "llm"))
    given: dict[tuple, dict[str, list[int]]] = {}
    set_aside: Counter[str] = Counter()
    for query, product, grade, source in rows:
        if source not in ("human", "llm"):
            set_aside["other"] += 1
        elif product is None or grade is None or not (query or "").strip():
            set_aside["null"] += 1
        elif product == 99:
            set_aside["unknown"] += 1
        else:
            given.setdefault((query, product), {}).setdefault(source, []).append(grade)
    expected = {}
    for pair, by_source in given.items():
        source = "human" if "human" in by_source else "llm"
        expected[pair] = (int(statistics.median(by_source[source])), source)
    assert as_dict(grades) == expected
    assert grades.queries.to_pylist() == sorted({query for query, _ in given}, key=str.encode)
    report = grades.report
    assert (report.other_source_rows, report.null_rows, report.unknown_product_rows) == (
        set_aside["other"],
        set_aside["null"],
        set_aside["unknown"],
    )
    assert report.shared_pairs == sum(len(by_source) > 1 for by_source in given.values())
    assert (
        report.rows
        == len(rows)
        == (report.pairs + report.repeated_rows + report.overruled_rows + sum(set_aside.values()))
    )
    for product in range(3):
        part = slice(*grades.product_start_P1[product : product + 2])
        assert (grades.product_G[part] == product).all()
        assert (np.diff(grades.query_G[part]) > 0).all()
    assert grades.product_start_P1[-1] == len(grades)


def test_a_human_beats_any_number_of_models_and_disagreement_is_counted(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1, 2, "llm"), ("a", 1, 2, "llm"), ("a", 1, 0, "human"), ("b", 1, 1, "llm")]
    grades = read_grades(write_data(tmp_path, [*rows, ("b", 1, 1, "human")]))
    assert as_dict(grades) == {("a", 1): (0, "human"), ("b", 1): (1, "human")}
    assert (grades.report.shared_pairs, grades.report.disagreeing_pairs) == (2, 1)
    assert grades.report.pairs_by_source == {"human": 2, "llm": 0}
    model_first = read_grades(tmp_path, sources=("llm", "human"))
    assert as_dict(model_first) == {("a", 1): (2, "llm"), ("b", 1): (1, "llm")}
    assert as_dict(read_grades(tmp_path, sources=("human",)))[("a", 1)] == (0, "human")


def test_without_an_order_every_source_counts_people_first_then_models_then_others_by_name(
    tmp_path: Path,
) -> None:
    rows: list[Row] = [("a", 1, 0, "rule"), ("a", 1, 1, "crowd"), ("a", 2, 2, "rule"), ("a", 2, 1, "llm")]
    data = write_data(tmp_path, [*rows, ("b", 1, 2, "rule"), ("b", 2, 1, " "), ("b", 2, 1, None)])
    assert sources_of(data) == ("llm", "crowd", "rule")
    grades = read_grades(data)
    assert as_dict(grades) == {("a", 1): (1, "crowd"), ("a", 2): (1, "llm"), ("b", 1): (2, "rule")}
    assert grades.report.pairs_by_source == {"llm": 1, "crowd": 1, "rule": 1}
    assert grades.report.other_source_rows == 2
    assert as_dict(read_grades(data, sources=("rule",)))[("a", 1)] == (0, "rule")


def test_names_of_people_in_place_of_kinds_of_graders_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, [("a", 1, 1, f"grader {number}") for number in range(51)])
    with pytest.raises(RelevanceError, match="more than 50 values, such as 'grader 0'"):
        read_grades(data)


@pytest.mark.parametrize("given, median", [([1, 2], 1), ([0, 1], 0), ([0, 2], 1), ([0, 2, 2], 2), ([2], 2)])
def test_several_grades_of_one_source_become_their_median_rounded_down(
    tmp_path: Path, given: list[int], median: int
) -> None:
    grades = read_grades(write_data(tmp_path, [("a", 1, grade, "llm") for grade in given]))
    assert grades.grade_G.tolist() == [median]
    assert grades.report.repeated_rows == len(given) - 1


def test_the_order_of_rows_and_files_does_not_matter(tmp_path: Path) -> None:
    rows: list[Row] = [(f"q{n % 7}", n % 5, n % 3, ("human", "llm")[n % 2]) for n in range(60)]
    whole = read_grades(write_data(tmp_path / "whole", rows))
    random.Random(0).shuffle(rows)
    data = write_data(tmp_path / "parts", rows)
    table = pq.read_table(data / "relevance.parquet")
    (data / "relevance.parquet").unlink()
    (data / "relevance").mkdir()
    for part in range(3):
        pq.write_table(table.slice(part * 20, 20), data / "relevance" / f"{part}.parquet")
    parts = read_grades(data)
    for name in ("query_G", "product_G", "grade_G", "source_G", "product_start_P1"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.report == whole.report


def test_string_ids_dictionaries_and_whole_floats_are_read(tmp_path: Path) -> None:
    write_data(tmp_path, [("a", "x", 2.0, "llm")], products=["y", "x"], grade_type=pa.float64())  # type: ignore[list-item]
    table = pq.read_table(tmp_path / "relevance.parquet")
    for name in ("query", "product_id", "source"):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, table.column(name).dictionary_encode())
    pq.write_table(table, tmp_path / "relevance.parquet")
    grades = read_grades(tmp_path)
    assert (grades.product_G.tolist(), grades.grade_G.tolist()) == ([1], [2])


@pytest.mark.parametrize("grade, kind", [(3, pa.int8()), (-1, pa.int64()), (1.5, pa.float64())])
def test_grades_beyond_the_three_are_refused(tmp_path: Path, grade: float, kind: pa.DataType) -> None:
    data = write_data(tmp_path, [("a", 1, grade, "llm")], grade_type=kind)  # type: ignore[list-item]
    with pytest.raises(RelevanceError, match=rf"0 \(irrelevant\).*got {grade}"):
        read_grades(data)


def test_absent_tables_columns_and_types_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither products\.parquet"):
        read_grades(tmp_path)
    data = write_data(tmp_path, [("a", 1, 2, "llm")])
    table = pq.read_table(data / "relevance.parquet")
    pq.write_table(table.drop_columns(["source"]), data / "relevance.parquet")
    with pytest.raises(InputError, match=r"columns \['source'\]; found query, product_id, grade"):
        read_grades(data)
    pq.write_table(table, data / "relevance.parquet")
    pq.write_table(pa.table({"product_id": ["1"]}), data / "products.parquet")
    with pytest.raises(RelevanceError, match=r"relevance in .* are int64, of products string"):
        read_grades(data)
    pq.write_table(pa.table({"product_id": [1, 1]}), data / "products.parquet")
    with pytest.raises(RelevanceError, match="unique"):
        read_grades(data)
    (data / "relevance.parquet").unlink()
    pq.write_table(pa.table({"product_id": [1]}), data / "products.parquet")
    with pytest.raises(InputError, match=r"neither relevance\.parquet"):
        read_grades(data)


def with_probabilities(data: Path, rows: list[Row], chances: list[tuple[float | None, ...]]) -> Path:
    write_data(data, rows, products=range(1000))
    table = pq.read_table(data / "relevance.parquet")
    for name, column in zip(("p_ir", "p_mr", "p_hr"), zip(*chances, strict=True), strict=True):
        table = table.append_column(name, pa.array(column, pa.float32()))
    pq.write_table(table, data / "relevance.parquet")
    return data


def test_drawn_grades_have_the_shares_of_the_probabilities_and_do_not_depend_on_the_order(
    tmp_path: Path,
) -> None:
    rows: list[Row] = [("a", product, 2, "llm") for product in range(1000)]
    chances = [(0.2, 0.5, 0.3)] * 1000
    drawn = read_grades(with_probabilities(tmp_path / "one", rows, chances), draw_seed=0)
    shares = np.bincount(drawn.grade_G, minlength=3) / 1000
    np.testing.assert_allclose(shares, chances[0], atol=0.05)
    other = read_grades(with_probabilities(tmp_path / "other", rows[::-1], chances), draw_seed=0)
    assert other.grade_G.tolist() == drawn.grade_G.tolist()
    assert read_grades(tmp_path / "one", draw_seed=1).grade_G.tolist() != drawn.grade_G.tolist()
    assert set(read_grades(tmp_path / "one").grade_G.tolist()) == {2}


def test_what_is_certain_is_drawn_and_people_without_probabilities_keep_their_grades(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 0, 2, "llm"), ("a", 1, 0, "llm"), ("a", 2, 1, "llm"), ("a", 3, 2, "human")]
    chances = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (None, None, None)]
    data = with_probabilities(tmp_path, rows, chances)
    for seed in range(5):
        assert read_grades(data, draw_seed=seed).grade_G.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("chance", [(0.5, 0.2, 0.2), (-0.1, 0.6, 0.5)])
def test_probabilities_that_are_none_are_refused_when_drawn_from(
    tmp_path: Path, chance: tuple[float, ...]
) -> None:
    data = with_probabilities(tmp_path, [("a", 0, 2, "llm")], [chance])
    assert read_grades(data).grade_G.tolist() == [2]
    with pytest.raises(RelevanceError, match="must sum to 1"):
        read_grades(data, draw_seed=0)


def test_without_probabilities_nothing_can_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(RelevanceError, match="no p_ir to draw grades from"):
        read_grades(write_data(tmp_path, [("a", 1, 2, "llm")]), draw_seed=0)
