"""How often does `dashclip drift` cry wolf? Simulated days on which nothing changed, and days with a shift.

The days are harder than independent candidates: few users make most requests (Zipf), a user's features are
the same in all of their requests, candidates of a query resemble one another, and counters are mostly zero.
The training record is made of other days of the same users' population.

Shapes: R requests, N candidates.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from features.progress import Progress, silent
from serving.drift.comparison import FALSE_ALARMS, LEAST_SHIFT, Compared, compare, moved
from serving.drift.tally import GROUPS, Tally, Values
from serving.drift.watched import record_of_values
from serving.package.training_record import TrainingRecord, WatchedColumn

#: A rule that does so, at the level of a day.
_NAIVE = "candidates taken for independent"


@dataclass(frozen=True)
class DriftFreeDays:
    """What is simulated.

    Attributes:
        requests: of a day.
        record_requests: of the training record.
        user_columns, candidate_columns: features by request and by candidate; half of the latter resemble
            one another within a request, the rest are counters.
        users: of the population; the busiest makes about a tenth of the requests.
    """

    days: int = 1_000
    requests: int = 2_000
    record_requests: int = 4_000
    candidates: int = 20
    user_columns: int = 15
    candidate_columns: int = 20
    users: int = 20_000
    seed: int = 0


Shift = Callable[[Values], None]


@dataclass(frozen=True)
class Population:
    """Users, columns and how requests come."""

    setting: DriftFreeDays
    columns: tuple[WatchedColumn, ...]
    user_share_U: npt.NDArray[np.float64]
    user_values_UC: npt.NDArray[np.float32]
    group_U: npt.NDArray[np.int64]

    @classmethod
    def of(cls, setting: DriftFreeDays) -> "Population":
        """Drawn by the setting's seed."""
        rng = np.random.default_rng([setting.seed, 0])
        share_U = 1.0 / (1 + np.arange(setting.users))
        values_UC = rng.normal(size=(setting.users, setting.user_columns)).astype(np.float32)
        # Some are counters, some are yes or no with a rare yes.
        values_UC[:, 1::3] = rng.poisson(0.3, values_UC[:, 1::3].shape)
        values_UC[:, 2::3] = rng.random(values_UC[:, 2::3].shape) < 0.05
        return cls(
            setting,
            _columns(setting),
            share_U / share_U.sum(),
            values_UC,
            rng.integers(0, GROUPS, setting.users),
        )

    def requests(self, count: int, *, seed: tuple[int, ...]) -> Values:
        """Some of them; equal seeds give equal ones."""
        setting = self.setting
        rng = np.random.default_rng([setting.seed, 1, *seed])
        user_R = rng.choice(len(self.user_share_U), count, p=self.user_share_U)
        half = setting.candidate_columns // 2
        many = count * setting.candidates
        request_of_N = np.repeat(np.arange(count), setting.candidates)
        value_NC = rng.standard_normal((many, setting.candidate_columns), np.float32)
        of_query_RC = rng.standard_normal((count, half), np.float32)
        value_NC[:, :half] += 2 * of_query_RC[request_of_N]  # four fifths between requests
        rare_R = rng.gamma(0.5, 2.0, count)
        value_NC[:, half:-2] = rng.poisson(0.4 * rare_R[request_of_N][:, None], (many, half - 2))
        value_NC[:, -2] = rng.random(many) < 0.08  # an unknown id
        value_NC[:, -1] = 1 / (1 + np.exp(2.5 - 0.5 * value_NC[:, 0] + 0.3 * rare_R[request_of_N]))  # a CTR
        return Values(self.group_U[user_R], self.user_values_UC[user_R], value_NC, request_of_N)

    def place(self, name: str) -> int:
        """Of a candidate's column."""
        return [column.name for column in self.columns].index(name) - self.setting.user_columns


def _columns(setting: DriftFreeDays) -> tuple[WatchedColumn, ...]:
    half = setting.candidate_columns // 2
    names = [("request", f"user {at}") for at in range(setting.user_columns)]
    names += [("candidate", f"of the query {at}") for at in range(half)]
    names += [("candidate", f"counter {at}") for at in range(setting.candidate_columns - half - 2)]
    names += [("candidate", "product unknown"), ("candidate", "ctr")]
    return tuple(
        WatchedColumn(
            name=name,
            by="request" if by == "request" else "candidate",
            kind="unknown id" if name.endswith("unknown") else "dense",
            edges=(),
            shares=(1.0,),
            errors=(0.0,),
            mean=0.0,
        )
        for by, name in names
    )


def measure_false_alarms(setting: DriftFreeDays, *, progress: Progress = silent) -> dict[str, Any]:
    """Alarms on drift-free windows, as a day and as an hour would judge them, and on windows with a shift."""
    population = Population.of(setting)
    alarms: dict[str, int] = {**dict.fromkeys(FALSE_ALARMS, 0), _NAIVE: 0}
    significant = 0
    planted = shifts(population)
    shifted = max(1, setting.days // 20)
    found = dict.fromkeys(planted, 0)
    record = None
    for day in range(setting.days):
        progress("drift-free days", day, setting.days)
        if day % 50 == 0:  # another record: each has its own luck
            record = record_of_values(
                population.columns, population.requests(setting.record_requests, seed=(0, day))
            )
        assert record is not None
        values = population.requests(setting.requests, seed=(1, day))
        tally = _tally(record, values)
        for kind, share in FALSE_ALARMS.items():
            compared = compare(record, tally, false_alarms=share)
            alarms[kind] += bool(moved(compared))
            if kind == "day":
                significant += any(one.p * len(compared) <= share for one in compared)
        alarms[_NAIVE] += _naive(record, tally, FALSE_ALARMS["day"])
        if day < shifted:
            for name, (shift, wanted) in planted.items():
                changed = population.requests(setting.requests, seed=(1, day))
                shift(changed)
                by_hour = compare(record, _tally(record, changed), false_alarms=FALSE_ALARMS["hour"])
                found[name] += wanted in [one.name for one in moved(by_hour)]
    progress("drift-free days", setting.days, setting.days)
    return {
        "setting": asdict(setting),
        "columns": len(population.columns),
        "stated": FALSE_ALARMS,
        "least_shift": LEAST_SHIFT,
        "days_with_alarm": alarms,
        "days_significant_of_any_size": significant,
        "shifted_days": shifted,
        "shifted_days_found_by_the_hour": found,
    }


def shifts(population: Population) -> dict[str, tuple[Shift, str]]:
    """Planted shifts by name, each with the column that has to alarm."""
    ctr, unknown, counter = (population.place(name) for name in ("ctr", "product unknown", "counter 0"))

    def twice_the_ctr(values: Values) -> None:
        values.candidate_NC[:, ctr] *= 2

    def unknown_ids(values: Values) -> None:
        """One in nine of those that were known, which is ten points of all."""
        known_N = np.flatnonzero(values.candidate_NC[:, unknown] == 0)
        rng = np.random.default_rng(len(known_N))
        count = len(values.candidate_NC) // 10
        values.candidate_NC[rng.choice(known_N, count, replace=False), unknown] = 1

    def dead_counter(values: Values) -> None:
        values.candidate_NC[:, counter] = 0

    return {
        "CTR x 2": (twice_the_ctr, "ctr"),
        "unknown ids + 10 points": (unknown_ids, "product unknown"),
        "a dead counter": (dead_counter, "counter 0"),
    }


def compare_day(record: TrainingRecord, values: Values) -> list[Compared]:
    """One day's requests against a record."""
    return compare(record, _tally(record, values), false_alarms=FALSE_ALARMS["day"])


def _tally(record: TrainingRecord, values: Values) -> Tally:
    tally = Tally(record.columns)
    tally.add(values)
    return tally


def _naive(record: TrainingRecord, tally: Tally, level: float) -> bool:
    """Pearson's test of each column as if its values were independent, Bonferroni over columns."""
    for at, column in enumerate(tally.columns):
        trained_E = np.array(column.shares)
        units = int(tally.units_G(column).sum())
        of_record = record.requests if column.by == "request" else record.candidates
        live_E, _ = tally.shares(at)
        seen_E = trained_E > 0
        statistic = float((np.square(live_E - trained_E)[seen_E] / trained_E[seen_E]).sum())
        statistic /= 1 / units + 1 / of_record
        if chi2.sf(statistic, len(trained_E) - 1) * len(tally.columns) <= level:
            return True
    return False
