"""Matrix products by the library that is fastest on this processor, and linear layers that use them.

torch multiplies float32 by MKL, which leaves the AVX-512 units of AMD's processors unused; there oneDNN
multiplies (`onednn_multiplies_float32`). They are the same functions, to the rounding.

Shapes: B rows (any number of leading axes), K inputs of a layer, H its outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embeddings.training.precision import onednn_multiplies_bfloat16, onednn_multiplies_float32

#: oneDNN keeps its kernels for each shape, 1 to 5 MB with the gradients: texts of all lengths came to 1 GB in
#: 200 batches. So layers multiply blocks of so many rows, and MKL what is left.
BLOCK_ROWS = (4096, 1024, 256, 64)


def linear(x_BK: Tensor, weight_HK: Tensor, bias_H: Tensor | None) -> Tensor:
    """x W^T + b, for use inside autograd functions: `weight_HK` has the dtype of `x_BK`."""
    if _by_onednn(x_BK) or (bias_H is not None and _adds_bias_within(x_BK)):
        return _onednn_product(x_BK, weight_HK, bias_H)
    if bias_H is None:
        return torch.mm(x_BK, weight_HK.t())
    return torch.addmm(bias_H, x_BK, weight_HK.t())


def input_gradient(gradient_BH: Tensor, weight_HK: Tensor) -> Tensor:
    """Gradient [B, K] of the input of a linear layer."""
    if _by_onednn(gradient_BH):
        return _onednn_product(gradient_BH, weight_HK.t(), None)
    return torch.mm(gradient_BH, weight_HK)


def weight_gradient(gradient_BH: Tensor, x_BK: Tensor) -> Tensor:
    """Gradient [H, K] of the weights of a linear layer."""
    if _by_onednn(gradient_BH):
        return _onednn_product(gradient_BH.t(), x_BK.t(), None)
    return torch.mm(gradient_BH.t(), x_BK)


class FastLinear(nn.Linear):
    """`nn.Linear` whose float32 products go to oneDNN where that is faster; elsewhere it is `nn.Linear`."""

    def forward(self, x_BK: Tensor) -> Tensor:
        """[..., K] to [..., H]."""
        if torch.is_autocast_enabled(x_BK.device.type) or not _by_onednn(x_BK):
            return super().forward(x_BK)
        flat_BK = x_BK.reshape(-1, x_BK.shape[-1])
        result_BH: Tensor = _Linear.apply(flat_BK, self.weight, self.bias)
        return result_BH.view(*x_BK.shape[:-1], -1)


def use_fast_products(module: nn.Module) -> None:
    """Make every `nn.Linear` in `module` a `FastLinear`: other libraries build their layers themselves.

    >>> use_fast_products(layers := nn.Sequential(nn.Linear(2, 1)))
    >>> layers
    Sequential(
      (0): FastLinear(in_features=2, out_features=1, bias=True)
    )
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = FastLinear  # the same weights under the same names


class _Linear(torch.autograd.Function):
    """x W^T + b, forward and backward by the fastest library."""

    @staticmethod
    def forward(ctx: Any, x_BK: Tensor, weight_HK: Tensor, bias_H: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BK, weight_HK)
        return _by_blocks(
            x_BK,
            lambda block: linear(x_BK[block], weight_HK, bias_H),
            lambda rest: nn.functional.linear(x_BK[rest], weight_HK, bias_H),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BK, weight_HK = ctx.saved_tensors
        gradient_BH = gradients[0]
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _by_blocks(
                gradient_BH,
                lambda block: input_gradient(gradient_BH[block], weight_HK),
                lambda rest: torch.mm(gradient_BH[rest], weight_HK),
            )
        if ctx.needs_input_grad[1]:
            blocks, rest = _blocks(len(x_BK))
            of_weight = torch.mm(gradient_BH[rest].t(), x_BK[rest])
            for block in blocks:
                of_weight += weight_gradient(gradient_BH[block], x_BK[block])
        return of_input, of_weight, gradient_BH.sum(dim=0) if ctx.needs_input_grad[2] else None


def _blocks(rows: int) -> tuple[list[slice], slice]:
    """Blocks of `BLOCK_ROWS`, the largest first, and the rows behind them."""
    blocks: list[slice] = []
    start = 0
    for size in BLOCK_ROWS:
        while rows - start >= size:
            blocks.append(slice(start, start + size))
            start += size
    return blocks, slice(start, rows)


def _by_blocks(x_BK: Tensor, fast: Callable[[slice], Tensor], plain: Callable[[slice], Tensor]) -> Tensor:
    """The results for all rows: of the blocks from `fast`, of the rows behind them from `plain`."""
    blocks, rest = _blocks(len(x_BK))
    parts = [fast(block) for block in blocks]
    if rest.stop > rest.start:
        parts.append(plain(rest))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_onednn(x: Tensor) -> bool:
    """It refuses products of nothing."""
    is_float32 = x.dtype is torch.float32 and x.device.type == "cpu"
    return is_float32 and x.numel() > 0 and onednn_multiplies_float32()


def _adds_bias_within(x: Tensor) -> bool:
    """bfloat16 products are oneDNN's anyway, but `addmm` writes the bias to its result first: a pass more."""
    is_bfloat16 = x.dtype is torch.bfloat16 and x.device.type == "cpu"
    return is_bfloat16 and x.numel() > 0 and onednn_multiplies_bfloat16()


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Its own ReLU would turn NaN into 0 and hide that a training diverges.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
