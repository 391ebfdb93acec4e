"""Table 2 over worlds: each variant's AUC and what it gains, `worlds_<preset>.json`.

Differences are taken run by run, between runs of the same world and seeds, before any mean. A variant that
reads no vectors of the encoders stands against every encoder seed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from experiments.marketplace.config import Candidates
from experiments.runtime.environment import provenance_of
from experiments.sweeps.results import SWEEP, SweepResults, load_sweep
from experiments.sweeps.sweep import PlannedRun, tables_read
from experiments.sweeps.table2 import variant_title
from experiments.worlds.estimates import OverWorlds, PerRun, minus, over_worlds, share_over_worlds
from experiments.worlds.plan import PlannedSweep, WorldsConfig, plan
from features.artifacts import ResultFile
from features.progress import Progress, silent
from ranking.metrics import UndefinedMetricError, expected_roc_auc, roc_auc

#: Slices of the test impressions that are compared.
SLICES = ("all", "has_purchases", "no_purchases")
#: A variant of one slice, by run.
Scores = dict[tuple[str, str], dict[tuple[int, ...], float]]


class VariantOverWorlds(ResultFile):
    """One variant; what does not apply to it (of the baseline, without a ceiling, …) is None."""

    title: str
    runs: int
    auc: OverWorlds
    #: AUC on slices of the test impressions.
    slices: dict[str, OverWorlds]
    #: Minus the baseline on the same runs; by slice, too.
    auc_diff: OverWorlds | None = None
    slice_diffs: dict[str, OverWorlds] = Field(default_factory=dict)
    #: The same in the AUC that the true click probabilities lead to expect, free of one draw of clicks.
    expected_auc_diff: OverWorlds | None = None
    #: Minus the second baseline.
    second_diff: OverWorlds | None = None
    #: Of the gain over the baseline that the true click probabilities would have.
    reachable_share: OverWorlds | None = None
    #: Of the gain of the best ceiling: the same ranker with vectors of the true facts.
    ceiling_share: OverWorlds | None = None
    #: Minus the variant with the same vectors and no history: what the history itself brings.
    history_gain: OverWorlds | None = None
    history_against: str | None = None
    #: The gain over the baseline among users with purchases minus that among those without.
    purchases_gap: OverWorlds | None = None


class PairOverWorlds(ResultFile):
    """`variant` minus `against`."""

    variant: str
    against: str
    auc_diff: OverWorlds
    expected_auc_diff: OverWorlds | None = None


class Table2OverWorlds(ResultFile):
    """`worlds_<preset>.json`."""

    simulated: bool = True
    preset: Candidates
    size: str
    worlds: tuple[int, ...]
    encoder_seeds: int
    ranker_seeds: int
    baseline: str
    second_baseline: str | None
    #: Variants that are bounds, no rivals, and the best of them.
    ceilings: tuple[str, ...] = ()
    ceiling: str | None
    #: Test impressions of a world, and the AUC of the true click probabilities.
    rows: OverWorlds
    best_auc: OverWorlds
    variants: dict[str, VariantOverWorlds]
    pairs: list[PairOverWorlds]
    #: Runs that were asked for and could not be used, and why.
    missing: tuple[str, ...] = ()
    #: Command, commits, machine and time of what was measured.
    provenance: dict[str, Any]

    def pair(self, variant: str, against: str) -> OverWorlds | None:
        """`variant` minus `against` in AUC, if they were compared in this order."""
        found = (pair for pair in self.pairs if (pair.variant, pair.against) == (variant, against))
        return next((pair.auc_diff for pair in found), None)


def build_table2(
    config: WorldsConfig,
    out: Path,
    preset: Candidates,
    *,
    command: str | None = None,
    progress: Progress = silent,
) -> Table2OverWorlds | None:
    """Compare what is finished; None if nothing is.

    Raises:
        SweepResultsError: runs of one world cannot be compared.
    """
    auc: Scores = {}
    expected: Scores = {}
    best: dict[tuple[int, ...], float] = {}
    rows: dict[tuple[int, ...], float] = {}
    missing: list[str] = []
    environments: list[dict[str, Any]] = []
    sweeps = [sweep for sweep in plan(config, out) if sweep.preset == preset]
    for done, sweep in enumerate(sweeps):
        progress(f"compare {preset}", done, len(sweeps))
        if not (sweep.folder / SWEEP).is_file():
            missing.append(f"{sweep.name}: nothing is finished")
            continue
        found = load_sweep(sweep.folder)
        reasons = {(run.variant, run.seed): run.reason for run in found.unusable}
        for run in sweep.runs:
            key = run.config.variant, run.config.seed
            if run.config.seed not in found.runs.get(key[0], {}):
                missing.append(f"{sweep.name}: {run.name}: {reasons.get(key, 'not trained yet')}")
        _read_world(sweep, found, auc, expected)
        environments += [used.environment for runs in found.runs.values() for used in runs.values()]
        probability_N, clicked_N = found.rows.click_probability_N, found.rows.clicked_N
        if probability_N is not None:
            best[sweep.world, 0, 0] = roc_auc(clicked_N, probability_N)
        rows[sweep.world, 0, 0] = len(clicked_N)
    progress(f"compare {preset}", len(sweeps), len(sweeps))
    if not auc:
        return None
    return _table(config, sweeps, preset, auc, expected, best, rows).model_copy(
        update={"missing": tuple(missing), "provenance": provenance_of(command, environments)}
    )


def _read_world(sweep: PlannedSweep, found: SweepResults, auc: Scores, expected: Scores) -> None:
    """Add the scores of one world. What does not depend on the encoders has the same for each of them."""
    seeds = {seed: number for number, seed in enumerate(sweep.config.seeds)}
    copies = max(len(names) for names in sweep.variants.values())
    for variant, names in sweep.variants.items():
        for encoder in range(copies):
            for seed, run in found.runs.get(names[encoder % len(names)], {}).items():
                if seed not in seeds:  # of an earlier call that asked for more
                    continue
                key = sweep.world, encoder, seeds[seed]
                for slice_name in SLICES:
                    mask_N = found.rows.slices[slice_name]
                    logits_N, clicked_N = run.logits_N[mask_N], found.rows.clicked_N[mask_N]
                    try:
                        auc.setdefault((variant, slice_name), {})[key] = roc_auc(clicked_N, logits_N)
                    except UndefinedMetricError:  # clicks only, or none
                        continue
                    if found.rows.click_probability_N is not None:
                        probability_N = found.rows.click_probability_N[mask_N]
                        value = expected_roc_auc(probability_N, logits_N)
                        expected.setdefault((variant, slice_name), {})[key] = value


def _table(
    config: WorldsConfig,
    sweeps: list[PlannedSweep],
    preset: Candidates,
    auc: Scores,
    expected: Scores,
    best: PerRun,
    rows: PerRun,
) -> Table2OverWorlds:
    sweep = config.compared()
    names = [name for name in sweep.variants if (name, "all") in auc]
    runs = {run.config.variant: run for run in sweeps[0].runs}
    ceilings = tuple(name for name in names if sweep.variants[name].ceiling)
    ceiling = _best_of(ceilings, auc)
    base = {part: auc.get((sweep.baseline, part), {}) for part in SLICES}
    reachable = {
        run: best[run[0], 0, 0] - value for run, value in base["all"].items() if (run[0], 0, 0) in best
    }

    def variant(name: str) -> VariantOverWorlds:
        own = auc[name, "all"]
        gains = {part: minus(auc.get((name, part), {}), base[part]) for part in SLICES}
        compared = name != sweep.baseline
        against = _without_history(name, runs)
        ceiling_gain = {} if ceiling is None else minus(auc[ceiling, "all"], base["all"])
        second = auc.get((sweep.second_baseline or "", "all"), {})
        return VariantOverWorlds(
            title=sweep.variants[name].title or variant_title(name),
            runs=len(own if len(sweeps[0].variants[name]) > 1 else {(world, seed) for world, _, seed in own}),
            auc=_known(own),
            slices={part: _known(auc[name, part]) for part in SLICES if (name, part) in auc},
            auc_diff=over_worlds(gains["all"]) if compared else None,
            slice_diffs={
                part: found for part in SLICES if compared and (found := over_worlds(gains[part])) is not None
            },
            expected_auc_diff=_expected(name, sweep.baseline, expected) if compared else None,
            second_diff=over_worlds(minus(own, second)) if name != sweep.second_baseline else None,
            reachable_share=share_over_worlds(gains["all"], reachable) if compared else None,
            ceiling_share=(
                share_over_worlds(gains["all"], ceiling_gain) if compared and name != ceiling else None
            ),
            history_gain=over_worlds(minus(own, auc.get((against or "", "all"), {}))),
            history_against=against if against in names else None,
            purchases_gap=(
                over_worlds(minus(gains["has_purchases"], gains["no_purchases"])) if compared else None
            ),
        )

    return Table2OverWorlds(
        preset=preset,
        size=config.size,
        worlds=config.worlds,
        encoder_seeds=config.encoder_seeds,
        ranker_seeds=config.ranker_seeds,
        baseline=sweep.baseline,
        second_baseline=sweep.second_baseline,
        ceilings=ceilings,
        ceiling=ceiling,
        rows=_known(rows),
        best_auc=_known(best),
        provenance={},
        variants={name: variant(name) for name in names},
        pairs=[
            PairOverWorlds(
                variant=one,
                against=other,
                auc_diff=difference,
                expected_auc_diff=_expected(one, other, expected),
            )
            for place, other in enumerate(names)
            for one in names[place + 1 :]
            if (difference := over_worlds(minus(auc[one, "all"], auc[other, "all"]))) is not None
        ],
    )


def _known(values: PerRun) -> OverWorlds:
    found = over_worlds(values)
    assert found is not None  # of what has at least one run
    return found


def _expected(one: str, other: str, expected: Scores) -> OverWorlds | None:
    return over_worlds(minus(expected.get((one, "all"), {}), expected.get((other, "all"), {})))


def _best_of(names: Iterable[str], auc: Scores) -> str | None:
    """The one with the highest mean over worlds."""
    return max(names, key=lambda name: _known(auc[name, "all"]).mean, default=None)


def _without_history(name: str, runs: Mapping[str, PlannedRun]) -> str | None:
    """The variant that reads the same vectors of products and queries, and no purchases."""
    semantic = runs[name].config.ranker.semantic
    if semantic is None or "history" not in semantic.entities:
        return None
    read = tables_read(runs.values())
    for other, run in runs.items():
        found = run.config.ranker.semantic
        if (
            found is not None
            and read[other] == read[name]
            and set(found.entities) == set(semantic.entities) - {"history"}
            and found.initialisation == semantic.initialisation
            and found.reads == semantic.reads
        ):
            return other
    return None
