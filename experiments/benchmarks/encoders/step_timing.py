"""Time, floating-point operations and profile of repeated steps, on a CPU or a GPU.

A step is anything that ends with a call of the observer; the observer ends the repetition once it has seen
the warm-up, the timed steps and the profiled ones.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.measure import spread
from experiments.benchmarks.training.step_profile import OperatorClock

#: Matrix products and softmax of eager attention, forward and backward. Linear layers are `mm` and `addmm`;
#: scaling, masks and copies of attention cannot be told from others, so this is a lower bound of its share.
ATTENTION_OPERATORS = ("aten::bmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::baddbmm")
#: Operators that are kept of a profile.
TOP_OPERATORS = 8


class Observed(Exception):
    """Raised by an observer that has seen all it wanted: it ends the loop, and is no error."""


@dataclass(frozen=True)
class Schedule:
    """How many steps pass untimed, are timed, and are profiled."""

    warmup: int
    timed: int
    profiled: int

    @property
    def total(self) -> int:
        return self.warmup + self.timed + self.profiled


class StepObserver:
    """Called after each step; clocks run from the last warm-up step (or from the start) to the last timed."""

    def __init__(self, device: torch.device, schedule: Schedule) -> None:
        self.device, self.schedule = device, schedule
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        #: Wall seconds before the first timed step, which is where compilation happens.
        self.warmup_s = 0.0
        self.operators: list[dict[str, Any]] = []
        self.attention_share: float | None = None
        self._step = 0
        self._profile: profile | None = None
        self._created = time.perf_counter()
        self._last = (self._created, time.process_time())

    def __call__(self) -> None:
        """Note a finished step.

        Raises:
            Observed: it was the last one of the schedule.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        self._step += 1
        timed_until = self.schedule.warmup + self.schedule.timed
        if self._step == self.schedule.warmup:
            self.warmup_s = wall - self._created
        elif self.schedule.warmup < self._step <= timed_until:
            self.wall_s.append(wall - self._last[0])
            self.cpu_s.append(cpu - self._last[1])
        if self._step == timed_until and self.schedule.profiled:
            self._profile = profile(activities=activities_on(self.device))
            self._profile.start()
        if self._step == self.schedule.total:
            if self._profile is not None:
                self._profile.stop()
                self.operators, self.attention_share = operator_times(self._profile, self.device)
            raise Observed
        self._last = (time.perf_counter(), time.process_time())

    def result(
        self,
        *,
        rows: int,
        flop: float | None,
        peak_gflops: float,
        moved_gb: float | None = None,
        copy_gb_per_s: float | None = None,
    ) -> dict[str, Any]:
        """Medians as JSON; `flop` is that of one step, `moved_gb` what its operators read and write.

        Shares of peaks are by processor time on a CPU, where `peak_gflops` is that of one core, and by wall
        time on a GPU.
        """
        wall, cpu = spread(self.wall_s), spread(self.cpu_s)
        busy_s = (cpu if self.device.type == "cpu" else wall)["median"]
        return {
            "rows": rows,
            "rows_per_s": rows / wall["median"],
            "rows_per_cpu_s": rows / cpu["median"],
            "wall_s": wall,
            "cpu_s": cpu,
            "steps": len(self.wall_s),
            "warmup_s": self.warmup_s,
            "gflop_per_row": None if flop is None else 1e-9 * flop / rows,
            "share_of_peak": None if flop is None else 1e-9 * flop / busy_s / peak_gflops,
            "gb_per_row": None if moved_gb is None else moved_gb / rows,
            "share_of_copies": (
                None if moved_gb is None or copy_gb_per_s is None else moved_gb / busy_s / copy_gb_per_s
            ),
            "operators": self.operators,
            "attention_share": self.attention_share,
        }


def _linear_flop(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return int(2 * math.prod(x_shape) * weight_shape[0])


#: The product that the ranker takes instead of `mm` on some processors (`embeddings.training.precision`).
_BY_ONEDNN: dict[Any, Any] = (
    {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else {}
)


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of `work`, backward passes included.

    A product of M x K by K x N counts 2 M K N.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_BY_ONEDNN)
    with counter:
        work()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Work:
    """What a step computes, and what its operators read and write, as if nothing stayed in a cache."""

    flop: int
    moved_gb: float


def count_work(work: Callable[[], object]) -> Work:
    """Operations as `count_flop` counts them, and bytes."""
    clock = OperatorClock()
    with clock:
        flop = count_flop(work)
    return Work(flop, 1e-9 * sum(cost.bytes for cost in clock.costs.values()))


def activities_on(device: torch.device) -> list[ProfilerActivity]:
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return [ProfilerActivity.CPU, *gpu]


def operator_times(profiled: profile, device: torch.device) -> tuple[list[dict[str, Any]], float]:
    """The operators with the most time of their own, as shares of all, and the share of attention.

    On a GPU the time is that of the kernels that an operator launched.
    """
    own = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # Kernels are listed besides the operators that launched them.
    events = [event for event in profiled.key_averages() if event.device_type.name == "CPU"]
    time_us = {event.key: float(getattr(event, own)) for event in events}
    calls = {event.key: int(event.count) for event in events}
    total = sum(time_us.values())
    top = sorted(time_us, key=lambda name: -time_us[name])[:TOP_OPERATORS]
    operators = [
        {"name": name, "share": time_us[name] / total, "self_ms": 1e-3 * time_us[name], "calls": calls[name]}
        for name in top
    ]
    return operators, sum(time_us.get(name, 0.0) for name in ATTENTION_OPERATORS) / total
