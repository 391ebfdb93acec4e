"""Importance of the features of one or several trained runs: every method, slice and seed, in one report.

Shapes: R runs, F features.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from experiments.importance.correlated import CandidatePair, correlated_pairs, described
from experiments.importance.model_features import features_of, groups_of, joined
from experiments.importance.result import ALL, ImportanceReport
from experiments.importance.run_parts import MeasureOptions, Parts, RunMeasurement
from experiments.importance.slices import partitions_of, whole
from experiments.importance.split_rows import open_split
from experiments.importance.summary import (
    agreement_of,
    base_of,
    convergence_of,
    entries_of,
    mean_importance,
    slice_rows_of,
)
from experiments.runtime.environment import commit, environment
from experiments.runtime.job_pool import Job, JobProgress, run_jobs
from features.feature_set import FeatureSet
from features.progress import Progress, silent
from ranking.run import RunConfig, input_fingerprints, run_config


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
        found, notes = partitions_of(rows, feature_set) if options.slices else ([], [])
        partitions = [whole(), *found]
        runs = [
            RunMeasurement(folder, config, feature_set, rows, options, partitions, Parts(parts), progress)
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
        constructed=bool(sweep.get("constructed", False)),
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


def measure_parts(
    folders: Sequence[Path],
    options: MeasureOptions,
    *,
    parts: Path,
    scratch: Path,
    processes: int,
    threads: int,
    progress: Progress,
) -> None:
    """Fill `parts` with all that `measure` needs of each run alone, several seeds at the same time.

    What fails is left to `measure`, which computes what it does not find, or says what is wrong.
    """
    shares = [folders[first::processes] for first in range(min(processes, len(folders)))]
    jobs = [
        Job(
            name=share[0].name,
            run=partial(_measure_share, share, replace(options, pairs=0), parts, scratch),
            folder=parts / share[0].name,
        )
        for share in shares
    ]

    def tell(job: JobProgress) -> None:
        if not job.ended:
            progress(job.stage, job.done, job.total)

    run_jobs(jobs, processes=len(jobs), threads=threads, on_progress=tell)


def _measure_share(
    folders: Sequence[Path], options: MeasureOptions, parts: Path, scratch: Path, tell: Progress
) -> None:
    measure(folders, options, command="", parts=parts, scratch=scratch, progress=tell)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders as given; the folder of a sweep's variant stands for its finished runs, by seed.

    Raises:
        ValueError: a folder is neither, or is a whole sweep.
    """
    found: list[Path] = []
    for path in paths:
        if (path / "config.json").exists():
            found.append(path)
            continue
        if (path / "sweep.json").exists():
            variants = sorted({seed.parent.name for seed in path.glob("*/seed-*") if seed.is_dir()})
            raise ValueError(
                f"{path} is a whole sweep; name one of its variants, such as {path / variants[-1]}"
                if variants
                else f"{path} is a sweep without runs; `dashclip sweep` makes them"
            )
        seeds = [seed for seed in path.glob("seed-*") if (seed / "run.json").exists()]
        if not seeds:
            raise ValueError(f"{path} is neither a run (config.json) nor a variant with finished seed-… runs")
        found += sorted(seeds, key=lambda seed: int(seed.name.removeprefix("seed-")))
    return found


def default_out(paths: Sequence[Path]) -> Path:
    """A single run's own folder; the sweep of a variant; the common parent of several runs.

    Raises:
        ValueError: the paths have no common parent but the root.
    """
    first = paths[0]
    if len(paths) == 1 and (first / "config.json").exists():
        return first
    parents = [path.parent for path in paths]
    if any(parent != parents[0] for parent in parents):
        raise ValueError("the runs lie in different folders; say with --out where their report goes")
    parent = parents[0]
    if not (parent / "sweep.json").exists() and (parent.parent / "sweep.json").exists():
        return parent.parent
    return parent


def _configs(folders: Sequence[Path]) -> list[RunConfig]:
    if not folders:
        raise ValueError("importance needs at least one run folder")
    configs: list[RunConfig] = []
    for folder in folders:
        configs.append(run_config(folder))
        if not (folder / "run.json").exists():
            raise ValueError(f"the run in {folder} is not finished: it has no run.json; train it to its end")
        first, other = configs[0], configs[-1]
        if other.ranker != first.ranker or input_fingerprints(other) != input_fingerprints(first):
            raise ValueError(
                f"{folder} and {folders[0]} differ in more than their seed (ranker, features or tables); "
                "importance combines seeds of one variant: give each variant a report of its own"
            )
    return configs


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
