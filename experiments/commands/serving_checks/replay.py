"""`dashclip replay`: do served scores equal offline predictions?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.options import DATA_OF_RUN, KEY_FILE, MANAGEMENT_URL

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.replay import Ints, Replay, Score
    from experiments.serving_checks.skew import FeatureSkew
    from features.online.request import RequestError, ScoreRequest
    from serving.packaging.logged_requests import LoggedImpressions
    from serving.scoring.predictor import Predictor
    from serving.wire.reply import ScoreReply

#: What is promised at float16: largest difference of a probability, share of requests in order.
TOLERANCE, SAME_ORDER = 1e-3, 0.999


def replay(
    run: Annotated[Path, typer.Argument(help="Run whose test predictions are the truth.")],
    target: Annotated[
        str,
        typer.Argument(
            help="A package, or the URL of a server (http://127.0.0.1:8080/predictions/dashclip)."
        ),
    ],
    data: DATA_OF_RUN = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of requests, evenly spread over the test days.")
    ] = None,
    from_snapshot: Annotated[
        bool,
        typer.Option(
            "--from-snapshot",
            help="Take counters and purchases from the package's snapshot, and report each feature's skew.",
        ),
    ] = False,
    within_hours: Annotated[
        float | None,
        typer.Option(min=0, help="With --from-snapshot: only requests within this time of the snapshot."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Impression columns that the server takes once per request; a package says so itself."
        ),
    ] = None,
    body_format: Annotated[
        Literal["json", "arrow"], typer.Option("--format", help="To a server: json or arrow.")
    ] = "arrow",
    key_file: KEY_FILE = None,
    management_url: MANAGEMENT_URL = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a probability; beyond it the exit code is 1.")
    ] = TOLERANCE,
    same_order: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of requests in the offline order, likewise.")
    ] = SAME_ORDER,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Send the logged impressions of the test days to a package or a server and compare with the run.

    Impressions of one user, query and moment are one request. It carries what the impressions saw (counters,
    purchases, price, position), so every score must equal the offline prediction, and every order the offline
    order. With `--from-snapshot` it carries only what a live request would: then the table shows which
    features have aged, and what that costs.

    Example: `dashclip replay runs/demo/dcn_pq_sim_history/seed-1 runs/package`
    """
    import torch

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.run_layout import log_of_run
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.replay import replay as replay_log
    from experiments.serving_checks.skew import skew
    from features.artifacts import atomic_write_json
    from features.feature_set import FeatureSet
    from features.inputs.tables import InputTables
    from features.online.plan import context_columns
    from ranking.run import run_config
    from serving.packaging.logged_requests import LoggedImpressions, spread
    from serving.scoring.predictor import Predictor

    torch.set_num_threads(1)
    console = Console()
    is_server = target.startswith(("http://", "https://"))
    if from_snapshot and is_server:
        raise typer.BadParameter(
            "needs a package: a server does not show features", param_hint="--from-snapshot"
        )
    if within_hours is not None and not from_snapshot:
        raise typer.BadParameter("goes with --from-snapshot", param_hint="--within-hours")
    feature_set = FeatureSet.open(run_config(run).features)
    predictor = None if is_server else Predictor.load(Path(target))
    names = tuple(context.split(",")) if context else None
    with progress_bars(console) as bars:
        logged = LoggedImpressions(
            feature_set,
            InputTables.open(data or log_of_run(run)),
            context=predictor.manifest.context
            if predictor
            else context_columns(feature_set.manifest.config, names),
            progress=bars,
        )
        groups = logged.groups()
        if predictor and within_hours is not None:
            groups = _soon_after(logged, groups, predictor.facts()["as_of"], within_hours)
        groups = spread(groups, limit)
        with _scorer(predictor, target, body_format, key_file, management_url) as score:
            result = replay_log(
                logged,
                groups,
                logged.offline_probabilities(run),
                score,
                live=not from_snapshot,
                progress=bars,
            )
        skews = None
        if predictor and from_snapshot:
            skews = skew(
                logged,
                groups,
                predictor.feature_rows,
                dense_columns=predictor.manifest.dense_columns,
                sparse_columns=tuple(predictor.manifest.sparse_rows),
                progress=bars,
            )
    _show(console, target, result, from_snapshot=from_snapshot)
    if skews is not None:
        _show_skew(console, skews, as_of=result.as_of)
    if out is not None:
        content = {"run": str(run), "target": target, "from_snapshot": from_snapshot, **asdict(result)}
        content["skew"] = [asdict(one) for one in skews] if skews is not None else None
        atomic_write_json(out, content)
        console.print(f"wrote {out}", highlight=False, markup=False)
    if not from_snapshot and not result.holds(tolerance=tolerance, same_order=same_order):
        console.print(
            f"[red]served scores are not the offline scores[/red]: a difference of {tolerance:g} at most and "
            f"{same_order:.1%} of the orders at least are asked for"
        )
        raise typer.Exit(1)


@contextmanager
def _scorer(
    predictor: "Predictor | None",
    target: str,
    body_format: Literal["json", "arrow"],
    key_file: Path | None,
    management_url: str | None,
) -> "Iterator[Score]":
    """The package, or a client of the server."""
    if predictor is not None:
        yield predictor.score_many
        return
    from features.online.request import RequestError
    from serving.client import ClientError, ScoreClient

    with ScoreClient(
        target,
        body_format=body_format,
        timeout_s=30.0,
        key_file=key_file,
        management_url=management_url,
    ) as client:

        def score(requests: "Sequence[ScoreRequest]") -> "list[ScoreReply | RequestError]":
            replies: list[ScoreReply | RequestError] = []
            for request in requests:
                try:
                    replies.append(client.score(request))
                except RequestError as error:
                    replies.append(error)
                except ClientError as error:
                    raise ValueError(f"{target} does not answer: {error}") from error
            return replies

        yield score


def _soon_after(
    logged: "LoggedImpressions", groups: "list[Ints]", as_of: str, within_hours: float
) -> "list[Ints]":
    """Requests in the first hours after a snapshot.

    Raises:
        ValueError: there are none.
    """
    from datetime import datetime

    import pyarrow as pa

    first_us = round(datetime.fromisoformat(as_of).timestamp() * 1e6)
    time_us_M = logged.rows["timestamp"].cast(pa.int64()).to_numpy()
    last_us = first_us + within_hours * 3.6e9
    chosen = [rows_N for rows_N in groups if first_us <= time_us_M[rows_N[0]] <= last_us]
    if not chosen:
        raise ValueError(
            f"no logged request lies within {within_hours:g} hours after {as_of}; give more hours"
        )
    return chosen


def _show(console: "Console", target: str, result: "Replay", *, from_snapshot: bool) -> None:
    from rich.table import Table

    grid = Table("", "offline", "served", title=f"{target}: {', '.join(result.model_versions)}")
    for name, offline, served in (
        ("AUC", result.auc_offline, result.auc_served),
        ("log loss", result.log_loss_offline, result.log_loss_served),
    ):
        grid.add_row(name, *(f"{value:.5f}" if value is not None else "-" for value in (offline, served)))
    console.print(grid)
    console.print(
        f"{result.requests:,} requests with {result.impressions:,} impressions, generation "
        f"{', '.join(result.generations)}" + (", features of its snapshot" if from_snapshot else "")
    )
    console.print(
        f"difference of probabilities: {result.mean_difference:.2g} on average, "
        f"{result.max_difference:.2g} at most"
    )
    console.print(
        f"same order: {result.same_order:.3%} of the requests"
        + (f"; offline differences up to {result.reordered:.2g} were reversed" if result.reordered else "")
    )
    found = {kind: count for kind, count in result.unknown.items() if count}
    if found:
        console.print("not known: " + ", ".join(f"{count:,} {kind}" for kind, count in found.items()))
    if result.refused:
        console.print(
            f"[red]{result.refused:,} requests were refused[/red]: {result.first_refusal}", markup=True
        )


def _show_skew(console: "Console", skews: "Sequence[FeatureSkew]", *, as_of: str) -> None:
    from rich.table import Table

    grid = Table(
        "feature", "differs", "mean (sd)", "largest (sd)", title=f"snapshot as of {as_of} against the log"
    )
    for one in skews:
        if one.differs:
            numbers = (f"{value:.3f}" if value is not None else "" for value in (one.mean, one.largest))
            grid.add_row(one.name, f"{one.differs:.1%}", *numbers)
    console.print(grid)
    equal = sum(one.differs == 0 for one in skews)
    console.print(f"{equal} of {len(skews)} features are the same for every impression")
