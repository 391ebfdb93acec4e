"""Arguments and options that several commands have, and what is made of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.runtime.mlflow_tracker import MlflowTracker

DATA = Annotated[Path, typer.Argument(help="Folder with the four tables.")]
CONFIG = Annotated[Path, typer.Option(help="TOML file, or the name of a shipped config.")]
DEVICE = Annotated[str, typer.Option(help="`cpu` or `cuda`.")]
DATA_OF_RUN = Annotated[
    Path | None,
    typer.Option(help="Folder with the four tables; the `data` beside the run's feature set if not given."),
]
ENCODERS = Annotated[
    Path | None, typer.Option("--encoders", help="Encoder, or the run that made it: it embeds any text.")
]
TABLE = Annotated[
    Path | None,
    typer.Option("--table", help="Folder with `products/` and perhaps `queries/`: vectors made before."),
]
KEY_FILE = Annotated[
    Path | None,
    typer.Option(help="TorchServe's inference_key.json (or key_file.json), where a URL asks for a token."),
]
MANAGEMENT_URL = Annotated[
    str | None, typer.Option(help="Where a new token is asked for once one has expired, with key_file.json.")
]
PUBLISHED_NAME = Annotated[str, typer.Argument(help="File name of the result, without an ending.")]
PUBLISHED_RESULTS = Annotated[Path, typer.Option(help="Folder of published results.")]
MLFLOW = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or store that hears of the training, too.",
    ),
]
MLFLOW_EXPERIMENT = Annotated[
    str, typer.Option(envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow experiment of the runs.")
]


def tracker_of(uri: str | None, experiment: str) -> "MlflowTracker | None":
    """What `--mlflow` asks for.

    Raises:
        ValueError: MLflow is not installed.
    """
    if not uri:
        return None
    from experiments.runtime.mlflow_tracker import MISSING, MlflowTracker, is_installed

    if not is_installed():
        raise ValueError(f"--mlflow {uri} (or MLFLOW_TRACKING_URI) asks for a tracker, but {MISSING}")
    return MlflowTracker(uri, experiment)


def named_folders(rows: list[str], *, option: str = "--row", what: str = "FOLDER") -> dict[str, Path]:
    """NAME=FOLDER, as given by `option`, by name."""
    named = dict(row.partition("=")[::2] for row in rows)
    for name, folder in named.items():
        if not name or not folder:
            raise typer.BadParameter(f"must be NAME={what}, got {name or folder!r}", param_hint=option)
    return {name: Path(folder) for name, folder in named.items()}
