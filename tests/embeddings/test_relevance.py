"""Grades and tuples: each rule of section 3.2.2 as a law over random small worlds."""

import random
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embeddings.grades import GradesReport
from embeddings.relevance import (
    HIGH,
    IRRELEVANT,
    MODERATE,
    PROXY,
    Grades,
    RelevanceError,
    TupleConfig,
    TupleReport,
    TupleSet,
    build_tuples,
    read_grades,
)
from embeddings.row_file import RowFile
from embeddings.tuple_sampling import (
    Donors,
    NegativeCounts,
    ProxyQueries,
    draw_tuples,
    positive_counts,
)

NO_ROWS = GradesReport(
    rows=0,
    pairs=0,
    pairs_by_source={},
    other_source_rows=0,
    null_rows=0,
    unknown_product_rows=0,
    repeated_rows=0,
    overruled_rows=0,
    shared_pairs=0,
    disagreeing_pairs=0,
)

Row = tuple[str | None, int | None, int | None, str | None]


def write_data(
    folder: Path, rows: list[Row], *, products: list | None = None, grade_type: pa.DataType | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    products = sorted({row[1] for row in rows if row[1] is not None}) if products is None else products
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    product_type = pa.string() if products and isinstance(products[0], str) else pa.int64()
    ids = pa.array(products, product_type)
    pq.write_table(pa.table({"product_id": ids}), folder / "products.parquet")
    types = (pa.string(), product_type, grade_type or pa.int8(), pa.string())
    names = ("query", "product_id", "grade", "source")
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(dict(zip(names, arrays, strict=True))), folder / "relevance.parquet")
    return folder


def as_dict(grades: Grades) -> dict[tuple[str, int], tuple[int, str]]:
    """(query, product id) -> (grade, source), whatever the order."""
    queries, ids = grades.queries.to_pylist(), grades.product_ids.to_pylist()
    rows = zip(grades.query_G, grades.product_G, grades.grade_G, grades.source_G, strict=True)
    return {(queries[q], ids[p]): (int(g), grades.sources[s]) for q, p, g, s in rows}


# ---------------------------------------------------------------- grades


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
        grades = read_grades(write_data(Path(folder), rows, products=[7, 3, 5]))
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
    with pytest.raises(RelevanceError, match="products table with the column product_id"):
        read_grades(tmp_path)
    data = write_data(tmp_path, [("a", 1, 2, "llm")])
    table = pq.read_table(data / "relevance.parquet")
    pq.write_table(table.drop_columns(["source"]), data / "relevance.parquet")
    with pytest.raises(RelevanceError, match=r"columns \['source'\]; it has query, product_id, grade"):
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
    with pytest.raises(RelevanceError, match=r"no relevance\.parquet"):
        read_grades(data)


# ---------------------------------------------------------------- how many positives


@pytest.mark.parametrize(
    "high, moderate, expected",
    [
        (500, 500, (73, 37)),
        (73, 37, (73, 37)),
        (74, 37, (73, 37)),
        (110, 0, (110, 0)),
        (500, 10, (100, 10)),
        (20, 500, (20, 10)),
        (3, 500, (3, 2)),
        (1, 1, (1, 1)),
        (0, 8, (0, 1)),
        (5, 0, (5, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_two_high_for_one_moderate(high: int, moderate: int, expected: tuple[int, int]) -> None:
    assert positive_counts(high, moderate, TupleConfig()) == expected


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 4))
def test_filling_up_takes_all_that_fits_and_keeping_the_ratio_never_exceeds_it(
    high: int, moderate: int, most: int, ratio: int
) -> None:
    config = TupleConfig(max_positives=most, high_per_moderate=ratio)
    for reading in ("keep_ratio", "fill"):
        both = positive_counts(high, moderate, config.model_copy(update={"short_of_high": reading}))
        assert 0 <= both[0] <= high
        assert 0 <= both[1] <= moderate
        assert (sum(both) > 0) == (high + moderate > 0)
        if reading == "fill":
            assert sum(both) == min(most, high + moderate)
        else:
            assert sum(both) <= most
            assert both[1] <= max(1, -(-both[0] // ratio))


# ---------------------------------------------------------------- tuples of random worlds


@dataclass(frozen=True)
class World:
    """Grades by (product id, query), an aisle for each product, who is masked, and the settings."""

    grade_of: dict[tuple[int, str], int]
    aisle_of: dict[int, str | None] | None
    masked_products: frozenset[int]
    masked_queries: frozenset[str]
    config: TupleConfig
    seed: int

    def of(self, product: int) -> dict[str, int]:
        """Usable graded queries of a product."""
        pairs = self.grade_of.items()
        return {q: grade for (p, q), grade in pairs if p == product and q not in self.masked_queries}

    def usable_products(self) -> list[int]:
        return sorted({p for p, _ in self.grade_of} - self.masked_products)

    def aisle(self, product: int) -> str:
        return ((self.aisle_of or {}).get(product) or "").strip()

    def proxies(self, product: int) -> set[str]:
        """All queries that may stand in as proxies of a product, listed by brute force."""
        if not self.config.proxy_negatives or (self.aisle_of is not None and not self.aisle(product)):
            return set()
        found: set[str] = set()
        for other in self.usable_products():
            apart = self.aisle_of is None or self.aisle(other) not in ("", self.aisle(product))
            if apart and other != product:
                found |= {query for query, grade in self.of(other).items() if grade == HIGH}
        return found - set(self.of(product))


@dataclass(frozen=True)
class Tuple:
    """One row of a TupleSet, read back into ids and texts."""

    product: int
    positive: str
    grade: int
    negatives: tuple[str, ...]
    kinds: tuple[int, ...]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    products = draw(st.integers(1, 6))
    queries = [f"q{number}" for number in range(draw(st.integers(1, 12)))]
    # A random matrix costs one draw; hypothesis shrinks its density and seed.
    matrix = np.random.default_rng(draw(st.integers(0, 10_000)))
    density = draw(st.sampled_from([0.2, 0.6, 1.0]))
    grade_of = {
        (product, query): int(matrix.choice([IRRELEVANT, MODERATE, HIGH], p=[0.5, 0.2, 0.3]))
        for product in range(products)
        for query in queries
        if matrix.random() < density
    }
    aisles = st.sampled_from(["Snacks", "Medicine", "Pets", "", None])
    config = TupleConfig(
        max_positives=draw(st.integers(1, 8)),
        high_per_moderate=draw(st.integers(1, 3)),
        short_of_high=draw(st.sampled_from(["keep_ratio", "fill"])),
        negatives=draw(st.integers(1, 5)),
        proxy_negatives=draw(st.booleans()),
    )
    return World(
        grade_of=grade_of,
        aisle_of=draw(st.none() | st.fixed_dictionaries(dict.fromkeys(range(products), aisles))),
        masked_products=draw(st.frozensets(st.integers(0, products - 1), max_size=1)),
        masked_queries=draw(st.frozensets(st.sampled_from(queries), max_size=2)),
        config=config,
        seed=draw(st.integers(0, 3)),
    )


def grades_in_memory(world: World) -> Grades:
    """What `read_grades` gives for a world, without files."""
    ids = sorted({product for product, _ in world.grade_of})
    queries = sorted({query for _, query in world.grade_of})
    rows = sorted((ids.index(p), queries.index(q), grade) for (p, q), grade in world.grade_of.items())
    product_G, query_G, grade_G = np.array(rows, np.int32).reshape(-1, 3).T
    return Grades(
        queries=pa.array(queries, pa.string()),
        product_ids=pa.array(ids, pa.int64()),
        query_G=query_G,
        product_G=product_G,
        grade_G=grade_G.astype(np.int8),
        source_G=np.zeros(len(rows), np.int8),
        sources=("llm",),
        product_start_P1=np.searchsorted(product_G, np.arange(len(ids) + 1)),
        report=NO_ROWS,
    )


def tuples_of(world: World, grades: Grades | None = None) -> tuple[list[Tuple], TupleReport | None]:
    """The tuples of a world, read back from disk, and their report; none where nothing can be made."""
    grades = grades or grades_in_memory(world)
    ids, queries = grades.product_ids.to_pylist(), grades.queries.to_pylist()
    with tempfile.TemporaryDirectory() as name:
        try:
            built = build_tuples(
                grades,
                None if world.aisle_of is None else [world.aisle_of[product] for product in ids],
                Path(name) / "tuples",
                config=world.config,
                seed=world.seed,
                product_mask=np.array([product not in world.masked_products for product in ids], bool),
                query_mask=np.array([query not in world.masked_queries for query in queries], bool),
            )
        except RelevanceError:
            assert not list(Path(name).iterdir())
            return [], None
        assert (built.tuples_NC.dtype, built.grades_NC.dtype) == (np.int32, np.int8)
        rows = zip(built.tuples_NC.tolist(), built.grades_NC.tolist(), strict=True)
        tuples = [
            Tuple(
                ids[row[0]], queries[row[1]], kinds[0], tuple(queries[q] for q in row[2:]), tuple(kinds[1:])
            )
            for row, kinds in rows
        ]
        return tuples, built.report


law = settings(max_examples=40, deadline=None)


@law
@given(worlds())
def test_a_positive_is_graded_as_said_and_appears_once(world: World) -> None:
    tuples, _ = tuples_of(world)
    for each in tuples:
        assert each.grade == world.grade_of[each.product, each.positive] > IRRELEVANT
    assert len({(each.product, each.positive) for each in tuples}) == len(tuples)


@law
@given(worlds())
def test_each_usable_product_has_as_many_positives_as_the_ratio_says(world: World) -> None:
    found = Counter((each.product, each.grade) for each in tuples_of(world)[0])
    for product in world.usable_products():
        graded = Counter(world.of(product).values())
        high, moderate = positive_counts(graded[HIGH], graded[MODERATE], world.config)
        # A positive needs at least one negative of some kind.
        proxies = bool(world.proxies(product))
        assert found[product, HIGH] == high * bool(graded[MODERATE] + graded[IRRELEVANT] or proxies)
        assert found[product, MODERATE] == moderate * bool(graded[IRRELEVANT] or proxies)
        assert found[product, HIGH] + found[product, MODERATE] <= world.config.max_positives


@law
@given(worlds())
def test_negatives_of_high_are_lower_and_those_of_moderate_irrelevant(world: World) -> None:
    for each in tuples_of(world)[0]:
        assert len(each.negatives) == len(each.kinds) == world.config.negatives
        for query, kind in zip(each.negatives, each.kinds, strict=True):
            if kind != PROXY:
                assert kind == world.grade_of[each.product, query]
                assert kind < each.grade
        if each.grade == MODERATE:
            assert set(each.kinds) <= {IRRELEVANT, PROXY}


@law
@given(worlds())
def test_a_proxy_is_a_high_query_of_another_aisle_and_ungraded_for_the_product(world: World) -> None:
    for each in tuples_of(world)[0]:
        used = {query for query, kind in zip(each.negatives, each.kinds, strict=True) if kind == PROXY}
        assert used <= world.proxies(each.product)


@law
@given(worlds())
def test_proxies_step_in_only_when_grades_run_short_or_all_are_irrelevant(world: World) -> None:
    for each in tuples_of(world)[0]:
        size = world.config.negatives
        pool = [grade for grade in world.of(each.product).values() if grade < each.grade]
        there_are = len(world.proxies(each.product))
        used = each.kinds.count(PROXY)
        if len(pool) < size:
            distinct = {
                query for query, kind in zip(each.negatives, each.kinds, strict=True) if kind == PROXY
            }
            assert len(distinct) == min(there_are, size - len(pool))
        elif MODERATE in each.kinds:
            assert used == 0
        else:
            assert used == min(there_are, 1), "one of ten irrelevant gives way, if a proxy exists"


@law
@given(worlds())
def test_negatives_repeat_only_when_nothing_else_exists_and_then_evenly(world: World) -> None:
    for each in tuples_of(world)[0]:
        pool = [grade for grade in world.of(each.product).values() if grade < each.grade]
        distinct = set(each.negatives)
        if len(distinct) < world.config.negatives:
            assert len(distinct) == len(pool) + len(world.proxies(each.product))
        times = Counter(each.negatives).values()
        assert max(times) - min(times) <= 1
        assert each.positive not in distinct


@law
@given(worlds())
def test_masked_products_and_queries_appear_nowhere(world: World) -> None:
    for each in tuples_of(world)[0]:
        assert each.product not in world.masked_products
        assert not world.masked_queries & {each.positive, *each.negatives}


@settings(max_examples=15, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_tuples_do_not_depend_on_the_order_of_any_table(world: World, order: random.Random) -> None:
    rows: list[Row] = [(query, product, grade, "llm") for (product, query), grade in world.grade_of.items()]
    products = sorted({product for product, _ in world.grade_of})
    order.shuffle(rows)
    order.shuffle(products)
    with tempfile.TemporaryDirectory() as folder:
        shuffled = read_grades(write_data(Path(folder), rows, products=products))
    assert tuples_of(world, shuffled)[0] == tuples_of(world)[0]


@law
@given(worlds())
def test_the_report_counts_what_is_written(world: World) -> None:
    tuples, report = tuples_of(world)
    if report is None:
        return
    assert report.tuples == len(tuples) == report.high_positives + report.moderate_positives
    by_product = Counter(each.product for each in tuples)
    assert report.products_with_tuples == len(by_product)
    assert report.mean_positives == pytest.approx(statistics.mean(by_product.values()))
    assert report.median_positives == statistics.median(by_product.values())
    assert report.most_positives == max(by_product.values())
    for grade, mix in ((HIGH, report.negatives_of_high), (MODERATE, report.negatives_of_moderate)):
        kinds = Counter(kind for each in tuples if each.grade == grade for kind in each.kinds)
        assert (mix.irrelevant, mix.moderate, mix.proxy) == (kinds[0], kinds[1], kinds[PROXY])
    usable = {product: Counter(world.of(product).values()) for product in world.usable_products()}
    wanted = sum(sum(positive_counts(c[HIGH], c[MODERATE], world.config)) for c in usable.values())
    assert report.positives_left_out == wanted - len(tuples)
    assert report.repeated_negatives == sum(len(t.negatives) - len(set(t.negatives)) for t in tuples)


# ---------------------------------------------------------------- chances


#: One product with HR query 0, MR queries 1 and 2, IR queries 3 ... 8.
QUERY_J = np.arange(9)
GRADE_J = np.array([2, 1, 1, 0, 0, 0, 0, 0, 0])
#: Donors of another aisle: one with query 20, one with 21, 22 and 23; and one of the same aisle with 30.
DONORS = Donors.of(
    [np.array([20]), np.array([30]), np.array([21, 22, 23])], np.array([1, 0, 1]), aisle_count=2
)
DRAWS = 4000


def drawn(grade_J: np.ndarray, config: TupleConfig) -> tuple[np.ndarray, np.ndarray]:
    """Many independent draws of the HR tuple of the product: query indices and grades, [DRAWS, 1 + K]."""
    generator = np.random.default_rng(0)
    queries, grades = [], []
    for _ in range(DRAWS):
        proxies = ProxyQueries(DONORS, 0, frozenset(QUERY_J.tolist()), generator)
        rows, row_grades = draw_tuples(
            QUERY_J, grade_J, config=config, proxies=proxies, generator=generator, counts=NegativeCounts()
        )
        queries.append(rows[0])
        grades.append(row_grades[0])
    return np.array(queries), np.array(grades)


def test_moderate_and_irrelevant_queries_are_equally_likely_negatives_of_a_high_one() -> None:
    queries, grades = drawn(GRADE_J, TupleConfig(negatives=4))
    kept = (grades[:, 1:] != PROXY).all(axis=1)
    share = np.bincount(queries[:, 1:].ravel(), minlength=9)[1:9] / DRAWS
    # 4 of 8 without repetition; a draw of 4 IR (15 in 70) loses one of its four to a proxy.
    assert (~kept).mean() == pytest.approx(15 / 70, abs=0.03)
    np.testing.assert_allclose(share[:2], 1 / 2, atol=0.04)
    np.testing.assert_allclose(share[2:], 1 / 2 - 15 / 70 / 6, atol=0.04)


def test_a_proxy_comes_from_a_random_product_first_and_then_from_its_queries() -> None:
    queries, grades = drawn(np.array([2] + [0] * 8), TupleConfig(negatives=8))
    proxies = queries[:, 1:][grades[:, 1:] == PROXY]
    assert len(proxies) == DRAWS, "one in each tuple of eight irrelevant queries"
    share = np.bincount(proxies, minlength=31) / DRAWS
    # Two donors: one half each, the second divided by its three queries; the same aisle gives nothing.
    np.testing.assert_allclose(share[[20, 21, 22, 23, 30]], [1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], atol=0.03)


def test_the_proxy_takes_any_place_with_equal_chance() -> None:
    _, grades = drawn(np.array([2] + [0] * 8), TupleConfig(negatives=8))
    np.testing.assert_allclose((grades[:, 1:] == PROXY).mean(axis=0), 1 / 8, atol=0.03)


def test_positives_are_a_uniform_sample_when_there_are_too_many() -> None:
    queries, _ = drawn(np.array([2, 2, 2, 2, 0, 0, 0, 0, 0]), TupleConfig(max_positives=1, negatives=2))
    np.testing.assert_allclose(np.bincount(queries[:, 0]) / DRAWS, 1 / 4, atol=0.04)


def test_rare_proxies_are_found_among_many_that_may_not_serve() -> None:
    """Random tries alone would miss the one free query among 5,000 that are graded for the product."""
    donors = Donors.of([np.arange(5000), np.array([7, 6000])], np.array([1, 1]), aisle_count=2)
    one_in_all = Donors.of([np.arange(5001)], np.array([1]), aisle_count=2)
    graded = frozenset(range(5000))
    for lenders, free in ((donors, 6000), (one_in_all, 5000)):
        proxies = ProxyQueries(lenders, 0, graded, np.random.default_rng(0))
        assert proxies.draw(3) == [free]


# ---------------------------------------------------------------- the artifact


def small_grades(folder: Path, *, products: int = 12) -> Grades:
    rows: list[Row] = [
        (f"q{query}", product, (product * 7 + query * 5) % 3, "llm")
        for product in range(products)
        for query in range(product % 4, 30, 2)
    ]
    return read_grades(write_data(folder, rows))


AISLES = ["Snacks", "Pets", "Baby"] * 4


def test_other_products_and_seeds(tmp_path: Path) -> None:
    """A product's positives depend on its own grades and the seed; its proxies also on the donors."""
    grades = small_grades(tmp_path)
    config = TupleConfig(max_positives=4)
    first = build_tuples(grades, AISLES, tmp_path / "a", config=config, seed=0)
    again = build_tuples(grades, AISLES, tmp_path / "b", config=config, seed=0)
    other = build_tuples(grades, AISLES, tmp_path / "c", config=config, seed=1)
    alone = np.arange(12) == 5
    single = build_tuples(grades, AISLES, tmp_path / "d", config=config, seed=0, product_mask=alone)
    np.testing.assert_array_equal(first.tuples_NC, again.tuples_NC)
    assert first.report.checksums == again.report.checksums
    assert not np.array_equal(first.tuples_NC, other.tuples_NC)
    of_five = first.tuples_NC[first.tuples_NC[:, 0] == 5]
    np.testing.assert_array_equal(single.tuples_NC[:, 1], of_five[:, 1])


def test_tuples_open_memory_mapped_and_are_checked(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    seen: list[tuple[str, int, int]] = []
    build_tuples(
        grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0, progress=lambda *c: seen.append(c)
    )
    assert (seen[0], seen[-1]) == (("tuples", 0, 12), ("tuples", 12, 12))
    opened = TupleSet.open(tmp_path / "t", product_ids=grades.product_ids)
    assert isinstance(opened.tuples_NC, np.memmap)
    assert opened.tuples_NC.shape == (len(opened), 12)
    assert opened.grades_NC.shape == (len(opened), 11)
    assert opened.queries.equals(grades.queries)
    with pytest.raises(RelevanceError, match=r"not those of .*, or in another order"):
        TupleSet.open(tmp_path / "t", product_ids=grades.product_ids[::-1])
    path = tmp_path / "t" / "tuples.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RelevanceError, match=r"tuples\.npy is missing or was changed"):
        TupleSet.open(tmp_path / "t")
    path.unlink()
    with pytest.raises(RelevanceError, match=r"tuples\.npy is missing or was changed"):
        TupleSet.open(tmp_path / "t", verify=False)
    with pytest.raises(RelevanceError, match="holds no tuples"):
        TupleSet.open(tmp_path)


def test_only_tuples_are_replaced_and_an_error_leaves_the_old_ones(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    with pytest.raises(RelevanceError, match="something other than tuples"):
        build_tuples(grades, AISLES, tmp_path, config=TupleConfig(), seed=0)
    with pytest.raises(RelevanceError, match="something other than tuples"):
        build_tuples(grades, AISLES, tmp_path / "products.parquet", config=TupleConfig(), seed=0)
    old = build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0)
    before = old.tuples_NC.copy()
    nobody = np.zeros(12, bool)
    with pytest.raises(RelevanceError, match="no tuple can be made"):
        build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0, product_mask=nobody)
    np.testing.assert_array_equal(TupleSet.open(tmp_path / "t").tuples_NC, before)
    build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(negatives=2), seed=0)
    assert TupleSet.open(tmp_path / "t").tuples_NC.shape[1] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["products.parquet", "relevance.parquet", "t"]


def test_lengths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    with pytest.raises(RelevanceError, match="one entry for each of 12 products, got 1"):
        build_tuples(grades, ["Snacks"], tmp_path / "t", config=TupleConfig(), seed=0)
    with pytest.raises(RelevanceError, match=r"query_mask must be 30 booleans, got int64 of shape \(30,\)"):
        build_tuples(
            grades,
            AISLES,
            tmp_path / "t",
            config=TupleConfig(),
            seed=0,
            query_mask=np.ones(30, np.int64),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    "wrong", [{"max_positives": 0}, {"negatives": 0}, {"short_of_high": "x"}, {"positives": 1}]
)
def test_nonsense_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        TupleConfig(**wrong)


@given(st.lists(st.integers(0, 5), max_size=6))
def test_a_row_file_equals_saving_all_rows_at_once(pieces: list[int]) -> None:
    rows = np.arange(3 * sum(pieces), dtype=np.int64).reshape(-1, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        with RowFile(path, 3, np.dtype(np.int32)) as file:
            for part in np.split(rows, np.cumsum(pieces)):
                file.append(part)
        np.save(Path(folder) / "whole.npy", rows.astype(np.int32))
        loaded = np.load(path)
        assert loaded.dtype == np.int32
        np.testing.assert_array_equal(loaded, rows)
        assert path.read_bytes() == (Path(folder) / "whole.npy").read_bytes()
