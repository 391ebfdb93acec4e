"""Shares and their errors by groups of users, by hand and by loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.drift.tally import GROUPS, Tally, Values, group_of
from serving.package.training_record import WatchedColumn
from tests.serving.drift.made import some_record, some_values, tally_of


def one_column(by: str) -> WatchedColumn:
    given = {"name": "x", "kind": "dense", "column": "x", "mean": 0.0}
    bins = {"edges": (0.5,), "shares": (0.5, 0.5), "errors": (0.0, 0.0)}
    return WatchedColumn.model_validate({**given, **bins, "by": by})


def without_candidates(groups: list[int], values: list[float]) -> Values:
    nothing = np.zeros((0, 0), np.float32)
    value_RC = np.array(values, np.float32)[:, None]
    return Values(np.array(groups), value_RC, nothing, np.zeros(0, np.int64))


def test_a_request_feature_counts_once_a_request_and_a_candidate_feature_once_a_candidate() -> None:
    record = some_record()
    tally = tally_of(record, some_values(50, candidates=100))
    by = {
        column.name: int(tally.counts_GB[:, bins].sum())
        for column, bins in zip(tally.columns, tally.bins, strict=True)
    }
    assert by == {"age": 50, "no purchases": 50, "score": 5_000, "price": 5_000, "product unknown": 5_000}
    assert (tally.requests, tally.candidates) == (50, 5_000)


def test_two_groups_of_one_request_each_that_differ_give_a_half_and_an_error_of_a_half() -> None:
    tally = Tally([one_column("request")])
    tally.add(
        Values(
            np.array([3, 8]),
            np.array([[0.0], [1.0]], np.float32),
            np.zeros((0, 0), np.float32),
            np.zeros(0, np.int64),
        )
    )
    shares, errors = tally.shares(0)
    assert shares.tolist() == [0.5, 0.5]
    # sqrt(2 / 1 (0.5^2 + 0.5^2)) / 2
    assert errors == pytest.approx([0.5, 0.5])
    assert tally.mean(0) == 0.5


def test_one_group_tells_no_error() -> None:
    tally = Tally([one_column("request")])
    tally.add(
        Values(
            np.array([3]), np.array([[0.0]], np.float32), np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        )
    )
    assert np.isinf(tally.shares(0)[1]).all()


@given(
    st.lists(
        st.tuples(st.integers(0, GROUPS - 1), st.integers(0, 1), st.integers(1, 4)), min_size=2, max_size=40
    )
)
def test_the_error_of_a_share_is_that_of_a_loop_over_groups(requests: list[tuple[int, int, int]]) -> None:
    """Each request is a group, a value that all its candidates have, and how many they are."""
    of_N = np.repeat(np.arange(len(requests)), [count for _, _, count in requests])
    value_N = np.array([value for _, value, _ in requests], np.float32)[of_N]
    tally = Tally([one_column("candidate")])
    tally.add(
        Values(
            np.array([group for group, _, _ in requests]),
            np.zeros((len(requests), 0), np.float32),
            value_N[:, None],
            of_N,
        )
    )
    groups = {group for group, _, _ in requests}
    total = sum(count for _, _, count in requests)
    share = sum(count for _, value, count in requests if value) / total
    squares = 0.0
    for group in groups:
        inside = [(value, count) for of, value, count in requests if of == group]
        squares += (
            sum(count for value, count in inside if value) - share * sum(count for _, count in inside)
        ) ** 2
    shares, errors = tally.shares(0)
    assert shares[1] == pytest.approx(share)
    if len(groups) > 1:
        assert errors[1] == pytest.approx((len(groups) / (len(groups) - 1) * squares) ** 0.5 / total)


def test_parts_joined_or_merged_count_the_same() -> None:
    record = some_record()
    parts = [some_values(20, seed=seed) for seed in (1, 2)]
    joined, merged = tally_of(record, Values.joined(parts)), tally_of(record, parts[0])
    merged.merge(tally_of(record, parts[1]))
    assert (joined.counts_GB == merged.counts_GB).all()
    assert joined.sums_C == pytest.approx(merged.sums_C)


def test_a_user_has_one_group_whatever_the_type_of_the_id() -> None:
    assert group_of(7) == group_of("7")
    assert len({group_of(user) for user in range(1_000)}) == GROUPS
