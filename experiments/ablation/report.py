"""What the ablation of the encoders found: each variant over its seeds, and against the default one.

Differences are paired by seed, with a Student-t interval over seeds (`statistics.paired_difference`): they
cover the noise of training on these queries, not that of other queries. Figures of graded pairs cover both.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, computed_field

from experiments.ablation.plan import AblationConfig, plan
from experiments.ablation.run import PAIRS_FILE
from experiments.runtime.environment import environment
from experiments.statistics.intervals import (
    Interval,
    SeedSummary,
    Verdict,
    both_noises,
    paired_difference,
    summarize_seeds,
    verdict,
)
from features.artifacts import ResultFile

#: Metrics of one run by name.
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class SeedDifference(Interval):
    """Variant minus default over the seeds that both have."""

    seeds: int
    verdict: Verdict


@dataclass(frozen=True)
class PairFigure(Interval):
    """A figure of graded pairs: mean over seeds with an interval for both noises, and spread over seeds."""

    sd: float | None


@dataclass(frozen=True)
class WidthResult:
    """The first coordinates of a variant's vectors alone."""

    bytes_per_vector: int
    metrics: dict[str, SeedSummary]


class VariantResult(BaseModel):
    """A variant over its finished seeds."""

    model_config = ConfigDict(frozen=True)
    name: str
    title: str
    seeds: tuple[int, ...]
    metrics: dict[str, SeedSummary]
    validation: dict[str, SeedSummary]
    #: By slice of the queries (their kind) or of the products.
    slices: dict[str, dict[str, SeedSummary]]
    #: By number of coordinates, the whole vector last.
    widths: dict[int, WidthResult]
    #: Empty for the default and without a shared seed.
    differences: dict[str, SeedDifference]
    #: Of real data; and against the default over the seeds that both have.
    pairs: dict[str, PairFigure] = Field(default_factory=dict)
    pair_differences: dict[str, PairFigure] = Field(default_factory=dict)
    shared_seeds: int
    #: Mean over seeds; stage 1 counts in full for each variant that uses it.
    seconds: dict[str, float]
    settings: dict[str, Any]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def training_minutes(self) -> float:
        return (self.seconds.get("stage_1", 0.0) + self.seconds.get("stage_2", 0.0)) / 60


class AblationReport(ResultFile):
    """`ablation.json`: all variants that have a finished seed."""

    simulated: bool
    description: str
    default: str
    k: int
    queries: int
    validation_queries: int
    variants: dict[str, VariantResult]
    #: Runs without a result.
    missing: tuple[str, ...]
    command: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every variant has."""
        common = [set(found.metrics) for found in self.variants.values()]
        return [name for name in next(iter(self.variants.values())).metrics if all(name in m for m in common)]


def build_report(config: AblationConfig, out: Path, *, command: str | None = None) -> AblationReport:
    """Read what is finished.

    Raises:
        ValueError: no run is finished.
    """
    runs = plan(config, out)
    found = {
        (run.variant, run.seed): json.loads(run.metrics.read_text(encoding="utf-8"))
        for run in runs
        if run.metrics.is_file()
    }
    if not found:
        raise ValueError(f"no run of the ablation in {out} is finished, so there is nothing to report")
    by_variant = {
        name: {seed: found[name, seed] for seed in config.seeds_of(name) if (name, seed) in found}
        for name in config.variants
    }
    pairs = {
        (run.variant, run.seed): {name: np.array(values) for name, values in content.items()}
        for run in runs
        if (run.variant, run.seed) in found and (run.folder / PAIRS_FILE).is_file()
        for content in [json.loads((run.folder / PAIRS_FILE).read_text(encoding="utf-8"))]
    }
    first = next(iter(found.values()))
    return AblationReport(
        default=config.default,
        k=first["k"],
        simulated=first["simulated"],
        description=first["description"],
        queries=first["test"]["queries"],
        validation_queries=first["validation"]["queries"],
        variants={
            name: _variant(
                name, config, of_seed, {} if name == config.default else by_variant[config.default], pairs
            )
            for name, of_seed in by_variant.items()
            if of_seed
        },
        missing=tuple(run.name for run in runs if (run.variant, run.seed) not in found),
        command=command,
        environment=environment(),
    )


def _variant(
    name: str,
    config: AblationConfig,
    of_seed: Mapping[int, dict[str, Any]],
    default_of_seed: Mapping[int, dict[str, Any]],
    pairs: Mapping[tuple[str, int], Mapping[str, npt.NDArray[np.float64]]],
) -> VariantResult:
    results = list(of_seed.values())
    shared = [seed for seed in of_seed if seed in default_of_seed]
    metrics = _summaries([result["test"]["metrics"] for result in results])
    return VariantResult(
        name=name,
        title=config.variants[name].title,
        seeds=tuple(of_seed),
        metrics=metrics,
        validation=_summaries([result["validation"]["metrics"] for result in results]),
        slices={
            title: _summaries([result["test"]["slices"][title]["metrics"] for result in results])
            for title in results[0]["test"]["slices"]
        },
        widths={
            int(width): WidthResult(
                cost["bytes_per_vector"],
                _summaries([result["widths"][width]["metrics"] for result in results]),
            )
            for width, cost in results[0]["widths"].items()
        },
        differences={
            metric: _difference(
                *(
                    [found[seed]["test"]["metrics"][metric] for seed in shared]
                    for found in (of_seed, default_of_seed)
                )
            )
            for metric in (metrics if shared else ())
        },
        pairs=_of_queries([pairs.get((name, seed), {}) for seed in of_seed]),
        pair_differences=_of_queries(
            [pairs.get((name, seed), {}) for seed in shared],
            [pairs.get((config.default, seed), {}) for seed in shared],
        ),
        shared_seeds=len(shared),
        seconds={
            part: sum(result["seconds"].get(part, 0.0) for result in results) / len(results)
            for part in results[0]["seconds"]
        },
        settings=config.variants[name].settings,
    )


def _difference(variant_S: Sequence[float], default_S: Sequence[float]) -> SeedDifference:
    found = paired_difference(variant_S, default_S)
    return SeedDifference(**vars(found), seeds=len(variant_S), verdict=verdict(found))


def _of_queries(
    of_seed: Sequence[Mapping[str, npt.NDArray[np.float64]]],
    minus: Sequence[Mapping[str, npt.NDArray[np.float64]]] | None = None,
) -> dict[str, PairFigure]:
    """Means over seeds, with an interval over seeds and draws of queries that all seeds share."""
    if not of_seed or not all(of_seed) or (minus is not None and not all(minus)):
        return {}
    found = {}
    for name in of_seed[0]:
        values_SR = np.array([values[name] for values in of_seed])
        if minus is not None:
            values_SR -= np.array([values[name] for values in minus])
        both = both_noises(values_SR[:, 0], values_SR[:, 1:].mean(axis=0))
        found[name] = PairFigure(**vars(both), sd=summarize_seeds(values_SR[:, 0].tolist()).sd)
    return found


def _summaries(of_seed: Sequence[Metrics]) -> dict[str, SeedSummary]:
    """A metric without a value in one of the runs is left out."""
    return {
        metric: summarize_seeds([metrics[metric] for metrics in of_seed])
        for metric in of_seed[0]
        if all(metric in metrics for metrics in of_seed)
    }
