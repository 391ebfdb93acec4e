"""`dashclip abtest coverage`: how often do intervals hold the true lift?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.abtest import abtest, require_tea_tasting


@abtest.command("coverage")
def coverage(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `dashclip abtest run`.")],
    repeats: Annotated[int, typer.Option(min=2, help="Small experiments to simulate.")] = 200,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Play a simulated experiment again with other luck and another salt, and count what its intervals hold.

    Searches, scores and purchase histories are those of the run; who sees which variant, what is clicked and
    which budgets end are drawn anew. Of 95 % intervals, 95 % should hold the true lift: the plain ones, those
    made narrower by what consumers did before (CUPED), and those of all days together for who looks daily.

    Example: `dashclip abtest coverage runs/abtest`
    """
    from rich.console import Console
    from rich.table import Table

    from experiments.abtest.metrics import METRICS
    from experiments.runtime.progress import progress_bars
    from experiments.statistics.cells import NONE
    from features.artifacts import atomic_write_json

    require_tea_tasting()
    from experiments.abtest.simulated.coverage import CUPED, DAILY, PLAIN, WAYS, measure_coverage

    def percent(value: float | None, form: str) -> str:
        return NONE if value is None else format(value, form)

    console = Console()
    with progress_bars(console) as bars:
        found = measure_coverage(run, repeats=repeats, progress=bars)
    grid = Table("", "true lift", "estimated", *WAYS, "CUPED's width", title="simulated: intervals that hold")
    for name, one in found.items():
        narrow, wide = one.width[CUPED], one.width[PLAIN]
        grid.add_row(
            METRICS[name].title,
            percent(one.true_lift, "+.2%"),
            f"{percent(one.estimated, '+.2%')} ± {percent(2 * (one.bias_error or 0), '.2%')}",
            *(percent(one.held[way], ".1%") for way in (PLAIN, CUPED, DAILY)),
            f"{narrow / wide:.2f} x" if narrow and wide else NONE,
        )
    console.print(grid)
    console.print(
        f"{repeats:,} repetitions; a share of 95 % is known to ± {2 * (0.0475 / repeats) ** 0.5:.1%}"
    )
    if out is not None:
        atomic_write_json(
            out, {"simulated": True, "repeats": repeats, "metrics": {k: asdict(v) for k, v in found.items()}}
        )
        console.print(f"wrote {out}", highlight=False, markup=False)
