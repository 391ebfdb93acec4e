"""Has a column moved? A window of live counts against the training record; false alarms are bounded.

Of each bin the difference of its two shares is divided by its standard error, which groups of users give
(`tally.py`): t with G - 1 degrees of freedom. Chance alone makes any column of a window alarm at most in a
share `FALSE_ALARMS` of the windows: that is divided by the number of columns and bins (Bonferroni 1936).
Since enough requests make the least difference significant, an alarm also needs a difference that matters:
at least `LEAST_SHIFT` of the values must be in another bin (total variation distance).

Shapes: E + 1 bins of a column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.drift.tally import Tally
from serving.package.training_record import TrainingRecord, WatchedColumn

#: Requests of a window below which nothing is said.
LEAST_REQUESTS = 500
#: Groups of users below which nothing is said: the differences between fewer say too little.
LEAST_GROUPS = 16
#: Share of windows in which chance alone may let anything alarm; the 24 hours of a day have it together.
FALSE_ALARMS: dict[str, float] = {"day": 0.01, "hour": 0.01 / 24}
#: Of the values: what has to be in another bin before a difference matters.
LEAST_SHIFT = 0.05
# An empty bin would make PSI infinite; this share is what one count in ten thousand gives.
_LEAST_SHARE = 1e-4

Verdict = Literal["moved", "same", "too few requests", "too few users"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One column of one window.

    Attributes:
        trained, live: means of its values, on the model's scale; shares where values are 0 and 1.
        shift: the share of values in another bin, 0 to 1.
        psi: population stability index, as people know it; no verdict depends on it.
        p: probability of a difference as large by chance, corrected for the bins of this column.
        constant: all values were in one bin, and were not in training.
    """

    column: WatchedColumn
    trained: float
    live: float
    shift: float
    psi: float
    p: float
    constant: bool
    verdict: Verdict

    @property
    def name(self) -> str:
        """Of the column."""
        return self.column.name


def compare(record: TrainingRecord, tally: Tally, *, false_alarms: float) -> list[Compared]:
    """Every column, those that moved first, then by shift.

    Args:
        false_alarms: share of windows in which any column may alarm by chance.
    """
    groups = min(record.groups, int(np.count_nonzero(tally.requests_G)))
    few: Verdict | None = None
    if tally.requests < LEAST_REQUESTS:
        few = "too few requests"
    elif groups < LEAST_GROUPS:
        few = "too few users"
    compared = []
    for at, column in enumerate(tally.columns):
        trained_E = np.array(column.shares)
        live_E, error_E = tally.shares(at)
        p = 1.0
        if few is None:
            units = (
                record.requests if column.by == "request" else record.candidates,
                int(tally.units_G(column).sum()),
            )
            p = p_value(trained_E, np.array(column.errors), live_E, error_E, units=units, groups=groups)
        shift = 0.5 * float(np.abs(live_E - trained_E).sum())
        is_moved = p * len(tally.columns) <= false_alarms and shift >= LEAST_SHIFT
        compared.append(
            Compared(
                column,
                trained=column.mean,
                live=tally.mean(at),
                shift=shift,
                psi=population_stability(trained_E, live_E),
                p=p,
                constant=bool(np.count_nonzero(live_E) == 1 and np.count_nonzero(trained_E) > 1),
                verdict=few or ("moved" if is_moved else "same"),
            )
        )
    return sorted(compared, key=lambda one: (one.verdict != "moved", -one.shift))


def moved(compared: Sequence[Compared]) -> list[Compared]:
    """Those that alarm."""
    return [one for one in compared if one.verdict == "moved"]


def p_value(
    trained_E: Floats,
    trained_error_E: Floats,
    live_E: Floats,
    live_error_E: Floats,
    *,
    units: tuple[int, int],
    groups: int,
) -> float:
    """Probability that chance alone makes any bin differ as much.

    A standard error counts as at least what values that depend on nothing would have, times the design effect
    seen in training: a live column that has become constant shows no variation at all.

    Args:
        units: requests or candidates in training and live.
        groups: of users, in whichever has fewer.
    """
    pooled_E = (trained_E * units[0] + live_E * units[1]) / sum(units)
    binomial_E = pooled_E * (1 - pooled_E)
    with np.errstate(divide="ignore", invalid="ignore"):
        design_E = np.nan_to_num(np.square(trained_error_E) * units[0] / (trained_E * (1 - trained_E)))
    least_E = binomial_E * np.clip(design_E, 1.0, 1e6)
    variance_E = np.maximum(np.square(trained_error_E), binomial_E / units[0])
    variance_E = variance_E + np.maximum(np.square(live_error_E), least_E / units[1])
    differs = live_E != trained_E
    if not differs.any() or groups < 2:
        return 1.0
    t = np.abs(live_E - trained_E)[differs] / np.sqrt(variance_E[differs])
    return min(1.0, two_sided_t(float(t.max()), groups - 1) * len(trained_E))


def two_sided_t(t: float, degrees: int) -> float:
    """Probability that Student's t is at least as far from 0; exact to about 1e-15, below which it is 0.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4: workers have no SciPy. Of 1 with one degree of
    freedom it is a half.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (step - 1) / step
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - within)


def population_stability(trained_E: Floats, live_E: Floats) -> float:
    """Sum of (live - trained) ln(live / trained): [.5, .5] against [.25, .75] gives .25 ln 3 = 0.2747.

    Raises:
        ValueError: the lists have different lengths.
    """
    if trained_E.shape != live_E.shape:
        raise ValueError(f"{len(live_E)} live bins against {len(trained_E)} of training")
    trained_E = np.maximum(trained_E, _LEAST_SHARE)
    live_E = np.maximum(live_E, _LEAST_SHARE)
    return math.fsum((live_E - trained_E) * np.log(live_E / trained_E))
