"""What long work looks like on the terminal: a bar for each stage, with rate, time left and losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Display
from rich.table import Column

from features.progress import Progress

if TYPE_CHECKING:  # not all work that is shown needs torch
    from embeddings.training.loop import Report
    from experiments.runtime.job_pool import JobProgress

#: Cut off where the terminal is too narrow; the other columns never are.
NOTE = TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True))


@contextmanager
def progress_bars(console: Console) -> "Iterator[Bars]":
    """Bars on the terminal while the block runs; they stay there when it ends."""
    with Display(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        NOTE,
        console=console,
        expand=True,
    ) as display:
        yield Bars(display)


class Bars:
    """One bar a stage: call it with (stage, done, total)."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._bar_of: dict[str, tuple[TaskID, int]] = {}
        self._training: str | None = None

    def __call__(self, stage: str, done: int, total: int, note: str | None = None) -> None:
        """Move a stage's bar; `note` stands beside it, the rate if not given."""
        if stage not in self._bar_of:
            # Work taken over from an earlier call is no rate of this one.
            self._bar_of[stage] = (self._display.add_task(stage, total=total, completed=done, note=""), done)
        bar, first = self._bar_of[stage]
        if note is None:
            elapsed = self._display.tasks[self._display.task_ids.index(bar)].elapsed or 0.0
            note = f"{(done - first) / elapsed:,.0f}/s" if elapsed > 0.5 and done > first else ""
        self._display.update(bar, completed=done, total=total, note=note)

    def under(self, title: str) -> Progress:
        """One bar for all stages, each of which is named beside it while it lasts."""
        return lambda stage, done, total: self(title, done, total, stage)

    def training(self, report: "Report") -> None:
        """Move the bar of a training's steps, with the losses; each evaluation stays as a line above."""
        if self._training not in (None, report.title):
            self._display.stop_task(self._bar_of[self._training][0])
        self._training = report.title
        from embeddings.training.evaluation import beside_chance

        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        note = f"{report.rows_per_second:,.0f} {report.rows_name}/s  {losses}"
        self(report.title, report.step, report.total_steps, note)
        if report.evaluation:
            measures = beside_chance(report.evaluation)
            line = f"  {report.title}, step {report.step:,} of {report.total_steps:,}: {measures}"
            self._display.console.print(line, soft_wrap=True)
        if report.remark:
            self._display.console.print(f"  {report.remark}", style="yellow", markup=False, soft_wrap=True)

    def job(self, job: "JobProgress") -> None:
        """Move the bar of a running job, with the stage it is in; what ended stays as a line above."""
        if not job.ended:
            self(job.name, job.done, job.total, job.stage)
            return
        if job.name in self._bar_of:
            self._display.remove_task(self._bar_of.pop(job.name)[0])
        self._display.console.print(f"  {job.name} ended")
