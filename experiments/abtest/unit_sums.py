"""What each unit did in a span of days, as sums, and the statistics of both variants made of them.

Shapes: N unit-days, U units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tea_tasting.aggr import Aggregates

from experiments.abtest.estimates import LIFT_SCALE, Estimate, aggregated, columns_of, estimate
from experiments.abtest.experiment_log import ExperimentLog
from experiments.abtest.metrics import BEFORE, Metric

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class UnitSums:
    """Sums of the units that came at all.

    Attributes:
        treated_U: whether a unit saw the challenger.
        sums: by column, those of before the experiment with their `pre_`.
    """

    treated_U: BoolArray
    sums: Mapping[str, FloatArray]

    @classmethod
    def of_days(cls, log: ExperimentLog, first: int, last: int) -> "UnitSums":
        """From day `first` to day `last`, both included, counted from 0."""
        start, end = np.searchsorted(log.day_N, [first, last + 1])
        unit_N = log.unit_N[start:end]
        came_U = np.bincount(unit_N, minlength=len(log.units)) > 0
        sums: dict[str, FloatArray] = {
            name: np.bincount(unit_N, weights=values_N[start:end], minlength=len(log.units))[came_U].astype(
                np.float64, copy=False
            )
            for name, values_N in log.counts.items()
        }
        sums |= {BEFORE + name: values_U[came_U] for name, values_U in log.before.items()}
        return cls(log.treated_U[came_U], sums)

    def of_units(self, chosen_U: BoolArray) -> "UnitSums":
        """Those of some units."""
        return UnitSums(
            self.treated_U[chosen_U], {name: values_U[chosen_U] for name, values_U in self.sums.items()}
        )

    @property
    def units(self) -> tuple[int, int]:
        """How many of the control and of the challenger."""
        treated = int(self.treated_U.sum())
        return len(self.treated_U) - treated, treated

    def can(self, metric: Metric, *, adjusted: bool = False) -> bool:
        """Whether the log has all that a metric is made of."""
        return all(name in self.sums for name in columns_of(metric, adjusted=adjusted))

    def arms(
        self, columns: Sequence[str], *, zeros: tuple[int, int] = (0, 0)
    ) -> tuple[Aggregates, Aggregates]:
        """Statistics of the control and of the challenger.

        Args:
            zeros: further units of both, of which every column is 0.
        """
        return (
            aggregated({name: self.sums[name][~self.treated_U] for name in columns}, zeros=zeros[0]),
            aggregated({name: self.sums[name][self.treated_U] for name in columns}, zeros=zeros[1]),
        )

    def estimate(
        self,
        metric: Metric,
        *,
        adjusted: bool = True,
        lift_scale: float = LIFT_SCALE,
        difference_scale: float | None = None,
        zeros: tuple[int, int] = (0, 0),
    ) -> Estimate | None:
        """The lift of a metric; adjusted by what was before if that is known.

        Returns:
            None if the log lacks a column of it, or a variant has fewer than two units or nothing to divide
            by.
        """
        units = [found + more for found, more in zip(self.units, zeros, strict=True)]
        if not self.can(metric) or min(units) < 2:
            return None
        adjusted = adjusted and self.can(metric, adjusted=True)
        control, treatment = self.arms(columns_of(metric, adjusted=adjusted), zeros=zeros)
        return estimate(
            metric,
            control,
            treatment,
            adjusted=adjusted,
            lift_scale=lift_scale,
            difference_scale=difference_scale,
        )
