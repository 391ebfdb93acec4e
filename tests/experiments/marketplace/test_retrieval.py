"""The preset retrieval: what the retrievers find, how the auction chooses, and what clicks then depend on."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments.marketplace.config import ClickModel, MarketplaceConfig
from experiments.marketplace.days.slates import SLATE_SIZES, SLOTS, AuctionSlates
from experiments.marketplace.logit_variance import GROUPS, LogitVariance
from experiments.marketplace.world import retrieval
from experiments.marketplace.world.graders import FactsJudge, true_grades
from experiments.marketplace.world.queries import KINDS, NONE, SUBSTITUTE, WANTED
from experiments.marketplace.world.retrieval import RetrievedProducts, retrieve

TASTES = ("taste", "past_purchase", "price")


@pytest.fixture(scope="module")
def retrieved(world) -> RetrievedProducts:
    return retrieve(world.catalog, world.queries, np.random.default_rng(0))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Every query with every product, by number: true grade, role of the type, and whether retrieved."""

    grade: np.ndarray
    grade_by_title: np.ndarray
    role: np.ndarray
    same_aisle: np.ndarray
    found: np.ndarray


@pytest.fixture(scope="module")
def pairs(world, retrieved) -> Pairs:
    queries, catalog = world.queries, world.catalog
    shape = (queries.num_queries, catalog.num_products)
    query, product = (index.ravel() for index in np.indices(shape))
    found = np.zeros(shape, bool)
    found[retrieved.query_E, retrieved.product_E] = True
    role = queries.role_QT[:, catalog.type_P]
    aisle_T = np.array([kind.aisle for kind in catalog.assortment.types])
    same_aisle = np.stack([np.isin(catalog.aisle_P, aisle_T[row == WANTED]) for row in queries.role_QT])
    by_title = true_grades(queries, catalog, query, product, titles_only=True)
    return Pairs(
        grade=true_grades(queries, catalog, query, product).reshape(shape),
        grade_by_title=by_title.reshape(shape),
        role=role,
        same_aisle=same_aisle,
        found=found,
    )


def test_a_product_is_retrieved_once_for_a_query_and_has_its_true_grade(pairs, retrieved):
    assert pairs.found.sum() == len(retrieved.product_E)
    np.testing.assert_array_equal(pairs.grade[retrieved.query_E, retrieved.product_E], retrieved.grade_E)
    np.testing.assert_array_equal((pairs.grade == 2).sum(axis=1), retrieved.matches_Q)


def test_nothing_is_retrieved_from_aisles_without_a_wanted_type(pairs):
    assert not pairs.found[~pairs.same_aisle & (pairs.role == 0)].any()


def test_a_well_spelt_query_finds_every_product_whose_title_says_all_it_asks_for(world, pairs):
    queries = world.queries
    names_product = (queries.brand_Q != NONE) | ((queries.role_QT == WANTED).sum(axis=1) == 1)
    plain = names_product & (queries.kind_Q != KINDS.index("misspelt"))
    assert pairs.found[plain][pairs.grade_by_title[plain] == 2].all()


def test_other_products_are_found_as_often_as_the_semantic_retriever_is_said_to(world, pairs):
    titles_say_it = pairs.grade_by_title == 2
    use_case = world.queries.kind_Q == KINDS.index("use case")
    lacks_facet = (pairs.role == WANTED) & (pairs.grade == 1)
    for cells, chance in (
        ((pairs.grade == 2) & ~titles_say_it, retrieval.FINDS_MATCH),
        ((pairs.grade == 2) & use_case[:, None], retrieval.FINDS_MATCH),
        (lacks_facet, retrieval.FINDS_WITHOUT_FACET),
        (pairs.role == SUBSTITUTE, retrieval.FINDS_SUBSTITUTE),
        ((pairs.role == 0) & pairs.same_aisle, retrieval.FINDS_SAME_AISLE),
    ):
        count = int(cells.sum())
        assert count > 50
        spread = np.sqrt(count * chance * (1 - chance))
        assert abs(int(pairs.found[cells].sum()) - count * chance) < 4 * spread


def test_some_misspelt_queries_are_left_to_the_semantic_retriever(world, pairs):
    misspelt = world.queries.kind_Q == KINDS.index("misspelt")
    said = (pairs.grade_by_title == 2) & misspelt[:, None]
    expected = 1 - (1 - retrieval.SPELLING_CORRECTED) * (1 - retrieval.FINDS_MATCH)
    assert pairs.found[said].mean() == pytest.approx(expected, abs=0.1)
    assert not pairs.found[said].all()


def test_a_long_list_is_cut_and_recall_knows_what_was_lost(world, retrieved, monkeypatch):
    monkeypatch.setattr(retrieval, "MOST_RETRIEVED", 3)
    short = retrieve(world.catalog, world.queries, np.random.default_rng(0))
    assert np.bincount(short.query_E).max() == 3
    np.testing.assert_array_equal(short.matches_Q, retrieved.matches_Q)
    assert short.summary(world.queries)["recall"] < retrieved.summary(world.queries)["recall"]


def test_recall_and_shares_are_means_over_queries_by_traffic(world):
    """Query 0 finds one of its two matches beside a grade 1; query 1 has no match; query 2 finds nothing."""
    found = RetrievedProducts(
        query_E=np.array([0, 0, 1]),
        product_E=np.array([5, 6, 5]),
        grade_E=np.array([2, 1, 0]),
        matches_Q=np.array([2, 0, 4]),
    )
    queries = dataclasses.replace(world.queries, traffic_Q=np.array([0.5, 0.3, 0.2]))
    assert found.summary(queries) == {
        "recall": pytest.approx((0.5 * 1 / 2 + 0.2 * 0) / 0.7),
        "grade_shares": pytest.approx([0.3 / 0.8, 0.25 / 0.8, 0.25 / 0.8], abs=1e-5),
        "products_per_query": pytest.approx(0.5 * 2 + 0.3 * 1),
        "queries_without_products": pytest.approx(0.2),
    }


def test_an_auction_shows_only_what_was_retrieved_and_each_ad_once(world, pairs, retrieved):
    slates = AuctionSlates(
        world.catalog, retrieved.pools(world.catalog), FactsJudge(world.queries, world.catalog)
    )
    slates.open_day(10)
    query_S = np.random.default_rng(1).integers(0, world.queries.num_queries, 5_000)
    ads = slates.show(query_S, np.random.default_rng(2))
    assert pairs.found[query_S[ads.search_N], ads.product_N].all()
    assert (world.catalog.available_from_P[ads.product_N] <= 10).all()
    np.testing.assert_array_equal(pairs.grade[query_S[ads.search_N], ads.product_N], ads.grade_N)
    keys = ads.search_N * world.catalog.num_products + ads.product_N
    assert len(np.unique(keys)) == len(keys)
    sizes = np.bincount(ads.search_N, minlength=len(query_S))
    assert sizes.max() <= SLOTS
    first_N = np.cumsum(sizes) - sizes
    np.testing.assert_array_equal(ads.position_N, np.arange(len(keys)) - first_N[ads.search_N] + 1)


def test_an_auction_of_many_ads_fills_its_slate_and_prefers_grade_and_quality(world):
    """Forty products of one head query's type and forty of another, all retrieved for that query."""
    queries = world.queries
    head = int(np.flatnonzero(queries.kind_Q == 0)[0])
    wanted = int(queries.anchor_Q[head])
    other = int(np.flatnonzero(queries.role_QT[head] == 0)[0])
    count = 80
    catalog = dataclasses.replace(
        world.catalog,
        type_P=np.repeat([wanted, other], count // 2),
        brand_P=np.zeros(count, int),
        variety_P=np.zeros(count, int),
        flags_P=np.zeros(count, int),
        quality_P=np.random.default_rng(0).normal(size=count),
        ad_weight_P=np.ones(count),
        available_from_P=np.zeros(count, int),
    )
    found = RetrievedProducts(
        query_E=np.full(count, head),
        product_E=np.arange(count),
        grade_E=np.repeat([2, 0], count // 2),
        matches_Q=np.zeros(queries.num_queries, int),
    )
    slates = AuctionSlates(catalog, found.pools(catalog), FactsJudge(queries, catalog))
    slates.open_day(0)
    ads = slates.show(np.full(5_000, head), np.random.default_rng(1))
    sizes = np.bincount(np.bincount(ads.search_N), minlength=SLOTS + 1)[1:] / 5_000
    np.testing.assert_allclose(sizes, SLATE_SIZES, atol=0.03)
    assert (ads.grade_N == 2).mean() > 0.8, "half of what takes part is of grade 2"
    right_N = ads.grade_N == 2
    assert catalog.quality_P[ads.product_N[right_N]].mean() > catalog.quality_P[: count // 2].mean() + 0.1
    by_position = [(ads.grade_N[ads.position_N == place] == 2).mean() for place in range(1, SLOTS + 1)]
    assert by_position == sorted(by_position, reverse=True)


def test_nearly_all_ads_are_relevant_and_few_in_the_default_preset_are_by_comparison(
    written, written_retrieval
):
    wrong, _, right = written_retrieval.summary["grade_shares_of_impressions"]
    mixed_wrong, _, mixed_right = written.summary["grade_shares_of_impressions"]
    assert wrong < 0.03 < 0.15 < mixed_wrong
    assert right > 0.6 > mixed_right
    assert "retrieval" not in written.summary


def test_the_retrievers_are_as_good_as_the_documents_say(written_retrieval):
    facts = written_retrieval.summary["retrieval"]
    assert 0.85 < facts["recall"] < 0.98
    assert sum(facts["grade_shares"]) == pytest.approx(1, abs=1e-4)
    assert facts["grade_shares"][0] < 0.08
    assert facts["queries_without_products"] < 0.05


def test_taste_and_price_decide_among_retrieved_ads_and_relevance_among_mixed_ones(
    written, written_retrieval
):
    mixed, ours = (
        market.summary["logit_variance"]["shares_within_slates"] for market in (written, written_retrieval)
    )
    for shares in (mixed, ours):
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert shares["user"] == shares["moment"] == 0
    assert sum(ours[name] for name in TASTES) > 1.5 * ours["relevance"]
    assert sum(mixed[name] for name in TASTES) < mixed["relevance"]
    assert ours["price"] > 3 * mixed["price"]
    assert ours["position"] > mixed["position"]


def test_clicks_are_rare_fewer_further_down_and_never_certain(written_retrieval):
    assert 0.05 < written_retrieval.summary["ctr"] < 0.25
    assert written_retrieval.summary["ctr_by_position"] == sorted(
        written_retrieval.summary["ctr_by_position"], reverse=True
    )
    assert 0.8 < written_retrieval.summary["test"]["best_auc"] < 0.95


def test_both_presets_of_a_seed_have_the_same_products_queries_grades_and_users(written, written_retrieval):
    truths = [f"truth/{name}" for name in ("products", "queries", "relevance", "users")]
    for name in ("products", "relevance", *truths):
        assert written.table(name).equals(written_retrieval.table(name)), name
    assert not written.table("impressions").equals(written_retrieval.table("impressions"))


def test_the_default_preset_is_the_mixed_one_with_its_published_coefficients():
    default = MarketplaceConfig.preset("small")
    assert default == MarketplaceConfig.preset("small", "mixed")
    assert default.candidates == "mixed"
    assert default.clicks == ClickModel(
        intercept=-3.1,
        grade_0=-2.0,
        grade_1=-0.25,
        grade_2=0.8,
        facet_match=0.35,
        taste=0.9,
        quality=0.9,
        relative_price=-0.5,
        positions=(0.0, -0.5, -0.85, -1.1, -1.3),
        devices=(0.1, 0.0, -0.2),
        user=0.5,
        evening=0.15,
        repeat_purchase=0.8,
    )


def test_presets_differ_in_candidates_and_clicks_alone_and_relevance_is_worth_the_same_in_both():
    mixed, ours = MarketplaceConfig.preset("small"), MarketplaceConfig.preset("small", "retrieval")
    changed = {name for name, value in ours if value != getattr(mixed, name)}
    assert changed == {"candidates", "clicks"}
    for name in ("grade_0", "grade_1", "grade_2", "facet_match", "user", "devices", "evening"):
        assert getattr(ours.clicks, name) == getattr(mixed.clicks, name)


def _terms(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=count) for names in GROUPS.values() for name in names}


def test_every_term_of_the_log_odds_belongs_to_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    terms = {name.removesuffix("_0") for name in ClickModel.model_fields}
    assert sorted(grouped) == sorted(terms - {"intercept", "grade_1", "grade_2"})


def test_variance_shares_are_covariances_with_the_log_odds_written_as_loops():
    rng = np.random.default_rng(0)
    sizes = [1, 3, 2, 5, 4]
    positions = np.concatenate([np.arange(1, size + 1) for size in sizes])
    terms = _terms(rng, len(positions))
    counted = LogitVariance()
    counted.add({name: term[:6] for name, term in terms.items()}, positions[:6])
    counted.add({name: term[6:] for name, term in terms.items()}, positions[6:])
    counted.add({name: term[:0] for name, term in terms.items()}, positions[:0])
    summary = counted.summary()

    logit = sum(terms.values())
    starts = np.cumsum([0, *sizes])
    slates = [slice(first, last) for first, last in itertools.pairwise(starts)]

    def within(values):
        return np.concatenate([values[slate] - values[slate].mean() for slate in slates])

    assert summary["sd"] == pytest.approx(logit.std())
    assert summary["sd_within_slates"] == pytest.approx(np.sqrt(np.mean(within(logit) ** 2)))
    for group, names in GROUPS.items():
        value = sum(terms[name] for name in names)
        share = np.cov(value, logit, bias=True)[0, 1] / logit.var()
        inside = np.mean(within(value) * within(logit)) / np.mean(within(logit) ** 2)
        assert summary["shares"][group] == pytest.approx(share, abs=1e-5)
        assert summary["shares_within_slates"][group] == pytest.approx(inside, abs=1e-5)


def test_what_all_ads_of_a_slate_share_decides_nothing_within_it():
    positions = np.tile([1, 2, 3], 50)
    rng = np.random.default_rng(0)
    terms = {name: np.zeros(150) for names in GROUPS.values() for name in names}
    terms |= {"user": np.repeat(rng.normal(size=50), 3), "taste": rng.normal(size=150)}
    counted = LogitVariance()
    counted.add(terms, positions)
    summary = counted.summary()
    assert summary["shares"]["user"] > 0.3
    assert summary["shares_within_slates"]["user"] == pytest.approx(0, abs=1e-5)
    assert summary["shares_within_slates"]["taste"] == pytest.approx(1, abs=1e-5)
