"""Tuples: each rule of section 3.2.2 as a law over random small worlds."""

import random
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.relevance.build_tuples import (
    HIGH,
    IRRELEVANT,
    MODERATE,
    PROXY,
    Grades,
    RelevanceError,
    TupleConfig,
    TupleReport,
    build_tuples,
    read_grades,
)
from embeddings.relevance.grades import GradesReport
from embeddings.relevance.sampling import positive_counts
from tests.embeddings.small_grades import Row, write_data

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


def in_two_spellings(world: World) -> World:
    """The world in which neighbouring queries are one query: q0 and q1 become q0 and Q0."""

    def spelling(query: str) -> str:
        number = int(query[1:])
        return f"{'qQ'[number % 2]}{number // 2}"

    grade_of = {(product, spelling(query)): grade for (product, query), grade in world.grade_of.items()}
    return replace(world, grade_of=grade_of, masked_queries=frozenset(map(spelling, world.masked_queries)))


@settings(max_examples=100, deadline=None)
@given(worlds().map(in_two_spellings))
def test_a_query_is_no_negative_under_another_spelling(world: World) -> None:
    for each in tuples_of(world)[0]:
        best: dict[str, int] = {}
        for query, grade in world.of(each.product).items():
            best[query.lower()] = max(grade, best.get(query.lower(), grade))
        assert each.positive.lower() not in {query.lower() for query in each.negatives}
        assert len({query.lower() for query in each.negatives}) == len(set(each.negatives))
        for query, kind in zip(each.negatives, each.kinds, strict=True):
            if kind == PROXY:
                assert query.lower() not in best
            else:
                assert best[query.lower()] < each.grade


def test_groups_of_another_number_of_queries_are_refused(tmp_path: Path) -> None:
    grades = read_grades(write_data(tmp_path / "data", [("a", 1, 2, "llm"), ("b", 1, 0, "llm")]))
    with pytest.raises(RelevanceError, match=r"one group for each of 2 queries, got shape \(3,\)"):
        build_tuples(
            grades, None, tmp_path / "tuples", config=TupleConfig(), seed=0, group_Q=np.zeros(3, np.int64)
        )


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
