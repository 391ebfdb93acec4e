"""Rows of embedding tables online are those of training, one by one and many at once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns.clock import VALUES_OF_PART, timestamp_part, timestamp_part_of
from features.columns.counters import CounterBlock, counter_names, smoothed_ctr
from features.columns.id_map import IdMap
from features.columns.transforms import Transform
from features.columns.vocabulary import OnlineVocabulary, Vocabulary, stable_hash, stable_hash_of
from features.schema import CounterConfig

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def check(ids, asked, kind, oov_rows):
    arrow = pa.array(ids, kind)
    trained = Vocabulary("id", arrow, np.ones(len(ids), np.int64), oov_rows)
    online = OnlineVocabulary(IdMap.of(arrow), oov_rows)
    asked = [*asked, None, *ids]
    rows = trained.rows_of(pa.array(asked, kind)).tolist()
    assert online.rows_of(pa.array(asked, kind)).tolist() == rows
    assert [online.row_of(id_) for id_ in asked] == rows


@given(st.lists(INTEGERS, unique=True), st.lists(INTEGERS), st.integers(1, 9))
def test_rows_of_integers_are_those_of_training(ids, asked, oov_rows):
    check(ids, asked, pa.int64(), oov_rows)


@given(st.lists(TEXTS, unique=True), st.lists(TEXTS), st.integers(1, 9))
def test_rows_of_strings_are_those_of_training(ids, asked, oov_rows):
    check(ids, asked, pa.string(), oov_rows)


def test_a_large_vocabulary_gives_the_rows_of_a_small_one():
    """Beyond some thousand ids no process holds a dict of them."""
    ids = [f"product {number}" for number in range(5000)]
    check(ids, ["new", ""], pa.string(), 3)
    check(list(range(0, 10_000, 2)), [1, -1], pa.int64(), 3)


def test_an_id_of_the_other_kind_is_refused():
    numbers, texts = (OnlineVocabulary(IdMap.of(pa.array(ids)), 2) for ids in ([1, 2], ["1", "2"]))
    with pytest.raises(TypeError, match="kind integer"):
        numbers.row_of("1")
    with pytest.raises(TypeError, match="kind text"):
        texts.row_of(1)


@given(st.lists(INTEGERS, min_size=1), st.lists(TEXTS, min_size=1))
def test_one_id_hashes_as_it_does_among_many(integers, texts):
    for ids, kind in ((integers, pa.int64()), (texts, pa.string())):
        assert [stable_hash_of(id_) for id_ in ids] == stable_hash(pa.array(ids, kind)).tolist()


@given(st.integers(-(2**50), 2**60))
def test_one_moment_has_the_parts_that_it_has_among_many(time_us):
    for part in VALUES_OF_PART:
        among_many = timestamp_part(part, np.array([time_us]))[0]
        assert timestamp_part_of(part, time_us) == among_many
        assert 0 <= among_many < VALUES_OF_PART[part]


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**5)), min_size=1, max_size=20),
    st.booleans(),
)
def test_counters_are_transformed_as_for_training(pairs, constant):
    """Every column alone by `Transform.apply`, which is how a feature set makes it; sd 0 gives 0."""
    config = CounterConfig(windows_days=(1, 7), prior_impressions=20.0)
    names = [name for days in config.windows_days for name in counter_names("product", days)]
    transforms = {
        name: Transform(
            kind="standard" if "_ctr_" in name else "log",
            mean=0.1 * place,
            sd=0.0 if constant and place in (1, 5) else 0.3 + place,
        )
        for place, name in enumerate(names)
    }
    block = CounterBlock.of("product", config, transforms, prior_ctr=0.12)
    shown_N, clicked_N = np.array(pairs, np.int32).T.copy()
    count_NC = np.stack([shown_N, clicked_N, shown_N + 1, clicked_N * 2], axis=1)
    found = block.columns(count_NC)
    np.testing.assert_array_equal(block.live_columns(count_NC, {}).view(np.int32), found.view(np.int32))
    expected = []
    for shown, clicked in ((shown_N, clicked_N), (shown_N + 1, clicked_N * 2)):
        shown, clicked = shown.astype(np.int32), clicked.astype(np.int32)
        rate = smoothed_ctr(shown, clicked, prior_impressions=20.0, prior_ctr=0.12)
        expected += [shown, clicked, rate]
    for place, (name, value_N) in enumerate(zip(block.names, expected, strict=True)):
        np.testing.assert_array_equal(
            found[:, place].copy().view(np.int32), transforms[name].apply(value_N).view(np.int32)
        )
    assert list(block.names) == names
