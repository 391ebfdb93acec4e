"""Counter features: impressions, clicks and smoothed CTR of a key in trailing windows.

Shapes: N rows, W windows, C = 2 W raw counts: impressions and clicks of each window, side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.columns.clock import DAY_US
from features.columns.transforms import ExactMoments, Transform
from features.schema import CounterConfig, CounterKey, Granularity

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.integer] | Floats  # live ones may have a fraction

#: The unit to which times are floored: counts of whole units are the counts as of the last full unit.
UNIT_US: dict[Granularity, int] = {"exact": 1, "hour": 3_600_000_000, "day": DAY_US}

#: Of one window, in this order.
QUANTITIES = ("impressions", "clicks", "ctr")


def counter_names(key: CounterKey, window_days: int) -> tuple[str, str, str]:
    """`query`, 7 gives query_impressions_7d, query_clicks_7d, query_ctr_7d."""
    impressions, clicks, ctr = (f"{key}_{quantity}_{window_days}d" for quantity in QUANTITIES)
    return impressions, clicks, ctr


def smoothed_ctr(
    impressions_N: Counts,
    clicks_N: Counts,
    *,
    prior_impressions: float,
    prior_ctr: float,
) -> Floats:
    """(clicks + prior_impressions x prior_ctr) / (impressions + prior_impressions).

    A key never shown has the prior CTR.
    """
    ctr_N: Floats = (clicks_N + prior_impressions * prior_ctr) / (impressions_N + prior_impressions)
    return ctr_N


def counter_transforms(moments: dict[str, ExactMoments]) -> dict[str, Transform]:
    """Counts by log, CTR as it is; both standardised."""
    return {
        name: Transform(kind="standard" if "_ctr_" in name else "log", mean=moment.mean, sd=moment.sd)
        for name, moment in moments.items()
    }


@dataclass(frozen=True, eq=False)
class CounterBlock:
    """The counters of one key as the network reads them, all windows in one go, offline and online.

    Attributes:
        names: of the dense columns, in the order in which `columns` gives them: window by window impressions,
            clicks, CTR.
        place: of each name, whether it is a CTR, and its column among the counts or among the CTRs.
    """

    names: tuple[str, ...]
    place: Mapping[str, tuple[bool, int]]
    _prior_impressions: float
    _prior_ctr: float
    _count_mean_C: Floats
    _count_sd_C: Floats
    _ctr_mean_W: Floats
    _ctr_sd_W: Floats

    @classmethod
    def of(
        cls,
        key: CounterKey,
        config: CounterConfig,
        transforms: Mapping[str, Transform],
        *,
        prior_ctr: float,
    ) -> "CounterBlock":
        """Counters in the order of a feature set."""
        names = [name for days in config.windows_days for name in counter_names(key, days)]
        counts = [name for number, name in enumerate(names) if number % 3 < 2]
        ctrs = names[2::3]
        place = {name: (False, column) for column, name in enumerate(counts)}
        place |= {name: (True, column) for column, name in enumerate(ctrs)}
        assert all(transforms[name].kind == "log" for name in counts)
        assert all(transforms[name].kind == "standard" for name in ctrs)
        count_mean_C, count_sd_C = _mean_and_sd([transforms[name] for name in counts])
        ctr_mean_W, ctr_sd_W = _mean_and_sd([transforms[name] for name in ctrs])
        return cls(
            names=tuple(names),
            place=place,
            _prior_impressions=config.prior_impressions,
            _prior_ctr=prior_ctr,
            _count_mean_C=count_mean_C,
            _count_sd_C=count_sd_C,
            _ctr_mean_W=ctr_mean_W,
            _ctr_sd_W=ctr_sd_W,
        )

    def columns(self, count_NC: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """What the network reads of raw counts, [N, 3 W]; each column is contiguous."""
        count_CN = np.ascontiguousarray(count_NC.T)
        top = int(count_CN.max(initial=0))
        if top > len(count_NC):
            return self._standardised(np.log1p(count_CN), self._ctr(count_CN))
        # A logarithm for each number rather than for each row, unless numbers are few and large.
        input_CK = self._count_inputs(np.log1p(np.arange(top + 1))[None]).astype(np.float32)
        column_W3N = self._columns_of_ctr(self._ctr(count_CN))
        for number, input_K in enumerate(input_CK):
            window, quantity = divmod(number, 2)
            input_K.take(count_CN[number], out=column_W3N[window, quantity], mode="clip")  # raise would copy
        return column_W3N.reshape(len(self.names), -1).T

    def live_columns(
        self, count_NC: npt.NDArray[np.int32], given: Mapping[str, Floats]
    ) -> npt.NDArray[np.float32]:
        """`columns` with live values instead of some of the snapshot's: raw counts and smoothed CTRs.

        Where counts are given and the CTR of their window is not, it follows from the counts.
        """
        count_CN = self._live_counts(count_NC, given)
        ctr_WN = self._ctr(count_CN)
        for name, value in given.items():
            is_ctr, column = self.place[name]
            if is_ctr:
                ctr_WN[column] = value
        return self._standardised(np.log1p(count_CN, out=count_CN), ctr_WN)

    def excess_clicks(
        self, count_NC: npt.NDArray[np.int32], given: Mapping[str, Floats]
    ) -> tuple[str, str, int, float, float] | None:
        """Where clicks outnumber the impressions that they are read with; both given, or one of the snapshot.

        A click counts from its own time, so a window of a log may lack the impression of its first click.
        Such a row has its CTR with it, that of its counts; counts that have none, or another, contradict.

        Returns:
            The first such place: names of impressions and clicks, row, and both numbers; None if all agree.
        """
        count_CN = self._live_counts(count_NC, given)
        ctr_WN = self._ctr(count_CN)
        for window, names in enumerate(
            zip(self.names[0::3], self.names[1::3], self.names[2::3], strict=True)
        ):
            shown, clicked, ctr = names
            if clicked not in given and (shown not in given or ctr in given):
                continue
            shown_N, clicked_N = count_CN[2 * window], count_CN[2 * window + 1]
            excess_N = clicked_N > shown_N
            if clicked not in given:
                excess_N &= shown_N < count_NC[:, 2 * window]
            if ctr in given:
                excess_N &= ~np.isclose(given[ctr], ctr_WN[window], rtol=0, atol=1e-6)
            if excess_N.any():
                row = int(np.argmax(excess_N))
                return shown, clicked, row, float(shown_N[row]), float(clicked_N[row])
        return None

    def excess_rate(
        self, count_NC: npt.NDArray[np.int32], given: Mapping[str, Floats]
    ) -> tuple[str, float] | None:
        """A given CTR above 1 that is not the one of its counts, for the reason that `excess_clicks` tells.

        Returns:
            The first such name, and the CTR; None if all can be.
        """
        above = [name for name, value_N in given.items() if self.place[name][0] and (value_N > 1).any()]
        if not above:
            return None
        ctr_WN = self._ctr(self._live_counts(count_NC, given))
        for name in above:
            value_N, ctr_N = np.broadcast_arrays(given[name], ctr_WN[self.place[name][1]])
            excess_N = (value_N > 1) & ~np.isclose(value_N, ctr_N, rtol=1e-6)
            if excess_N.any():
                return name, float(value_N[excess_N].max())
        return None

    def _live_counts(self, count_NC: npt.NDArray[np.int32], given: Mapping[str, Floats]) -> Floats:
        """Raw counts [C, N], those of the snapshot where none are given."""
        count_CN = count_NC.T.astype(np.float64, order="C")
        for name, value in given.items():
            is_ctr, column = self.place[name]
            if not is_ctr:
                count_CN[column] = value
        return count_CN

    def _ctr(self, count_CN: Counts) -> Floats:
        return smoothed_ctr(
            count_CN[0::2],
            count_CN[1::2],
            prior_impressions=self._prior_impressions,
            prior_ctr=self._prior_ctr,
        )

    def _standardised(self, log_CN: Floats, ctr_WN: Floats) -> npt.NDArray[np.float32]:
        """The second is overwritten."""
        column_W3N = self._columns_of_ctr(ctr_WN)
        column_W3N[:, :2] = self._count_inputs(log_CN).reshape(len(ctr_WN), 2, -1)
        return column_W3N.reshape(len(self.names), -1).T

    def _count_inputs(self, log_CK: Floats) -> Floats:
        """Network inputs [C, K] of logarithms of counts; one row stands for all columns."""
        input_CK = log_CK - self._count_mean_C[:, None]
        input_CK /= self._count_sd_C[:, None]
        return input_CK

    def _columns_of_ctr(self, ctr_WN: Floats) -> npt.NDArray[np.float32]:
        """[W, 3, N] with the CTRs, which are overwritten, in their places."""
        ctr_WN -= self._ctr_mean_W[:, None]
        ctr_WN /= self._ctr_sd_W[:, None]
        column_W3N = np.empty((len(ctr_WN), 3, ctr_WN.shape[1]), np.float32)
        column_W3N[:, 2] = ctr_WN
        return column_W3N


def _mean_and_sd(transforms: Sequence[Transform]) -> tuple[Floats, Floats]:
    """A column that was constant in training is 0 everywhere: 0 or more, divided by infinity."""
    mean = [transform.mean if transform.sd else 0.0 for transform in transforms]
    sd = [transform.sd or np.inf for transform in transforms]
    return np.array(mean), np.array(sd)
