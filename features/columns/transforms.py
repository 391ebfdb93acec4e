"""Numbers to network inputs: sign(x) log(1 + |x|) where asked, then (x - mean) / sd of the training window.

Shapes: N impressions.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.artifacts import StrictModel

Floats = npt.NDArray[np.float64]

#: Largest size of a raw value by kind of transform. The network reads float32, and squares of larger numbers
#: exceed float64 in `Moments`; a logarithm brings any finite number into reach.
LARGEST = {"standard": float(np.finfo(np.float32).max), "log": float(np.finfo(np.float64).max)}
#: Times the largest training value; prices in cents or micros instead of units are 100 and 1,000,000 times.
FAR_BEYOND = 1_000.0


class Transform(StrictModel):
    """How one dense column is made; a null (NaN) becomes the training mean, hence 0.

    A column that is constant in the training window has sd 0 and becomes 0 everywhere: its other values were
    never seen by the model.
    """

    kind: Literal["standard", "log"]
    mean: float
    sd: float
    #: Whether a second column `<name>_missing` says where the value was null.
    missing_column: bool = False
    #: The smallest and the largest raw value of the training window; None of a counter.
    bounds: tuple[float, float] | None = None

    def apply(self, value_N: npt.NDArray[np.number]) -> npt.NDArray[np.float32]:
        """Raw values, NaN for null, to float32 without nulls. The mean gives 0, mean + sd gives 1.

        A value so far off that float32 cannot hold it becomes infinite: the caller refuses it by name.
        """
        if self.sd == 0:
            return np.zeros(len(value_N), dtype=np.float32)
        scaled_N = signed_log(value_N) if self.kind == "log" else value_N.astype(np.float64)
        scaled_N -= self.mean
        scaled_N /= self.sd
        scaled_N[np.isnan(scaled_N)] = 0.0
        with np.errstate(over="ignore"):
            return scaled_N.astype(np.float32)

    def unlike_training(self, value_N: npt.NDArray[np.number]) -> npt.NDArray[np.bool_]:
        """Which raw values cannot mean what they did in training: another sign, another order of size.

        Negative where none was, or more than `FAR_BEYOND` times the largest size. With bounds 0.5 and 80 such
        are -1 and 1e6, but not 0 or 5,000. A column that was constant, or has no bounds, has none.
        """
        if self.bounds is None or self.sd == 0:
            return np.zeros(len(value_N), bool)
        low, high = self.bounds
        with np.errstate(invalid="ignore"):  # NaN is a missing value
            far_N: npt.NDArray[np.bool_] = np.abs(value_N) / FAR_BEYOND > max(abs(low), abs(high))
            return far_N | (value_N < 0) if low >= 0 else far_N


def signed_log(value_N: npt.NDArray[np.number]) -> Floats:
    """sign(x) log(1 + |x|): defined for every number, odd, and close to x near 0."""
    value_N = value_N.astype(np.float64)
    logged_N: Floats = np.copysign(np.log1p(np.abs(value_N)), value_N)
    return logged_N


def from_signed_log(logged: float) -> float:
    """The number of which `logged` is the `signed_log`, as far as digits go."""
    return math.copysign(math.expm1(abs(logged)), logged)


@dataclass
class Moments:
    """Mean and sd of values that arrive in parts, exact enough for any scale (Chan, Golub & LeVeque 1979).

    NaN values are counted in `missing` and otherwise ignored.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    missing: int = 0
    low: float = float("inf")
    high: float = float("-inf")

    @classmethod
    def of(cls, value_N: Floats) -> "Moments":
        """Those of one part."""
        present_N = value_N[~np.isnan(value_N)]
        missing = len(value_N) - len(present_N)
        if not len(present_N):
            return cls(missing=missing)
        mean = float(present_N.mean())
        squares = float(np.square(present_N - mean).sum())
        return cls(
            len(present_N), mean, squares, missing, low=float(present_N.min()), high=float(present_N.max())
        )

    def add(self, value_N: Floats) -> None:
        """Take in one part."""
        self.merge(self.of(value_N))

    def merge(self, part: "Moments") -> None:
        """Take in those of the next part; floating-point sums depend on the order of the parts."""
        self.missing += part.missing
        if not part.count:
            return
        total = self.count + part.count
        gap = part.mean - self.mean
        self.squares += part.squares + gap * gap * self.count * part.count / total
        self.mean += gap * part.count / total
        self.count = total
        self.low, self.high = min(self.low, part.low), max(self.high, part.high)

    @property
    def sd(self) -> float:
        """Of the population; exactly 0 when all values are equal or there are none."""
        return (self.squares / self.count) ** 0.5 if self.high > self.low else 0.0


#: Multiples in which `ExactMoments` counts.
_SCALE = 2.0**28


#: Squares of values up to this size, counted fewer than 2^26 times, add up to less than 2^63.
_SMALL = 22.0


def _fixed_point(value_T: Floats, *, small: bool) -> npt.NDArray[Any]:
    """Whole multiples as int64 if `small`, else as Python's integers, which cannot overflow."""
    scaled_T = np.rint(value_T * _SCALE)
    if small:
        return scaled_T.astype(np.int64)
    return np.array([int(value) for value in scaled_T.tolist()], dtype=object)


@dataclass
class ExactMoments:
    """Mean and sd of weighted values, identical bit for bit in whatever order the parts arrive.

    Values are rounded to multiples of 2^-28 and summed as integers, so parts may come from any number of
    buckets or threads. Those in [-22, 22], as logs of counts and nearly all CTRs are, take a fraction of the
    time of larger ones.
    """

    weight: int = 0
    total: int = 0
    squares: int = 0
    bounds: list[float] = field(default_factory=lambda: [float("inf"), float("-inf")])

    def add(self, value_T: Floats, weight_T: npt.NDArray[np.int64]) -> None:
        """Take in values, each counted `weight` times."""
        used = np.flatnonzero(weight_T)
        if not len(used):
            return
        seen_T, counted_T = value_T[used], weight_T[used]
        low, high = float(seen_T.min()), float(seen_T.max())
        self.bounds = [min(self.bounds[0], low), max(self.bounds[1], high)]
        weight = int(counted_T.sum())
        small = max(-low, high) <= _SMALL
        if weight >= 2**26 or not small:  # int64 sums could overflow: slower, but Python integers cannot
            counted_T = counted_T.astype(object)
        self.weight += weight
        self.total += int(np.dot(_fixed_point(seen_T, small=small), counted_T))
        self.squares += int(np.dot(_fixed_point(np.square(seen_T), small=small), counted_T))

    def merge(self, other: "ExactMoments") -> None:
        """Take in what another has gathered."""
        self.weight += other.weight
        self.total += other.total
        self.squares += other.squares
        self.bounds = [min(self.bounds[0], other.bounds[0]), max(self.bounds[1], other.bounds[1])]

    @property
    def mean(self) -> float:
        """Weighted mean; 0 without values."""
        return self.total / self.weight / _SCALE if self.weight else 0.0

    @property
    def sd(self) -> float:
        """Of the population; exactly 0 when all values are equal or there are none."""
        if not self.weight or self.bounds[0] >= self.bounds[1]:
            return 0.0
        return max(self.squares / self.weight / _SCALE - self.mean**2, 0.0) ** 0.5
