"""Fully connected layers on a processor whose memory is slower than its matrix products.

autograd's own formulas read and write activations more often than they need to: each operation is a pass of
its own, and gradients of one tensor are added up in further passes. The layers here save what their backward
pass reads once, and write into tensors that nobody else reads. They are the same functions, to the rounding.

Shapes: B rows, K inputs of a layer, H its outputs.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ranking.precision import onednn_multiplies_bfloat16, onednn_multiplies_float32


class Mlp(nn.Sequential):
    """Layers one after the other; a linear layer and the ReLU behind it are computed together.

    >>> with torch.no_grad():
    ...     _ = nn.init.eye_((linear := nn.Linear(2, 2, bias=False)).weight)
    >>> Mlp(linear, nn.ReLU())(torch.tensor([[1.0, -1.0]])).tolist()
    [[1.0, 0.0]]
    """

    def forward(self, x_BK: Tensor) -> Tensor:
        """[B, K] to [B, H] of the last layer."""
        x_BK = in_autocast_dtype(x_BK)
        done = False
        for layer, following in zip_longest(self, list(self)[1:]):
            if done:
                done = False
            elif isinstance(layer, nn.Linear) and isinstance(following, nn.ReLU):
                x_BK = _LinearRelu.apply(x_BK, layer.weight, layer.bias)
                done = True
            else:
                x_BK = layer(x_BK)
        return x_BK


def mlp(width: int, hidden: Sequence[int], *, dropout: float) -> Mlp:
    """Linear, ReLU (and dropout) for each hidden width; the identity for none."""
    layers: list[nn.Module] = []
    for inner in hidden:
        layers += [nn.Linear(width, inner), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = inner
    return Mlp(*layers)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Cast once where autocast would cast in front of every layer (7 % of a training step)."""
    return x.to(autocast_dtype(x))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast would cast `x` to in front of a matrix product; its own dtype without autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def join_columns(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`torch.cat(parts, dim=1).to(dtype)` in one pass, forward and backward.

    >>> join_columns([torch.ones(1, 1), torch.zeros(1, 2)], torch.bfloat16)
    tensor([[1., 0., 0.]], dtype=torch.bfloat16)
    """
    return _JoinColumns.apply(dtype, *parts)


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


class _LinearRelu(torch.autograd.Function):
    """relu(x W^T + b); keeps the result instead of what goes into the ReLU."""

    @staticmethod
    def forward(ctx: Any, x_BK: Tensor, weight_HK: Tensor, bias_H: Tensor | None) -> Tensor:
        ctx.dtypes = (weight_HK.dtype, None if bias_H is None else bias_H.dtype)
        weight_HK = weight_HK.to(x_BK.dtype)
        result_BH = linear(x_BK, weight_HK, None if bias_H is None else bias_H.to(x_BK.dtype)).relu_()
        ctx.save_for_backward(x_BK, weight_HK, result_BH)
        return result_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BK, weight_HK, result_BH = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        gradient_BH = torch.ops.aten.threshold_backward(gradients[0], result_BH, 0)
        return (
            input_gradient(gradient_BH, weight_HK) if ctx.needs_input_grad[0] else None,
            weight_gradient(gradient_BH, x_BK).to(of_weight) if ctx.needs_input_grad[1] else None,
            gradient_BH.sum(dim=0).to(of_bias) if ctx.needs_input_grad[2] else None,
        )


class _JoinColumns(torch.autograd.Function):
    """Columns of all parts behind each other, in another dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        ctx.dtypes = [part.dtype for part in parts]
        joined = parts[0].new_empty((parts[0].shape[0], sum(ctx.widths)), dtype=dtype)
        for columns, part in zip(joined.split(ctx.widths, dim=1), parts, strict=True):
            columns.copy_(part)
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        columns = gradients[0].split(ctx.widths, dim=1)
        # contiguous: fbgemm would copy again
        return None, *(
            part.to(dtype).contiguous() if needed else None
            for part, dtype, needed in zip(columns, ctx.dtypes, ctx.needs_input_grad[1:], strict=True)
        )
