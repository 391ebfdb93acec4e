"""Variants against each other on the slices of a sweep's test rows: levels, differences, intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.statistics.intervals import (
    FloatArray,
    Interval,
    UserWeightedAuc,
    Verdict,
    bootstrap_aucs,
    paired_difference,
    paired_share,
    percentile_interval,
    summarize_seeds,
    verdict,
)
from experiments.statistics.power import detectable_by
from experiments.sweeps.results import SweepResults
from features.progress import Progress
from ranking.metrics import RankingMetrics, evaluate, expected_roc_auc


@dataclass(frozen=True)
class Difference:
    """One variant minus another on one slice, over the seeds that both have.

    `auc` and `norm_logloss` carry the interval over seeds (training noise), `auc_users` the one over users
    (test-sample noise) around the same mean. `expected_auc` is the difference in AUC that the true click
    probabilities lead to expect, free of the noise of one draw of clicks; simulated data only.
    """

    seeds: int
    auc: Interval
    auc_users: Interval
    norm_logloss: Interval | None
    gain_share: float | None
    expected_auc: Interval | None = None

    @property
    def detectable(self) -> float | None:
        """The difference in AUC that these test impressions show in four of five samples; None without it."""
        return detectable_by(self.auc_users)

    @property
    def verdict(self) -> Verdict:
        """Whether the AUC is surely higher or lower, over seeds as well as over users."""
        return verdict(self.auc, self.auc_users)


@dataclass(frozen=True)
class Share:
    """Which part of a ceiling's gain over the baseline a variant reaches: 0.8 is 80 %.

    The intervals are as in `Difference`; their limits are None where the ceiling's own gain is not sure.
    """

    seeds: Interval
    users: Interval


@dataclass(frozen=True)
class Measurement:
    """One variant on one slice; None where the slice leaves a metric undefined, with the reason.

    `over_second` is the difference to the sweep's second baseline.
    """

    auc_mean: float | None
    auc_sd: float | None
    expected_auc_mean: float | None
    norm_logloss_mean: float | None
    norm_logloss_sd: float | None
    logloss_mean: float | None
    calibration_mean: float | None
    gauc_query_mean: float | None
    gauc_user_mean: float | None
    undefined: dict[str, str]
    difference: Difference | None
    over_second: Difference | None = None


class ScoredRuns:
    """Metrics of every run on every slice, and the same runs' AUCs on resampled users."""

    def __init__(self, results: SweepResults, *, resamples: int, rng_seed: int, progress: Progress) -> None:
        rows = results.rows
        self.resamples = resamples
        self.metrics: dict[tuple[str, int, str], RankingMetrics] = {}
        self.expected_auc: dict[tuple[str, int, str], float] = {}
        weighted: dict[tuple[str, int, str], UserWeightedAuc] = {}
        runs = [run for by_seed in results.runs.values() for run in by_seed.values()]
        for number, run in enumerate(runs):
            for key, mask_N in rows.slices.items():
                index = run.variant, run.seed, key
                clicked, logits, users = rows.clicked_N[mask_N], run.logits_N[mask_N], rows.users_N[mask_N]
                metrics = evaluate(clicked, logits, queries_N=rows.queries_N[mask_N], users_N=users)
                self.metrics[index] = metrics
                if metrics.auc is not None:
                    weighted[index] = UserWeightedAuc(clicked, logits, rows.drawn_N[mask_N])
                    if rows.click_probability_N is not None:
                        self.expected_auc[index] = expected_roc_auc(rows.click_probability_N[mask_N], logits)
            progress("evaluate runs", number + 1, len(runs))
        aucs_RM = bootstrap_aucs(
            list(weighted.values()),
            num_users=rows.num_drawn,
            resamples=resamples,
            rng=np.random.default_rng(rng_seed),
            progress=progress,
        )
        self.resampled = {index: aucs_RM[:, column] for column, index in enumerate(weighted)}
        self.seeds = {variant: tuple(by_seed) for variant, by_seed in results.runs.items()}

    def measure(
        self, variant: str, key: str, *, against: str | None, second: str | None, best_auc: float | None
    ) -> Measurement:
        """`variant` on one slice, beside the baselines that are named."""
        metrics = [self.metrics[variant, seed, key] for seed in self.seeds[variant]]
        auc = _spread([found.auc for found in metrics])
        norm_logloss = _spread([found.norm_log_loss for found in metrics])
        expected = [self.expected_auc.get((variant, seed, key)) for seed in self.seeds[variant]]
        return Measurement(
            auc_mean=auc[0],
            auc_sd=auc[1],
            expected_auc_mean=mean_of_known(expected),
            norm_logloss_mean=norm_logloss[0],
            norm_logloss_sd=norm_logloss[1],
            logloss_mean=mean_of_known([found.log_loss for found in metrics]),
            calibration_mean=mean_of_known([found.calibration for found in metrics]),
            gauc_query_mean=mean_of_known([found.gauc_query for found in metrics]),
            gauc_user_mean=mean_of_known([found.gauc_user for found in metrics]),
            undefined=metrics[0].undefined,
            difference=self.difference(variant, against, key, best_auc=best_auc) if against else None,
            over_second=self.difference(variant, second, key, best_auc=best_auc) if second else None,
        )

    def difference(
        self, variant: str, against: str, key: str, *, best_auc: float | None
    ) -> Difference | None:
        """`variant` minus `against` over common seeds; None without an AUC here or without a common seed."""
        seeds = self._common_seeds(variant, against)
        if not seeds or self.metrics[variant, seeds[0], key].auc is None:
            return None
        one, other = ([self.metrics[name, seed, key] for seed in seeds] for name in (variant, against))
        auc = paired_difference(_require(one, "auc"), _require(other, "auc"))
        expected = [
            [self.expected_auc[name, seed, key] for seed in seeds if (name, seed, key) in self.expected_auc]
            for name in (variant, against)
        ]
        reachable = None if best_auc is None else best_auc - float(np.mean(_require(other, "auc")))
        return Difference(
            seeds=len(seeds),
            auc=auc,
            auc_users=percentile_interval(auc.mean, self._resampled_difference(variant, against, key)),
            norm_logloss=paired_difference(_require(one, "norm_log_loss"), _require(other, "norm_log_loss")),
            gain_share=auc.mean / reachable if reachable is not None and reachable > 0 else None,
            expected_auc=paired_difference(*expected) if all(expected) else None,
        )

    def purchases_gap(self, variant: str, against: str) -> Difference | None:
        seeds = self._common_seeds(variant, against)
        keys = "has_purchases", "no_purchases"
        if not seeds or any(self.metrics[variant, seeds[0], key].auc is None for key in keys):
            return None
        gains = [
            [
                self.metrics[variant, seed, key].require("auc")
                - self.metrics[against, seed, key].require("auc")
                for seed in seeds
            ]
            for key in keys
        ]
        gap = paired_difference(gains[0], gains[1])
        resampled = [self._resampled_difference(variant, against, key) for key in keys]
        users = percentile_interval(gap.mean, resampled[0] - resampled[1])
        return Difference(seeds=len(seeds), auc=gap, auc_users=users, norm_logloss=None, gain_share=None)

    def share(self, variant: str, whole: str, against: str) -> Share | None:
        """`variant`'s gain over `against` as a share of that of `whole`, over all rows and common seeds.

        None without a common seed or an AUC, or if `whole` gains nothing.
        """
        seeds = [seed for seed in self._common_seeds(variant, against) if seed in self.seeds.get(whole, ())]
        if not seeds or self.metrics[variant, seeds[0], "all"].auc is None:
            return None
        aucs = {
            name: np.array([self.metrics[name, seed, "all"].require("auc") for seed in seeds])
            for name in (variant, whole, against)
        }
        of_seeds = paired_share(aucs[variant] - aucs[against], aucs[whole] - aucs[against])
        if of_seeds is None:
            return None
        part_R, whole_R = (
            self._resampled_difference(name, against, "all", seeds) for name in (variant, whole)
        )
        # a whole that loses in some resamples has no share there, so none is sure
        with np.errstate(invalid="ignore"):
            is_sure = bool((whole_R > 0).all())
        users = percentile_interval(of_seeds.mean, part_R / whole_R) if is_sure else None
        return Share(seeds=of_seeds, users=users or Interval(mean=of_seeds.mean, low=None, high=None))

    def _common_seeds(self, variant: str, against: str) -> list[int]:
        return [seed for seed in self.seeds[variant] if seed in self.seeds.get(against, ())]

    def _resampled_difference(
        self, variant: str, against: str, key: str, seeds: Sequence[int] | None = None
    ) -> FloatArray:
        """Seed-averaged AUC difference in each resample of users, over `seeds` or the common ones."""
        seeds = seeds or self._common_seeds(variant, against)
        differences = [
            self.resampled[variant, seed, key] - self.resampled[against, seed, key] for seed in seeds
        ]
        return np.asarray(np.mean(differences, axis=0), dtype=np.float64)


def _require(metrics: list[RankingMetrics], name: str) -> list[float]:
    return [found.require(name) for found in metrics]


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    summary = summarize_seeds(known)
    return summary.mean, summary.sd


def mean_of_known(values: Sequence[float | None]) -> float | None:
    return _spread(values)[0]
