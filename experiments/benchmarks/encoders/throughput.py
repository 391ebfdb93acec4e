"""Speed of the encoders' training stages and of encoding, against the measured peak of matrix products.

The steps are those of `embeddings.training.loop.train` on batches that lie ready on the device; the loops
read and augment pictures as in training. On a CPU everything runs on one thread, so that processor seconds
compare with the peak of one core; a GPU is measured by wall time. No layer is frozen in either stage, and
with the fusion "grounded" stage 2 trains the image encoder, too: the most work that a setting asks for.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.completion import Completion
from embeddings.encoders.config import EncoderConfig, Size
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import text_config, vision_config
from embeddings.relevance.build_tuples import TupleConfig, build_tuples, read_grades
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.product_parts import ProductParts
from embeddings.stages.stage1 import PretrainConfig, PretrainTask
from embeddings.stages.stage2 import AlignTask, Tuples
from embeddings.tables.encode import encode_products
from embeddings.training.loop import OptimizerConfig, Report, Task, train
from embeddings.training.precision import Precision
from embeddings.training.ranks import Ranks
from experiments.benchmarks.encoders.products import CatalogSize, full_size_tokenizer, write_products
from experiments.benchmarks.encoders.step_timing import (
    Observed,
    Schedule,
    StepObserver,
    Work,
    count_work,
)
from experiments.benchmarks.training.roofline import (
    measure_copy_peak,
    measure_product_peak,
    one_thread,
)
from experiments.runtime.environment import describe_machine
from features.progress import Progress

Device = Literal["cpu", "cuda"]

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
#: Rows of a training step by size: those of the demo on a CPU, of BLIP's training on a GPU.
BATCH_ROWS: dict[Device, dict[Size, int]] = {
    "cpu": {"tiny": 16, "small": 32, "base": 4},
    "cuda": {"tiny": 256, "small": 256, "base": 64},
}
#: Steps of the loops that read pictures, and distinct batches that the steps repeat in turn.
LOOP_STEPS, BATCHES = 3, 2


@dataclass(frozen=True)
class EncoderBenchmark:
    """One setting to measure."""

    size: Size = "small"
    device: Device = "cpu"
    precision: Precision = "float32"
    #: Measure again with the transformers compiled by torch.compile.
    compiled: bool = False
    batch_rows: int = 32
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup=4, timed=10, profiled=2))
    queries: int = 2_000
    peak_seconds: float = 2.0
    seed: int = 0

    @property
    def products(self) -> int:
        """Enough for an epoch of the loops, and a tenth more to stop early by."""
        return max(16, -(-self.batch_rows * (LOOP_STEPS + 2) * 11 // 10))


class EncoderBenchmarkError(ValueError):
    """A setting that cannot be measured here; the message says why."""


def setting(
    size: Size,
    *,
    device: Device,
    precision: Precision,
    compiled: bool,
    batch_rows: int | None = None,
    quick: bool = False,
) -> EncoderBenchmark:
    """The setting of a size with the usual number of rows in a step; `quick` takes one step."""
    benchmark = EncoderBenchmark(
        size=size,
        device=device,
        precision=precision,
        compiled=compiled,
        batch_rows=batch_rows or BATCH_ROWS[device][size],
    )
    if not quick:
        return benchmark
    return replace(benchmark, schedule=Schedule(1, 1, 1), queries=200, peak_seconds=0.3)


def run_encoder_benchmark(benchmark: EncoderBenchmark, *, work: Path, progress: Progress) -> dict[str, Any]:
    """Generate products, measure stage 1, stage 2 and encoding, and return one run of `encoders.json`.

    Raises:
        EncoderBenchmarkError: the device is not there.
    """
    device = torch.device(benchmark.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EncoderBenchmarkError(
            "device cuda was asked for, but torch sees no CUDA device; measure on a machine with one, or "
            "with --device cpu"
        )
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[benchmark.precision]
    load = os.getloadavg()[0]  # before our own work adds to it
    size = CatalogSize(benchmark.products, benchmark.queries)
    data = write_products(work / "data", size, seed=benchmark.seed, progress=progress)
    with one_thread():
        peaks = [measure_product_peak(dtype, device=device, seconds=benchmark.peak_seconds)]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        observed = {
            mode: _Stages(benchmark, data, work, compiled=mode == "compiled", progress=progress).measure()
            for mode in (("eager", "compiled") if benchmark.compiled else ("eager",))
        }
        gpu_mib = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        peaks.append(measure_product_peak(dtype, device=device, seconds=benchmark.peak_seconds))
        copies = measure_copy_peak(device=device, seconds=benchmark.peak_seconds)
    peak = max(peaks)  # other load only lowers what is measured

    def result(stage: str, found: _Observation) -> dict[str, Any]:
        work = found.work or observed["eager"][stage].work
        return found.observer.result(
            rows=found.rows,
            flop=None if work is None else work.flop,
            peak_gflops=peak,
            moved_gb=None if work is None else work.moved_gb,
            copy_gb_per_s=copies,
        )

    modes = {
        mode: {stage: result(stage, found) for stage, found in stages.items()}
        for mode, stages in observed.items()
    }
    return {
        "settings": {**asdict(benchmark), "products": benchmark.products},
        "machine": describe_machine(LIBRARIES),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "accelerator_peak_mib": gpu_mib,
        "load_average_before": load,
        "peak_gflops": peak,
        "copy_gb_per_s": copies,
        "attention": attention_support(),
        **modes,
    }


def attention_support() -> dict[str, str]:
    """Which attention transformers' BLIP takes: "accepted", or why not, for eager, SDPA and flash."""
    config = EncoderConfig.preset("tiny", vocab_size=16)
    parts: tuple[tuple[Callable[[Any], object], Any], ...] = (
        (BlipVisionModel, vision_config(config)),
        (partial(BlipTextModel, add_pooling_layer=False), text_config(config, cross_attention=True)),
    )
    found = {}
    for kind in ("eager", "sdpa", "flash_attention_2"):
        answers = []
        for build, settings in parts:
            settings._attn_implementation = kind
            try:
                build(settings)
            except (ValueError, ImportError) as error:
                answers.append(f"{type(error).__name__}: {str(error).split('. ')[0]}")
        found[kind] = "; ".join(answers) or "accepted"
    return found


@dataclass(frozen=True, eq=False)
class _Observation:
    observer: StepObserver
    rows: int
    #: Of one step; None when the eager mode has counted it.
    work: Work | None = None


class _Repeated:
    """A task whose evaluation and end are never reached, with batches that lie ready or as they come."""

    def __init__(self, task: Task, batches: Sequence[Any] | None, *, steps: int) -> None:
        self._task, self._batches = task, batches
        self.title, self.rows_name = task.title, task.rows_name
        self.module, self.batch_rows = task.module, task.batch_rows
        self.steps_per_epoch = steps + 1
        self.before_step, self.evaluate = task.before_step, task.evaluate

    def micro_batches(self, epoch: int, first_step: int) -> Generator[Any, None, None]:
        if self._batches is None:
            yield from self._task.micro_batches(epoch, first_step)
        else:
            yield from cycle(self._batches)


class _Stages:
    """Both stages and encoding in one mode, with a new encoder."""

    def __init__(
        self, benchmark: EncoderBenchmark, data: Path, work: Path, *, compiled: bool, progress: Progress
    ) -> None:
        self.benchmark, self.work, self.compiled = benchmark, work, compiled
        self.device, self.progress = torch.device(benchmark.device), progress
        self.catalog, self.grades = ProductCatalog.open(data), read_grades(data)
        texts = [*self.catalog.titles, *self.grades.queries.to_pylist()]
        tokenizer = full_size_tokenizer(texts, benchmark.size)
        config = EncoderConfig.preset(benchmark.size, vocab_size=tokenizer.vocab_size)
        encoder = DashClipEncoder.new(config, tokenizer, seed=benchmark.seed).to(self.device)
        # Tables carry the id of their encoder, and an unsaved one has none.
        self.encoder = replace(encoder.with_query_encoder(), encoder_id="benchmark")
        self.optimizer = {
            "epochs": 1,
            "batch_size": benchmark.batch_rows,
            "learning_rate": 1e-6,
            "precision": benchmark.precision,
            "checkpoint_every_steps": 1_000_000,
            "seed": benchmark.seed,
        }

    def measure(self) -> dict[str, _Observation]:
        """Observations by stage; reading pictures and counting operations is left to the eager mode."""
        return {
            **self._training("pretrain", self._pretrain_task()),
            **self._training("align", self._align_task()),
            **self._encoding(),
        }

    def _training(self, stage: str, task: PretrainTask | AlignTask) -> dict[str, _Observation]:
        self._show(stage)
        rows = task.batch_rows
        with closing(task.micro_batches(0, 0)) as loaded:
            batches = list(islice(loaded, BATCHES))
        if self.compiled:
            compile_transformers(task.module)
            return {stage: _Observation(self._train(task, batches, self.benchmark.schedule), rows)}
        work = count_work(partial(self._train, task, batches, Schedule(0, 1, 0)))
        observer = self._train(task, batches, self.benchmark.schedule)
        self._show(f"{stage} with reading")
        loop = self._train(task, None, Schedule(1, LOOP_STEPS, 0))
        return {stage: _Observation(observer, rows, work), f"{stage}_loop": _Observation(loop, rows, work)}

    def _encoding(self) -> dict[str, _Observation]:
        self._show("encode")
        rows, shape = self.benchmark.batch_rows, self.encoder.config
        if shape.fusion == "completion":  # without one, encoding would not look at images
            completion = Completion(shape.vector_dim, shape.vocab_size, image_dim=shape.embedding_dim)
            self.encoder.product.completion = completion.to(self.device)
        batch = self.encoder.load_batch(self.catalog, np.arange(rows) % len(self.catalog)).to(self.device)
        forward = partial(self.encoder.embed_products, batch)
        work = None if self.compiled else count_work(forward)
        observer = StepObserver(self.device, self.benchmark.schedule)
        with suppress(Observed):
            while True:
                forward()
                observer()
        found = {"encode": _Observation(observer, rows, work)}
        if self.compiled:
            return found
        whole = StepObserver(self.device, Schedule(1, 1, 0))
        whole()  # no warm-up: the clocks start here
        self._show("encode with reading")
        with suppress(Observed):
            encode_products(
                self.encoder, self.catalog, self.work / "products", batch_size=rows, device=self.device
            )
            whole()
        count = len(self.catalog)
        of_all = work and Work(work.flop * count // rows, work.moved_gb * count / rows)
        return found | {"encode_loop": _Observation(whole, count, of_all)}

    def _train(
        self, task: PretrainTask | AlignTask, batches: Sequence[Any] | None, schedule: Schedule
    ) -> StepObserver:
        """Run the training loop until the observer has seen enough; it writes no checkpoint."""
        observer = StepObserver(self.device, schedule)

        def after_step(report: Report) -> None:
            observer()

        with suppress(Observed):
            train(
                _Repeated(task, batches, steps=schedule.total),
                self.work / "checkpoints",
                config=OptimizerConfig.model_validate(self.optimizer),
                fingerprint="benchmark",
                progress=after_step,
            )
        return observer

    def _pretrain_task(self) -> PretrainTask:
        return PretrainTask(
            self.encoder,
            self.catalog,
            config=PretrainConfig.model_validate(self.optimizer),
            parts=ProductParts.of(self.catalog, HoldoutConfig(test_product_share=0)),
            device=self.device,
            ranks=Ranks(),
        )

    def _align_task(self) -> AlignTask:
        tuples = build_tuples(
            self.grades,
            self.catalog.aisles,
            self.work / "tuples",
            config=TupleConfig(),
            seed=self.benchmark.seed,
        )
        side = "grounded" if self.encoder.config.fusion == "completion" else "all"
        # Stage 1 stopped the gradient of its first layers and of the product projection, stage 2 starts anew.
        self.encoder.product.requires_grad_(True)
        return AlignTask(
            self.encoder,
            self.catalog,
            Tuples(tuples, tuples),
            config=AlignConfig.model_validate({**self.optimizer, "product_side": side}),
            device=self.device,
            ranks=Ranks(),
        )

    def _show(self, what: str) -> None:
        mode = "compiled" if self.compiled else "eager"
        self.progress(f"encoders: {what}, {mode}", 0, 1)


def compile_transformers(module: nn.Module) -> int:
    """Have torch.compile take every image and text encoder inside `module`; how many there are.

    The losses around them select rows by content, which would break the graph.
    """
    found = [part for part in module.modules() if isinstance(part, BlipVisionModel | BlipTextModel)]
    for part in found:
        part.compile()
    return len(found)
