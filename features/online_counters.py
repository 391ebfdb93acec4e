"""Counters of a request: raw counts of a few keys to what the network reads, all windows in one go.

Shapes: N rows (1 for the keys of the request, one for each candidate for the others), W windows, C counts:
impressions and clicks of each key and window, side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.counters import counter_names
from features.schema import CounterConfig, CounterKey
from features.transforms import Transform

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CounterBlock:
    """The counters of some keys.

    Attributes:
        names: of the dense columns, in the order in which `columns` gives them.
        place: of each name, (is it a CTR, its column among the counts or among the CTRs).
    """

    names: tuple[str, ...]
    place: Mapping[str, tuple[bool, int]]
    _prior_impressions: float
    _prior_clicks: float
    _count_mean_C: Floats
    _count_sd_C: Floats
    _ctr_mean: Floats
    _ctr_sd: Floats
    _order: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        keys: Sequence[CounterKey],
        config: CounterConfig,
        transforms: Mapping[str, Transform],
        *,
        prior_ctr: float,
    ) -> "CounterBlock":
        """Counters in the order of a feature set: key by key, window by window."""
        names = [name for key in keys for days in config.windows_days for name in counter_names(key, days)]
        counts = [name for number, name in enumerate(names) if number % 3 < 2]
        ctrs = names[2::3]
        place = {name: (False, column) for column, name in enumerate(counts)}
        place |= {name: (True, column) for column, name in enumerate(ctrs)}
        assert all(transforms[name].kind == "log" for name in counts)
        assert all(transforms[name].kind == "standard" for name in ctrs)
        count_mean_C, count_sd_C = _mean_and_sd([transforms[name] for name in counts])
        ctr_mean, ctr_sd = _mean_and_sd([transforms[name] for name in ctrs])
        by_name = counts + ctrs
        return cls(
            names=tuple(names),
            place=place,
            _prior_impressions=config.prior_impressions,
            _prior_clicks=config.prior_impressions * prior_ctr,
            _count_mean_C=count_mean_C,
            _count_sd_C=count_sd_C,
            _ctr_mean=ctr_mean,
            _ctr_sd=ctr_sd,
            _order=np.array([by_name.index(name) for name in names], np.int64),
        )

    def columns(self, count_NC: Floats, given: Mapping[str, Floats]) -> npt.NDArray[np.float32]:
        """What the network reads, [N, names], bit for bit what `counters.KeyCounters.columns` gives.

        Args:
            count_NC: raw counts; overwritten.
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
        ctr_NW -= self._ctr_mean
        ctr_NW /= self._ctr_sd
        scaled = np.concatenate([count_NC, ctr_NW], axis=1)
        return scaled[:, self._order].astype(np.float32)


def _mean_and_sd(transforms: Sequence[Transform]) -> tuple[Floats, Floats]:
    """A column that was constant in training is 0 everywhere: 0 or more, divided by infinity."""
    mean = [transform.mean if transform.sd else 0.0 for transform in transforms]
    sd = [transform.sd or np.inf for transform in transforms]
    return np.array(mean), np.array(sd)
