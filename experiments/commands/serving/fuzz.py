"""`dashclip fuzz`: hostile bodies against a server or a package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.serving_checks.fuzz import Ask


def fuzz(
    target: Annotated[
        str,
        typer.Argument(
            help="A model's URL, the STORE that `dashclip serve` runs, or a package (in process)."
        ),
    ],
    requests: Annotated[
        Path, typer.Option(help="A package, or a file with one JSON request per line: what is damaged.")
    ],
    bodies: Annotated[int, typer.Option(min=1, help="How many.")] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same bodies.")] = 1,
) -> None:
    """Send damaged and absurd requests; each must be answered with scores, 400 or 413, and no worker may die.

    Exit code 1 if one is not.

    Example: `dashclip fuzz runs/store --requests runs/package`
    """
    from rich.console import Console

    from experiments.runtime.progress import progress_bars
    from experiments.serving_checks.fuzz import fuzz_bodies, run_fuzz
    from serving.package.parity import read_requests
    from serving.servers.torchserve import running, worker_pids

    console = Console()
    server = None if "://" in target else running(Path(target))
    before = worker_pids(server) if server else []
    ask = _ask(target)
    made = fuzz_bodies(read_requests(requests), seed)
    with progress_bars(console) as bars:
        result = run_fuzz(ask, made, count=bodies, progress=lambda done: bars("asking", done, bodies))
    console.print(", ".join(f"{count:,} x {status}" for status, count in sorted(result.statuses.items())))
    for fault in result.faults[:10]:
        console.print(fault, soft_wrap=True, highlight=False, markup=False)
    if server is not None:
        after = worker_pids(server)
        console.print(f"workers before {before}, after {after}")
        if before != after:
            raise typer.Exit(1)
    if not result.passed:
        raise typer.Exit(1)


def _ask(target: str) -> "Ask":
    from serving.client import ScoreClient
    from serving.servers.torchserve import running

    if "://" in target:
        return ScoreClient(target, timeout_s=15, retries=0).post
    server = running(Path(target))
    if server is not None:
        return server.client(timeout_s=15).post
    from serving.scoring.predictor import Predictor
    from serving.servers.endpoint import Body, Endpoint

    endpoint = Endpoint(Predictor.load(Path(target)))

    def ask(body: bytes, content_type: str) -> tuple[int, bytes, str]:
        (answer,) = endpoint.answer([Body(body, content_type)])
        return answer.status, answer.content, answer.content_type

    return ask
