"""Table 2 of the paper, per slice, with intervals (design section 6), and the content of `table2.json`.

Every number is computed from the runs' test predictions, so a report can be made again at will. The
reachable gain needs the true click probabilities, which only simulated data has: the best AUC is that of
the true probabilities as scores, on the very labels the variants are tested on.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.statistics.intervals import Interval
from experiments.sweeps.comparison import Difference, Measurement, ScoredRuns, Share, mean_of_known
from experiments.sweeps.results import SLICE_TITLES, EvaluatedRows, SweepResults, UnusableRun, load_sweep
from features.progress import Progress, silent
from ranking.metrics import (
    CalibrationCurve,
    UndefinedMetricError,
    calibration_curve,
    expected_roc_auc,
    roc_auc,
)

CALIBRATION_BINS = 10
#: A slice of fewer impressions says so: one click more or less moves its AUC.
FEW_ROWS = 1_000
#: Behind the title of every ceiling, wherever it is shown.
CEILING_MARK = " [ceiling: knows the simulated truth]"


@dataclass(frozen=True)
class SliceFacts:
    """What is true of a slice whatever the model: its size, and the best AUC any ranker could reach."""

    title: str
    rows: int
    clicks: int
    users: int
    best_auc: float | None
    best_auc_expected: float | None

    @property
    def name(self) -> str:
        """Its title; with how many impressions it has, where they are few."""
        return f"{self.title} (only {self.rows:,} impressions)" if self.rows < FEW_ROWS else self.title


@dataclass(frozen=True)
class VariantResult:
    """Everything measured of one variant. `purchases_gap` is its AUC gain among users with purchases minus
    its gain among those without (None for the baseline); `shares` are its parts of the ceilings' gains."""

    name: str
    title: str
    seeds: tuple[int, ...]
    slices: dict[str, Measurement]
    purchases_gap: Difference | None
    calibration: CalibrationCurve
    learning_curves: dict[int, tuple[list[float], list[float]]]
    rows_per_s: float | None
    is_ceiling: bool = False
    shares: dict[str, Share] = field(default_factory=dict)


@dataclass(frozen=True)
class Table2:
    """A sweep's variants compared; `experiments.reports.table2` shows it."""

    results: SweepResults
    slices: dict[str, SliceFacts]
    variants: dict[str, VariantResult]
    pairs: dict[tuple[str, str], Difference]
    notes: tuple[str, ...]
    bootstrap_resamples: int
    created: datetime

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are compared with."""
        return self.results.record.baseline

    @property
    def second_baseline(self) -> VariantResult | None:
        """The variant that the others are compared with besides, if there is one and it has a run."""
        return self.variants.get(self.results.record.second_baseline or "")

    @property
    def compared(self) -> list[tuple[VariantResult, Difference]]:
        """What the table is about, with its difference to the baseline: neither baselines nor ceilings."""
        return [
            (variant, difference)
            for variant in self.variants.values()
            if not variant.is_ceiling
            and variant is not self.second_baseline
            and (difference := variant.slices["all"].difference) is not None
        ]

    @property
    def best(self) -> tuple[VariantResult, Difference] | None:
        """Of `compared` the one with the largest difference: of those that surely gain, if any does."""
        sure = [one for one in self.compared if one[1].verdict == "above"]
        return max(sure or self.compared, key=lambda one: one[1].auc.mean, default=None)

    @property
    def best_share(self) -> tuple[VariantResult, VariantResult, Share] | None:
        """The best variant, the ceiling that gains most, and the share of its gain that the first reaches."""
        if self.best is None:
            return None
        best, _ = self.best
        ceilings = [self.variants[name] for name in best.shares]
        highest = max(ceilings, key=lambda one: one.slices["all"].auc_mean or 0.0, default=None)
        return None if highest is None else (best, highest, best.shares[highest.name])

    @property
    def seeds(self) -> int:
        """Seeds that every variant shown has finished."""
        return min(len(variant.seeds) for variant in self.variants.values())

    @property
    def missing(self) -> tuple[UnusableRun, ...]:
        """Runs that were asked for and could not be used."""
        return self.results.unusable


def build_report(
    sweep: Path, *, rng_seed: int = 0, bootstrap_resamples: int = 1000, progress: Progress = silent
) -> Table2:
    """Compare the finished runs of a sweep folder. The same folder and `rng_seed` give the same numbers.

    Raises:
        SweepResultsError: the folder is not a sweep, or its runs cannot be compared.
    """
    results = load_sweep(sweep)
    scored = ScoredRuns(results, resamples=bootstrap_resamples, rng_seed=rng_seed, progress=progress)
    baseline, second = results.record.baseline, results.record.second_baseline
    ceilings = [name for name in results.record.ceilings if name in results.runs]
    slices = {key: _slice_facts(results.rows, key) for key in results.rows.slices}
    variants = {}
    for name, runs in results.runs.items():
        compared = name != baseline and baseline in results.runs
        variants[name] = VariantResult(
            name=name,
            title=_title(results, name),
            seeds=tuple(runs),
            slices={
                key: scored.measure(
                    name,
                    key,
                    against=baseline if compared else None,
                    best_auc=facts.best_auc,
                    second=second if compared and name != second and second in results.runs else None,
                )
                for key, facts in slices.items()
            },
            purchases_gap=scored.purchases_gap(name, baseline) if compared else None,
            calibration=calibration_curve(
                np.tile(results.rows.clicked_N, len(runs)),
                np.concatenate([run.logits_N for run in runs.values()]),
                num_bins=CALIBRATION_BINS,
            ),
            learning_curves={seed: _learning_curve(run.history) for seed, run in runs.items()},
            rows_per_s=mean_of_known([run.record.get("rows_per_s") for run in runs.values()]),
            is_ceiling=name in ceilings,
            shares={
                ceiling: share
                for ceiling in ceilings
                if compared
                and name not in ceilings
                and (share := scored.share(name, ceiling, baseline)) is not None
            },
        )
    pairs = {}
    for earlier, later in itertools.combinations(variants, 2):
        difference = scored.difference(later, earlier, "all", best_auc=slices["all"].best_auc)
        if difference is not None:
            pairs[later, earlier] = difference
    return Table2(
        results=results,
        slices=slices,
        variants=variants,
        pairs=pairs,
        notes=_notes(results),
        bootstrap_resamples=bootstrap_resamples,
        created=datetime.now(UTC),
    )


def _title(results: SweepResults, name: str) -> str:
    title = results.record.titles.get(name) or variant_title(name)
    return title + CEILING_MARK if name in results.record.ceilings else title


def variant_title(name: str) -> str:
    """A readable title from a variant's name: `dcn_pq_sim_history` is "DCN + product + query + similarity +
    purchase history"."""
    words = {"dcn": "DCN", "p": "product", "q": "query", "pq": "product + query", "sim": "similarity"}
    words |= {"history": "purchase history"}
    parts = [words.get(token, token) for token in name.split("_") if token != "random"]
    if len(parts) == 1 and name == "dcn":
        return "DCN baseline"
    return " + ".join(parts) + (" (random initialisation)" if "random" in name.split("_") else "")


def to_json(table: Table2) -> dict[str, Any]:
    """The content of `table2.json`: every number that the Markdown and the page show, by name.

    `auc_diff_low/high` is the interval over seeds, `auc_diff_users_low/high` the one over users. `seeds` is
    the number that every variant has finished; it falls short of `seeds_asked` while runs are missing.
    `over_second_baseline` holds the same differences to `second_baseline`; `share_of_ceiling` of a variant
    is its share of each ceiling's gain, that of the table the best variant's share of the highest ceiling's.
    """
    record = table.results.record
    everything = table.slices["all"]
    return {
        "name": record.name,
        "simulated": record.simulated,
        "constructed": record.constructed,
        "data": record.data,
        "seeds": table.seeds,
        "seeds_asked": len(record.seeds),
        "baseline": table.baseline,
        "second_baseline": record.second_baseline,
        "ceilings": [name for name, variant in table.variants.items() if variant.is_ceiling],
        "share_of_ceiling": _best_share(table),
        "best_auc": everything.best_auc,
        "best_auc_expected": everything.best_auc_expected,
        "rows": everything.rows,
        "clicks": everything.clicks,
        "ctr": everything.clicks / everything.rows,
        "users": everything.users,
        "variants": {name: _variant(variant, table.slices) for name, variant in table.variants.items()},
        "pairs": [
            {"variant": variant, "against": against, **_difference(difference)}
            for (variant, against), difference in table.pairs.items()
        ],
        "slices": {key: asdict(facts) for key, facts in table.slices.items()},
        "floor": record.floor.model_dump() if record.floor else None,
        "missing_runs": [asdict(run) for run in table.missing],
        "notes": list(table.notes),
        "bootstrap_resamples": table.bootstrap_resamples,
        "created": table.created.isoformat(timespec="seconds"),
    }


def _variant(variant: VariantResult, slices: dict[str, SliceFacts]) -> dict[str, Any]:
    gap = variant.purchases_gap
    return {
        "title": variant.title,
        "seeds": list(variant.seeds),
        **_measurement(variant.slices["all"]),
        **({} if gap is None else _limits("purchases_gap", gap.auc, gap.auc_users)),
        **({"is_ceiling": True} if variant.is_ceiling else {}),
        **({"share_of_ceiling": _shares(variant)} if variant.shares else {}),
        "rows_per_s": variant.rows_per_s,
        "slices": {
            key: {"rows": slices[key].rows, "clicks": slices[key].clicks, "best_auc": slices[key].best_auc}
            | _measurement(found)
            for key, found in variant.slices.items()
        },
    }


def _shares(variant: VariantResult) -> dict[str, Any]:
    return {name: _limits("share", share.seeds, share.users) for name, share in variant.shares.items()}


def _best_share(table: Table2) -> dict[str, Any] | None:
    if table.best_share is None:
        return None
    best, ceiling, share = table.best_share
    return {"variant": best.name, "ceiling": ceiling.name, **_limits("share", share.seeds, share.users)}


def _measurement(found: Measurement) -> dict[str, Any]:
    content = asdict(found)
    for name in ("difference", "over_second"):
        del content[name]
    if not found.undefined:
        del content["undefined"]
    if found.difference is not None:
        content |= _difference(found.difference)
    if found.over_second is not None:
        content["over_second_baseline"] = _difference(found.over_second)
    return content


def _difference(difference: Difference) -> dict[str, Any]:
    content: dict[str, Any] = {"diff_seeds": difference.seeds}
    content |= _limits("auc_diff", difference.auc, difference.auc_users)
    if difference.norm_logloss is not None:
        content |= _limits("norm_logloss_diff", difference.norm_logloss)
    if difference.expected_auc is not None:
        content |= _limits("expected_auc_diff", difference.expected_auc)
    return content | {"gain_share": difference.gain_share, "auc_diff_users_detectable": difference.detectable}


def _limits(name: str, seeds: Interval, users: Interval | None = None) -> dict[str, Any]:
    content = {f"{name}_mean": seeds.mean, f"{name}_low": seeds.low, f"{name}_high": seeds.high}
    if users is not None:
        content |= {f"{name}_users_low": users.low, f"{name}_users_high": users.high}
    return content


def _slice_facts(rows: EvaluatedRows, key: str) -> SliceFacts:
    mask_N = rows.slices[key]
    clicked = rows.clicked_N[mask_N]
    best: float | None = None
    expected: float | None = None
    if rows.click_probability_N is not None:
        probability: npt.NDArray[np.float64] = rows.click_probability_N[mask_N]
        try:
            best = roc_auc(clicked, probability)
            expected = expected_roc_auc(probability, probability)
        except UndefinedMetricError:
            # Each variant's measurement of this slice says why it has no AUC.
            best = expected = None
    return SliceFacts(
        title=SLICE_TITLES[key],
        rows=len(clicked),
        clicks=int(clicked.sum()),
        users=len(np.unique(rows.users_N[mask_N & (rows.users_N >= 0)])),
        best_auc=best,
        best_auc_expected=expected,
    )


def _notes(results: SweepResults) -> tuple[str, ...]:
    notes = list(results.notes)
    if not results.rows.slices["has_purchases"].any():
        notes.append(
            "No test impression has a purchase before it: every history is empty, and a variant that reads "
            "it knows no more than without."
        )
    for name in results.record.variants:
        if name not in results.runs:
            notes.append(f"The variant {name} has no finished run and is not in the table.")
    if results.unusable:
        asked = len(results.record.variants) * len(results.record.seeds)
        notes.append(
            f"{len(results.unusable)} of {asked} runs are missing; "
            "differences use the seeds that both sides have."
        )
    commits = sorted(
        {str(run.environment.get("commit")) for runs in results.runs.values() for run in runs.values()}
    )
    if len(commits) > 1:
        notes.append(f"The runs come from {len(commits)} commits: {', '.join(commits)}.")
    return tuple(notes)


def _learning_curve(history: Sequence[dict[str, object]]) -> tuple[list[float], list[float]]:
    """Rows seen and validation AUC of each evaluation that has both."""
    points = [(point.get("rows"), point.get("validation_auc")) for point in history]
    known = [
        (float(x), float(y)) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)
    ]
    return [x for x, _ in known], [y for _, y in known]
