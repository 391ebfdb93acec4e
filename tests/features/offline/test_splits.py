"""The log is cut in whole days, or by each user's own time."""

import numpy as np
import pytest

from features.columns.clock import DAY_US, iso
from features.offline.splits import (
    HEAD,
    TAIL,
    TEST,
    TORSO,
    TRAIN,
    UNUSED,
    VALIDATION,
    PerUserCut,
    SplitError,
    TimeCut,
    query_frequency,
)
from features.schema import SplitConfig


def test_days_are_cut_from_the_end_and_burn_in_from_the_start():
    config = SplitConfig(validation_days=2, test_days=3, burn_in_days=1)
    # The log starts and ends at noon: its first and last days count as whole days.
    cut = TimeCut.of(config, first_us=DAY_US // 2, last_us=9 * DAY_US + DAY_US // 2)
    days = np.arange(10) * DAY_US
    expected = [UNUSED] + [TRAIN] * 4 + [VALIDATION] * 2 + [TEST] * 3
    assert cut.codes(days).tolist() == expected
    assert cut.codes(days + DAY_US - 1).tolist() == expected


def test_the_last_microsecond_of_a_day_still_belongs_to_it():
    config = SplitConfig(validation_days=1, test_days=1)
    cut = TimeCut.of(config, first_us=0, last_us=3 * DAY_US - 1)
    assert cut.codes(np.array([DAY_US - 1, DAY_US, 2 * DAY_US - 1, 2 * DAY_US])).tolist() == [
        TRAIN,
        VALIDATION,
        VALIDATION,
        TEST,
    ]


def test_a_log_too_short_to_train_is_refused():
    with pytest.raises(SplitError, match=r"covers 14 days .* no training window"):
        TimeCut.of(SplitConfig(), first_us=0, last_us=14 * DAY_US - 1)
    assert TimeCut.of(SplitConfig(), first_us=0, last_us=14 * DAY_US).validation_us == DAY_US


def test_each_user_is_cut_by_their_own_time_whatever_the_batches():
    user_N = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1], dtype=np.int32)
    config = SplitConfig(method="per_user", validation_share=0.1, test_share=0.2)
    whole = PerUserCut(config, np.bincount(user_N)).codes(user_N)
    assert whole[user_N == 1].tolist() == [TRAIN] * 7 + [VALIDATION] + [TEST] * 2
    assert whole[user_N == 0].tolist() == [TRAIN] * 3  # a fifth of 3 rounds down to none
    for size in (1, 2, 5):
        cut = PerUserCut(config, np.bincount(user_N))
        parts = [cut.codes(user_N[start : start + size]) for start in range(0, len(user_N), size)]
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_shares_of_a_user_are_those_written_in_decimal():
    """In binary, .29 of 100 is 28.999..."""
    user_N = np.zeros(100, dtype=np.int32)
    config = SplitConfig(method="per_user", validation_share=0.29, test_share=0.57)
    codes_N = PerUserCut(config, np.bincount(user_N)).codes(user_N)
    assert np.bincount(codes_N).tolist() == [14, 29, 57]


def test_head_queries_cover_half_of_the_traffic_and_torso_up_to_nine_tenths():
    # Shares: 40 %, 30 %, 20 %, 6 %, 4 %, never.
    traffic = np.array([6, 40, 30, 0, 20, 4])
    assert query_frequency(traffic).tolist() == [TAIL, HEAD, HEAD, TAIL, TORSO, TAIL]


def test_without_training_traffic_every_query_is_tail():
    assert query_frequency(np.zeros(3, dtype=np.int64)).tolist() == [TAIL] * 3
    assert query_frequency(np.zeros(0, dtype=np.int64)).tolist() == []


def test_times_print_in_utc_even_before_1970():
    assert iso(0) == "1970-01-01T00:00:00+00:00"
    assert iso(-1) == "1969-12-31T23:59:59.999999+00:00"


def test_nobody_only_trains_however_many_impressions_have_no_user():
    cut = PerUserCut(SplitConfig(method="per_user", validation_share=0.2, test_share=0.2), np.array([10]))
    cut._passed_U[-1] = 2**40
    assert cut.codes(np.array([-1, -1], np.int32)).tolist() == [TRAIN, TRAIN]
