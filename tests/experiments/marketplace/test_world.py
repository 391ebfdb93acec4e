"""Laws of grades, graders, pools, tastes and clicks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.marketplace.config import ClickModel, MarketplaceConfig, TasteModel
from experiments.marketplace.days.clicks import (
    ClickCauses,
    click_delays_us,
    click_logits,
    click_terms,
    sigmoid,
)
from experiments.marketplace.days.searches import match_pools
from experiments.marketplace.world.assortment import USE_CASES, brand_names, load_assortment
from experiments.marketplace.world.catalog import flag_names
from experiments.marketplace.world.graders import count_facets, human_grades, llm_grades, true_grades
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.queries import KINDS, NONE, WANTED, misspell
from experiments.marketplace.world.shoppers import PurchaseMemory, taste_affinity


def test_every_use_case_names_known_types():
    assortment = load_assortment()
    assert all(assortment.type_index(noun) >= 0 for _, nouns in USE_CASES for noun in nouns)


def test_no_two_brands_and_no_two_types_share_a_name():
    nouns = [noun for kind in load_assortment().types for noun in kind.names]
    assert len(set(nouns)) == len(nouns)
    assert len(set(brand_names())) == len(brand_names())


def test_queries_are_different_texts_of_every_kind_and_traffic_sums_to_one_per_type(world):
    queries = world.queries
    assert len(set(queries.texts)) == queries.num_queries
    assert set(queries.kind_Q.tolist()) == set(range(len(KINDS)))
    traffic_T = np.bincount(queries.anchor_Q, weights=queries.traffic_Q)
    np.testing.assert_allclose(traffic_T, 1.0)


def test_a_misspelling_changes_the_text_but_keeps_the_number_of_words():
    rng = np.random.default_rng(0)
    slips = {misspell("organic potato chips", rng) for _ in range(50)}
    assert len(slips) > 10
    assert all(len(slip.split(" ")) == 3 for slip in slips)


def test_grades_follow_the_rule_pair_by_pair(world):
    queries, catalog = world.queries, world.catalog
    types = catalog.assortment.types
    rng = np.random.default_rng(0)
    query_N = rng.integers(0, queries.num_queries, 4000)
    product_N = rng.integers(0, catalog.num_products, 4000)
    for query, product, grade in zip(
        query_N, product_N, true_grades(queries, catalog, query_N, product_N), strict=True
    ):
        wanted = {types[index].name for index in np.flatnonzero(queries.role_QT[query] == WANTED)}
        kind = types[catalog.type_P[product]]
        groups = {other.group for other in types if other.name in wanted}
        flags = set(flag_names(int(queries.flags_Q[query])))
        complete = (
            queries.brand_Q[query] in (NONE, catalog.brand_P[product])
            and queries.variety_Q[query] in (NONE, catalog.variety_P[product])
            and flags <= set(flag_names(int(catalog.flags_P[product])))
        )
        expected = 2 if kind.name in wanted and complete else 1 if kind.group in groups else 0
        assert grade == expected


def test_a_head_query_is_fully_matched_by_every_product_of_its_type(world):
    head = int(np.flatnonzero(world.queries.kind_Q == 0)[0])
    products = np.flatnonzero(world.catalog.type_P == world.queries.anchor_Q[head])
    grades = true_grades(world.queries, world.catalog, np.full(len(products), head), products)
    assert (grades == 2).all()


def test_a_misspelt_query_is_graded_like_the_query_it_is_about(world):
    queries = world.queries
    misspelt = np.flatnonzero(queries.kind_Q == KINDS.index("misspelt"))
    assert len(misspelt)
    assert (queries.role_QT[misspelt] == WANTED).any(axis=1).all()


def test_titles_alone_never_show_more_facets_than_the_product_has(world):
    rng = np.random.default_rng(1)
    query_N = rng.integers(0, world.queries.num_queries, 20_000)
    product_N = rng.integers(0, world.catalog.num_products, 20_000)
    stated_N, found_N = count_facets(world.queries, world.catalog, query_N, product_N)
    _, in_title_N = count_facets(world.queries, world.catalog, query_N, product_N, titles_only=True)
    assert (in_title_N <= found_N).all()
    assert (found_N <= stated_N).all()
    assert (in_title_N < found_N).any(), "some facts must be visible in the image only"


def test_titles_name_exactly_the_facts_that_they_are_said_to_show(world):
    catalog = world.catalog
    for product in range(catalog.num_products):
        title = catalog.titles[product].lower()
        assert (catalog.brands[catalog.brand_P[product]].lower() in title) == bool(
            catalog.title_shows_brand_P[product]
        )
        assert all(flag in title for flag in flag_names(int(catalog.title_flags_P[product])))
        hidden = int(catalog.flags_P[product] & ~catalog.title_flags_P[product])
        # "whole grain" and the like occur in no other word of a title.
        assert not any(flag in title for flag in flag_names(hidden))


def test_people_err_by_one_step_and_rarely():
    truth = np.repeat(np.arange(3), 10_000)
    graded = human_grades(truth, np.random.default_rng(0))
    assert np.abs(graded - truth).max() == 1
    assert set(graded.tolist()) == {0, 1, 2}
    assert (graded != truth).mean() == pytest.approx(0.06, abs=0.006)


def test_a_language_model_misses_what_only_the_package_shows():
    truth, from_title = np.full(5000, 2), np.full(5000, 1)
    nothing = np.zeros(5000, bool)
    assert (llm_grades(truth, from_title, nothing, np.random.default_rng(0)) == 2).mean() < 0.05
    assert (llm_grades(truth, truth, nothing, np.random.default_rng(0)) == 2).mean() > 0.95


def test_matches_are_all_of_grade_two(world):
    pools = match_pools(world.catalog, world.queries, np.random.default_rng(0))
    pools.open_day(world.config.days)
    query_N = np.repeat(np.arange(world.queries.num_queries), 5)
    product_N = pools.draw(query_N, np.random.default_rng(1))
    found = product_N >= 0
    assert found.mean() > 0.9
    assert (true_grades(world.queries, world.catalog, query_N[found], product_N[found]) == 2).all()


@given(
    launch=st.lists(st.integers(-3, 5), min_size=1, max_size=12),
    day=st.integers(-4, 6),
    seed=st.integers(0, 1000),
)
def test_pools_draw_only_from_the_list_and_only_what_is_launched(launch, day, seed):
    rng = np.random.default_rng(seed)
    count = len(launch)
    lists = rng.integers(0, 3, count)
    launch_P = np.array(launch)
    pools = ProductPools(
        lists, np.arange(count), num_lists=3, available_from_P=launch_P, weight_P=rng.random(count) + 0.1
    )
    pools.open_day(day)
    asked = np.repeat(np.arange(3), 30)
    drawn = pools.draw(asked, rng)
    for index in range(3):
        expected = set(np.flatnonzero((lists == index) & (launch_P <= day)).tolist())
        assert set(drawn[asked == index].tolist()) <= (expected or {-1})


def test_pools_draw_in_proportion_to_weight():
    weights = np.array([1.0, 3.0, 6.0])
    pools = ProductPools(
        np.zeros(3, int),
        np.arange(3),
        num_lists=1,
        available_from_P=np.array([0, 0, 9]),
        weight_P=weights,
    )
    rng = np.random.default_rng(0)
    pools.open_day(1)
    early = np.bincount(pools.draw(np.zeros(40_000, int), rng), minlength=3) / 40_000
    np.testing.assert_allclose(early, [0.25, 0.75, 0.0], atol=0.01)
    pools.open_day(9)
    late = np.bincount(pools.draw(np.zeros(40_000, int), rng), minlength=3) / 40_000
    np.testing.assert_allclose(late, [0.1, 0.3, 0.6], atol=0.01)


def test_taste_is_the_sum_of_what_is_liked_and_disliked(world):
    rng = np.random.default_rng(0)
    users = rng.integers(0, world.shoppers.num_users, 500)
    products = rng.integers(0, world.catalog.num_products, 500)
    taste = TasteModel()
    got = taste_affinity(taste, world.shoppers, world.catalog, users, products)
    for user, product, value in zip(users, products, got, strict=True):
        expected = 0.0
        if world.catalog.type_P[product] in world.shoppers.liked_type_UK[user]:
            expected += taste.liked_type
        if world.catalog.variety_P[product] in world.shoppers.liked_variety_UK[user]:
            expected += taste.liked_variety
        elif world.catalog.variety_P[product] in world.shoppers.disliked_variety_UK[user]:
            expected += taste.disliked_variety
        if world.catalog.brand_P[product] in world.shoppers.liked_brand_UK[user]:
            expected += taste.liked_brand
        diet = int(world.shoppers.diet_U[user])
        if diet:
            met = diet & int(world.catalog.flags_P[product])
            expected += taste.diet_met if met else taste.diet_missed
        assert value == pytest.approx(expected)


def test_memory_forgets_the_oldest_purchase_and_what_is_older_than_the_window():
    memory = PurchaseMemory(2)
    memory.add(np.zeros(20, int), np.arange(20), day=1)
    asked = np.arange(20)
    recent = memory.bought_recently(np.zeros(20, int), asked, 2, 84)
    assert not recent[:4].any()
    assert recent[4:].all()
    assert memory.bought_recently(np.zeros(20, int), asked, 85, 84)[4:].all()
    assert not memory.bought_recently(np.zeros(20, int), asked, 86, 84).any()
    assert not memory.bought_recently(np.ones(20, int), asked, 2, 84).any()
    assert memory.draw_again(np.ones(3, int), np.random.default_rng(0)).tolist() == [-1, -1, -1]


def _causes(**changes: np.ndarray) -> ClickCauses:
    neutral = ClickCauses(
        grade_N=np.array([1]),
        facets_found_N=np.array([0]),
        taste_N=np.array([0.0]),
        quality_N=np.array([0.0]),
        price_sensitivity_N=np.array([1.0]),
        log_relative_price_N=np.array([0.0]),
        position_N=np.array([1]),
        device_N=np.array([1]),
        click_tendency_N=np.array([0.0]),
        hour_N=np.array([14.0]),
        bought_recently_N=np.array([False]),
    )
    return dataclasses.replace(neutral, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda m: 0.0),
        ({"grade_N": np.array([2])}, lambda m: m.grade_2 - m.grade_1),
        ({"grade_N": np.array([0])}, lambda m: m.grade_0 - m.grade_1),
        ({"facets_found_N": np.array([2])}, lambda m: 2 * m.facet_match),
        ({"taste_N": np.array([1.5])}, lambda m: 1.5 * m.taste),
        ({"quality_N": np.array([-2.0])}, lambda m: -2 * m.quality),
        ({"log_relative_price_N": np.array([0.5])}, lambda m: 0.5 * m.relative_price),
        ({"position_N": np.array([5])}, lambda m: m.positions[4]),
        ({"device_N": np.array([2])}, lambda m: m.devices[2]),
        ({"click_tendency_N": np.array([3.0])}, lambda m: 3 * m.user),
        ({"hour_N": np.array([20.0])}, lambda m: m.evening),
        ({"bought_recently_N": np.array([True])}, lambda m: m.repeat_purchase),
    ],
)
def test_each_cause_adds_its_own_term_to_the_log_odds(changes, expected):
    model = ClickModel()
    logit = click_logits(model, click_terms(model, _causes(**changes)))[0]
    assert logit == pytest.approx(model.intercept + model.grade_1 + expected(model))


def test_sigmoid_is_finite_at_any_log_odds_and_one_half_at_zero():
    np.testing.assert_allclose(sigmoid(np.array([-1000.0, 0.0, 1000.0, np.log(3)])), [0, 0.5, 1, 0.75])


def test_click_delays_stay_between_one_second_and_thirty_minutes():
    delays = click_delays_us(np.random.default_rng(0).standard_normal(100_000))
    assert delays.min() == 1_000_000
    assert delays.max() <= 1_800_000_000


def test_a_period_without_training_days_is_refused():
    with pytest.raises(ValueError, match="fewer than days"):
        MarketplaceConfig.preset("tiny", days=8, test_days=8)


def test_the_sizes_are_those_promised():
    large = MarketplaceConfig.preset("large")
    assert (large.products, large.impressions) == (400_000, 50_000_000)
    small = MarketplaceConfig.preset("small")
    assert (small.products, small.users, small.impressions, small.days) == (5_000, 20_000, 400_000, 217)
