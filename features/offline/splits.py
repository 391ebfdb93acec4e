"""Cutting the log in time: which impressions train, validate and test, and how frequent a query is.

Shapes: N impressions in (timestamp, impression_id) order, U users, Q queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.columns.clock import DAY_US, iso
from features.inputs.shares import rounded_down
from features.offline.log_reader import AFTER_ALL
from features.schema import SplitConfig

#: Codes of the splits; UNUSED rows still feed counters.
UNUSED, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
CODE_OF_SPLIT = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

#: Query frequency slices. Head: the most frequent queries that cover the first half of the training traffic.
NO_QUERY, TAIL, TORSO, HEAD = -1, 0, 1, 2
_HEAD_SHARE, _TORSO_SHARE = 0.5, 0.9
#: More impressions than any log has.
_NEVER = np.int64(2**63 - 1)

Codes = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]


class SplitError(ValueError):
    """A log that cannot be cut as configured."""


@dataclass(frozen=True)
class TimeCut:
    """Where the splits of a global cut start, in microseconds since 1970; each ends where the next starts."""

    train_us: int
    validation_us: int
    test_us: int

    @classmethod
    def of(cls, config: SplitConfig, *, first_us: int, last_us: int) -> "TimeCut":
        """Whole UTC days from the end of a log that runs from `first_us` to `last_us`, both included.

        A log of 30 days with 7 + 7 days leaves 16 for training, less the burn-in.

        Raises:
            SplitError: nothing is left for training.
        """
        first_day, end_day = first_us // DAY_US, last_us // DAY_US + 1
        test_day = end_day - config.test_days
        validation_day = test_day - config.validation_days
        train_day = first_day + config.burn_in_days
        if validation_day <= train_day:
            raise SplitError(
                f"the log covers {end_day - first_day} days (from {iso(first_us)} to {iso(last_us)}), "
                f"which leaves no training window before {config.validation_days} validation "
                f"and {config.test_days} test days after a burn-in of {config.burn_in_days}; "
                "lower them under [split]"
            )
        return cls(train_day * DAY_US, validation_day * DAY_US, test_day * DAY_US)

    def codes(self, time_us_N: npt.NDArray[np.int64]) -> Codes:
        """Split code of each impression."""
        starts = np.array([self.train_us, self.validation_us, self.test_us])
        return (np.searchsorted(starts, time_us_N, side="right") - 1).astype(np.int8)

    def last_click_us(self, codes_N: Codes) -> Int64s:
        """The last moment whose clicks a label may use: that before the next split starts."""
        ends = {TRAIN: self.validation_us - 1, VALIDATION: self.test_us - 1}
        return _by_code(codes_N, {code: np.int64(end) for code, end in ends.items()})


class PerUserCut:
    """Each user's impressions by time: the last `test_share` test, those before validate, the rest train.

    Shares round down, so a user of few impressions only trains, and so does each impression of nobody (user
    -1): it is a stranger's only one. Batches must come in time order: the state is how many impressions of
    each user have passed. A user of 10 with shares .1 and .2 gets 7, 1 and 2.
    """

    def __init__(self, config: SplitConfig, impressions_U: Int64s) -> None:
        test_U = _shares_of(impressions_U, config.test_share)
        validation_U = _shares_of(impressions_U, config.validation_share)
        #: How many impressions come before the user's first of validation or test, and of test. The last
        #: place is nobody's, who never gets that far.
        self.validation_from_U = np.append(impressions_U - test_U - validation_U, _NEVER)
        self.test_from_U = np.append(impressions_U - test_U, _NEVER)
        self._passed_U = np.zeros(len(impressions_U) + 1, dtype=np.int64)

    def codes(self, user_N: npt.NDArray[np.int32]) -> Codes:
        """Split code of each impression of the next batch."""
        return self.codes_of_ranks(self.ranks(user_N), user_N)

    def ranks(self, user_N: npt.NDArray[np.int32]) -> Int64s:
        """How many impressions of the user came before each one of the next batch."""
        order_N = np.argsort(user_N, kind="stable")
        sorted_N = user_N[order_N]
        rank_N = np.empty(len(user_N), dtype=np.int64)
        rank_N[order_N] = np.arange(len(user_N)) - np.searchsorted(sorted_N, sorted_N)
        rank_N += self._passed_U[user_N]
        np.add.at(self._passed_U, user_N, 1)
        return rank_N

    def codes_of_ranks(self, rank_N: Int64s, user_N: npt.NDArray[np.int32]) -> Codes:
        """Split code of each impression by its place among the user's."""
        codes_N = np.full(len(user_N), TRAIN, dtype=np.int8)
        codes_N[rank_N >= self.validation_from_U[user_N]] = VALIDATION
        codes_N[rank_N >= self.test_from_U[user_N]] = TEST
        return codes_N

    @staticmethod
    def last_click_us(
        codes_N: Codes, user_N: npt.NDArray[np.int32], *, validation_us_U: Int64s, test_us_U: Int64s
    ) -> Int64s:
        """The last moment whose clicks a label may use: the user's first impression of a later split.

        Such impressions may share a second with those before them, hence that moment itself counts.
        """
        return _by_code(codes_N, {TRAIN: validation_us_U[user_N], VALIDATION: test_us_U[user_N]})


def _by_code(codes_N: Codes, last_us: Mapping[int, Int64s | np.int64]) -> Int64s:
    """The moment of each row's split; AFTER_ALL where it has none."""
    last_us_N = np.full(len(codes_N), AFTER_ALL, dtype=np.int64)
    for code, moment in last_us.items():
        np.copyto(last_us_N, moment, where=codes_N == code)
    return last_us_N


def _shares_of(impressions_U: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    counts, place_U = np.unique(impressions_U, return_inverse=True)
    return np.array([rounded_down(share, count) for count in counts.tolist()], np.int64)[place_U]


def query_frequency(train_impressions_Q: npt.NDArray[np.int64]) -> Codes:
    """Head, torso or tail of each query by its share of the training impressions.

    Queries in falling order of traffic (ties by index): head until half of the traffic is covered, torso
    until 90 %, then tail; a query never seen in training is tail.
    """
    order_Q = np.argsort(-train_impressions_Q, kind="stable")
    sorted_Q = train_impressions_Q[order_Q]
    before_Q = np.cumsum(sorted_Q) - sorted_Q
    total = max(int(sorted_Q.sum()), 1)
    slice_Q = np.full(len(sorted_Q), TAIL, dtype=np.int8)
    slice_Q[before_Q < _TORSO_SHARE * total] = TORSO
    slice_Q[before_Q < _HEAD_SHARE * total] = HEAD
    slice_Q[sorted_Q == 0] = TAIL
    result_Q = np.empty_like(slice_Q)
    result_Q[order_Q] = slice_Q
    return result_Q
