"""Three ways to multiply the same matrices; packaging takes the one that is fastest where it packages.

"torch" is torch's own call, which goes to MKL; on AMD processors that uses half of AVX-512. "onednn" is
the same sum in float32 by oneDNN, which uses what the processor has. "bfloat16" rounds both factors to 8 bits
and the sum, too, for processors that multiply such numbers in hardware.

oneDNN makes code for every number of rows that it meets, milliseconds for a whole ranker, and keeps it. So
candidates are filled up to one of few numbers, `rows_run`, and a server meets these before requests do.

Shapes: N candidates, K inputs of a layer, H its outputs.
"""

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from serving.scoring.request_ranker import RequestRanker
from serving.scoring.request_towers import SplitLinear

Arithmetic = Literal["torch", "onednn", "bfloat16"]
#: Numbers of rows in each octave: at most an eighth of the rows is filling.
_STEPS = 8


class OneDnnLinear(nn.Module):
    """W x + b by oneDNN, in float32 or with factors and sum rounded to bfloat16; weights lie as they are."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)

    def forward(self, x_NK: Tensor) -> Tensor:
        """float32 [N, H]."""
        product_NH: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_NK.to(self.weight.dtype), self.weight, self.bias, "none", [], ""
        )
        return product_NH.float()


def with_arithmetic(module: RequestRanker, arithmetic: Arithmetic) -> RequestRanker:
    """The ranker with its candidates' products made that way; the same object for "torch".

    Layers of one row a request, and the one that makes the logit, stay: they read their weights once, and
    there is nothing to win.
    """
    if arithmetic == "torch":
        return module
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    changed = copy.deepcopy(module)
    for parent in list(changed.modules()):
        for name, layer in list(parent.named_children()):
            of_request = isinstance(parent, SplitLinear) and name == "request"
            if isinstance(layer, nn.Linear) and layer.out_features > 1 and not of_request:
                setattr(parent, name, OneDnnLinear(layer, dtype))
    return changed


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def rows_run(count: int) -> int:
    """What `count` candidates are filled up to: 16 stay 16, 17 become 18, 100 become 104."""
    step = 1 << max(0, count.bit_length() - _STEPS.bit_length())
    return -(-count // step) * step


def all_rows_run(at_most: int) -> Iterator[int]:
    """Every value of `rows_run` up to `at_most`."""
    count = 1
    while count <= at_most:
        yield count
        count = rows_run(count + 1)
