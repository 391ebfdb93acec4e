"""Both tables over worlds as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.encoders.table1 import ALL
from experiments.reports.table1_text import metric_title, row_title
from experiments.statistics.cells import NONE, markdown_table, number, with_limits
from experiments.worlds.estimates import OverWorlds
from experiments.worlds.table1 import SliceOverWorlds, Table1OverWorlds
from experiments.worlds.table2 import Table2OverWorlds

PRESETS = {
    "mixed": "mixed (relevant and irrelevant ads, so relevance decides most clicks)",
    "retrieval": "retrieval (ads that were retrieved for the query, so taste and price decide)",
}
HOW = (
    "Every number is a mean over worlds of the mean over the encoder seeds and ranker seeds within each. In "
    "brackets: 95 % interval, Student's t over the means of worlds. Each world has products, queries, users, "
    "a test week, encoders and rankers of its own, so the interval holds the noise of all of them. "
    "Differences are taken between runs of one world and seed; shares are ratios of means with Fieller's "
    "interval."
)


def table2_markdown(table: Table2OverWorlds) -> str:
    """All variants, slices, what varies, and what is missing."""
    titles = {name: variant.title for name, variant in table.variants.items()}
    lines = [
        f"# Table 2 over {len(table.worlds)} simulated worlds, preset {table.preset}",
        "",
        f"**SIMULATED data (generated, not real users).** Preset {PRESETS[table.preset]}, size {table.size}; "
        f"{_worlds(table.worlds)}, {_count(table.encoder_seeds, 'encoder seed')} and "
        f"{_count(table.ranker_seeds, 'ranker seed')} in each; {table.rows.mean:,.0f} test impressions a "
        f"world; best reachable AUC {with_limits(table.best_auc, square=True)}.",
        "",
        HOW,
        "",
        *_variants(table),
    ]
    lines += ["", "## Users with and without purchases: minus the baseline", ""]
    lines += markdown_table(
        ["Ranker", "with purchases", "without"],
        [
            [
                variant.title,
                *(_signed(variant.slice_diffs.get(key)) for key in ("has_purchases", "no_purchases")),
            ]
            for variant in table.variants.values()
            if variant.slice_diffs
        ],
    )
    lines += ["", "## Each variant minus each one before it, AUC", ""]
    lines += markdown_table(
        ["Ranker", "minus", "AUC", "expected AUC"],
        [
            [
                titles[pair.variant],
                titles[pair.against],
                _signed(pair.auc_diff),
                _signed(pair.expected_auc_diff),
            ]
            for pair in table.pairs
        ],
        text_columns=2,
    )
    lines += ["", "## What makes the difference to the baseline vary", ""]
    lines += ["Standard deviations: of the means of worlds, and of what another seed alone would change.", ""]
    lines += markdown_table(
        ["Ranker", "worlds", "encoder seeds", "ranker seeds", *(f"world {world}" for world in table.worlds)],
        [
            [
                variant.title,
                *(number(sd) for sd in (found.spread.worlds, found.spread.encoders, found.spread.rankers)),
                *(_world(found, world) for world in table.worlds),
            ]
            for variant in table.variants.values()
            if (found := variant.auc_diff) is not None
        ],
    )
    return _ended(lines, table.missing)


def worlds_summary(content: Mapping[str, Any], name: str) -> str:
    """The main figures of a published `worlds_*.json`, for a page of all results."""
    link = f"[whole table](../experiments/results/{name}.md)"
    if "preset" not in content:
        first = Table1OverWorlds.model_validate(content)
        lines = [
            f"**Table 1 over {len(first.worlds)} worlds** (**simulated data**; {_worlds(first.worlds)}, "
            f"{first.slices[ALL].queries:,} held-out queries, mean [95 % over worlds]; {link}):",
            "",
            *_rows(first.slices[ALL], first),
        ]
        return "\n".join([*lines, "", ""])
    table = Table2OverWorlds.model_validate(content)
    lines = [
        f"**Table 2 over {len(table.worlds)} worlds, preset {table.preset}** (**simulated data**; "
        f"{_worlds(table.worlds)}, {_count(table.encoder_seeds, 'encoder seed')} and "
        f"{_count(table.ranker_seeds, 'ranker seed')} in each, mean [95 % over worlds]; {link}):",
        "",
        *_variants(table),
    ]
    return "\n".join([*lines, "", f"![a dot a world](../experiments/results/{name}.png)", "", ""])


def table1_markdown(table: Table1OverWorlds) -> str:
    """All queries, then each slice, with differences."""
    lines = [
        f"# Table 1 over {len(table.worlds)} simulated worlds: retrieval",
        "",
        f"**SIMULATED data (generated, not real users).** {table.description}, size {table.size}; "
        f"{_worlds(table.worlds)}, {_count(table.encoder_seeds, 'encoder seed')} in each.",
        "",
        HOW,
    ]
    for name, found in table.slices.items():
        title = "All held-out queries" if name == ALL else name.replace("_", " ")
        lines += ["", f"## {title} ({found.queries:,} queries of all worlds)", ""]
        lines += _rows(found, table)
    return _ended(lines, table.missing)


def _rows(found: SliceOverWorlds, table: Table1OverWorlds) -> list[str]:
    metrics = list(next(iter(found.rows.values())))
    headings = [metric_title(metric.removesuffix(f"_at_{table.k}"), table.k) for metric in metrics]
    rows = [[row_title(row), *_cells(figures, metrics, sign=False)] for row, figures in found.rows.items()]
    differences = [
        [f"{row_title(table.candidate)} − {row_title(row)}", *_cells(figures, metrics, sign=True)]
        for row, figures in found.differences.items()
    ]
    return markdown_table(["Row", *headings], [*rows, *differences])


def _cells(figures: Mapping[str, OverWorlds], metrics: Sequence[str], *, sign: bool) -> list[str]:
    return [with_limits(figures.get(metric), 3, sign=sign, square=True) for metric in metrics]


def _signed(found: OverWorlds | None) -> str:
    return with_limits(found, sign=True, square=True)


def _share(found: OverWorlds | None) -> str:
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return f"{found.mean:.0%}"
    return f"{found.mean:.0%} [{found.low:.0%}, {found.high:.0%}]"


def _world(found: OverWorlds, world: int) -> str:
    return f"{found.by_world[world]:+.4f}" if world in found.by_world else NONE


def _worlds(worlds: Sequence[int]) -> str:
    return f"marketplace seeds {', '.join(map(str, worlds))}"


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _ended(lines: list[str], missing: Sequence[str]) -> str:
    if missing:
        lines += ["", f"**Not finished:** {len(missing)} parts, so these numbers are preliminary.", ""]
        lines += [f"- {sentence}" for sentence in missing]
    return "\n".join(lines) + "\n"


def _variants(table: Table2OverWorlds) -> list[str]:
    """The table of all variants."""
    titles = {name: variant.title for name, variant in table.variants.items()}
    titles.setdefault(table.baseline, table.baseline)
    second, ceiling = table.second_baseline, table.ceiling
    heading = ["Ranker", "AUC", f"minus {titles[table.baseline]}"]
    if second in titles:
        heading.append(f"minus {titles[second]}")
    heading.append(f"minus {titles[table.baseline]}, expected AUC")
    heading += ["history's own gain", "share of reachable gain"]
    if ceiling is not None:
        heading.append(f"share of the gain of: {titles[ceiling]}")
    heading.append("gain of users with purchases minus that of others")
    rows = []
    for variant in table.variants.values():
        cells = [variant.title, with_limits(variant.auc, square=True), _signed(variant.auc_diff)]
        if second in titles:
            cells.append(_signed(variant.second_diff))
        cells += [
            _signed(variant.expected_auc_diff),
            _signed(variant.history_gain),
            _share(variant.reachable_share),
        ]
        if ceiling is not None:
            cells.append(_share(variant.ceiling_share))
        rows.append([*cells, _signed(variant.purchases_gap)])
    return markdown_table(heading, rows)
