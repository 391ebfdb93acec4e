"""What is made of real titles and prices: types, brands, varieties, styles, and what each query is about."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.relevance.grades import read_grades
from experiments.marketplace.world.assortment import FLAGS
from experiments.marketplace.world.real_catalog import (
    FEWEST_AISLES,
    MOST_TYPES,
    UNKNOWN_PRICE,
    TitleWords,
    _prices,
    anchor_types,
    codes_or_own,
    read_real_world,
    title_brands,
)
from features.inputs.tables import InputError
from tests.experiments.marketplace.real_shop import COLOURS, tiny_log, write_shop

SEED = np.random.SeedSequence(5)
names = st.lists(st.sampled_from(["oak", "ash", "", None]), max_size=12)


@given(names)
def test_equal_names_have_one_number_and_a_missing_name_shares_its_number_with_nobody(given_names):
    code_P, most = codes_or_own(given_names)
    for one, name in enumerate(given_names):
        for other, another in enumerate(given_names):
            same = one == other or (name is not None and name == another)
            assert (code_P[one] == code_P[other]) == same
    assert all(0 <= code < most for code in code_P)


def test_a_variety_is_the_most_frequent_shared_word_that_does_not_name_the_type():
    words = [["lamp", "oak"]] * 4 + [["lamp", "ash"]] * 3 + [["lamp", "ash", "oak"]] + [["lamp", "rare"]] * 2
    words += [["lamp"]] * 2
    found = TitleWords.of(words, np.zeros(len(words), int))
    assert found.variety_P == ["oak"] * 4 + ["ash"] * 3 + ["oak"] + [None] * 4
    assert found.styles == ["ash", "oak"]
    assert found.style_bits_P.tolist() == [2] * 4 + [1] * 3 + [3] + [0] * 4


def test_styles_are_the_words_that_are_varieties_of_most_types():
    everywhere, once = ["oak"], [f"word{letter}" for letter in "abcdefghijklmnop"]
    words, kinds = [], []
    for kind, own in enumerate(once):
        words += [[*everywhere]] * 3 + [[own]] * 3 + [["filler"]] * 4
        kinds += [kind] * 10
    found = TitleWords.of(words, np.array(kinds))
    assert len(found.styles) == len(FLAGS)
    assert {"oak", "filler"} <= set(found.styles)


def test_a_brand_is_a_first_word_that_five_titles_begin_with():
    titles = ["Acme drill"] * 5 + ["Bolt drill"] * 4 + ["The drill"] * 6 + ["12 drills"] * 6 + ["", "!"]
    assert title_brands(titles) == ["acme"] * 5 + [None] * (4 + 6 + 6 + 2)


def _no_draws(count: int) -> np.ndarray:
    return np.zeros(count)


def test_a_price_counts_by_its_ratio_to_the_median_of_its_type():
    prices = np.array([10.0, 11.0, 12.0, 100.0, 100.0, np.nan, np.nan, 0.0])
    type_P = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    drawn = np.array([9.0] * 5 + [0.1, -0.2, 9.0])
    price_P, log_P = _prices(Path("shop"), prices, type_P, drawn)
    np.testing.assert_allclose(log_P[:5], np.log([10 / 11, 1, 12 / 11, 1, 1]))
    np.testing.assert_allclose(log_P[5:], [0.1, -0.2, 0.0])
    overall = np.median([10.0, 11.0, 12.0, 100.0, 100.0])
    np.testing.assert_allclose(price_P[:5], prices[:5])
    np.testing.assert_allclose(price_P[5:], [100 * np.exp(0.1), overall * np.exp(-0.2), 0.0], atol=0.005)


def test_real_prices_of_a_type_spread_no_more_than_invented_ones():
    prices = np.exp(np.random.default_rng(0).normal(3.0, 1.5, 4_000))
    _, log_P = _prices(Path("shop"), prices, np.zeros(4_000, int), _no_draws(4_000))
    assert log_P.std() == pytest.approx(0.25 * 2**0.5)
    assert np.corrcoef(log_P, np.log(prices))[0, 1] == pytest.approx(1.0)


def test_without_any_price_all_are_invented_around_one():
    price_P, log_P = _prices(Path("shop"), np.full(3, np.nan), np.zeros(3, int), np.array([0.0, 0.5, -0.5]))
    np.testing.assert_allclose(price_P, UNKNOWN_PRICE * np.exp([0.0, 0.5, -0.5]), atol=0.005)
    np.testing.assert_allclose(log_P, [0.0, 0.5, -0.5])


def test_a_query_is_about_the_type_of_its_best_graded_products(tmp_path):
    shop = write_shop(tmp_path / "shop", seed=3)
    world = read_real_world(tiny_log(), shop, SEED)
    grades = read_grades(shop)
    score: dict[int, Counter[int]] = {}
    for query, product, grade in zip(grades.query_G, grades.product_G, grades.grade_G, strict=True):
        kind = int(world.catalog.type_P[product])
        score.setdefault(int(query), Counter())[kind] += 1 + 4 * int(grade)
    slow = [min(score[query], key=lambda kind: (-score[query][kind], kind)) for query in range(len(score))]
    assert anchor_types(grades, world.catalog).tolist() == slow
    assert len(set(slow)) > 5


def test_aisles_are_types_brands_the_column_and_words_of_titles_are_varieties(tmp_path):
    shop = write_shop(tmp_path / "shop")
    catalog = read_real_world(tiny_log(), shop, SEED).catalog
    assert catalog.sources == {"types": "column aisle", "brands": "column brand"}
    assert catalog.num_types == 14
    assert catalog.brand_names[0] is None
    named = [name for name in catalog.variety_names if name in COLOURS]
    assert len(named) > 0.6 * catalog.num_products


def rewritten(shop: Path, **columns: pa.Array) -> Path:
    table = pq.read_table(shop / "products.parquet")
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, shop / "products.parquet")
    return shop


def test_empty_columns_are_as_good_as_none(tmp_path):
    shop = write_shop(tmp_path / "shop")
    blank = pa.array([" ", None] * 150)
    catalog = read_real_world(tiny_log(), rewritten(shop, brand=blank, aisle=blank), SEED).catalog
    assert catalog.sources == {"types": "clusters of titles", "brands": "first words of titles"}
    assert not catalog.has_aisles
    assert len(set(catalog.brand_P.tolist())) == 4


def test_a_price_in_words_is_refused_by_name(tmp_path):
    shop = rewritten(write_shop(tmp_path / "shop"), price=pa.array(["$12.99"] * 300))
    with pytest.raises(InputError, match=r"price of products in .* must be a number"):
        read_real_world(tiny_log(), shop, SEED)


def test_few_aisles_give_way_to_clusters_and_the_rarest_of_too_many_are_one_type(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def with_aisles(folder: Path, aisles: list[str]) -> Path:
        shop = write_shop(folder, products=400, columns=())
        table = pq.read_table(shop / "products.parquet").append_column("aisle", pa.array(aisles))
        pq.write_table(table, shop / "products.parquet")
        return shop

    few = with_aisles(tmp_path / "few", [f"{row % (FEWEST_AISLES - 1)}" for row in range(400)])
    assert read_real_world(tiny_log(), few, SEED).catalog.sources["types"] == "clusters of titles"
    many = with_aisles(tmp_path / "many", [f"{row % 350}" for row in range(400)])
    catalog = read_real_world(tiny_log(), many, SEED).catalog
    assert catalog.num_types == MOST_TYPES
    size = Counter(catalog.type_P.tolist())
    assert size[catalog.type_names.index("(other aisles)")] == 51
    assert sum(size.values()) == 400


def test_titles_that_are_all_alike_give_shoppers_nothing_to_like(tmp_path):
    import pyarrow.parquet as pq

    shop = write_shop(tmp_path / "shop", columns=())
    table = pq.read_table(shop / "products.parquet")
    same = pa.array(["lamp"] * len(table))
    pq.write_table(table.set_column(1, "title", same), shop / "products.parquet")
    with pytest.raises(InputError, match=r"fall into 1 groups; .* at least 6 .* in the column aisle"):
        read_real_world(tiny_log(), shop, SEED)
