"""Cross layers of DCN-v2 (Wang et al., 2021, equation 1): each raises the degree of interaction by one.

Shapes: B impressions, N input width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.modules.crossnet import LowRankCrossNet

from embeddings.training.fast_products import input_gradient, linear, weight_gradient
from ranking.dense_layers import in_autocast_dtype


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l with full matrices W_l.

    torchrec's `CrossNet` computes the same with batched [B, N, 1] products, which cost several times more
    on a CPU than one GEMM. With all weights and biases zero it is the identity.

    Wang et al. 2021, https://arxiv.org/abs/2008.13535

    >>> network = CrossNetwork(width=2, layers=1)
    >>> for parameter in network.parameters():
    ...     _ = nn.init.zeros_(parameter)
    >>> network(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x0_BN: Tensor) -> Tensor:
        """[B, N] to [B, N]."""
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        return _CrossLayers.apply(in_autocast_dtype(x0_BN), *weights, *biases)


class _CrossLayers(torch.autograd.Function):
    """All layers at once, so that the gradient of x_0, to which each adds, is written in place.

    With y = W x + b and g the gradient of x_0 * y + x, the gradients are x_0 * g of y, y * g of x_0, and
    W^T (x_0 * g) + g of x.
    """

    @staticmethod
    def forward(ctx: Any, x0_BN: Tensor, *weights_and_biases: Tensor) -> Tensor:
        layers = len(weights_and_biases) // 2
        ctx.dtypes = [parameter.dtype for parameter in weights_and_biases]
        cast = [parameter.to(x0_BN.dtype) for parameter in weights_and_biases]
        weights, biases = cast[:layers], cast[layers:]
        x_BN, inputs, products = x0_BN, [], []
        for weight_NN, bias_N in zip(weights, biases, strict=True):
            y_BN = linear(x_BN, weight_NN, bias_N)
            inputs.append(x_BN)
            products.append(y_BN)
            x_BN = torch.addcmul(x_BN, x0_BN, y_BN)
        ctx.save_for_backward(x0_BN, *weights, *inputs, *products)
        return x_BN if layers else x0_BN.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.dtypes) // 2
        x0_BN, *saved = ctx.saved_tensors
        weights, inputs, products = (saved[i * layers : (i + 1) * layers] for i in range(3))
        of_parameters: list[Tensor | None] = [None] * len(ctx.dtypes)
        of_x_BN, of_x0_BN = gradients[0], None
        for i in reversed(range(layers)):
            of_y_BN = of_x_BN * x0_BN
            if ctx.needs_input_grad[1 + i]:
                of_parameters[i] = weight_gradient(of_y_BN, inputs[i]).to(ctx.dtypes[i])
            if ctx.needs_input_grad[1 + layers + i]:
                of_parameters[layers + i] = of_y_BN.sum(dim=0).to(ctx.dtypes[layers + i])
            if ctx.needs_input_grad[0]:
                if of_x0_BN is None:
                    of_x0_BN = of_x_BN * products[i]
                else:
                    of_x0_BN.addcmul_(of_x_BN, products[i])
            if ctx.needs_input_grad[0] or i:
                of_x_BN = input_gradient(of_y_BN, weights[i]).add_(of_x_BN)
        of_x0_BN = of_x_BN if of_x0_BN is None else of_x0_BN.add_(of_x_BN)
        return of_x0_BN if ctx.needs_input_grad[0] else None, *of_parameters


def cross_network(width: int, layers: int, *, rank: int | None) -> nn.Module:
    """Full cross layers, or torchrec's low-rank ones (W = U V of rank `rank`)."""
    if rank is None:
        return CrossNetwork(width, layers)
    return LowRankCrossNet(width, layers, low_rank=rank)
