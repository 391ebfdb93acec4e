"""Counters of one key as the network reads them, all windows in one go, for snapshots and live values.

Shapes: N rows, W windows, C = 2 W raw counts: impressions and clicks of each window, side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.columns.counters import counter_names
from features.columns.transforms import Transform
from features.schema import CounterConfig, CounterKey

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CounterBlock:
    """The counters of one key.

    Attributes:
        names: of the dense columns, in the order in which `columns` gives them: window by window impressions,
            clicks, CTR.
        place: of each name, whether it is a CTR, and its column among the counts or among the CTRs.
    """

    names: tuple[str, ...]
    place: Mapping[str, tuple[bool, int]]
    _prior_impressions: float
    _prior_clicks: float
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
            _prior_clicks=config.prior_impressions * prior_ctr,
            _count_mean_C=count_mean_C,
            _count_sd_C=count_sd_C,
            _ctr_mean_W=ctr_mean_W,
            _ctr_sd_W=ctr_sd_W,
        )

    def columns(self, count_NC: Floats, given: Mapping[str, Floats]) -> npt.NDArray[np.float32]:
        """What the network reads, [N, 3 W], bit for bit what `counters.KeyCounters.columns` gives.

        Args:
            count_NC: raw counts as floats; overwritten.
            given: live values that replace those of the snapshot: a count is raw, a CTR is the smoothed one.
                Where counts are given and the CTR of their window is not, it follows from the counts.
        """
        for name, value in given.items():
            is_ctr, column = self.place[name]
            if not is_ctr:
                count_NC[:, column] = value
        shown_NW, clicked_NW = count_NC[:, 0::2], count_NC[:, 1::2]
        ctr_NW = (clicked_NW + self._prior_clicks) / (shown_NW + self._prior_impressions)
        for name, value in given.items():
            is_ctr, column = self.place[name]
            if is_ctr:
                ctr_NW[:, column] = value
        np.log1p(count_NC, out=count_NC)
        count_NC -= self._count_mean_C
        count_NC /= self._count_sd_C
        ctr_NW -= self._ctr_mean_W
        ctr_NW /= self._ctr_sd_W
        column_NW3 = np.empty((*ctr_NW.shape, 3), np.float32)
        column_NW3[:, :, :2] = count_NC.reshape(*ctr_NW.shape, 2)
        column_NW3[:, :, 2] = ctr_NW
        return column_NW3.reshape(len(count_NC), -1)


def _mean_and_sd(transforms: Sequence[Transform]) -> tuple[Floats, Floats]:
    """A column that was constant in training is 0 everywhere: 0 or more, divided by infinity."""
    mean = [transform.mean if transform.sd else 0.0 for transform in transforms]
    sd = [transform.sd or np.inf for transform in transforms]
    return np.array(mean), np.array(sd)
