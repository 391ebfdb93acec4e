"""`dashclip loadtest`: open-loop load on a scoring server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.options import KEY_FILE, MANAGEMENT_URL

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.serving_checks.loadtest import LoadResult
    from serving.client import Tokens


def loadtest(
    url: Annotated[
        str, typer.Argument(help="A model's URL (http), or the STORE that `dashclip serve` runs.")
    ],
    requests: Annotated[
        Path,
        typer.Option(help="A package, or a file with one JSON request per line: what is sent, in turn."),
    ],
    rate: Annotated[float, typer.Option(help="Requests per second, at random times.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="How long, after a second of warm-up.")] = 20.0,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Candidates in each request; as recorded by default.")
    ] = None,
    body_format: Annotated[str, typer.Option("--format", help="json or arrow.")] = "json",
    connections: Annotated[int, typer.Option(min=1, help="Open at most.")] = 64,
    bad_share: Annotated[float, typer.Option(help="Share of malformed requests; all must get 400.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 1,
    key_file: KEY_FILE = None,
    management_url: MANAGEMENT_URL = None,
    out: Annotated[Path | None, typer.Option(help="Folder for loadtest.json and loadtest.png.")] = None,
) -> None:
    """Load a scoring server with requests that come when they come, and report its latencies.

    Latency counts from when a request was due, so that a stalled server is charged for all who wait. Exit
    code 1 if an answer was not what it should be.

    Example: `dashclip loadtest runs/store --requests runs/package --rate 100 --candidates 100`
    """
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.loadtest import (
        LATE_MS,
        LoadPlan,
        encoded,
        plot_load,
        resized,
        result_json,
        run_load,
    )
    from features.artifacts import atomic_write_bytes
    from serving.package.parity import read_requests

    if body_format not in ("json", "arrow"):
        raise ValueError(f"--format {body_format!r}; choose json or arrow")
    target, tokens = _target(url, key_file, management_url)
    recorded = read_requests(requests)
    if candidates is not None:
        recorded = [resized(request, candidates) for request in recorded]
    bodies, content_type = encoded(recorded, body_format)
    plan = LoadPlan(
        bodies=bodies,
        content_type=content_type,
        rate_per_s=rate,
        seconds=seconds,
        connections=connections,
        bad_share=bad_share,
        seed=seed,
    )
    console = Console()
    with progress_bars(console) as bars:

        def on_second(share: float, so_far: "LoadResult") -> None:
            said = ", ".join(f"{count:,} x {outcome}" for outcome, count in so_far.outcomes.items())
            bars("sending", round(100 * share), 100, said or "warming up")

        result = run_load(target, plan, tokens=tokens, progress=on_second)
    summary = result.summary()
    console.print(_table(summary))
    late_ms = summary["generator_late_p99_ms"]
    if late_ms is not None and late_ms > LATE_MS:
        console.print(
            f"the generator itself was {late_ms:.1f} ms late at its p99: it had too little of a core"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        more = {"candidates": candidates, "format": body_format}
        atomic_write_bytes(out / "loadtest.json", result_json(target, plan, result, **more))
        if result.latency_ms:
            plot_load(result, out / "loadtest.png", title=f"{rate:g} requests a second, {body_format}")
        console.print(f"written to {out}")
    if set(result.outcomes) - {"200"} or set(result.bad_outcomes) - {"400"}:
        raise typer.Exit(1)


def _target(url: str, key_file: Path | None, management_url: str | None) -> tuple[str, "Tokens | None"]:
    from serving.client import Tokens
    from serving.servers.torchserve.server import running

    if "://" in url:
        return url, Tokens(key_file, management_url) if key_file else None
    server = running(Path(url))
    if server is None:
        raise ValueError(f"no server runs for {url}; start one with `dashclip serve {url}`, or give a URL")
    return server.url, Tokens(server.key_file, server.management_url) if server.key_file else None


def _table(summary: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("", "", show_header=False)
    table.add_row("requests", f"{summary['requests']:,} in {summary['seconds']:.1f} s")
    table.add_row("answered with scores", f"{summary['answered_per_s']:,.1f} a second")
    for kind in ("outcomes", "bad_outcomes"):
        if summary[kind]:
            counts = ", ".join(f"{count:,} x {outcome}" for outcome, count in sorted(summary[kind].items()))
            table.add_row("answers" if kind == "outcomes" else "answers to malformed", counts)
    for name, value in summary["latency_ms"].items():
        table.add_row(f"latency {name}", "-" if value is None else f"{value:.2f} ms")
    return table
