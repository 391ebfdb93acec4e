"""What long work looks like: on a terminal a bar for each stage, with rate, time left and losses.

A bar cannot move in a file: where the output is no terminal, and in a log, a stage has a line now and then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

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
from rich.text import Text

from experiments.runtime.job_pool import BUSY, JobProgress
from experiments.runtime.terminal import Console
from features.progress import Progress

if TYPE_CHECKING:  # not all work that is shown needs torch
    from embeddings.training.loop import Report

#: Between two lines on one stage; what takes less time has none.
LINE_EVERY_S = 30.0
#: Cut off where the terminal is too narrow; the other columns never are.
NOTE = TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True))


@contextmanager
def progress_bars(
    console: Console, *, log: Path | None = None, clock: Callable[[], float] = time.monotonic
) -> "Iterator[Bars]":
    """Bars on the terminal while the block runs; they stay there when it ends.

    Args:
        log: a file that gets the lines, too, each with the time; what is there already stays.
        clock: seconds since any moment.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with (
        nullcontext() if log is None else log.open("a", encoding="utf-8") as file,
        Display(
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
        ) as display,
    ):
        yield Bars(display, log=file, clock=clock)


class Bars:
    """One bar a stage: call it with (stage, done, total)."""

    def __init__(self, display: Display, *, log: IO[str] | None, clock: Callable[[], float]) -> None:
        self._display = display
        self._log = log
        self._clock = clock
        self._bar_of: dict[str, tuple[TaskID, int]] = {}
        self._line_at: dict[str, float] = {}
        self._training: str | None = None

    def __call__(self, stage: str, done: int, total: int, note: str | None = None) -> None:
        """Move a stage's bar; `note` stands beside it, the rate if not given."""
        if stage not in self._bar_of:
            # Work taken over from an earlier call is no rate of this one.
            self._bar_of[stage] = (self._display.add_task(stage, total=total, completed=done, note=""), done)
        bar, first = self._bar_of[stage]
        if note is None:
            elapsed = self._display.tasks[self._display.task_ids.index(bar)].elapsed or 0.0
            note = _rate(done - first, elapsed) if total > 1 else ""
        self._display.update(bar, completed=done, total=total, note=note)
        if self._clock() - self._line_at.setdefault(stage, self._clock()) >= LINE_EVERY_S:
            self._line_at[stage] = self._clock()
            line = f"{stage}: {done:,} of {total:,}{f', {note}' if note else ''}"
            self._say(line, on_terminal=False)

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
            self._say(f"{report.title}, step {report.step:,} of {report.total_steps:,}: {measures}")
        if report.remark:
            self._say(report.remark, style="yellow")

    def job(self, job: JobProgress) -> None:
        """Move the bar of a running job, with the stage it is in.

        That it began or ended, and what went wrong with it, is said at once in a line.
        """
        if not job.ended:
            if job.name not in self._bar_of:
                self._say(f"{job.name} began", on_terminal=False)
            self(job.name, job.done, job.total, job.stage)
            return
        if job.name in self._bar_of:
            self._display.remove_task(self._bar_of.pop(job.name)[0])
        self._line_at.pop(job.name, None)
        if job.error is None:
            self._say(f"{job.name} ended")
        elif job.error == BUSY:
            self._say(f"{job.name}: {BUSY}")
        else:
            self._say(f"{job.name} failed: {job.error}", style="red")

    def say(self, line: str) -> None:
        """A line above the bars, and in the log."""
        self._say(line)

    def _say(self, line: str, *, on_terminal: bool = True, style: str | None = None) -> None:
        """A line above the bars, and in the log; one that a bar shows anyway is no line on a terminal."""
        if on_terminal or not self._display.console.is_terminal:
            shown = Text(f"  {line}", style=style or "")
            self._display.console.print(shown, soft_wrap=True)
        if self._log is not None:
            print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", file=self._log, flush=True)


def _rate(done: int, seconds: float) -> str:
    """As "1,165/s"; where one takes seconds or longer, as "12 s each"."""
    if seconds <= 0.5 or done <= 0:
        return ""
    return f"{done / seconds:,.0f}/s" if done >= seconds else f"{seconds / done:,.0f} s each"
