"""`dashclip fleet`: whether several hosts serve the same."""

from typing import Annotated

import typer


def fleet(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Probes of each host: http://host:8085 of TorchServe, http://host:8000 of FastAPI; or files "
            "that hold the answer of its /ready."
        ),
    ],
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="A snapshot older than this is wrong, too.")
    ] = None,
) -> None:
    """Compare what hosts serve: package, generation, age of its snapshot, readiness.

    Exit code 1, and a sentence for each difference, if they are not the same everywhere or a host is not
    ready.

    Example: `dashclip fleet http://a:8085 http://b:8085`
    """
    from datetime import UTC, datetime

    from rich.table import Table

    from experiments.runtime.terminal import Console
    from serving.servers.fleet import differences, look

    now = datetime.now(UTC)
    hosts = [look(place) for place in places]
    grid = Table("host", "ready", "model version", "package", "generation", "its files", "age")
    for host in hosts:
        age = host.age_hours(now)
        facts = (", ".join(host.said.get(name, ())) for name in _SHOWN)
        grid.add_row(host.place, "no" if host.why else "yes", *facts, "" if age is None else f"{age:,.1f} h")
    found = differences(hosts)
    for host in hosts:
        age = host.age_hours(now)
        if max_hours is not None and age is not None and age > max_hours:
            found.append(f"the snapshot of {host.place} is {age:,.1f} hours old, {max_hours:g} may be")
    console = Console()
    console.print(grid)
    for sentence in found:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    if found:
        raise typer.Exit(1)
    same = "one host is ready" if len(hosts) == 1 else f"all {len(hosts)} hosts are ready and serve the same"
    console.print(same)


_SHOWN = ("model_version", "package", "generation", "generation_files")
