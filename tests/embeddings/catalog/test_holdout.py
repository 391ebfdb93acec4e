"""Hold-out: a role is a property of the text and the seed, never of the other rows."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embeddings.catalog.holdout import (
    TEST,
    TRAIN,
    VALIDATION,
    HoldoutConfig,
    product_roles,
    query_groups,
    query_key,
    query_roles,
    recorded_holdout,
    roles_of_groups,
)
from embeddings.catalog.tokenizer import TextTokenizer, words_of

HALF = HoldoutConfig(test_query_share=0.3, validation_query_share=0.2, test_product_share=0.5)
TEXTS = [f"query {number}" for number in range(20_000)]


@given(st.lists(st.text(), unique=True, max_size=20), st.randoms(use_true_random=False), st.integers(0, 5))
def test_a_role_depends_neither_on_other_rows_nor_on_their_order(queries: list, random, seed: int) -> None:
    config = HALF.model_copy(update={"seed": seed})
    together = dict(zip(queries, query_roles(queries, config).tolist(), strict=True))
    products = dict(zip(queries, product_roles(queries, config).tolist(), strict=True))
    random.shuffle(queries)
    for query in queries[: len(queries) // 2 + 1]:
        assert query_roles([query], config).tolist() == [together[query]]
        assert product_roles([query], config).tolist() == [products[query]]


def test_roles_of_given_texts_never_change() -> None:
    """Written down on purpose: another hash would move test queries into training of older encoders."""
    queries = ["oat milk", "batteries aa", "dog food", "sushi", "ice", "café", "12oz cola", "nappies"]
    assert query_roles(queries, HALF).tolist() == [0, 1, 0, 0, 0, 0, 2, 2]
    assert product_roles(range(8), HALF).tolist() == [2, 0, 0, 0, 2, 0, 2, 2]


def test_shares_come_out_as_asked() -> None:
    roles = query_roles(TEXTS, HoldoutConfig(test_query_share=0.1, validation_query_share=0.05))
    share = np.bincount(roles, minlength=3) / len(TEXTS)
    # Five standard deviations of a share of 20,000.
    np.testing.assert_allclose(share, [0.85, 0.05, 0.1], atol=5 * (0.15 * 0.85 / 20_000) ** 0.5)
    held_out = (product_roles(range(20_000), HoldoutConfig(test_product_share=0.05)) == TEST).mean()
    assert held_out == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 20_000) ** 0.5)


def test_nothing_is_held_out_at_share_zero() -> None:
    config = HoldoutConfig(test_query_share=0, validation_query_share=0, test_product_share=0)
    assert not query_roles(TEXTS[:1000], config).any()
    assert not product_roles(TEXTS[:1000], config).any()


def test_a_larger_share_only_takes_from_training() -> None:
    small = query_roles(TEXTS, HoldoutConfig(test_query_share=0.1, validation_query_share=0.05))
    more_test = query_roles(TEXTS, HoldoutConfig(test_query_share=0.3, validation_query_share=0.05))
    more_validation = query_roles(TEXTS, HoldoutConfig(test_query_share=0.1, validation_query_share=0.4))
    assert (more_test[small == TEST] == TEST).all()
    np.testing.assert_array_equal(more_test == VALIDATION, small == VALIDATION)
    assert (more_validation[small == VALIDATION] == VALIDATION).all()
    np.testing.assert_array_equal(more_validation == TEST, small == TEST)


def test_seeds_choose_independently() -> None:
    first = query_roles(TEXTS, HALF) == TEST
    second = query_roles(TEXTS, HALF.model_copy(update={"seed": 1})) == TEST
    assert (first & second).mean() == pytest.approx(0.3 * 0.3, abs=0.012)


def test_a_query_and_a_product_of_one_spelling_are_independent() -> None:
    config = HoldoutConfig(test_query_share=0.5, validation_query_share=0, test_product_share=0.5)
    alike = (query_roles(TEXTS, config) == product_roles(TEXTS, config)).mean()
    assert alike == pytest.approx(0.5, abs=0.02)


@given(st.text())
def test_case_width_and_spaces_do_not_part_a_query_from_its_twin(query: str) -> None:
    spaced = f"  {query}\t"
    assert query_roles([query], HALF) == query_roles([spaced], HALF)
    roles = query_roles(["Oat  Milk", "oat milk", "ｏａｔ milk", "OAT MILK "], HALF)
    assert len(set(roles.tolist())) == 1


@pytest.mark.parametrize(
    "spellings",
    [
        ("café", "cafe", "cafe\u0301", "CAFÉ"),
        ("oatmilk", "oat\u00admilk", "oat\u200bmilk"),
        ("oat milk", "Oat  Milk ", "oat\u00a0milk", "oat\tmilk", "ｏａｔ ｍｉｌｋ"),
        ("oat-milk", "oat - milk", "oat -milk"),
        ("50% off!", "50 % off !", "５０％ off！"),
        ("m&m's", "M & M ' s"),
        ("pizza🍕", "pizza 🍕"),
        ("豆腐", "豆 腐"),
        ("straße", "strasse"),
        ("efﬁcient", "efficient"),
        ("", " ", "\u00ad", "\u0301"),
    ],
)
def test_spellings_that_an_encoder_sees_alike_have_one_role(spellings: tuple[str, ...]) -> None:
    assert len({query_key(text) for text in spellings}) == 1
    for seed in range(40):
        config = HALF.model_copy(update={"seed": seed})
        assert len(set(query_roles(spellings, config).tolist())) == 1, seed


def test_other_words_have_another_key_and_a_plain_query_is_its_own() -> None:
    for text in ("oat milk", "12oz cola", "1.5 l water", "gluten-free", "l'oréal".replace("é", "e")):
        assert query_key(text) == text
    texts = ["oat milk", "oatmilk", "milk oat", "oats milk", "oat,milk", "oat milk 2"]
    assert len({query_key(text) for text in texts}) == len(texts)


@given(st.text(), st.data())
def test_texts_of_equal_words_have_one_key(text: str, data: st.DataObject) -> None:
    characters = []
    for character in text:
        characters += [character, *data.draw(st.sampled_from(["", "\u00ad", "\u200b"]))]
    spelt = f" {''.join(characters)}\t"
    if words_of(spelt) == words_of(text):  # an invisible mark may part what stood for one character
        assert query_key(spelt) == query_key(text)
    assert query_key(" ".join(words_of(text))) == query_key(text)
    assert query_key(query_key(text)) == query_key(text)


def test_queries_that_a_vocabulary_cannot_tell_apart_are_one_group() -> None:
    tokenizer = TextTokenizer.train(["oat milk", "soy milk"] * 3, vocab_size=60)
    queries = ["oat milk", "日", "OAT MILK", "月", "soy milk milk a", "soy milk milk b", "soy milk"]
    assert query_groups(queries).tolist() == [0, 1, 0, 3, 4, 5, 6]
    groups = query_groups(queries, partial(tokenizer, max_tokens=5))
    assert groups.tolist() == [0, 1, 0, 1, 4, 4, 6]
    ids = tokenizer(queries, max_tokens=5).ids_BT.tolist()
    assert [ids.index(row) for row in ids] == groups.tolist()


def test_a_group_has_the_role_of_its_most_held_out_query() -> None:
    roles = np.array([TRAIN, TEST, VALIDATION, TRAIN, TRAIN, VALIDATION], np.int8)
    groups = np.array([0, 0, 2, 2, 4, 0])
    assert roles_of_groups(roles, groups).tolist() == [TEST, TEST, VALIDATION, VALIDATION, TRAIN, TEST]


def test_integer_and_string_ids_have_one_role() -> None:
    numbers = list(range(500))
    np.testing.assert_array_equal(product_roles(numbers, HALF), product_roles(map(str, numbers), HALF))
    np.testing.assert_array_equal(product_roles(pa.array(numbers), HALF), product_roles(numbers, HALF))


def test_no_rows_have_no_roles() -> None:
    roles = query_roles(pa.array([], pa.string()), HALF)
    assert (roles.shape, roles.dtype) == ((0,), np.int8)
    assert set(product_roles(TEXTS, HALF).tolist()) == {TRAIN, TEST}


def test_nulls_are_refused_with_their_position() -> None:
    with pytest.raises(ValueError, match="queries must not be null, but number 1 is"):
        query_roles(pa.array(["a", None]), HALF)
    with pytest.raises(ValueError, match="product ids must not be null, but number 0 is"):
        product_roles(pa.array([None, 3]), HALF)


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_query_share": 1.0},
        {"test_product_share": -0.1},
        {"test_query_share": 0.6, "validation_query_share": 0.4},
        {"seed": -1},
        {"test_share": 0.1},
    ],
)
def test_nonsense_shares_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        HoldoutConfig(**wrong)


def test_the_last_stage_with_a_record_says_what_was_held_out() -> None:
    def stage(holdout: HoldoutConfig | None, previous: dict | None) -> dict:
        inputs = {} if holdout is None else {"holdout": holdout.model_dump(mode="json")}
        return {"settings": {"inputs": inputs}, "previous": previous}

    seeds = [HoldoutConfig(seed=seed) for seed in (1, 2)]
    assert recorded_holdout(stage(seeds[1], stage(seeds[0], None))) == seeds[1]
    assert recorded_holdout(stage(None, stage(seeds[0], {"source": "published"}))) == seeds[0]
    assert recorded_holdout({"source": "published"}) is None
    assert recorded_holdout(None) is None


def test_a_record_from_before_intents_counted_held_out_spellings() -> None:
    record = HoldoutConfig(seed=4).model_dump(mode="json", exclude={"by"})
    assert HoldoutConfig.of_record(record) == HoldoutConfig(seed=4, by="spelling")
