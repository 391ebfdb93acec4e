"""Table 1 over worlds: every metric of every row, and the candidate minus each other row.

Each world's table is a mean over its held-out queries; the interval over worlds holds the noise of the
queries, since each world has queries of its own. Presets of a world have the same queries and grades, so
there is one table 1 for all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from experiments.encoders.table1 import ALL, SliceResult, Table1
from experiments.runtime.environment import provenance_of
from experiments.worlds.estimates import OverWorlds, minus, over_worlds
from experiments.worlds.plan import WorldsConfig, table1_files
from features.artifacts import ResultFile

#: Means over queries by row and metric, by world and encoder seed.
_Means = dict[tuple[str, str], dict[tuple[int, ...], float]]


class SliceOverWorlds(ResultFile):
    """One set of queries, or of products, in every world."""

    #: Queries of all worlds together, each counted once whatever the encoder seeds.
    queries: int
    #: By row and metric.
    rows: dict[str, dict[str, OverWorlds]]
    #: The candidate minus each other row.
    differences: dict[str, dict[str, OverWorlds]] = Field(default_factory=dict)


class Table1OverWorlds(ResultFile):
    """`worlds_table1.json`."""

    simulated: bool = True
    size: str
    worlds: tuple[int, ...]
    encoder_seeds: int
    k: int
    candidate: str
    description: str
    #: "all" and every slice that a world has.
    slices: dict[str, SliceOverWorlds]
    missing: tuple[str, ...] = ()
    #: Command, commits, machine and time of what was measured.
    provenance: dict[str, Any]


def build_table1(config: WorldsConfig, out: Path, *, command: str | None = None) -> Table1OverWorlds | None:
    """Summarise the tables that are finished; None if none is."""
    tables: dict[tuple[int, int], Table1] = {}
    missing = []
    for world in config.worlds:
        for encoder, path in enumerate(table1_files(config, out, world)):
            if path.is_file():
                tables[world, encoder] = Table1.model_validate_json(path.read_bytes())
            else:
                missing.append(f"world {world}: {path.name} is not finished")
    if not tables:
        return None
    first = next(iter(tables.values()))
    names = dict.fromkeys(name for table in tables.values() for name in table.slices)
    slices = {
        name: _slice(
            {run: part for run, table in tables.items() if (part := _part(table, name)) is not None},
            first.candidate,
        )
        for name in (ALL, *names)
    }
    return Table1OverWorlds(
        size=config.size,
        worlds=config.worlds,
        encoder_seeds=config.encoder_seeds,
        k=first.k,
        candidate=first.candidate,
        description=first.description,
        slices=slices,
        missing=tuple(missing),
        provenance=provenance_of(command, [table.environment for table in tables.values()]),
    )


def _part(table: Table1, name: str) -> SliceResult | None:
    return table if name == ALL else table.slices.get(name)


def _slice(parts: Mapping[tuple[int, int], SliceResult], candidate: str) -> SliceOverWorlds:
    means: _Means = {}
    for (world, encoder), part in parts.items():
        for row, figures in part.rows.items():
            for metric, found in figures.items():
                if found is not None:
                    means.setdefault((row, metric), {})[world, encoder, 0] = found.mean
    rows = list(dict.fromkeys(row for row, _ in means))
    metrics = list(dict.fromkeys(metric for _, metric in means))
    others = [row for row in rows if row != candidate] if candidate in rows else []
    return SliceOverWorlds(
        queries=sum({world: part.queries for (world, _), part in parts.items()}.values()),
        rows={
            row: _figures(metrics, {metric: means.get((row, metric), {}) for metric in metrics})
            for row in rows
        },
        differences={
            row: _figures(
                metrics,
                {
                    metric: minus(means.get((candidate, metric), {}), means.get((row, metric), {}))
                    for metric in metrics
                },
            )
            for row in others
        },
    )


def _figures(
    metrics: Sequence[str], values: Mapping[str, Mapping[tuple[int, ...], float]]
) -> dict[str, OverWorlds]:
    return {metric: found for metric in metrics if (found := over_worlds(values[metric])) is not None}
