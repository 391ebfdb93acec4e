"""Which pairs are worth a grade."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.candidates import CandidateConfig, candidate_pairs
from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs


def data_with_log(folder: Path, searches: dict[str, list[int]]) -> Path:
    folder.mkdir()
    titles = ["Green tea", "Black tea", "Oak door", "Steel door", "Blue ink"]
    products = {"product_id": pa.array(range(5), pa.int64()), "title": pa.array(titles)}
    pq.write_table(pa.table(products), folder / "products.parquet")
    rows = [(query, product) for query, shown in searches.items() for product in shown]
    columns = {
        "impression_id": pa.array(range(len(rows)), pa.int64()),
        "query": pa.array([query for query, _ in rows], pa.string()),
        "product_id": pa.array([product for _, product in rows], pa.int64()),
    }
    pq.write_table(pa.table(columns), folder / "impressions.parquet")
    return folder


def test_the_most_searched_queries_are_taken_until_the_volume_is_covered(tmp_path: Path) -> None:
    data = data_with_log(tmp_path / "data", {"tea": [4, 4, 4, 2, 0, 0], "door": [3, 3, 3], "ink": [1]})
    config = CandidateConfig(lexical=2, vectors=0, log=1, random=0, coverage=0.9)
    found = candidate_pairs(data, Catalogue.read(data), config=config)
    assert (found.queries, found.queries_in_all, found.coverage) == (2, 3, 0.9)
    rows = {(row["query"], row["product_id"]): row for row in found.table.to_pylist()}
    assert set(rows) == {("tea", 0), ("tea", 1), ("tea", 4), ("door", 2), ("door", 3)}
    assert rows["tea", 4]["sources"] == "log"
    assert rows["door", 3]["sources"] == "log,lexical"
    assert (rows["tea", 1]["volume"], rows["tea", 1]["text"]) == (6, "Black tea")
    assert found.pairs_by_source == {"lexical": 4, "vectors": 0, "log": 2, "random": 0}


def test_a_query_without_any_product_covers_nothing(tmp_path: Path) -> None:
    data = data_with_log(tmp_path / "data", {"tea": [0], "zzz": [0, 0, 0]})
    config = CandidateConfig(lexical=2, vectors=0, log=0, random=0, coverage=1)
    found = candidate_pairs(data, Catalogue.read(data), config=config)
    assert found.coverage == 0.25


def test_pairs_of_people_are_taken_however_seldom_their_query_is_searched(tmp_path: Path) -> None:
    data = data_with_log(tmp_path / "data", {"tea": [0] * 98, "door": [2]})
    relevance = {
        "query": pa.array(["tea", "tea", "ink"]),
        "product_id": pa.array([1, 4, 3], pa.int64()),
        "grade": pa.array([2, 0, 1], pa.int8()),
        "source": pa.array(["human"] * 3),
    }
    pq.write_table(pa.table(relevance), data / "relevance.parquet")
    catalogue = Catalogue.read(data)
    people = read_graded_pairs(data, HoldoutConfig(), catalogue=catalogue)
    config = CandidateConfig(lexical=2, vectors=0, log=0, random=0, coverage=0.9)
    found = candidate_pairs(data, catalogue, config=config, people=people)
    rows = {(row["query"], row["product_id"]): row for row in found.table.to_pylist()}
    assert {pair: row["sources"] for pair, row in rows.items()} == {
        ("tea", 0): "lexical",
        ("tea", 1): "lexical,people",
        ("tea", 4): "people",
        ("ink", 3): "people",
    }
    assert (rows["ink", 3]["text"], rows["ink", 3]["volume"]) == ("Steel door", 0)
    assert (found.queries, found.queries_in_all) == (2, 3)
    assert found.pairs_by_source["people"] == 3


def test_no_source_at_all_is_refused(tmp_path: Path) -> None:
    data = data_with_log(tmp_path / "data", {"tea": [0]})
    config = CandidateConfig(lexical=0, vectors=0, log=0, random=0)
    with pytest.raises(GradingError, match="no source"):
        candidate_pairs(data, Catalogue.read(data), config=config)
