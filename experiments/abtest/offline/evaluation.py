"""Values of target policies from one log of decisions, beside the truth where it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.statistics.intervals import Interval
from experiments.statistics.off_policy import (
    Decisions,
    PolicyValue,
    Target,
    policy_value,
    relative_lift,
)


@dataclass(frozen=True, eq=False)
class LoggedTargets:
    """Decisions of one policy, and the policies to be judged by them.

    Attributes:
        title: whose decisions, and what the reward is.
        targets, truth: by name; the truth is the mean reward that a target would have had, if it is known.
        baseline: the target that lifts are over; None for no lifts.
        simulated: whether the log is.
    """

    title: str
    logged: Decisions
    targets: Mapping[str, Target]
    truth: Mapping[str, float]
    baseline: str | None
    simulated: bool


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of each target: its value, and its lift over the baseline by method."""

    source: LoggedTargets
    logged_mean: float
    values: Mapping[str, PolicyValue]
    lifts: Mapping[str, Mapping[str, Interval]]
    true_lifts: Mapping[str, float]

    def content(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "simulated": self.source.simulated,
            "title": self.source.title,
            "decisions": len(self.source.logged.reward_N),
            "logged_mean": self.logged_mean,
            "baseline": self.source.baseline,
            "targets": {
                name: {
                    "truth": self.source.truth.get(name),
                    "estimates": {method: _limits(one) for method, one in value.estimates.items()},
                    "effective_sample_size": value.effective,
                    "mean_weight": _limits(value.mean_weight),
                    "largest_weight": value.largest_weight,
                    "lift": {method: _limits(one) for method, one in self.lifts.get(name, {}).items()},
                    "true_lift": self.true_lifts.get(name),
                }
                for name, value in self.values.items()
            },
        }


def evaluate(source: LoggedTargets, *, confidence: float = 0.95) -> Evaluation:
    """Estimate the value of each target, and lifts over the baseline."""
    logged = source.logged
    values = {name: policy_value(logged, one, confidence=confidence) for name, one in source.targets.items()}
    lifts, true_lifts = {}, {}
    if source.baseline is not None:
        below = values[source.baseline]
        true_below = source.truth.get(source.baseline, 0.0)
        for name, value in values.items():
            if name != source.baseline:
                lifts[name] = relative_lift(logged, value, below, confidence=confidence)
                if name in source.truth and true_below > 0:
                    true_lifts[name] = source.truth[name] / true_below - 1
    return Evaluation(
        source=source,
        logged_mean=float(logged.reward_N.mean()),
        values=values,
        lifts=lifts,
        true_lifts=true_lifts,
    )


def _limits(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
