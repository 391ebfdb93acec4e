"""`dashclip drift`: what a server saw, hour by hour and day by day, against the test days."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from features.columns.transforms import Transform
    from serving.drift.comparison import Compared
    from serving.drift.watch import WindowReport


def drift(
    package: Annotated[Path, typer.Argument(help="The package that is served.")],
    counts: Annotated[
        Path, typer.Argument(help="The STORE or --state-dir that serves it, or a folder of counts.")
    ],
    window: Annotated[
        str | None,
        typer.Option(help="A day (2026-11-30) or an hour (2026-11-30T07), UTC; else the newest of both."),
    ] = None,
    shown: Annotated[int, typer.Option("--windows", min=1, help="Windows of each kind to list.")] = 10,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, too.")] = None,
) -> None:
    """Compare what was served with the test days, by windows.

    A column has moved if at least 5 % of its values are in another bin and chance makes any column of a
    window differ as much on one day in a hundred at most; nothing is said of less than 500 requests. Request
    features are counted once a request. Exit code 1 if something has moved in the newest day or hour that is
    over, or in --window.

    Example: `dashclip drift runs/package runs/store`
    """
    import time

    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_json
    from serving.drift.count_files import DRIFT_FOLDER, KINDS, kind_of, read_counts
    from serving.drift.watch import reports
    from serving.package.manifest import PackageManifest
    from serving.servers.torchserve.server import state_folder

    manifest = PackageManifest.read(package)
    record = manifest.training_record
    if record is None:
        raise ValueError(
            f"{package} has a training record of impressions, not of requests: it was made by an earlier "
            "version; make it again with `dashclip package`"
        )
    folder = state_folder(counts) / DRIFT_FOLDER
    folder = folder if folder.is_dir() else counts
    counted = read_counts(folder, record, model_version=manifest.model_version)
    found = reports(record, counted, now_s=time.time())
    console = Console()
    if counted.of_earlier_version:
        console.print(
            f"{counted.of_earlier_version} files of an earlier version are left out: they count candidates"
        )
    if counted.of_others:
        console.print(f"{counted.of_others} files are of other models, or of other training records")
    if window is not None and window not in counted.windows:
        raise ValueError(
            f"there are no counts of {window} in {folder}; of {manifest.model_version} there are "
            f"{', '.join(report.window for report in found) or 'none at all'}"
        )
    if not found:
        console.print(f"no request to {manifest.model_version} has been counted in {folder}")
        return
    over = [report for report in found if report.is_over]
    newest = [next((one for one in over if kind_of(one.window) == kind), None) for kind in reversed(KINDS)]
    chosen = [one for one in found if one.window == window] if window else [one for one in newest if one]
    listed = [
        report
        for kind in reversed(KINDS)
        for report in [one for one in found if kind_of(one.window) == kind][:shown]
    ]
    console.print(_windows(listed))
    transforms = _transforms(package)
    for report in chosen:
        console.print(_columns(report, transforms))
    if out is not None:
        atomic_write_json(
            out,
            {
                "model_version": manifest.model_version,
                "windows": [_window_json(report, transforms) for report in found],
            },
        )
    if any(report.alarms for report in chosen):
        raise typer.Exit(1)


def _windows(listed: list["WindowReport"]) -> Any:
    from rich.table import Table

    table = Table("window", "requests", "candidates", "moved")
    for report in listed:
        verdicts = {one.verdict for one in report.columns}
        said = "nothing"
        if verdicts & {"too few requests", "too few users"}:
            said = " ".join(verdicts)
        elif not report.is_over:
            said = "not over yet"
        elif report.alarms:
            said = ", ".join(one.name for one in report.alarms[:3])
            said += f" and {len(report.alarms) - 3} more" if len(report.alarms) > 3 else ""
        table.add_row(report.window, f"{report.requests:,}", f"{report.candidates:,}", said)
    return table


def _columns(report: "WindowReport", transforms: dict[str, "Transform"]) -> Any:
    from rich.table import Table

    title = f"{report.window}: {report.requests:,} requests, {report.candidates:,} candidates"
    table = Table("column", "counted by", "training", "live", "moved share", "PSI", "verdict", title=title)
    table.columns[0].overflow = "fold"
    for one in report.columns:
        table.add_row(
            one.name,
            one.column.by,
            _shown(one.trained, one, transforms),
            _shown(one.live, one, transforms),
            f"{one.shift:.1%}",
            f"{one.psi:.3f}",
            one.verdict + (" (constant)" if one.constant and one.verdict == "moved" else ""),
        )
    return table


def _shown(mean: float, one: "Compared", transforms: dict[str, "Transform"]) -> str:
    """A mean in the unit of the log: of logarithms it is the typical value."""
    if one.column.is_share:
        return f"{mean:.1%}"
    return f"{_raw(mean, one, transforms):.4g}"


def _raw(mean: float, one: "Compared", transforms: dict[str, "Transform"]) -> float:
    from features.columns.transforms import from_signed_log

    transform = transforms.get(one.column.column)
    if transform is None:
        return mean
    value = mean * transform.sd + transform.mean
    return from_signed_log(value) if transform.kind == "log" else value


def _transforms(package: Path) -> dict[str, "Transform"]:
    from features.feature_set import Manifest
    from serving.package.manifest import SCHEMA

    text = (package / SCHEMA / "manifest.json").read_text(encoding="utf-8")
    return dict(Manifest.model_validate_json(text).transforms)


def _window_json(report: "WindowReport", transforms: dict[str, "Transform"]) -> dict[str, Any]:
    return {
        "window": report.window,
        "requests": report.requests,
        "candidates": report.candidates,
        "is_over": report.is_over,
        "columns": [
            {
                "name": one.name,
                "by": one.column.by,
                "trained": _raw(one.trained, one, transforms),
                "live": _raw(one.live, one, transforms),
                "shift": one.shift,
                "psi": one.psi,
                "p": one.p,
                "constant": one.constant,
                "verdict": one.verdict,
            }
            for one in report.columns
        ],
    }
