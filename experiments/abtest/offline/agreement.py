"""Does an offline gain in AUC order rankers as an online test would?

Each trained run serves the same days of the live marketplace alone: everybody sees it, its own log refreshes
its snapshots, its own clicks use up the budgets. What was to be expected of what it showed is its true value,
free of the noise of clicks and of who was drawn. Beside it stand AUC and log loss of the run's test days,
whose impressions the world's log policy chose.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from experiments.abtest.loop.measures import Value
from experiments.abtest.loop.ranker import fresh_scores, packaged
from experiments.abtest.loop.served_days import AloneInTheWorld, read_counts
from experiments.abtest.simulated.claim import claim_folder
from experiments.abtest.simulated.policies import PackagePolicy
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import LiveMarketplace
from experiments.marketplace.world.catalog import FloatArray
from experiments.runtime.environment import environment
from features.artifacts import BusyError, ResultFile, StrictModel, file_lock
from features.progress import Progress, silent
from ranking.run import is_finished, run_config

AGREEMENT, SETTINGS = "agreement.json", "served.json"
OFFLINE = ("auc", "norm_log_loss")
ONLINE = ("ctr", "revenue", "relevance")


class AgreementSettings(StrictModel):
    """What decides the result: kept in `served.json`, and the same after a restart."""

    world: Path
    runs: tuple[Path, ...]
    days: Annotated[int, Field(ge=1)] = 2
    searches_per_day: Annotated[int, Field(ge=1)] | None = None
    luck: Annotated[int, Field(ge=0)] = 0


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ServedRun(_Row):
    """A run: AUC and normalised log loss of its test days, and its true value in the days that it served."""

    variant: str
    seed: int
    auc: float
    norm_log_loss: float
    value: Value


class VariantLift(_Row):
    """Means over the seeds of a variant; gains are differences to the first one's, lifts are relative."""

    variant: str
    seeds: int
    auc: float
    auc_gain: float
    norm_log_loss_gain: float
    ctr: float
    revenue: float
    relevance: float


class RankCorrelation(_Row):
    """Between one offline and one online measure; a smaller log loss counts as better."""

    offline: str
    online: str
    #: Of variants (means over seeds), and of single runs.
    spearman_variants: float
    kendall_variants: float
    spearman_runs: float


class Agreement(ResultFile):
    """`agreement.json`."""

    simulated: bool = True
    command: str | None
    environment: dict[str, Any]
    settings: AgreementSettings
    searches_per_day: int
    runs: list[ServedRun]
    variants: list[VariantLift]
    correlations: list[RankCorrelation]


def measure_agreement(
    settings: AgreementSettings, out: Path, *, command: str | None = None, progress: Progress = silent
) -> Agreement:
    """Serve with each run in turn; runs and days that an earlier start has finished are kept in `out`.

    The variant of the first run is the baseline.

    Raises:
        ValueError: fewer than three variants, one twice with a seed, a run that is not finished, no world, or
            `out` has other settings.
        FileExistsError: `out` holds something else.
    """
    for run in settings.runs:
        if not is_finished(run):
            raise ValueError(f"{run} is not a finished run; train it to the end first")
    configs = [run_config(run) for run in settings.runs]
    names = list(dict.fromkeys(config.variant for config in configs))
    if len(names) < 3:
        raise ValueError(f"an order takes three variants or more, got {', '.join(names) or 'none'}")
    if len({(config.variant, config.seed) for config in configs}) < len(configs):
        raise ValueError("each run must have a variant and seed of its own, but two have the same")
    market = LiveMarketplace.open(
        settings.world, searches_per_day=settings.searches_per_day, luck=settings.luck
    )
    claim_folder(out, settings, file=SETTINGS, what="a comparison of rankers")
    served = []
    with file_lock(out / ".lock", busy=BusyError(f"another process serves in {out}")):
        for place, (run, config) in enumerate(zip(settings.runs, configs, strict=True)):
            progress("rankers", place, len(configs))
            folder = out / f"{config.variant}-seed-{config.seed}"
            served.append(_served(market, settings, run, folder, progress))
    progress("rankers", len(configs), len(configs))
    variants = [_lift(name, served, baseline=names[0]) for name in names]
    return Agreement(
        command=command,
        environment=environment(),
        settings=settings,
        searches_per_day=market.searches_per_day,
        runs=served,
        variants=variants,
        correlations=[_correlation(off, on, served, variants) for off in OFFLINE for on in ONLINE],
    )


def _served(
    market: LiveMarketplace, settings: AgreementSettings, run: Path, folder: Path, progress: Progress
) -> ServedRun:
    config = run_config(run)
    test = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    alone = AloneInTheWorld(market, settings.world, folder)
    policy: PackagePolicy | None = None

    def scores(demand: Demand) -> FloatArray:
        nonlocal policy
        policy = policy or packaged(run, folder, alone)  # of a run that has served all days it takes none
        return fresh_scores(policy, alone, demand, progress)

    counts = read_counts([alone.serve(scores) for _ in range(settings.days)])
    return ServedRun(
        variant=config.variant,
        seed=config.seed,
        auc=test["auc"],
        norm_log_loss=test["norm_log_loss"],
        value=Value.of(counts),
    )


def _lift(name: str, served: Sequence[ServedRun], *, baseline: str) -> VariantLift:
    def mean(variant: str, value_of: Callable[[ServedRun], float]) -> float:
        return float(np.mean([value_of(run) for run in served if run.variant == variant]))

    def gain(value_of: Callable[[ServedRun], float]) -> float:
        return mean(name, value_of) - mean(baseline, value_of)

    def lift(value_of: Callable[[ServedRun], float]) -> float:
        return mean(name, value_of) / mean(baseline, value_of) - 1

    return VariantLift(
        variant=name,
        seeds=sum(run.variant == name for run in served),
        auc=mean(name, lambda run: run.auc),
        auc_gain=gain(lambda run: run.auc),
        norm_log_loss_gain=gain(lambda run: run.norm_log_loss),
        ctr=lift(lambda run: run.value.ctr),
        revenue=lift(lambda run: run.value.revenue),
        relevance=lift(lambda run: run.value.relevance),
    )


def _correlation(
    offline: str, online: str, served: Sequence[ServedRun], variants: Sequence[VariantLift]
) -> RankCorrelation:
    sign = -1 if offline == "norm_log_loss" else 1
    gains_V = [sign * getattr(one, f"{offline}_gain") for one in variants]
    lifts_V = [getattr(one, online) for one in variants]
    offline_R = [sign * getattr(run, offline) for run in served]
    online_R = [getattr(run.value, online) for run in served]
    return RankCorrelation(
        offline=offline,
        online=online,
        spearman_variants=float(stats.spearmanr(gains_V, lifts_V).statistic),
        kendall_variants=float(stats.kendalltau(gains_V, lifts_V).statistic),
        spearman_runs=float(stats.spearmanr(offline_R, online_R).statistic),
    )
