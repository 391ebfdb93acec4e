"""Table 2 of the paper, per slice, with intervals (design section 6).

Every number is computed from the runs' test predictions, so a report can be made again at will. The
reachable gain needs the true click probabilities, which only simulated data has: the best AUC is that of
the true probabilities as scores, on the very labels the variants are tested on.
"""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.reports.page import Absent, Section
from experiments.reports.table2.page import to_html
from experiments.reports.table2.text import to_markdown
from experiments.sweeps.comparison import ScoredRuns, mean_of_known
from experiments.sweeps.results import SLICE_TITLES, EvaluatedRows, SweepResults, load_sweep
from experiments.sweeps.table2 import SliceFacts, Table2, VariantResult, to_json, variant_title
from features.artifacts import atomic_write_bytes
from features.progress import Progress, silent
from ranking.metrics import (
    UndefinedMetricError,
    calibration_curve,
    expected_roc_auc,
    roc_auc,
)

CALIBRATION_BINS = 10


def build_report(
    sweep: Path, *, rng_seed: int = 0, bootstrap_resamples: int = 1000, progress: Progress = silent
) -> Table2:
    """Compare the finished runs of a sweep folder. The same folder and `rng_seed` give the same numbers.

    Raises:
        SweepResultsError: the folder is not a sweep, or its runs cannot be compared.
    """
    results = load_sweep(sweep)
    scored = ScoredRuns(results, resamples=bootstrap_resamples, rng_seed=rng_seed, progress=progress)
    baseline = results.record.baseline
    slices = {key: _slice_facts(results.rows, key) for key in results.rows.slices}
    variants = {}
    for name, runs in results.runs.items():
        compared = name != baseline and baseline in results.runs
        variants[name] = VariantResult(
            name=name,
            title=results.record.titles.get(name) or variant_title(name),
            seeds=tuple(runs),
            slices={
                key: scored.measure(
                    name, key, against=baseline if compared else None, best_auc=facts.best_auc
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


def write_report(table: Table2, out: Path, *, evidence: Sequence[Section | Absent] = ()) -> dict[str, Path]:
    """Write `table2.json`, `table2.md` and `report.html` into `out`, each whole or not at all.

    Args:
        evidence: what `experiments.reports.evidence.gather` found for the page beside table 2.

    Returns:
        The path of each, by kind: "json", "markdown", "page".
    """
    contents = {
        "json": ("table2.json", json.dumps(to_json(table), indent=2, ensure_ascii=False, allow_nan=False)),
        "markdown": ("table2.md", to_markdown(table)),
        "page": ("report.html", to_html(table, evidence)),
    }
    paths = {}
    for kind, (name, text) in contents.items():
        paths[kind] = out / name
        atomic_write_bytes(paths[kind], (text.rstrip() + "\n").encode())
    return paths


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
        users=len(np.unique(rows.users_N[mask_N])),
        best_auc=best,
        best_auc_expected=expected,
    )


def _notes(results: SweepResults) -> tuple[str, ...]:
    notes = list(results.notes)
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
