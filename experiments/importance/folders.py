"""Which run folders a command line names, and where their report goes."""

from collections.abc import Sequence
from pathlib import Path


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
