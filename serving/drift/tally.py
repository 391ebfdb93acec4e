"""Counts of one window: how many requests and candidates fell in each bin of each column, by group of users.

Values within a request resemble one another, and so do the requests of a user. Users are therefore dealt to
`GROUPS` groups by a hash, and how much a share differs between groups says how sure it is, whatever the
dependence within them ("random groups", Wolter 2007, chapter 2; G - 1 degrees of freedom). No id is kept.

Shapes: R requests, N candidates, C columns, G groups, B bins of all columns, one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from features.columns.vocabulary import stable_hash_of
from serving.package.training_record import WatchedColumn, bins_of

GROUPS = 32

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def group_of(user_id: int | str) -> int:
    """The group of a user, the same on every worker, for the integer 7 and the text "7"."""
    return stable_hash_of(str(user_id)) % GROUPS


@dataclass(frozen=True, eq=False)
class Values:
    """What some requests say: `group_R` of each, and `request_of_N`, the request of each candidate."""

    group_R: Ints
    request_RC: npt.NDArray[np.float32]
    candidate_NC: npt.NDArray[np.float32]
    request_of_N: Ints

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several, one after the other."""
        starts = np.cumsum([0, *(len(part.group_R) for part in parts)])
        return cls(
            np.concatenate([part.group_R for part in parts]),
            np.concatenate([part.request_RC for part in parts]),
            np.concatenate([part.candidate_NC for part in parts]),
            np.concatenate([part.request_of_N + at for part, at in zip(parts, starts[:-1], strict=True)]),
        )


class Tally:
    """Counts that grow, of columns in one order: those by request, then those by candidate."""

    def __init__(self, columns: Sequence[WatchedColumn]) -> None:
        self.columns = in_order(columns)
        starts = np.cumsum([0, *(len(column.shares) for column in self.columns)])
        self.bins = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self.requests_G = np.zeros(GROUPS, np.int64)
        self.candidates_G = np.zeros(GROUPS, np.int64)
        self.counts_GB = np.zeros((GROUPS, int(starts[-1])), np.int64)
        self.sums_C = np.zeros(len(self.columns))

    def add(self, values: Values) -> None:
        """Count requests."""
        self.requests_G += np.bincount(values.group_R, minlength=GROUPS)
        group_N = values.group_R[values.request_of_N]
        self.candidates_G += np.bincount(group_N, minlength=GROUPS)
        by_request = values.request_RC.shape[1]
        for at, (column, bins) in enumerate(zip(self.columns, self.bins, strict=True)):
            if at < by_request:
                value_U, group_U = values.request_RC[:, at], values.group_R
            else:
                value_U, group_U = values.candidate_NC[:, at - by_request], group_N
            width = bins.stop - bins.start
            place_U = group_U * width + bins_of(value_U, column.edges)
            counted = np.bincount(place_U, minlength=GROUPS * width)
            self.counts_GB[:, bins] += counted.reshape(GROUPS, width)
            self.sums_C[at] += value_U.sum(dtype=np.float64)

    def merge(self, other: "Tally") -> None:
        """Add what another worker counted."""
        self.requests_G += other.requests_G
        self.candidates_G += other.candidates_G
        self.counts_GB += other.counts_GB
        self.sums_C += other.sums_C

    @property
    def requests(self) -> int:
        """All of them."""
        return int(self.requests_G.sum())

    @property
    def candidates(self) -> int:
        """All of them."""
        return int(self.candidates_G.sum())

    def units_G(self, column: WatchedColumn) -> Ints:
        """Requests or candidates of each group, whichever a column counts."""
        return self.requests_G if column.by == "request" else self.candidates_G

    def shares(self, at: int) -> tuple[Floats, Floats]:
        """Shares of one column's bins, and their standard errors; infinite with less than two groups."""
        counts_GE = self.counts_GB[:, self.bins[at]]
        units_G = self.units_G(self.columns[at])
        total = max(1, int(units_G.sum()))
        share_E = counts_GE.sum(0) / total
        groups = int(np.count_nonzero(units_G))
        if groups < 2:
            return share_E, np.full(len(share_E), np.inf)
        residual_GE = counts_GE - units_G[:, None] * share_E
        return share_E, np.sqrt(groups / (groups - 1) * np.square(residual_GE).sum(0)) / total

    def mean(self, at: int) -> float:
        """Of one column's values."""
        return float(self.sums_C[at] / max(1, self.units_G(self.columns[at]).sum()))


def in_order(columns: Sequence[WatchedColumn]) -> tuple[WatchedColumn, ...]:
    """Columns by request, then those by candidate, each in the order given."""
    return (
        *(column for column in columns if column.by == "request"),
        *(column for column in columns if column.by == "candidate"),
    )
