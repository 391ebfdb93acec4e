"""The result of a sweep as one value, and the machine-readable form of it: `table2.json`."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from experiments.statistics.intervals import Interval
from experiments.sweeps.comparison import Difference, Measurement
from experiments.sweeps.results import SweepResults, UnusableRun
from ranking.metrics import CalibrationCurve


@dataclass(frozen=True)
class SliceFacts:
    """What is true of a slice whatever the model: its size, and the best AUC any ranker could reach."""

    title: str
    rows: int
    clicks: int
    users: int
    best_auc: float | None
    best_auc_expected: float | None


@dataclass(frozen=True)
class VariantResult:
    """Everything measured of one variant. `purchases_gap` is its AUC gain among users with purchases minus
    its gain among those without (None for the baseline)."""

    name: str
    title: str
    seeds: tuple[int, ...]
    slices: dict[str, Measurement]
    purchases_gap: Difference | None
    calibration: CalibrationCurve
    learning_curves: dict[int, tuple[list[float], list[float]]]
    rows_per_s: float | None


@dataclass(frozen=True)
class Table2:
    """The report's content; `report_tables`, `report_html` and `to_json` show it."""

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
    def seeds(self) -> int:
        """Seeds that every variant shown has finished."""
        return min(len(variant.seeds) for variant in self.variants.values())

    @property
    def missing(self) -> tuple[UnusableRun, ...]:
        """Runs that were asked for and could not be used."""
        return self.results.unusable


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
    """
    record = table.results.record
    everything = table.slices["all"]
    return {
        "name": record.name,
        "simulated": record.simulated,
        "data": record.data,
        "seeds": table.seeds,
        "seeds_asked": len(record.seeds),
        "baseline": table.baseline,
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
        "rows_per_s": variant.rows_per_s,
        "slices": {
            key: {"rows": slices[key].rows, "clicks": slices[key].clicks, "best_auc": slices[key].best_auc}
            | _measurement(found)
            for key, found in variant.slices.items()
        },
    }


def _measurement(found: Measurement) -> dict[str, Any]:
    content = asdict(found)
    difference = content.pop("difference")
    if not found.undefined:
        del content["undefined"]
    if difference is not None and found.difference is not None:
        content |= _difference(found.difference)
    return content


def _difference(difference: Difference) -> dict[str, Any]:
    content: dict[str, Any] = {"diff_seeds": difference.seeds}
    content |= _limits("auc_diff", difference.auc, difference.auc_users)
    if difference.norm_logloss is not None:
        content |= _limits("norm_logloss_diff", difference.norm_logloss)
    if difference.expected_auc is not None:
        content |= _limits("expected_auc_diff", difference.expected_auc)
    return content | {"gain_share": difference.gain_share}


def _limits(name: str, seeds: Interval, users: Interval | None = None) -> dict[str, Any]:
    content = {f"{name}_mean": seeds.mean, f"{name}_low": seeds.low, f"{name}_high": seeds.high}
    if users is not None:
        content |= {f"{name}_users_low": users.low, f"{name}_users_high": users.high}
    return content
