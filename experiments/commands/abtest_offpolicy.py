"""`dashclip abtest offpolicy`: what logged decisions say of policies that did not make them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.abtest import abtest

if TYPE_CHECKING:
    from experiments.abtest.offline.evaluation import Evaluation
    from experiments.runtime.terminal import Console

#: Below it few decisions decide the estimate, whatever its interval says.
FEW_EFFECTIVE = 100


@abtest.command("offpolicy")
def offpolicy(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of `abtest run --explore`, or data that `import open-bandit` wrote."),
    ],
    served_by: Annotated[
        Literal["control", "treatment"],
        typer.Option(help="Of a simulated run: whose consumers' decisions are used."),
    ] = "control",
    reference: Annotated[
        Path | None,
        typer.Option(help="Of Open Bandit: the import of the policy `random`; its click rate is the truth."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Estimate from one policy's log what another policy would earn, and hold it against the truth.

    IPS, SNIPS and the doubly robust estimate, with intervals over consumers and the effective sample size.
    Of a simulated run: clicks on the first position, had control, treatment or chance chosen its ad; the
    truth is the known click probability. Of Open Bandit: clicks, had products been shown at random.

    Example: `dashclip abtest offpolicy runs/abtest --served-by control`
    """
    from experiments.abtest.offline.evaluation import evaluate
    from experiments.abtest.offline.open_bandit import open_bandit_decisions
    from experiments.abtest.offline.simulated_log import simulated_decisions
    from experiments.abtest.simulated.run import SETTINGS
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_json

    console = Console()
    if (source / SETTINGS).is_file():
        if reference is not None:
            raise typer.BadParameter("a simulated run knows the truth itself", param_hint="--reference")
        found = evaluate(simulated_decisions(source, policy=served_by))
    else:
        found = evaluate(open_bandit_decisions(source, reference=reference))
    _show(console, found)
    if out is not None:
        atomic_write_json(out, found.content())
        console.print(f"wrote {out}", highlight=False, markup=False)


def _show(console: "Console", found: "Evaluation") -> None:
    from rich.table import Table

    from experiments.statistics.cells import number, with_limits

    simulated = "simulated: " if found.source.simulated else ""
    grid = Table("policy", "method", "value", "lift", "effective", title=f"{simulated}{found.source.title}")
    for name, value in found.values.items():
        for method, estimate in value.estimates.items():
            lift = found.lifts.get(name, {}).get(method)
            grid.add_row(
                name,
                method,
                with_limits(estimate),
                with_limits(lift, sign=True) if lift else "",
                f"{value.effective:,.0f}",
            )
        if name in found.source.truth:
            true_lift = found.true_lifts.get(name)
            lift_text = f"{true_lift:+.4f}" if true_lift is not None else ""
            grid.add_row(name, "[bold]truth[/bold]", number(found.source.truth[name]), lift_text, "")
        grid.add_section()
    console.print(grid)
    console.print(
        f"{len(found.source.logged.reward_N):,} logged decisions, mean reward {found.logged_mean:.4f}"
        + (f"; lifts are over {found.source.baseline}" if found.source.baseline else "")
    )
    for name, value in found.values.items():
        if value.effective < FEW_EFFECTIVE:
            console.print(
                f"[yellow]{name}[/yellow]: only {value.effective:,.0f} effective decisions; one of them "
                f"counts as {value.largest_weight:,.0f}. Intervals this thin can miss the truth: explore more"
            )
        low, high = value.mean_weight.low, value.mean_weight.high
        if low is not None and high is not None and not low <= 1 <= high:
            console.print(
                f"[yellow]{name}[/yellow]: weights are {value.mean_weight.mean:.3f} on average and should be "
                "1: too few decisions, or the log could not do all that this policy does"
            )
