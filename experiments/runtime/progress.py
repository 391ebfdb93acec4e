"""What a training run and an encoding look like on the terminal: rate, time left, losses, evaluations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from embeddings.training.loop import Report
from experiments.runtime.job_pool import JobProgress, Tell

#: Cut off where the terminal is too narrow; the other columns never are.
NOTE = TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True))


@contextmanager
def training_progress(console: Console) -> Iterator[Callable[[Report], None]]:
    """One bar a stage, over its steps, with the losses; each evaluation stays as a line above."""
    with _bar(console, NOTE) as bar:
        yield _reports_to(bar)


@contextmanager
def stage_progress(console: Console) -> Iterator[Tell]:
    """One bar a stage name, with rate and time left."""
    with _bar(console, NOTE) as bar:
        yield _stages_to(bar)


@contextmanager
def training_and_stage_progress(console: Console) -> Iterator[tuple[Callable[[Report], None], Tell]]:
    """Both on one display: for the training, and for what comes before and after it."""
    with _bar(console, NOTE) as bar:
        yield _reports_to(bar), _stages_to(bar)


@contextmanager
def job_progress(console: Console) -> Iterator[Callable[[JobProgress], None]]:
    """One bar a running job, which names the stage it is in; what ended stays as a line above."""
    with _bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(job: JobProgress) -> None:
            if job.ended:
                if job.name in tasks:
                    bar.remove_task(tasks.pop(job.name))
                bar.console.print(f"  {job.name} ended")
                return
            if job.name not in tasks:
                tasks[job.name] = bar.add_task(job.name, total=None)
            bar.update(
                tasks[job.name],
                description=f"{job.name}, {job.stage}",
                completed=job.done,
                total=job.total,
            )

        yield tell


def _reports_to(bar: Progress) -> Callable[[Report], None]:
    tasks: dict[str, TaskID] = {}

    def show(report: Report) -> None:
        if report.title not in tasks:
            for earlier in tasks.values():
                bar.stop_task(earlier)
            tasks[report.title] = bar.add_task(report.title, total=None, note="")
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        note = f"{report.rows_per_second:,.0f} {report.rows_name}/s  {losses}"
        bar.update(tasks[report.title], completed=report.step, total=report.total_steps, note=note)
        if report.evaluation:
            measures = ", ".join(f"{name} {value:.4f}" for name, value in report.evaluation.items())
            line = f"  {report.title}, step {report.step:,} of {report.total_steps:,}: {measures}"
            bar.console.print(line, soft_wrap=True)

    return show


def _stages_to(bar: Progress) -> Tell:
    tasks: dict[str, tuple[TaskID, int]] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            # Work taken over from an earlier call is no rate of this one.
            tasks[stage] = (bar.add_task(stage, total=total, completed=done, note=""), done)
        task_id, first = tasks[stage]
        elapsed = bar.tasks[bar.task_ids.index(task_id)].elapsed or 0.0
        rate = f"{(done - first) / elapsed:,.0f}/s" if elapsed > 0.5 and done > first else ""
        bar.update(task_id, completed=done, total=total, note=rate)

    return tell


def _bar(console: Console, *more: TextColumn) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
        console=console,
        expand=bool(more),
    )
