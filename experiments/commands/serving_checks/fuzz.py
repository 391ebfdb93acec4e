"""`dashclip fuzz`: hostile bodies against a server or a package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import KEY_FILE, MANAGEMENT_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.serving_checks.fuzz import Ask
    from serving.servers.torchserve.server import RunningServer


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
    key_file: KEY_FILE = None,
    management_url: MANAGEMENT_URL = None,
) -> None:
    """Send damaged, absurd and hostile requests; each must be answered with scores, 400 or 413.

    No worker may die, or keep memory for what it refused (this is not seen behind a URL). Exit code 1 if an
    answer is not allowed or a worker is not as it was.

    Example: `dashclip fuzz runs/store --requests runs/package`
    """
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.fuzz import fuzz_bodies, run_fuzz
    from serving.package.parity import read_requests
    from serving.servers.torchserve.server import running, worker_pids

    console = Console()
    server = None if "://" in target else running(Path(target))
    before = worker_pids(server) if server else []
    ask = _ask(target, key_file, management_url)
    made = fuzz_bodies(read_requests(requests), seed)
    with progress_bars(console) as bars:
        result = run_fuzz(
            ask,
            made,
            count=bodies,
            memory_mib=_memory(target, server),
            progress=lambda done: bars("asking", done, bodies),
        )
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


def _memory(target: str, server: "RunningServer | None") -> "Callable[[], dict[int, float]] | None":
    """Private memory of the workers, or of this process if the package is asked here; None behind a URL."""
    import os

    from experiments.serving_checks.fuzz import private_mib
    from serving.servers.torchserve.server import worker_pids

    if "://" in target:
        return None
    return lambda: private_mib(worker_pids(server) if server else [os.getpid()])


def _ask(target: str, key_file: Path | None, management_url: str | None) -> "Ask":
    from serving.client import ScoreClient
    from serving.servers.torchserve.server import running

    if "://" in target:
        client = ScoreClient(
            target, timeout_s=15, retries=0, key_file=key_file, management_url=management_url
        )
        return client.post
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
