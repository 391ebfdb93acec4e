"""Importance of the features of one or several trained runs: every method, slice and seed, in one report.

Shapes: R runs, F features.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.importance.correlated import CandidatePair, correlated_pairs, described
from experiments.importance.model_features import features_of, groups_of, joined
from experiments.importance.result import ALL, ImportanceReport
from experiments.importance.run_parts import MeasureOptions, Parts, RunMeasurement
from experiments.importance.slices import Partition, partitions_of, whole
from experiments.importance.split_rows import SplitRows, open_split
from experiments.importance.summary import (
    agreement_of,
    base_of,
    convergence_of,
    entries_of,
    mean_importance,
    slice_rows_of,
)
from experiments.runtime.environment import commit, environment
from features.feature_set import FeatureSet
from features.progress import Progress, silent
from ranking.run import RunConfig, input_fingerprints


def measure(
    folders: Sequence[Path],
    options: MeasureOptions,
    *,
    command: str,
    parts: Path | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> ImportanceReport:
    """Measure the runs in `folders` and combine them.

    Args:
        parts: folder of finished parts, from which an interrupted call goes on.
        scratch: where the decoded columns of the split lie while this runs.

    Raises:
        ValueError: no run, runs of different variants or features, or a run that is not finished.
    """
    configs = _configs(folders)
    feature_set = FeatureSet.open(configs[0].features)
    features = features_of(feature_set.manifest, configs[0].ranker)
    groups = groups_of(feature_set.manifest, configs[0].ranker)
    with open_split(feature_set, options.split, scratch=scratch) as rows:
        partitions, notes = _partitions(rows, feature_set, options)
        runs = [
            RunMeasurement(
                folder,
                config,
                feature_set,
                rows,
                options,
                partitions,
                Parts(parts),
                progress,
                of=len(folders),
            )
            for folder, config in zip(folders, configs, strict=True)
        ]
        measured = [run.measure([*features, *groups]) for run in runs]
        pairs = []
        if options.pairs and "permutation" in options.methods:
            single = mean_importance(measured, features)
            layout = runs[0].layout()
            candidates = correlated_pairs(layout, rows, features, single, count=options.pairs)
            joint = _joint(runs, candidates)
            pairs = [
                described(pair, single_a=single[pair.a.key], single_b=single[pair.b.key], joint=loss)
                for pair, loss in zip(candidates, joint, strict=True)
            ]
    sweep = sweep_of(folders[0])
    return ImportanceReport(
        command=command,
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=bool(sweep.get("simulated", False)),
        data=str(sweep.get("name", configs[0].features)),
        split=options.split,
        variant=configs[0].variant,
        runs=tuple(folder.as_posix() for folder in folders),
        seeds=tuple(config.seed for config in configs),
        repeats=options.repeats,
        permutation_seed=options.permutation_seed,
        rows=len(rows),
        clicks=measured[0].base[ALL].clicks,
        base=base_of(measured),
        slices=slice_rows_of(measured),
        features=tuple(entries_of(measured, [*features, *groups])),
        baselines=runs[0].baseline_words(features),
        agreement=agreement_of(measured, features),
        correlated_pairs=tuple(pairs),
        convergence_delta=convergence_of(measured),
        notes=tuple(notes),
        environment=environment(),
    )


def _configs(folders: Sequence[Path]) -> list[RunConfig]:
    if not folders:
        raise ValueError("importance needs at least one run folder")
    configs: list[RunConfig] = []
    for folder in folders:
        try:
            configs.append(RunConfig.model_validate_json((folder / "config.json").read_text()))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not a run: it has no config.json") from None
        if not (folder / "run.json").exists():
            raise ValueError(f"the run in {folder} is not finished: it has no run.json; train it to its end")
        first, other = configs[0], configs[-1]
        if other.ranker != first.ranker or input_fingerprints(other) != input_fingerprints(first):
            raise ValueError(
                f"{folder} and {folders[0]} differ in more than their seed (ranker, features or tables); "
                "importance combines seeds of one variant: give each variant a report of its own"
            )
    return configs


def _partitions(
    rows: SplitRows, feature_set: FeatureSet, options: MeasureOptions
) -> tuple[list[Partition], list[str]]:
    if not options.slices:
        return [whole()], []
    found, notes = partitions_of(rows, feature_set)
    return [whole(), *found], notes


def _joint(runs: Iterable[RunMeasurement], pairs: Sequence[CandidatePair]) -> list[float]:
    """Loss of AUC by permuting both, for each pair, mean over runs."""
    if not pairs:
        return []
    groups = [joined(pair.name, (pair.a, pair.b)) for pair in pairs]
    by_run = [run.joint(groups) for run in runs]
    return [mean_importance(by_run, [group])[group.key] for group in groups]


def sweep_of(folder: Path) -> dict[str, object]:
    """The sweep.json above a run folder, empty if it is no part of a sweep."""
    path = folder.resolve().parent.parent / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
