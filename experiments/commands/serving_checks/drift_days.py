"""`dashclip proofs drift-days`: how often drift is reported where there is none, and found where there is."""

from pathlib import Path
from typing import Annotated

import typer


def drift_days(
    days: Annotated[int, typer.Option(min=1, help="Drift-free days to simulate.")] = 1_000,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a day.")] = 2_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same days.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, too.")] = None,
) -> None:
    """Simulate days without drift, and some with a planted shift, and judge them as `dashclip drift` does.

    Prints how many days alarm by chance, beside the stated rate and beside a rule that takes candidates for
    independent.

    Example: `dashclip proofs drift-days --requests 500`
    """
    from experiments.runtime.environment import describe_machine
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.drift_free_days import DriftFreeDays, measure_false_alarms
    from features.artifacts import atomic_write_json

    console = Console()
    setting = DriftFreeDays(days=days, requests=requests, seed=seed)
    with progress_bars(console) as bars:
        result = measure_false_alarms(setting, progress=lambda stage, done, total: bars(stage, done, total))
    for name, count in result["days_with_alarm"].items():
        stated = result["stated"].get(name)
        judged = f"judged as a {name} (stated: {stated:.2%})" if stated else name
        console.print(f"{judged}: {count:,} of {days:,} days alarm")
    console.print(f"significant, of any size: {result['days_significant_of_any_size']:,} of {days:,}")
    for name, count in result["shifted_days_found_by_the_hour"].items():
        console.print(f"{name}: {count:,} of {result['shifted_days']:,} found")
    if out is not None:
        command = f"dashclip proofs drift-days --days {days} --requests {requests} --seed {seed}"
        atomic_write_json(out, {"command": command, "machine": describe_machine(), **result})
