"""A folder that belongs to one simulation: made by its first start, found again by the others."""

from pathlib import Path

from features.artifacts import StrictModel, atomic_write_json, differences


def claim_folder(out: Path, settings: StrictModel, *, file: str, what: str) -> None:
    """Make `out` with the settings in `file`, or find that it has the very same ones.

    Args:
        what: the folder holds, such as "an experiment".

    Raises:
        ValueError: `out` has other settings; says which.
        FileExistsError: `out` holds something else.
    """
    path = out / file
    if path.is_file():
        before = type(settings).model_validate_json(path.read_bytes()).model_dump(mode="json")
        now = settings.model_dump(mode="json")
        if before != now:
            changed = differences(before, now)
            raise ValueError(f"{out} holds {what} with other settings ({changed}); choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not {what}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, settings.model_dump(mode="json"))
