"""The dtype of dense products, and what this machine multiplies fast."""

from functools import cache
from typing import Literal

import torch

Resolved = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware.

    oneDNN "supports" bfloat16 on every AVX-512 processor and emulates it, slower than float32, where neither
    AVX512-BF16 nor AMX is there; on Arm its answer is the processor's.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    processor = torch.cpu.get_capabilities()
    return processor["architecture"] != "x86_64" or processor["avx512_bf16"] or processor["amx_bf16"]


@cache
def onednn_multiplies_float32() -> bool:
    """Whether float32 products go to oneDNN instead of MKL, which torch calls otherwise.

    MKL leaves the AVX-512 units of AMD's processors unused: on one core of Zen 5 it reached 108 GFLOPS where
    oneDNN reached 245. The sums are float32 in both.
    """
    processor = torch.cpu.get_capabilities()
    return (
        str(processor.get("cpu_name", "")).startswith("AMD")
        and bool(processor.get("avx512_f", False))
        and torch.backends.mkl.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN has not been held to less than AVX-512
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch's own, but not of its public API
    )


@cache
def onednn_multiplies_bfloat16() -> bool:
    """Whether the processor's bfloat16 products are oneDNN's, in its units, and can be asked of it."""
    return has_bfloat16_units(torch.device("cpu")) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def resolve_precision(precision: Precision, device: torch.device) -> Resolved:
    """The dtype of the dense layers' products; weights and optimizer states are float32 in any case."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16_units(device) else "float32"
