"""What the ablation of the encoders found: each variant over its seeds, and against the default one.

Differences are paired by seed, with a Student-t interval over seeds (`statistics.paired_difference`): they
cover the noise of training on these queries, not that of other queries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.ablation.plan import AblationConfig, plan
from experiments.runtime.environment import environment
from experiments.statistics.intervals import Interval, SeedSummary, paired_difference, summarize_seeds

Verdict = Literal["above", "below", "not told apart"]
#: Metrics of one run by name.
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class WidthResult:
    """The first coordinates of a variant's vectors alone."""

    bytes_per_vector: int
    metrics: dict[str, SeedSummary]


@dataclass(frozen=True)
class VariantResult:
    """A variant over its finished seeds."""

    name: str
    title: str
    seeds: tuple[int, ...]
    metrics: dict[str, SeedSummary]
    validation: dict[str, SeedSummary]
    #: By slice of the queries (their kind) or of the products.
    slices: dict[str, dict[str, SeedSummary]]
    #: By number of coordinates, the whole vector last.
    widths: dict[int, WidthResult]
    #: Variant minus default over the seeds that both have; empty for the default and without a shared seed.
    differences: dict[str, Interval]
    shared_seeds: int
    #: Mean over seeds; stage 1 counts in full for each variant that uses it.
    seconds: dict[str, float]
    settings: dict[str, Any]

    @property
    def training_minutes(self) -> float:
        return (self.seconds.get("stage_1", 0.0) + self.seconds.get("stage_2", 0.0)) / 60


@dataclass(frozen=True)
class AblationReport:
    """All variants that have a finished seed."""

    default: str
    k: int
    simulated: bool
    description: str
    queries: int
    validation_queries: int
    variants: dict[str, VariantResult]
    #: Runs without a result.
    missing: tuple[str, ...]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every variant has."""
        common = [set(found.metrics) for found in self.variants.values()]
        return [name for name in next(iter(self.variants.values())).metrics if all(name in m for m in common)]


def verdict(difference: Interval) -> Verdict:
    """Whether the interval of a difference lies above zero, below it, or says neither."""
    if not difference.excludes_zero:
        return "not told apart"
    return "above" if difference.mean > 0 else "below"


def build_report(config: AblationConfig, out: Path) -> AblationReport:
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
                name, config, of_seed, {} if name == config.default else by_variant[config.default]
            )
            for name, of_seed in by_variant.items()
            if of_seed
        },
        missing=tuple(run.name for run in runs if (run.variant, run.seed) not in found),
    )


def _variant(
    name: str,
    config: AblationConfig,
    of_seed: Mapping[int, dict[str, Any]],
    default_of_seed: Mapping[int, dict[str, Any]],
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
            metric: paired_difference(
                [of_seed[seed]["test"]["metrics"][metric] for seed in shared],
                [default_of_seed[seed]["test"]["metrics"][metric] for seed in shared],
            )
            for metric in (metrics if shared else ())
        },
        shared_seeds=len(shared),
        seconds={
            part: sum(result["seconds"].get(part, 0.0) for result in results) / len(results)
            for part in results[0]["seconds"]
        },
        settings=config.variants[name].settings,
    )


def _summaries(of_seed: Sequence[Metrics]) -> dict[str, SeedSummary]:
    """A metric without a value in one of the runs is left out."""
    return {
        metric: summarize_seeds([metrics[metric] for metrics in of_seed])
        for metric in of_seed[0]
        if all(metric in metrics for metrics in of_seed)
    }


def to_json(report: AblationReport, *, command: str | None = None) -> dict[str, Any]:
    """The content of `ablation.json`."""
    variants = {}
    for name, found in report.variants.items():
        content = asdict(found) | {"training_minutes": found.training_minutes}
        content["differences"] = {
            metric: {**asdict(difference), "seeds": found.shared_seeds, "verdict": verdict(difference)}
            for metric, difference in found.differences.items()
        }
        variants[name] = content
    return {
        "simulated": report.simulated,
        "description": report.description,
        "default": report.default,
        "k": report.k,
        "queries": report.queries,
        "validation_queries": report.validation_queries,
        "variants": variants,
        "missing": list(report.missing),
        "command": command,
        "environment": environment(),
    }
