"""The dtype of a ranker's dense products, and whether this machine has units for bfloat16."""

from typing import Literal

import torch

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


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the dense layers' products; weights and optimizer states are float32 in any case."""
    fast = has_bfloat16_units(device) if precision == "auto" else precision == "bfloat16"
    return torch.bfloat16 if fast else torch.float32
