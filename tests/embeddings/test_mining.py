"""Mined hard negatives: laws over random small worlds, with neighbours and rules written as loops."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embeddings.hard_negatives import HardNegatives, MiningCounts, MiningReport, place_hard_negatives
from embeddings.mining import MiningConfig, mine_tuples
from embeddings.relevance import (
    HIGH,
    IRRELEVANT,
    MODERATE,
    PROXY,
    Grades,
    RelevanceError,
    TupleConfig,
    TupleSet,
    build_tuples,
)
from tests.embeddings.test_relevance import AISLES, World, grades_in_memory, small_grades


@dataclass(frozen=True)
class Mined:
    """Tuples of a world before and after mining, as arrays in memory, and what mining was given."""

    before_NC: np.ndarray
    after_NC: np.ndarray
    kinds_before_NC: np.ndarray
    kinds_after_NC: np.ndarray
    report: MiningReport
    mix: Counter[tuple[int, int]]
    repeated: int
    products: list[int]
    queries: list[str]
    vectors_PD: np.ndarray
    vectors_QD: np.ndarray

    def nearest(self, product: int, world: World, neighbours: int) -> list[int]:
        """Queries of a product from near to far, by a loop."""
        allowed = [
            query
            for query, text in enumerate(self.queries)
            if text not in world.masked_queries and self.vectors_QD[query].any()
        ]
        if not self.vectors_PD[product].any():
            return []
        score = self.vectors_QD.astype(np.float64) @ self.vectors_PD[product].astype(np.float64)
        return sorted(allowed, key=lambda query: (-round(score[query], 9), query))[:neighbours]


def kind_of(world: World, product: int, query: str) -> int | None:
    """The grade of a query for a product, -1 if it is safely irrelevant without one, None if it is not."""
    if (product, query) in world.grade_of:
        return world.grade_of[product, query]
    if world.aisle_of is None or not world.aisle(product):
        return None
    elsewhere = False
    for other in world.usable_products():
        grade = world.grade_of.get((other, query), IRRELEVANT)
        if world.aisle(other) == world.aisle(product) and grade > IRRELEVANT:
            return None
        elsewhere |= bool(world.aisle(other)) and grade == HIGH
    return PROXY if elsewhere else None


def usable(world: World, mined: Mined, config: MiningConfig, product: int, positive_grade: int) -> list[int]:
    """Queries that may be negatives, hardest first, by the words of the rules."""
    kinds = {
        query: kind_of(world, mined.products[product], mined.queries[query])
        for query in mined.nearest(product, world, config.neighbours)
    }
    return [query for query, kind in kinds.items() if kind is not None and kind < positive_grade]


def mine(world: World, config: MiningConfig, vectors_seed: int) -> Mined | None:
    """Random vectors, one in six without any; None where the world has no tuple."""
    grades = grades_in_memory(world) if world.grade_of else None
    if grades is None:
        return None
    products, queries = grades.product_ids.to_pylist(), grades.queries.to_pylist()
    generator = np.random.default_rng(vectors_seed)
    # Few different numbers, so that there are ties.
    vectors_PD = generator.integers(-2, 3, (len(products), 4)) * (
        generator.random((len(products), 1)) > 1 / 6
    )
    vectors_QD = generator.integers(-2, 3, (len(queries), 4)) * (generator.random((len(queries), 1)) > 1 / 6)
    aisles = None if world.aisle_of is None else [world.aisle_of[product] for product in products]
    masks = {
        "product_mask": np.array([product not in world.masked_products for product in products], bool),
        "query_mask": np.array([query not in world.masked_queries for query in queries], bool),
    }
    with tempfile.TemporaryDirectory() as name:
        try:
            drawn = build_tuples(
                grades, aisles, Path(name) / "drawn", config=world.config, seed=world.seed, **masks
            )
        except RelevanceError:
            return None
        mine_tuples(
            drawn,
            grades,
            aisles,
            product_vectors_PD=vectors_PD.astype(np.float32),
            query_vectors_QD=vectors_QD.astype(np.float16),
            config=config,
            seed=world.seed,
            out=Path(name) / "mined",
            **masks,
        )
        result = TupleSet.open(Path(name) / "mined", product_ids=grades.product_ids)
        assert result.report.mining is not None
        high, moderate = result.report.negatives_of_high, result.report.negatives_of_moderate
        return Mined(
            before_NC=np.array(drawn.tuples_NC),
            after_NC=np.array(result.tuples_NC),
            kinds_before_NC=np.array(drawn.grades_NC),
            kinds_after_NC=np.array(result.grades_NC),
            report=result.report.mining,
            mix=Counter(
                {
                    (grade, kind): number
                    for grade, mix in ((HIGH, high), (MODERATE, moderate))
                    for kind, number in ((0, mix.irrelevant), (1, mix.moderate), (PROXY, mix.proxy))
                    if number
                }
            ),
            repeated=result.report.repeated_negatives,
            products=products,
            queries=queries,
            vectors_PD=vectors_PD,
            vectors_QD=vectors_QD,
        )


def rich_world(seed: int) -> World:
    """A world with enough queries that neighbours of every kind come up; all of it follows from the seed."""
    generator = np.random.default_rng(seed)
    queries = [f"q{number:02d}" for number in range(16)]
    grade_of = {
        (product, query): int(generator.choice([IRRELEVANT, MODERATE, HIGH], p=[0.5, 0.2, 0.3]))
        for product in range(7)
        for query in queries
        if generator.random() < 0.3
    }
    names = ("Snacks", "Medicine", "Pets", "Snacks", "Medicine", " Pets", None)
    return World(
        grade_of=grade_of,
        aisle_of=None if seed % 5 == 0 else {product: names[product] for product in range(7)},
        masked_products=frozenset({int(generator.integers(7))}),
        masked_queries=frozenset({queries[number] for number in generator.integers(16, size=2)}),
        config=TupleConfig(max_positives=6, negatives=int(generator.integers(1, 7))),
        seed=seed,
    )


rich_worlds = st.integers(0, 10_000).map(rich_world)
configs = st.builds(
    MiningConfig, neighbours=st.integers(1, 16), mined_share=st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
law = settings(max_examples=20, deadline=None)


@law
@given(rich_worlds, configs, st.integers(0, 50))
def test_products_and_positives_stay_and_the_hardest_usable_queries_are_negatives(
    world: World, config: MiningConfig, vectors_seed: int
) -> None:
    mined = mine(world, config, vectors_seed)
    if mined is None:
        return
    np.testing.assert_array_equal(mined.after_NC[:, :2], mined.before_NC[:, :2])
    np.testing.assert_array_equal(mined.kinds_after_NC[:, 0], mined.kinds_before_NC[:, 0])
    most = round(config.mined_share * world.config.negatives)
    for before, row, kinds in zip(mined.before_NC, mined.after_NC, mined.kinds_after_NC, strict=True):
        hardest = usable(world, mined, config, row[0], kinds[0])[:most]
        assert set(hardest) <= set(row[2:].tolist())
        assert set(row[2:].tolist()) <= {*hardest, *before[2:].tolist()}, "nothing comes from elsewhere"
        changed = row[2:] != before[2:]
        assert changed.sum() == len(set(hardest) - set(before[2:].tolist())), "no more places than needed"


@law
@given(rich_worlds, configs, st.integers(0, 50))
def test_no_relevant_or_unknown_or_masked_query_is_ever_mined(
    world: World, config: MiningConfig, vectors_seed: int
) -> None:
    mined = mine(world, config, vectors_seed)
    if mined is None:
        return
    for before, row, kinds in zip(mined.before_NC, mined.after_NC, mined.kinds_after_NC, strict=True):
        product, positive_grade = mined.products[row[0]], kinds[0]
        for old, query, kind in zip(before[2:], row[2:], kinds[1:], strict=True):
            text = mined.queries[query]
            assert world.grade_of.get((product, text), IRRELEVANT) < positive_grade
            assert query != row[1]
            assert text not in world.masked_queries
            if query != old:
                assert kind == kind_of(world, product, text), "the kind says why it may be a negative"
                assert mined.vectors_QD[query].any()
                assert mined.vectors_PD[row[0]].any()


@law
@given(rich_worlds, configs, st.integers(0, 50))
def test_negatives_that_stay_keep_place_and_kind_and_none_is_doubled(
    world: World, config: MiningConfig, vectors_seed: int
) -> None:
    mined = mine(world, config, vectors_seed)
    if mined is None:
        return
    same = mined.after_NC[:, 2:] == mined.before_NC[:, 2:]
    np.testing.assert_array_equal(mined.kinds_after_NC[:, 1:][same], mined.kinds_before_NC[:, 1:][same])
    for before, row in zip(mined.before_NC[:, 2:].tolist(), mined.after_NC[:, 2:].tolist(), strict=True):
        times_before, times = Counter(before), Counter(row)
        assert all(number <= max(1, times_before[query]) for query, number in times.items())


@law
@given(rich_worlds, configs, st.integers(0, 50))
def test_the_report_counts_every_neighbour_and_every_mined_negative(
    world: World, config: MiningConfig, vectors_seed: int
) -> None:
    mined = mine(world, config, vectors_seed)
    if mined is None:
        return
    report = mined.report
    with_tuples = sorted(set(mined.after_NC[:, 0].tolist()))
    met: Counter[int | None] = Counter(
        kind_of(world, mined.products[product], mined.queries[query])
        for product in with_tuples
        for query in mined.nearest(product, world, config.neighbours)
    )
    assert report.products == len(with_tuples)
    assert report.products_without_vector == sum(not mined.vectors_PD[p].any() for p in with_tuples)
    assert (
        report.irrelevant_neighbours,
        report.moderate_neighbours,
        report.proxy_neighbours,
        report.dropped_as_relevant,
        report.dropped_as_unknown,
    ) == (met[IRRELEVANT], met[MODERATE], met[PROXY], met[HIGH], met[None])
    assert report.neighbours == met.total()

    changed = mined.after_NC[:, 2:] != mined.before_NC[:, 2:]
    kinds = Counter(mined.kinds_after_NC[:, 1:][changed].tolist())
    assert (report.mined_irrelevant, report.mined_moderate, report.mined_proxy) == (
        kinds[IRRELEVANT],
        kinds[MODERATE],
        kinds[PROXY],
    )
    assert report.mean_mined_per_tuple == pytest.approx(changed.sum(axis=1).mean())
    assert report.tuples_unchanged == (~changed.any(axis=1)).sum()
    most = round(config.mined_share * world.config.negatives)
    hardest = [
        usable(world, mined, config, row[0], kind)[:most]
        for row, kind in zip(mined.after_NC, mined.kinds_after_NC[:, 0], strict=True)
    ]
    assert report.tuples_short == sum(len(queries) < most for queries in hardest)
    assert report.already_there == sum(map(len, hardest)) - changed.sum()
    assert mined.mix == Counter((row[0], kind) for row in mined.kinds_after_NC.tolist() for kind in row[1:])
    assert mined.repeated == sum(len(row) - len(set(row)) for row in mined.after_NC[:, 2:].tolist())


@settings(max_examples=8, deadline=None)
@given(rich_worlds, st.integers(0, 50))
def test_nothing_to_mine_leaves_the_tuples_as_they_are(world: World, vectors_seed: int) -> None:
    mined = mine(world, MiningConfig(mined_share=0), vectors_seed)
    if mined is None:
        return
    np.testing.assert_array_equal(mined.after_NC, mined.before_NC)
    np.testing.assert_array_equal(mined.kinds_after_NC, mined.kinds_before_NC)
    assert mined.report.tuples_unchanged == len(mined.before_NC)


# ---------------------------------------------------------------- one case by hand


def test_each_near_query_is_judged_by_the_grades_and_the_aisle(tmp_path: Path) -> None:
    """A red mug, its five nearest queries, and what becomes of each of them."""
    world = World(
        grade_of={
            (1, "red mug"): HIGH,
            (1, "mug"): MODERATE,
            (1, "blue mug"): IRRELEVANT,
            # In the aisle of product 1, so perhaps relevant to it: "red cup" is dropped.
            (2, "red cup"): MODERATE,
            (3, "red cup"): HIGH,
            # Only products of another aisle want it: a proxy.
            (3, "red paint"): HIGH,
            # Relevant nowhere: nothing is known about it.
            (3, "red"): IRRELEVANT,
            (2, "plate"): HIGH,
            (1, "plate"): IRRELEVANT,
        },
        aisle_of={1: "Kitchen", 2: "Kitchen", 3: "Garage"},
        masked_products=frozenset(),
        masked_queries=frozenset(),
        config=TupleConfig(negatives=3),
        seed=0,
    )
    grades = grades_in_memory(world)
    queries = grades.queries.to_pylist()
    nearness = ["red mug", "red", "red cup", "mug", "red paint", "blue mug", "plate"]
    assert sorted(nearness) == queries
    angle_Q = np.array([nearness.index(query) for query in queries]) * 0.2
    vectors_QD = np.stack([np.cos(angle_Q), np.sin(angle_Q)], axis=1)
    aisles = ["Kitchen", "Kitchen", "Garage"]
    drawn = build_tuples(grades, aisles, tmp_path / "drawn", config=world.config, seed=0)

    def negatives(neighbours: int, share: float, grade: int, index: str = "exact") -> dict[str, int]:
        mined = mine_tuples(
            drawn,
            grades,
            aisles,
            product_vectors_PD=np.array([[1.0, 0.0]] * 3),
            query_vectors_QD=vectors_QD,
            config=MiningConfig(neighbours=neighbours, mined_share=share, index=index),
            seed=0,
            out=tmp_path / "mined",
        )
        assert mined.report.mining is not None
        chosen = (mined.tuples_NC[:, 0] == 0) & (mined.grades_NC[:, 0] == grade)
        row, kinds = mined.tuples_NC[chosen][0], mined.grades_NC[chosen][0]
        return {queries[query]: kind for query, kind in zip(row[2:], kinds[1:].tolist(), strict=True)}

    for index in ("exact", "hnsw"):
        assert negatives(7, 1.0, HIGH, index) == {"mug": MODERATE, "red paint": PROXY, "blue mug": IRRELEVANT}
        assert negatives(7, 1.0, MODERATE, index) == {
            "red paint": PROXY,
            "blue mug": IRRELEVANT,
            "plate": IRRELEVANT,
        }
    assert {"mug"} <= negatives(4, 1.0, HIGH).keys(), "four neighbours hold one that is usable"
    assert {"red paint"} <= negatives(7, 0.34, MODERATE).keys(), "a third of three is the hardest one"


def test_mined_negatives_take_any_place_with_equal_chance() -> None:
    draws = 4000
    tuples_NC = np.tile(np.array([0, 50, 1, 2, 3, 4], np.int32), (draws, 1))
    grades_NC = np.tile(np.array([HIGH, 0, 0, 0, 0], np.int8), (draws, 1))
    hard = HardNegatives(np.array([60, 2]), np.array([PROXY, 0], np.int8))
    counts = MiningCounts()
    place_hard_negatives(
        tuples_NC, grades_NC, hard, mined_share=0.5, generator=np.random.default_rng(0), counts=counts
    )
    share = (tuples_NC[:, 2:] == 60).mean(axis=0)
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)  # 2 is hard itself and stays
    assert (counts.mined_proxy, counts.already_there, counts.tuples_short) == (draws, draws, 0)


def test_a_repeated_negative_gives_up_its_repetitions_alone() -> None:
    tuples_NC = np.array([[0, 50, 7, 7, 7]], np.int32)
    grades_NC = np.array([[HIGH, MODERATE, MODERATE, MODERATE]], np.int8)
    hard = HardNegatives(np.array([8, 7, 9]), np.array([0, MODERATE, PROXY], np.int8))
    place_hard_negatives(
        tuples_NC,
        grades_NC,
        hard,
        mined_share=1.0,
        generator=np.random.default_rng(0),
        counts=MiningCounts(),
    )
    kinds = dict(zip(tuples_NC[0, 2:].tolist(), grades_NC[0, 1:].tolist(), strict=True))
    assert kinds == {7: MODERATE, 8: IRRELEVANT, 9: PROXY}


# ---------------------------------------------------------------- the artifact


def drawn_tuples(folder: Path) -> tuple[Grades, TupleSet]:
    grades = small_grades(folder)
    return grades, build_tuples(grades, AISLES, folder / "drawn", config=TupleConfig(), seed=0)


def unit_vectors(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_seed_moves_the_places_and_not_what_is_mined(tmp_path: Path) -> None:
    grades, drawn = drawn_tuples(tmp_path)
    found = [
        mine_tuples(
            drawn,
            grades,
            AISLES,
            product_vectors_PD=unit_vectors(12),
            query_vectors_QD=unit_vectors(len(grades.queries)),
            config=MiningConfig(),
            seed=seed,
            out=tmp_path / out,
        )
        for out, seed in (("first", 0), ("again", 0), ("other", 1))
    ]
    first, again, other = (each.report.mining for each in found)
    assert first is not None
    assert other is not None
    assert first.mined_proxy > 0
    assert first == again
    assert found[0].report.checksums == found[1].report.checksums, "equal inputs give equal files"
    assert other.model_copy(update={"seed": 0}) == first
    assert not np.array_equal(found[0].tuples_NC, found[2].tuples_NC)


def test_progress_is_told_and_an_error_leaves_what_stood_there(tmp_path: Path) -> None:
    grades, drawn = drawn_tuples(tmp_path)
    seen: list[tuple[str, int, int]] = []

    def mine_with(products_PD: np.ndarray, out: Path, mined_from: Grades = grades) -> TupleSet:
        return mine_tuples(
            drawn,
            mined_from,
            AISLES,
            product_vectors_PD=products_PD,
            query_vectors_QD=unit_vectors(len(grades.queries)),
            config=MiningConfig(),
            seed=0,
            out=out,
            progress=lambda *call: seen.append(call),
        )

    mined = mine_with(unit_vectors(12), tmp_path / "mined")
    products = drawn.report.products_with_tuples
    assert [seen[0], seen[1], seen[-1]] == [
        ("neighbours", 0, products),
        ("neighbours", products, products),
        ("mining", products, products),
    ]
    before = mined.report.checksums
    with pytest.raises(RelevanceError, match="something other than tuples"):
        mine_with(unit_vectors(12), tmp_path)
    with pytest.raises(RelevanceError, match=r"product_vectors_PD must have 12 rows, got shape \(11, 8\)"):
        mine_with(unit_vectors(11), tmp_path / "mined")
    with pytest.raises(RelevanceError, match="product_vectors_PD must be finite"):
        mine_with(unit_vectors(12) * np.nan, tmp_path / "mined")
    with pytest.raises(ValueError, match="rows of the same width"):
        mine_with(unit_vectors(12)[:, :4], tmp_path / "mined")
    renamed = Grades(**{**vars(grades), "queries": pa.array([f"r{n}" for n in range(len(grades.queries))])})
    with pytest.raises(RelevanceError, match="other products or queries than the grades"):
        mine_with(unit_vectors(12), tmp_path / "mined", renamed)
    assert TupleSet.open(tmp_path / "mined").report.checksums == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["drawn", "mined"]


def test_tuples_may_be_mined_in_place_and_again(tmp_path: Path) -> None:
    grades, drawn = drawn_tuples(tmp_path)
    vectors = {"product_vectors_PD": unit_vectors(12), "query_vectors_QD": unit_vectors(len(grades.queries))}
    once = mine_tuples(
        drawn, grades, AISLES, config=MiningConfig(), seed=0, out=tmp_path / "drawn", **vectors
    )
    expected = np.array(once.tuples_NC)
    twice = mine_tuples(once, grades, AISLES, config=MiningConfig(), seed=0, out=tmp_path / "t", **vectors)
    np.testing.assert_array_equal(twice.tuples_NC, expected)
    assert twice.report.mining is not None
    assert twice.report.mining.mean_mined_per_tuple == 0


@pytest.mark.parametrize(
    "share, epochs, first", [(0.5, 4, 2), (0.5, 2, 1), (0.01, 9, 1), (0.99, 9, 8), (0.7, 10, 7)]
)
def test_at_least_one_epoch_stands_on_either_side_of_mining(share: float, epochs: int, first: int) -> None:
    assert MiningConfig(after_share=share).first_epochs(epochs) == first


def test_one_epoch_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="at least 2 epochs"):
        MiningConfig().first_epochs(1)


@pytest.mark.parametrize(
    "wrong",
    [{"neighbours": 0}, {"mined_share": 1.1}, {"index": "ivf"}, {"after_share": 0.0}, {"after_share": 1.0}],
)
def test_nonsense_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        MiningConfig(**wrong)
