"""Runs to one number with its spread: over runs where there are several, over repeats where there is one.

Shapes: R runs, F features.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from experiments.importance.agreement import agreement
from experiments.importance.methods.attribution import STEPS
from experiments.importance.model_features import Feature
from experiments.importance.result import (
    ALL,
    RANKED_BY,
    Agreement,
    ConvergenceDelta,
    FeatureImportance,
    Method,
    Metric,
    SliceRows,
    Spread,
)
from experiments.importance.run_parts import RunResult
from experiments.statistics.intervals import paired_difference, summarize_seeds


def entries_of(runs: Sequence[RunResult], features: Sequence[Feature]) -> Iterator[FeatureImportance]:
    """One entry a feature, method, metric and slice; slices without a value in some run are left out."""
    for method in runs[0].values:
        for feature in features:
            by_slice = runs[0].values[method][feature.key]
            for name, by_metric in by_slice.items():
                for metric in by_metric:
                    if name != ALL and metric != RANKED_BY[method]:
                        continue  # a slice has one metric a method, or the file would double
                    values = [run.values[method][feature.key][name][metric] for run in runs]
                    if all(values):
                        yield _entry(feature, method, cast(Metric, metric), name, values)


def _entry(
    feature: Feature, method: Method, metric: Metric, name: str, values: Sequence[Sequence[float]]
) -> FeatureImportance:
    sample = [float(np.mean(repeats)) for repeats in values] if len(values) > 1 else list(values[0])
    interval = paired_difference(sample, [0.0] * len(sample))
    return FeatureImportance(
        name=feature.name,
        kind=feature.kind,
        members=feature.members if name == ALL else (),
        method=method,
        metric=metric,
        slice=name,
        mean=interval.mean,
        sd=summarize_seeds(sample).sd,
        low=interval.low,
        high=interval.high,
        runs=len(values),
    )


def mean_importance(runs: Sequence[RunResult], features: Sequence[Feature]) -> dict[str, float]:
    """Loss of AUC over all rows by permutation, by feature key, mean over runs."""
    return {
        feature.key: float(
            np.mean([np.mean(run.values["permutation"][feature.key][ALL]["auc"]) for run in runs])
        )
        for feature in features
    }


def base_of(runs: Sequence[RunResult]) -> dict[str, Spread]:
    """AUC and LogLoss of all rows as they are."""
    found: dict[str, Spread] = {}
    for metric in ("auc", "logloss"):
        values = [value for run in runs if (value := getattr(run.base[ALL], metric)) is not None]
        if values:
            over_runs = summarize_seeds(values)
            found[metric] = Spread(mean=over_runs.mean, sd=over_runs.sd)
    return found


def slice_rows_of(runs: Sequence[RunResult]) -> dict[str, SliceRows]:
    """Size and base metrics of every slice."""

    def mean(name: str, metric: str) -> float | None:
        values = [getattr(run.base[name], metric) for run in runs]
        return None if any(value is None for value in values) else float(np.mean(values))

    return {
        name: SliceRows(
            rows=found.rows, clicks=found.clicks, auc=mean(name, "auc"), logloss=mean(name, "logloss")
        )
        for name, found in runs[0].base.items()
    }


def agreement_of(runs: Sequence[RunResult], features: Sequence[Feature]) -> Agreement:
    """Agreement of methods and seeds over features (not groups), all rows."""
    if len(features) < 2:
        return Agreement()
    values_RF = {
        method: np.array(
            [
                [np.mean(run.values[method][feature.key][ALL][RANKED_BY[method]]) for feature in features]
                for run in runs
            ]
        )
        for method in runs[0].values
    }
    return agreement([feature.name for feature in features], values_RF)


def convergence_of(runs: Sequence[RunResult]) -> ConvergenceDelta | None:
    """Error of integrated gradients, None where it was not asked for."""
    means = [run.delta_mean for run in runs if run.delta_mean is not None]
    largest = [run.delta_largest for run in runs if run.delta_largest is not None]
    if not means:
        return None
    return ConvergenceDelta(mean=float(np.mean(means)), largest=max(largest), steps=STEPS)
