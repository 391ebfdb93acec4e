"""Where the log lies that a run was trained on."""

from pathlib import Path

from features.inputs.tables import InputTables
from ranking.run import run_config


def log_of_run(run: Path) -> Path:
    """The folder `data` beside the run's feature set, as `dashclip demo` and the README lay it out.

    Raises:
        ValueError: not a run, or there is no such folder.
    """
    features = run_config(run).features
    log = features.parent / "data"
    if not log.is_dir():
        raise ValueError(
            f"{log} does not exist; say with --data where the four tables lie that {features} was built from"
        )
    InputTables.open(log)
    return log
