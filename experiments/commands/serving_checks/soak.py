"""`dashclip soak`: long mixed load with killed workers and refreshes, then hostile bodies."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.soak_counts import SoakPlan, SoakResult

#: Said so often where there is no terminal.
_SAY_S = 30.0
#: What must be zero or empty.
_FAULTS = (
    *("wrong_scores", "unexplained_5xx", "refused_good_requests", "bad_requests_not_refused_with_400"),
    *("unchecked_replies", "failed_refreshes", "fuzz_5xx", "fuzz_faults", "fuzz_dead_workers"),
    *("hostile_not_refused", "resets", "failed_deployments", "drain_resets"),
)


def soak(
    run: Annotated[Path, typer.Option(help="Trained run; a package is made of it for the soak.")] = Path(
        "runs/demo/dcn_pq_sim_history/seed-1"
    ),
    minutes: Annotated[float, typer.Option(min=0, help="Of load.")] = 30.0,
    bodies: Annotated[int, typer.Option(min=0, help="Fuzzed bodies, after the load.")] = 50_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second, at random times.")] = 100.0,
    workers: Annotated[int, typer.Option(min=1, help="Of TorchServe; with one, none is killed.")] = 2,
    kill_every: Annotated[float, typer.Option(min=1, help="Seconds between two killed workers.")] = 60.0,
    refresh_every: Annotated[float, typer.Option(min=1, help="Seconds between two refreshes.")] = 300.0,
    other_run: Annotated[
        Path | None,
        typer.Option(
            help="Another trained run on the same log, deployed and rolled back in between; the next seed "
            "beside --run if it is there."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the four tables; that of the run if not given.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Encoder of unseen queries; `encoders/align` beside the features if it is there."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for soak.json.")] = Path("runs/bench"),
) -> None:
    """Load TorchServe for a long time while workers are killed, generations and packages change; check all.

    JSON and Arrow, 1 to 300 candidates, known and unknown users, queries and products, 1 % malformed and 1 %
    hostile requests; one deployment and one rollback; at the end a stop under load. Scores are compared with
    those of the package and generation that a reply names. Exit code 1 if a score was wrong, a connection
    was lost, a server error has no killed worker to explain it, or a hostile body was not answered as it
    should.

    Example: `dashclip soak --minutes 30`, `dashclip soak --minutes 0 --bodies 50000`
    """
    import shutil

    from experiments.runtime.terminal import Console
    from experiments.serving_checks.soak_counts import SoakPlan
    from features.artifacts import atomic_write_json

    console = Console()
    plan = SoakPlan(minutes, (), rate_per_s=rate, kill_every_s=kill_every, refresh_every_s=refresh_every)
    work = (out / "soak.work").absolute()
    shutil.rmtree(work, ignore_errors=True)
    try:
        found = _soak(console, work, run, other_run, data, encoder, plan, bodies=bodies, workers=workers)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    command = f"dashclip soak --minutes {minutes:g} --bodies {bodies}"
    atomic_write_json(out / "soak.json", {"command": command, **found})
    _show(console, found)
    console.print(f"results in {out / 'soak.json'}")
    if any(found.get(name) for name in _FAULTS):
        raise typer.Exit(1)


def _soak(
    console: "Console",
    work: Path,
    run: Path,
    other_run: Path | None,
    data: Path | None,
    encoder: Path | None,
    plan: "SoakPlan",
    *,
    bodies: int,
    workers: int,
) -> dict[str, Any]:
    from datetime import UTC, datetime

    import torch

    from experiments.runtime.environment import describe_machine
    from experiments.runtime.ports import free_ports
    from experiments.runtime.run_layout import labels_of_run, log_of_run, package_run
    from experiments.serving_checks.soak import drain_under_load, fuzz_server, run_soak
    from experiments.serving_checks.soak_counts import soak_summary
    from experiments.serving_checks.soak_requests import Expectations, extend_log, make_pool
    from features.inputs.tables import InputTables
    from ranking.run import run_config
    from serving.packaging.as_of import end_of_log_us
    from serving.scoring.predictor import Predictor
    from serving.servers.torchserve.archive import archive_package
    from serving.servers.torchserve.files import ServerSettings
    from serving.servers.torchserve.server import start, stop

    torch.set_num_threads(1)
    log = data or log_of_run(run)
    tables = InputTables.open(log)
    end_us = end_of_log_us(tables, labels_of_run(run))
    if encoder is None:
        beside = run_config(run).features.parent / "encoders" / "align"
        encoder = beside if beside.is_dir() else None
    console.print(f"making a package of {run}")
    package, store = work / "package", work / "store"
    work.mkdir(parents=True)
    package_run(run, package, data=log, encoder=encoder)
    extended = extend_log(tables, work / "data")
    day_us = 86_400_000_000
    times = [
        datetime.fromtimestamp((end_us - days * day_us) // 1_000_000, UTC).isoformat()
        for days in (0, 1, 2, 3)
    ]
    logs = (extended, log.absolute(), extended, extended)
    plan = replace(plan, refreshes=list(zip(logs, times, strict=True)))
    expectations = Expectations(make_pool(tables, timestamp_us=end_us, size=250, seed=1))
    expectations.add(Predictor.load(package))
    other_run = other_run or _next_seed(run)
    if other_run is not None and plan.minutes:
        console.print(f"making a package of {other_run}")
        other = work / "other_package"
        package_run(other_run, other, data=log, encoder=encoder)
        expectations.add(Predictor.load(other))
        plan = replace(plan, other_package=other)
    console.print("starting TorchServe")
    settings = ServerSettings(port=free_ports(), workers=workers, token_minutes=10)
    server = start(archive_package(package, store, name="dashclip", embed=False), settings)
    try:
        found: dict[str, Any] = {}
        with _status(console) as say:
            if plan.minutes > 0:
                result = run_soak(
                    server,
                    package,
                    store,
                    expectations,
                    plan,
                    progress=lambda share, so_far: say(_so_far(share, so_far, len(expectations.wrong))),
                )
                found = soak_summary(result, expectations, plan)
            if bodies:
                good = [one.request for one in expectations.pool]
                found |= fuzz_server(
                    server,
                    good,
                    bodies,
                    progress=lambda done: say(f"fuzzing: {done:,} of {bodies:,} bodies"),
                )
            if plan.minutes:
                say("stopping under load")
                found |= drain_under_load(server, store, expectations)
    finally:
        stop(store)
    machine = describe_machine(("torch", "torchserve", "pyarrow", "numpy"))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine["commit"],
        **found,
        "workers": workers,
        "machine": machine,
    }


def _next_seed(run: Path) -> Path | None:
    """Another run of the same variant, if there is one beside it."""
    seeds = sorted(path.parent for path in run.parent.glob("seed-*/run.json"))
    return next((path for path in seeds if path.name != run.name), None)


@contextmanager
def _status(console: "Console") -> Iterator[Callable[[str], None]]:
    """Says how far it is: on one line of the terminal; where there is none, now and then."""
    said = 0.0

    def say(text: str) -> None:
        nonlocal said
        if console.is_terminal:
            status.update(text)
        elif time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            console.print(text)

    with console.status("") as status:
        yield say


def _so_far(share: float, result: "SoakResult", wrong: int) -> str:
    return (
        f"{100 * share:.0f} %: {sum(result.statuses.values()):,} requests, "
        f"{wrong} wrong scores, {len(result.failures)} failures, "
        f"{len(result.kills_s)} kills, {len(result.refreshes)} refreshes, "
        f"{len(result.deployments)} deployments"
    )


def _show(console: "Console", found: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table("what", "measured", title="Soak", title_justify="left")
    grid.columns[1].justify = "right"
    for name, value in found.items():
        if isinstance(value, float):
            grid.add_row(name.replace("_", " "), f"{value:,.4g}")
        elif isinstance(value, int | str):
            grid.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
        elif name == "deployments":
            grid.add_row(name, ", ".join(value))
        elif name in ("statuses", "hostile_statuses", "fuzz_statuses", "latency_ms"):
            cells = (f"{key}: {one:,.5g}" for key, one in value.items())
            grid.add_row(name.replace("_", " "), ", ".join(cells))
    console.print(grid)
    for failure in (
        *found.get("first_wrong", ()),
        *found.get("failed_refreshes", ()),
        *found.get("failed_deployments", ()),
        *found.get("fuzz_faults", ()),
    ):
        console.print(failure, markup=False)
