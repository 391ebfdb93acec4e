"""What an experiment came to: `result.json`."""

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from experiments.abtest.description import Allowed
from experiments.abtest.experiment_log import DayLatency
from experiments.statistics.intervals import Interval
from features.artifacts import ResultFile

RESULT = "result.json"
Verdict = Literal["ship", "stop", "go on", "invalid"]
State = Literal["kept", "broken", "open"]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Limited(_Row):
    """A relative lift between its limits; None where it cannot be told."""

    lift: float | None
    low: float | None
    high: float | None

    @property
    def mean(self) -> float | None:
        """The lift."""
        return self.lift

    @classmethod
    def of(cls, found: Interval | None) -> "Limited":
        """That of an interval; three nulls for none."""
        return (
            cls(lift=None, low=None, high=None)
            if found is None
            else cls(lift=found.mean, low=found.low, high=found.high)
        )


class MetricResult(Limited):
    """A metric over all days. `low` and `high` hold at one look, the sequential limits at all looks."""

    control: float
    treatment: float
    sequential_low: float | None
    sequential_high: float | None
    p: float | None
    #: After false discovery control over all metrics but the one that decides (Benjamini and Yekutieli).
    p_adjusted: float | None
    #: Whether what units did before the experiment was used (CUPED), and the lift without it.
    cuped: bool
    without_cuped: Limited
    #: Width of the interval over its width without CUPED.
    cuped_narrowing: float | None
    true_lift: float | None
    #: Share of re-simulated experiments of this size whose interval held the true lift, if it was measured.
    coverage: float | None = None

    @property
    def sequential(self) -> Limited:
        """The lift between the limits that hold at all looks."""
        return Limited(lift=self.lift, low=self.sequential_low, high=self.sequential_high)


class DayResult(_Row):
    """A metric at the end of a day: over all days so far, and on that day alone."""

    day: date
    metric: str
    so_far: Limited
    so_far_sequential: Limited
    alone: Limited


class Trend(_Row):
    """How much the lift grows a day (difference of logarithms), by a line through the lifts of the days."""

    slope: float
    low: float
    high: float
    p: float


class SliceResult(Limited):
    """A metric in a part of the experiment; in a slice of searches, units without one count as well."""

    kind: str
    name: str
    metric: str
    impressions: int
    p: float | None
    #: After false discovery control over the slices of this kind and metric (Benjamini and Hochberg).
    p_adjusted: float | None
    #: Drawn towards the mean of the slices by as much as chance alone would spread them.
    shrunk: Limited


class Heterogeneity(_Row):
    """Whether the lifts of the slices of a kind differ by more than chance."""

    kind: str
    metric: str
    #: Measured slices, and those left out because too few units have anything to count.
    slices: int
    left_out: int
    #: Cochran's Q test: that all slices have one lift; None for fewer than two.
    p: float | None
    #: Standard deviation of the true lifts (of their logarithms), estimated.
    deviation: float | None


class Guardrail(_Row):
    """Something that must not become worse by more than allowed: kept, broken, or not settled yet."""

    name: str
    title: str
    control: float
    treatment: float
    #: How much worse: a share of the control, or for error shares a difference.
    worse: float
    low: float | None
    high: float | None
    allowed: float
    state: State
    sentence: str


class Decision(_Row):
    """What to do, and why in a sentence."""

    verdict: Verdict
    sentence: str
    #: Which limits were read: those for one look at the planned end, or those for all looks.
    limits: Literal["one look", "all looks"]
    notes: tuple[str, ...]


class AbtestResult(ResultFile):
    """`result.json`."""

    simulated: bool
    name: str
    command: str | None
    environment: dict[str, Any]
    control: str
    treatment: str
    primary: str
    first_day: date
    last_day: date
    days: int
    planned_days: int | None
    planned_lift: float | None
    allowed: Allowed
    consumers: int
    units: dict[str, int]
    planned_shares: dict[str, float]
    srm_p: float
    #: Units that saw another variant than the hash of their name gives; None where no salt is known.
    misrouted: int | None
    decision: Decision
    metrics: dict[str, MetricResult]
    guardrails: list[Guardrail]
    trends: dict[str, Trend]
    daily: list[DayResult]
    heterogeneity: list[Heterogeneity]
    slices: list[SliceResult]
    latency_p99_ms: list[DayLatency]
    #: That of the metric that decides.
    coverage: float | None = None
