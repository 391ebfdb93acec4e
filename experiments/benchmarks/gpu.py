"""Training of ranker and encoders on a GPU: speed, share of its peaks, and where the time goes, in minutes.

One command that prepares its own data: a generated log with histories, built into features, with random
vectors of the paper's number of products, and the generated products of the encoders' benchmark. The ranker
has both towers; its loop is that of `ranking.train`, without evaluations and checkpoints.

Steps are timed together, between two waits for the device: timing each would make it wait in each. With
`device="cpu"` everything runs small on the processor, which shows that it runs, and nothing else.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import profile

from embeddings.training.precision import Precision
from experiments.benchmarks.encoders.step_timing import activities_on, count_work, operator_times
from experiments.benchmarks.encoders.throughput import Device, run_encoder_benchmark, setting
from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.features.loader_runner import all_known
from experiments.benchmarks.measure import measure_module
from experiments.benchmarks.training.roofline import (
    MachinePeaks,
    measure_copy_peak,
    measure_host_copy_peak,
    measure_product_peak,
    one_thread,
)
from experiments.benchmarks.training.training_steps import TrainingSteps, training_steps
from experiments.runtime.environment import describe_machine
from features.batches.batch import Batch
from features.feature_set import FeatureSet
from features.progress import Progress
from ranking.model import RankerConfig, SemanticConfig
from ranking.read_ahead import ahead
from ranking.train import TrainingConfig

LIBRARIES = ("torch", "torchrec", "transformers", "numpy")
RANKER = RankerConfig(semantic=SemanticConfig())
#: Calls by which a host waits for its GPU, as the profiler names them.
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


@dataclass(frozen=True)
class GpuBenchmark:
    """Sizes of the measurement; as they stand they take under eight minutes on a GPU of 2020 or later."""

    device: Device = "cuda"
    impressions: int = 2_000_000
    purchases: int = 800_000
    products: int = 400_000
    queries: int = 118_000
    vector_dim: int = 256
    batch_rows: tuple[int, ...] = (8_192, 65_536)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    warmup: int = 10
    steps: int = 60
    profiled: int = 5
    #: Batches that lie ready in pinned memory and are taken in turn.
    ready: int = 4
    encoders: tuple[str, ...] = ("small", "base")
    encoder_rows: int | None = None
    peak_seconds: float = 1.0
    #: No setting of the encoders is begun after so many minutes.
    minutes: float = 6.0
    seed: int = 0


TINY = GpuBenchmark(
    device="cpu",
    impressions=30_000,
    purchases=12_000,
    products=500,
    queries=300,
    vector_dim=16,
    batch_rows=(512,),
    precisions=("float32",),
    warmup=1,
    steps=2,
    profiled=1,
    ready=2,
    encoders=("tiny",),
    encoder_rows=4,
    peak_seconds=0.01,
)


class GpuBenchmarkError(ValueError):
    """A device that is not there."""


def run_gpu_benchmark(
    benchmark: GpuBenchmark, *, work: Path, quick: bool = False, progress: Progress
) -> dict[str, Any]:
    """Prepare the data, measure ranker and encoders, and return `gpu.json`.

    Raises:
        GpuBenchmarkError: torch sees no GPU.
    """
    device = torch.device(benchmark.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise GpuBenchmarkError(
            "there is no GPU to measure: torch sees no CUDA device (`dashclip doctor` says why); `dashclip "
            "bench gpu --device cpu` tries the whole way on the processor, with numbers that mean nothing"
        )
    started, load = time.monotonic(), os.getloadavg()[0]
    progress("gpu: peaks", 0, 1)
    with one_thread():
        seconds = benchmark.peak_seconds
        peaks = MachinePeaks(
            float32_gflops=measure_product_peak(torch.float32, seconds=seconds, device=device),
            bfloat16_gflops=measure_product_peak(torch.bfloat16, seconds=seconds, device=device),
            copy_gb_per_s=measure_copy_peak(seconds=seconds, device=device),
        )
        from_host = measure_host_copy_peak(seconds=seconds, device=device)
    feature_set = _features(benchmark, work, progress)
    ranker = [
        _measured(benchmark, feature_set, rows, precision, peaks, device, progress)
        for rows in benchmark.batch_rows
        for precision in benchmark.precisions
    ]
    encoders, left_out = {}, []
    for size in benchmark.encoders:
        if time.monotonic() - started > 60 * benchmark.minutes:
            left_out.append(size)
            continue
        chosen = setting(
            size,  # type: ignore[arg-type]
            device=benchmark.device,
            precision="bfloat16",
            compiled=False,
            batch_rows=benchmark.encoder_rows,
            quick=quick,
        )
        encoders[size] = run_encoder_benchmark(chosen, work=work / f"encoders_{size}", progress=progress)
    return {
        "settings": asdict(benchmark),
        "machine": describe_machine(LIBRARIES),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "load_average_before": load,
        "peaks": {**asdict(peaks), "from_host_gb_per_s": from_host},
        "ranker": ranker,
        "encoders": encoders,
        "left_out": left_out,
        "seconds": time.monotonic() - started,
    }


def _features(benchmark: GpuBenchmark, work: Path, progress: Progress) -> FeatureSet:
    logs, features = work / "gpu_logs", work / "gpu_features"
    size = LogSize(
        benchmark.impressions, benchmark.purchases, products=benchmark.products, queries=benchmark.queries
    )
    write_feature_logs(logs, size, seed=benchmark.seed, progress=progress)
    progress("gpu: building features", 0, 1)
    measure_module(BUILD, logs, features, "cached", "1GB")
    return FeatureSet.open(features)


def _measured(
    benchmark: GpuBenchmark,
    feature_set: FeatureSet,
    rows: int,
    precision: Precision,
    peaks: MachinePeaks,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """One batch size in one precision."""
    what = f"gpu: ranker, batches of {rows:,}, {precision}"
    progress(what, 0, 4)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    config = TrainingConfig(batch_size=rows, precision=precision)
    manifest = feature_set.manifest
    generator = np.random.default_rng(benchmark.seed)
    vectors = {
        "product": _unit_vectors(manifest.num_products, benchmark.vector_dim, generator),
        "query": _unit_vectors(manifest.num_queries, benchmark.vector_dim, generator),
    }
    with training_steps(
        feature_set,
        "train",
        RANKER,
        config,
        seed=benchmark.seed,
        device=device,
        semantic=all_known(feature_set),
        vectors=vectors,
    ) as steps:
        ready = [batch for batch in islice(_pinned(steps, device), benchmark.ready) if len(batch) == rows]
        turn = cycle(ready)

        def take(count: int) -> None:
            steps.take(islice(turn, count))

        take(benchmark.warmup)
        with _clock(device) as seconds:
            take(benchmark.steps)
        step_s = seconds() / benchmark.steps
        progress(what, 1, 4)
        work = count_work(lambda: take(1))
        profiled = _profiled(lambda: take(benchmark.profiled), steps, device, benchmark.profiled)
        progress(what, 2, 4)
        with _clock(device) as seconds:
            read = sum(_trained(steps, batch) for batch in islice(steps.loop.batches(), benchmark.steps))
        loop_s = seconds()
    progress(what, 4, 4)
    moved_gb = work.moved_gb + 1e-9 * float(
        np.mean([_table_bytes(batch, benchmark.vector_dim) for batch in ready])
    )
    gflops = peaks.float32_gflops if precision == "float32" else peaks.bfloat16_gflops
    products_s, memory_s = 1e-9 * work.flop / gflops, moved_gb / peaks.copy_gb_per_s
    return {
        "batch_rows": rows,
        "precision": precision,
        "step_rows_per_s": rows / step_s,
        "loop_rows_per_s": read / loop_s,
        "step_ms": 1e3 * step_s,
        "mflop_per_row": 1e-6 * work.flop / rows,
        "kb_per_row": 1e6 * moved_gb / rows,
        "share_of_products": products_s / step_s,
        "share_of_copies": memory_s / step_s,
        "share_of_limit": (products_s + memory_s) / step_s,
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
        **profiled,
    }


def _pinned(steps: TrainingSteps, device: torch.device) -> Iterator[Batch]:
    located = ((batch, None) for batch in steps.training)
    return (batch for batch, _ in ahead(located, device, by_thread=False))


def _trained(steps: TrainingSteps, batch: Batch) -> int:
    steps.loop.take_step(batch)
    return len(batch)


@contextmanager
def _clock(device: torch.device) -> Iterator[Callable[[], float]]:
    """Wall seconds of what happens meanwhile, all that the device was asked for included."""

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started, ended = wait(), [0.0]
    yield lambda: ended[0] - started
    ended[0] = wait()


def _profiled(
    take: Callable[[], None], steps: TrainingSteps, device: torch.device, count: int
) -> dict[str, Any]:
    """The operators with the most time of their own, and how often a step waits for the device."""
    steps.loop.settle()
    with profile(activities=activities_on(device)) as profiled:
        take()
    operators, _ = operator_times(profiled, device)
    waits = sum(int(event.count) for event in profiled.key_averages() if event.key in _WAITS)
    return {"operators": operators, "waits_per_step": waits / count}


def _table_bytes(batch: Batch, dim: int) -> float:
    """Bytes of table rows that a step reads and writes, by hand: operators name whole tables.

    A trained row is read, its gradient written and read, the row read and written, and a number of its
    optimizer's state read and written. Of pretrained rows, `dim` wide, each is read, and the mean of a bag
    written.
    """
    trained = batch.sparse.values().numel() * 4.0 * (6 * RANKER.embedding_dim + 2)
    pretrained = (batch.semantic.values().numel() + batch.semantic.lengths().numel()) * 4.0 * dim
    return trained + pretrained


def _unit_vectors(count: int, dim: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Row 0, the missing vector, is zeros."""
    vectors_ND = generator.standard_normal((1 + count, dim), dtype=np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND[0] = 0
    return vectors_ND
