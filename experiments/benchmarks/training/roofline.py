"""How fast one core could train the benchmark's DCN-v2 at best, from rates measured on this machine.

A training step multiplies each weight matrix three times (forward, gradient of the input, gradient of the
weight) and moves every embedding row to and fro; the roofline is the time that these alone would take at the
measured peak of matrix products and of memory copies.

Shapes: M x K by K x N products.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from itertools import pairwise

import torch

from embeddings.training.fast_products import input_gradient, linear, weight_gradient

#: Big enough to reach the peak, small enough to repeat; the second has the shape of a cross layer.
_PRODUCT_SHAPES = ((1024, 1024, 1024), (4096, 432, 432))
#: A GPU needs more work in one product to reach its peak; the second has the shape of a transformer's layer.
_CUDA_PRODUCT_SHAPES = ((8192, 8192, 8192), (16384, 768, 3072))
_COPY_BYTES = 256 * 2**20
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DcnShape:
    """Widths of a DCN-v2 with parallel cross and deep layers and one output."""

    dense_features: int
    sparse_features: int
    embedding_dim: int
    cross_layers: int
    deep_widths: tuple[int, ...]

    @property
    def input_width(self) -> int:
        return self.dense_features + self.sparse_features * self.embedding_dim

    @property
    def flop_per_row(self) -> int:
        """Floating-point operations of one training row in the matrix products.

        Two for each weight in each of the three products. The gradient of the first layers' input is needed
        too: it is the gradient of the embeddings.
        """
        width = self.input_width
        widths = (width, *self.deep_widths)
        weights = self.cross_layers * width * width
        weights += sum(a * b for a, b in pairwise(widths))
        weights += width + widths[-1]
        return 3 * 2 * weights

    @property
    def looked_up_bytes_per_row(self) -> int:
        """Bytes of embedding rows read for one row, and written where the layers read them."""
        return self.sparse_features * 4 * 2 * self.embedding_dim

    @property
    def embedding_bytes_per_row(self) -> int:
        """Bytes of embedding rows and row-wise optimizer states read and written for one row.

        The row is read in the forward pass, and read and written in the update; its gradient is written and
        read; one state number per row is read and written.
        """
        return self.sparse_features * 4 * (5 * self.embedding_dim + 2)


@dataclass(frozen=True)
class MachinePeaks:
    """Best measured rates of one core."""

    float32_gflops: float
    bfloat16_gflops: float
    copy_gb_per_s: float


def best_peaks(measured: Sequence[MachinePeaks]) -> MachinePeaks:
    """The highest rates ever seen: other load only lowers what is measured."""
    return MachinePeaks(*(max(rates) for rates in zip(*map(astuple, measured), strict=True)))


def roofline_rows_per_s(shape: DcnShape, *, gflops: float, copy_gb_per_s: float) -> float:
    """Rows a second with products at their peak, then embedding rows at copy speed."""
    return 1e9 / (shape.flop_per_row / gflops + shape.embedding_bytes_per_row / copy_gb_per_s)


def measure_peaks(*, seconds_each: float = 2.0) -> MachinePeaks:
    """Measure products and copies on one core."""
    with one_thread():
        return MachinePeaks(
            float32_gflops=measure_product_peak(torch.float32, seconds=seconds_each),
            bfloat16_gflops=measure_product_peak(torch.bfloat16, seconds=seconds_each),
            copy_gb_per_s=measure_copy_peak(seconds=seconds_each),
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch; its number of threads is restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure_product_peak(dtype: torch.dtype, *, seconds: float, device: torch.device = _CPU) -> float:
    """Best GFLOPS of matrix products by processor time, one core if torch has one thread, or of a GPU.

    The best of all shapes and of the layouts of forward pass, input gradient and weight gradient.
    """
    best = 0.0
    shapes = _PRODUCT_SHAPES if device.type == "cpu" else _CUDA_PRODUCT_SHAPES
    ones = partial(torch.ones, dtype=dtype, device=device)
    for m, k, n in shapes:
        works = [
            partial(torch.mm, left, right)
            for left, right in (
                (ones(m, k), ones(n, k).t()),
                (ones(m, k), ones(k, n)),
                (ones(k, m).t(), ones(k, n)),
            )
        ]
        if device.type == "cpu":  # the ranker's own may go to another library
            works += [
                partial(linear, ones(m, k), ones(n, k), None),
                partial(input_gradient, ones(m, k), ones(k, n)),
                partial(weight_gradient, ones(k, m), ones(k, n)),
            ]
        for work in works:
            times = _repeat(work, seconds / (len(shapes) * len(works)), device)
            best = max(best, 2e-9 * m * k * n / min(times))
    return best


def measure_copy_peak(*, seconds: float, device: torch.device = _CPU) -> float:
    """Best GB/s of copies within the memory of `device`: bytes read plus bytes written."""
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return 2e-9 * _COPY_BYTES / min(_repeat(partial(target.copy_, source), seconds, device))


def measure_host_copy_peak(*, seconds: float, device: torch.device) -> float:
    """Best GB/s of copies from the host to `device`, out of pinned memory where that means something."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    times = _repeat(partial(target.copy_, source, non_blocking=True), seconds, device)
    return 1e-9 * _COPY_BYTES / min(times)


def _repeat(work: Callable[[], object], seconds: float, device: torch.device) -> Sequence[float]:
    """Seconds of each repetition until `seconds` have passed, at least two.

    Processor seconds on a CPU. Wall seconds on a GPU after a warm-up, its queue empty before and after each.
    """
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < until:
        if on_gpu:
            torch.cuda.synchronize()
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - started)
    return times
