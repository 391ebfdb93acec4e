"""Numbers as text: an estimate with its interval as JSON and as a table cell, and tables as Markdown.

Shapes: R values, the estimate first and then its resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    model_serializer,
    model_validator,
)

from experiments.statistics.intervals import Interval, Limits, percentile_interval

#: Stands where there is no value.
NONE = "–"


class Estimate(Limits, Protocol):
    """A value between two limits, None where there is none."""

    @property
    def mean(self) -> float | None: ...


def interval_of(values_R: npt.NDArray[np.float64]) -> Interval:
    """95 % interval of the first value from the others."""
    return percentile_interval(float(values_R[0]), values_R[1:])


def flat(intervals: Mapping[str, Estimate | None]) -> dict[str, float | None]:
    """{"a": Interval} becomes {"a": mean, "a_low": low, "a_high": high}, three nulls for no interval."""
    found: dict[str, float | None] = {}
    for name, interval in intervals.items():
        mean, low, high = (None,) * 3 if interval is None else (interval.mean, interval.low, interval.high)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return found


def nested(content: Any) -> Any:
    """What `flat` was given, of what it made; a value whose limits are absent has none."""
    if not isinstance(content, dict):
        return content
    limits = {f"{name}{end}" for name in content for end in ("_low", "_high")}
    return {
        name: value
        if value is None or not isinstance(value, int | float)
        else {"mean": value, "low": content.get(f"{name}_low"), "high": content.get(f"{name}_high")}
        for name, value in content.items()
        if name not in limits
    }


#: Intervals by name, in JSON with `name_low` and `name_high` beside `name`; None where there is no value.
Intervals = Annotated[dict[str, Interval], BeforeValidator(nested), PlainSerializer(flat)]
OptionalIntervals = Annotated[dict[str, Interval | None], BeforeValidator(nested), PlainSerializer(flat)]


class FlatRow(BaseModel):
    """A row of figures of which each interval `name` has `name_low` and `name_high` beside it in JSON."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, content: Any) -> Any:
        figures = {name for name in content if f"{name}_low" in content}
        ends = {f"{name}{end}" for name in figures for end in ("", "_low", "_high")}
        rest = {name: value for name, value in content.items() if name not in ends}
        return rest | nested({name: value for name, value in content.items() if name in ends})

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self:
            found |= flat({name: value}) if isinstance(value, Interval) else {name: value}
        return found


def number(value: float | None, decimals: int = 4) -> str:
    """As "0.1234" or "-0.1234"; a zero has no sign."""
    return signed(value, decimals).removeprefix("+")


def signed(value: float | None, decimals: int = 4) -> str:
    """As "+0.1234" or "-0.1234"; a zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def limits(interval: Limits, decimals: int = 4, *, sign: bool = False, between: str = " … ") -> str:
    """As "-0.0012 … 0.0034".

    With `sign` every number has one: that of a limit rounded to zero says on which side of zero it lies.
    """
    if interval.low is None or interval.high is None:
        return NONE
    ends = (interval.low, interval.high)
    return between.join(f"{end:+.{decimals}f}" if sign else number(end, decimals) for end in ends)


def with_limits(
    interval: Estimate | None, decimals: int = 4, *, sign: bool = False, square: bool = False
) -> str:
    """As "0.700 (0.690 … 0.710)", or "0.700 [0.690, 0.710]"; a value without limits stands alone."""
    if interval is None or interval.mean is None:
        return NONE
    mean = f"{interval.mean:+.{decimals}f}" if sign else number(interval.mean, decimals)
    if interval.low is None or interval.high is None:
        return mean
    if square:
        return f"{mean} [{limits(interval, decimals, sign=sign, between=', ')}]"
    return f"{mean} ({limits(interval, decimals, sign=sign)})"


def with_sd(mean: float | None, sd: float | None, decimals: int = 4) -> str:
    """As "0.700 ± 0.003"; without a spread the mean alone."""
    return number(mean, decimals) + ("" if sd is None else f" ± {sd:.{decimals}f}")


def share(part: int, whole: int) -> str:
    """A share in percent, with decimals where it would read as 0 or as 100 % and is not."""
    if not whole:
        return NONE
    if part in (0, whole):
        return f"{100 * part // whole} %"
    percent = 100 * part / whole
    for decimals in (1, 2, 3):
        text = f"{percent:.{decimals}f}"
        if float(text) not in (0.0, 100.0):
            break
    return f"{text} %"


def markdown_table(
    heading: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1, compact: bool = False
) -> list[str]:
    """Lines of a table: text columns to the left, the numbers after them to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(heading) - text_columns)
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows)]
    if compact:
        lines[1] = f"|{'|'.join(rule)}|"
    return lines
