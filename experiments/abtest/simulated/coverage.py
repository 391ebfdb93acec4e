"""How often do intervals hold the true lift? A run is played again with other luck and another salt.

    RUN/repetitions.jsonl   a line for each repetition, written when it is done: a stopped call goes on
        coverage.json       what they came to; `dashclip abtest report RUN` puts it into result.json

Shapes: R repetitions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from experiments.abtest.metrics import METRICS
from experiments.abtest.simulated.repetition import (
    CUPED,
    PLAIN,
    WAYS,
    FinishedRun,
    Judged,
    Repetition,
)
from experiments.abtest.simulated.run import EXPERIMENT, SETTINGS, read_settings
from experiments.abtest.simulated.settings import RunSettings
from experiments.runtime.environment import environment
from features.artifacts import BusyError, ResultFile, atomic_write_bytes, file_lock
from features.progress import Progress, silent

COVERAGE, REPETITIONS = "coverage.json", "repetitions.jsonl"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Share(_Row):
    """A share of repetitions, between its exact binomial 95 % limits (Clopper and Pearson 1934)."""

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, held: Sequence[bool]) -> "Share":
        """Of all repetitions, those in which something held."""
        found = stats.binomtest(sum(held), len(held)).proportion_ci(confidence_level=0.95, method="exact")
        return cls(share=sum(held) / len(held), low=float(found.low), high=float(found.high))


class WayCoverage(_Row):
    """Of one way to make an interval.

    Attributes:
        last_day: share of repetitions whose interval of the last day holds the true lift.
        every_day: share of those in which the interval of *every* day holds the true lift until that day, as
            who looks each day would see it. Only the sequential intervals promise it.
        width: mean width of the last day's intervals that have both ends.
    """

    last_day: Share
    every_day: Share
    width: float | None


class MetricCoverage(_Row):
    """Of one metric over all repetitions.

    Attributes:
        ways: by the names of `repetition.WAYS`; CUPED is missing where nothing is known of before.
        reported: the way whose interval `dashclip abtest report` gives at one look.
        cuped_width: mean of the ratio of widths, CUPED over plain.
        cuped_narrower: share of repetitions in which CUPED's interval is the narrower one.
        true_lift, estimated: means over repetitions; the estimate is the reported one.
        bias_error: standard error of the mean difference of the two.
        repeats: repetitions in which the metric could be measured.
    """

    ways: dict[str, WayCoverage]
    reported: str
    cuped_width: float | None
    cuped_narrower: Share | None
    true_lift: float
    estimated: float
    bias_error: float | None
    repeats: int

    @property
    def held(self) -> float:
        """Share of repetitions whose reported interval holds the true lift."""
        return self.ways[self.reported].last_day.share


class Coverage(ResultFile):
    """`coverage.json`: of an experiment of this size, how often its intervals hold the true lift."""

    simulated: bool = True
    command: str | None
    environment: dict[str, Any]
    settings: RunSettings
    repeats: int
    #: Compared consumers, mean over repetitions.
    consumers: float
    metrics: dict[str, MetricCoverage]


def measure_coverage(
    out: Path, *, repeats: int = 200, command: str | None = None, progress: Progress = silent
) -> Coverage:
    """Repeat the finished run in `out` and judge each repetition as `dashclip abtest report` would.

    Repetitions that an earlier call left in `out` are not played again.

    Raises:
        ValueError: `out` holds no finished run.
        BusyError: another process repeats it.
    """
    settings = read_settings(out)
    busy = BusyError(f"another process repeats the experiment in {out}")
    with file_lock(out / ".coverage.lock", busy=busy):
        found = list(_repetitions(out, settings, repeats, progress))
    metrics = {
        name: _summary([one.judged[name] for one in found if name in one.judged])
        for name in METRICS
        if any(name in one.judged for one in found)
    }
    return Coverage(
        command=command,
        environment=environment(),
        settings=settings,
        repeats=repeats,
        consumers=float(np.mean([one.consumers for one in found])),
        metrics=metrics,
    )


def experiment_in(folder: Path) -> tuple[Path, dict[str, float] | None]:
    """Where an experiment lies, and what is known of its coverage by metric.

    A folder of `dashclip abtest run` holds both; any other folder is the experiment itself.
    """
    if not (folder / SETTINGS).is_file():
        return folder, None
    path = folder / COVERAGE
    if not path.is_file():
        return folder / EXPERIMENT, None
    found = Coverage.model_validate_json(path.read_bytes())
    return folder / EXPERIMENT, {name: one.held for name, one in found.metrics.items()}


def _repetitions(out: Path, settings: RunSettings, repeats: int, progress: Progress) -> Iterator[Repetition]:
    path = out / REPETITIONS
    known = _read_lines(path)
    run = FinishedRun(out, settings)  # also where all are known: a run that is not finished has no coverage
    # Without a line that a kill has cut.
    atomic_write_bytes(path, "".join(json.dumps(line) + "\n" for line in known).encode())
    with path.open("a", encoding="utf-8") as file:
        progress("repetitions", min(len(known), repeats), repeats)
        for repeat in range(len(known), repeats):
            line = {"repeat": repeat, **run.again(repeat).content()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            known.append(line)
            progress("repetitions", repeat + 1, repeats)
    yield from (Repetition.of(line) for line in known[:repeats])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines, up to the first that is not the next number."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["repeat"] != len(found):
            break
        found.append(line)
    return found


def _summary(rows: Sequence[Mapping[str, Judged]]) -> MetricCoverage:
    rows = [row for row in rows if PLAIN in row]
    ways = {}
    for way in WAYS:
        if judged := [row[way] for row in rows if way in row]:
            widths = [one.width for one in judged if one.width is not None]
            ways[way] = WayCoverage(
                last_day=Share.of([one.holds for one in judged]),
                every_day=Share.of([one.every_day for one in judged]),
                width=float(np.mean(widths)) if widths else None,
            )
    reported = CUPED if CUPED in ways else PLAIN
    pairs = [(row[CUPED].width, row[PLAIN].width) for row in rows if CUPED in row]
    ratios = [narrow / wide for narrow, wide in pairs if narrow is not None and wide]
    chosen = [row[reported] for row in rows if reported in row]
    error_R = np.array([one.mean - one.truth for one in chosen])
    return MetricCoverage(
        ways=ways,
        reported=reported,
        cuped_width=float(np.mean(ratios)) if ratios else None,
        cuped_narrower=Share.of([ratio < 1 for ratio in ratios]) if ratios else None,
        true_lift=float(np.mean([one.truth for one in chosen])),
        estimated=float(np.mean([one.mean for one in chosen])),
        bias_error=float(error_R.std(ddof=1) / np.sqrt(len(error_R))) if len(error_R) > 1 else None,
        repeats=len(chosen),
    )
