"""`dashclip serve` and `dashclip stop`: a store behind TorchServe."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.serving.route import challengers_of

if TYPE_CHECKING:
    from serving.feature_log.feature_log import FeatureLogSettings
    from serving.servers.torchserve.archive import Archive
    from serving.servers.torchserve.server import RunningServer
    from serving.servers.trace_settings import TraceSettings


def serve(
    store: Annotated[
        Path, typer.Argument(help="Model store that `dashclip archive` filled; or a package, with --fastapi.")
    ],
    name: Annotated[str | None, typer.Option(help="Which archive, if the store has several.")] = None,
    port: Annotated[
        int, typer.Option(help="Of predictions; TorchServe takes the next four, its probes a fifth.")
    ] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each; tables are shared.")] = 1,
    large_workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of TorchServe: processes of their own for requests of more than 512 candidates, at the URL "
            "with -large, so that small ones never wait for them.",
        ),
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Requests a worker may take at once; pays under load only.")
    ] = 1,
    batch_delay_ms: Annotated[
        int,
        typer.Option(
            min=1,
            help="How long TorchServe's workers wait to fill a batch; 0 would be 100. FastAPI's never wait.",
        ),
    ] = 1,
    address: Annotated[str, typer.Option(help="Address to bind for predictions.")] = "127.0.0.1",
    manage_address: Annotated[
        str, typer.Option(help="The same for management, which always needs a token.")
    ] = "127.0.0.1",
    metrics_address: Annotated[
        str | None, typer.Option(help="The same for metrics; --address by default.")
    ] = None,
    grpc_address: Annotated[
        str | None, typer.Option(help="The same for predictions by gRPC; --address by default.")
    ] = None,
    probe_address: Annotated[
        str | None, typer.Option(help="The same for /live and /ready; --address by default.")
    ] = None,
    token: Annotated[
        bool,
        typer.Option(
            "--token/--no-token", help="Whether a prediction needs a token. Without, nobody can manage."
        ),
    ] = True,
    token_minutes: Annotated[
        int, typer.Option(min=1, help="How long a token is valid; it is renewed after a third of that.")
    ] = 60,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for configuration, tokens, logs, drift counts instead of STORE/server: nothing is "
            "written into the store. Give it to stop, loadtest, fuzz and drift in place of STORE."
        ),
    ] = None,
    trusted_key: Annotated[
        Path | None,
        typer.Option(help="Public key: only what `dashclip sign` has signed by its private half is served."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Write a line for each request, with its peer's address.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the first prediction.")] = 120.0,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground",
            help="Stay, pass signals on and end with TorchServe's exit code: for containers and systemd. "
            "Standard output has the logs, too, as JSON lines.",
        ),
    ] = False,
    fastapi: Annotated[
        bool,
        typer.Option("--fastapi", help="Serve a package by FastAPI and uvicorn instead, in the foreground."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="With --fastapi: offer /schema and /openapi.json.")
    ] = False,
    challenger: Annotated[
        list[str] | None,
        typer.Option(
            help="With --fastapi: NAME=PACKAGE, another package that may get a share of the users. For "
            "TorchServe, `dashclip archive` takes it."
        ),
    ] = None,
    feature_log: Annotated[
        Path | None,
        typer.Option(help="Folder for a log of requests with their features and scores; none if not given."),
    ] = None,
    log_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests that --feature-log takes.")
    ] = 0.01,
    log_limit_mb: Annotated[
        int, typer.Option(min=1, help="Size of the log, in 10^6 bytes; its oldest files go.")
    ] = 1_000,
    log_key: Annotated[
        Path | None,
        typer.Option(help="Key that hides the users' ids in the log; made in the state folder if not given."),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(
            help="URL to which spans of requests are sent, by OTLP over HTTP (http://localhost:4318/v1/traces)."
        ),
    ] = None,
    trace_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the requests to trace; a traceparent decides for its own.",
        ),
    ] = 0.01,
) -> None:
    """Start TorchServe on a model store, and wait until it has scored a request.

    It runs in the background, with an attendant that answers probes and renews tokens; its configuration,
    tokens and logs are in STORE/server. `dashclip stop STORE` ends it.

    Example: `dashclip serve runs/store --workers 2`
    """
    from experiments.runtime.terminal import Console
    from features.artifacts import MANIFEST
    from serving.servers.torchserve.server import SERVER_FOLDER

    console = Console()
    if fastapi:
        if state_dir is None and not (store / MANIFEST).is_file():  # of a store, as TorchServe's
            state_dir = store / SERVER_FOLDER
        log = _feature_log(feature_log, log_share, log_limit_mb, log_key, state_dir)
        challengers = challengers_of(challenger)
        _serve_by_fastapi(
            store,
            name,
            address=address,
            port=port,
            workers=workers,
            schema=schema,
            challengers=challengers,
            log=log,
            state=state_dir,
            trusted_key=trusted_key,
            traces=_traces(traces, trace_share),
            batch_size=batch_size,
            quiet=foreground,
        )
        return
    if challenger:
        raise typer.BadParameter("goes with --fastapi, or to `dashclip archive`", param_hint="--challenger")
    from serving.servers.torchserve.archive import find_archive
    from serving.servers.torchserve.files import ServerSettings
    from serving.servers.torchserve.server import start

    settings = ServerSettings(
        port=port,
        workers=workers,
        large_workers=large_workers,
        batch_size=batch_size,
        batch_delay_ms=batch_delay_ms,
        address=address,
        management_address=manage_address,
        metrics_address=metrics_address,
        grpc_address=grpc_address,
        probe_address=probe_address,
        token_authorization=token,
        token_minutes=token_minutes,
        access_log=access_log,
        traces=_traces(traces, trace_share),
        log=_feature_log(feature_log, log_share, log_limit_mb, log_key, state_dir or store / SERVER_FOLDER),
    )
    archive = find_archive(store, name)
    if foreground:
        from serving.servers.torchserve.foreground import serve_in_foreground

        raise typer.Exit(serve_in_foreground(archive, settings, state=state_dir, trusted_key=trusted_key))
    with console.status("") as status:
        server = start(
            archive,
            settings,
            state=state_dir,
            trusted_key=trusted_key,
            timeout_s=timeout,
            progress=status.update,
        )
    console.print(f"{archive.name} {archive.version} is being served (process {server.pid})")
    places = {"predictions": server.url, "metrics": server.metrics_url}
    if server.large_url is not None:
        places["large ones"] = server.large_url
    places |= {"probes": f"{server.probes_url}/ready, /live", "logs": str(server.logs)}
    for what, where in places.items():
        console.print(f"  {what:12}{where}", soft_wrap=True, highlight=False)
    console.print("try it with:")
    console.print(_curl(archive, server), soft_wrap=True, highlight=False, markup=False)


def stop(
    store: Annotated[
        Path, typer.Argument(help="Model store that `dashclip serve` was given; or --state-dir.")
    ],
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds at most for requests under way; 0 cuts them off.")
    ] = 10.0,
) -> None:
    """Stop the server of a model store, once it has answered what it has begun, and wait until it is gone.

    Its /ready says 503 from the beginning, and new requests get 503 with Retry-After.

    Example: `dashclip stop runs/store`
    """
    from serving.servers.fastapi.running import stop_fastapi
    from serving.servers.torchserve.server import stop as stop_server

    stopped = stop_fastapi(store, drain_s=drain) or stop_server(store, drain_s=drain)
    typer.echo("stopped" if stopped else f"no server runs for {store}")


def _curl(archive: "Archive", server: "RunningServer") -> str:
    from serving.client import INFERENCE_KEY_FILE
    from serving.servers.torchserve.archive import EXAMPLE_NAME

    lines = [f"  curl {server.url} -H 'content-type: application/json' \\"]
    if server.key_file is not None:
        key_file = server.key_file.with_name(INFERENCE_KEY_FILE)
        key = f"import json; print(json.load(open({str(key_file)!r}))['inference']['key'])"
        lines.append(f'    -H "authorization: Bearer $(python3 -c {shlex.quote(key)})" \\')
    if archive.path.is_dir():
        lines.append(f"    --data-binary {shlex.quote(f'@{archive.path / EXAMPLE_NAME}')}")
    else:  # of the log: a query may hold quotes
        lines.append(f"    --data-binary {shlex.quote(archive.example().decode())}")
    return "\n".join(lines)


def _feature_log(
    folder: Path | None, share: float, limit_mb: int, key: Path | None, state: Path | None
) -> "FeatureLogSettings | None":
    if folder is None:
        return None
    from serving.feature_log.feature_log import KEY_NAME, FeatureLogSettings

    if share == 0:
        raise typer.BadParameter("0 logs nothing; leave --feature-log out", param_hint="--log-share")
    key = key or (state or Path()) / KEY_NAME
    return FeatureLogSettings(folder=folder.resolve(), share=share, limit_mb=limit_mb, key_file=key.resolve())


def _traces(endpoint: str | None, share: float) -> "TraceSettings | None":
    """Where spans go; whether they can be sent is found out now, not by each worker."""
    if endpoint is None:
        return None
    from serving.servers.trace_settings import TraceSettings, open_traces

    settings = TraceSettings(endpoint=endpoint, share=share)
    open_traces(settings).close()
    return settings


def _serve_by_fastapi(
    place: Path,
    name: str | None,
    *,
    address: str,
    port: int,
    workers: int,
    schema: bool,
    challengers: dict[str, Path],
    log: "FeatureLogSettings | None",
    state: Path | None,
    trusted_key: Path | None,
    traces: "TraceSettings | None",
    batch_size: int,
    quiet: bool,
) -> None:
    from functools import partial

    try:
        from serving.servers.fastapi.app import serve as serve_app
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install the extra: pip install 'dashclip-ranker[fastapi]'") from None
    from features.artifacts import MANIFEST
    from serving.feature_log.feature_log import hand_over
    from serving.observers.assembly import open_scorer
    from serving.scoring.routed_scorer import start_routing
    from serving.servers.fastapi.archived import open_archived
    from serving.servers.torchserve.archive import example_request, find_archive
    from serving.wire.json_codec import encode_request

    archive = None if (place / MANIFEST).is_file() else find_archive(place, name)
    package = place if archive is None else Path(archive.package)
    if archive is not None:
        if challengers:
            raise typer.BadParameter("give it to `dashclip archive`", param_hint="--challenger")
        if archive.path.suffix == ".mar":
            raise ValueError(f"{archive.path} is TorchServe's alone; archive the package without --embed")
        challengers = {name: Path(path) for name, path in archive.challengers().items()}
    if state is None and (challengers or log):
        raise typer.BadParameter("needs --state-dir", param_hint="--challenger, --feature-log")
    opening = partial(
        open_scorer,
        package.resolve(),
        {name: path.resolve() for name, path in challengers.items()},
        state=state.absolute() if state else None,
        trusted_key=trusted_key.absolute() if trusted_key else None,
    )
    opening_archive = None
    if archive is not None:
        opening_archive = partial(
            open_archived,
            state=state.absolute() if state else None,
            trusted_key=trusted_key.absolute() if trusted_key else None,
        )
        opening = partial(opening_archive, archive.path.resolve())
    facts = opening().facts()  # what is wrong with it is said once, not by each worker
    if state is not None:
        start_routing(state, challengers)
        hand_over(log, state)
    if not quiet:
        typer.echo(f"signature of {package}: {facts['signature']}")
        typer.echo(f"serving {package} at http://{address}:{port}/score; Ctrl-C ends it")
    serve_app(
        opening,
        host=address,
        port=port,
        workers=workers,
        example=encode_request(example_request(package)),
        schema=schema,
        state=None if state is None else state.absolute(),
        archive=None if archive is None else archive.path.resolve(),
        open_archive=opening_archive,
        traces=traces,
        batch_size=batch_size,
    )
