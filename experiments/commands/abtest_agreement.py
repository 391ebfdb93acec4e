"""`dashclip abtest agreement`: does offline AUC order rankers as an online test would?"""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.abtest import abtest


@abtest.command("agreement")
def agreement(
    world: Annotated[Path, typer.Argument(help="Folder that `dashclip generate` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for what is served; an interrupted call goes on.")],
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs on the log of WORLD; the baseline's comes first.")
    ],
    days: Annotated[int, typer.Option(min=1, help="Days that each run serves.")] = 2,
    searches_per_day: Annotated[
        int | None, typer.Option(min=1, help="As many as in the world's log if not given.")
    ] = None,
    luck: Annotated[int, typer.Option(min=0, help="Another number is other days of the same world.")] = 0,
) -> None:
    """Hold offline gains in AUC and log loss against true online lifts, ranker by ranker.

    Each run serves the same simulated days alone, in process. Its true value is what was to be expected of
    what it showed, without noise. Rank correlations say whether the offline measures order rankers as an
    online test without an error would. Writes agreement.json and agreement.md into OUT.

    Example: `dashclip abtest agreement runs/market runs/agreement runs/sweep/dcn/seed-1
    runs/sweep/dcn_lexical/seed-1 runs/sweep/dcn_pq_sim/seed-1`
    """
    import torch
    from rich.table import Table

    from experiments.abtest.offline.agreement import AGREEMENT, AgreementSettings, measure_agreement
    from experiments.reports.abtest.agreement_text import (
        COLUMNS,
        agreement_markdown,
        agreement_rows,
        agreement_sentences,
    )
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes

    torch.set_num_threads(1)
    console = Console()
    settings = AgreementSettings(
        world=world, runs=tuple(runs), days=days, searches_per_day=searches_per_day, luck=luck
    )
    command = f"dashclip abtest agreement {world} {out} {' '.join(map(str, runs))} --days {days}"
    if searches_per_day:
        command += f" --searches-per-day {searches_per_day}"
    with progress_bars(console) as bars:
        found = measure_agreement(settings, out, command=command, progress=bars)
    found.write(out / AGREEMENT)
    markdown = (out / AGREEMENT).with_suffix(".md")
    atomic_write_bytes(markdown, agreement_markdown(found).encode())
    grid = Table(*COLUMNS, title="simulated: offline gains and true online lifts")
    for row in agreement_rows(found):
        grid.add_row(*row)
    console.print(grid)
    for sentence in agreement_sentences(found):
        console.print(f"• {sentence}", highlight=False)
    for path in (out / AGREEMENT, markdown):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
