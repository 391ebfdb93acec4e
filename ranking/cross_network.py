"""Cross layers of DCN-v2 (Wang et al., 2021, equation 1): each raises the degree of interaction by one.

Shapes: B impressions, N input width.
"""

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet


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
        x0_BN = in_autocast_dtype(x0_BN)
        x_BN = x0_BN
        for layer in self.layers:
            x_BN = torch.addcmul(x_BN, x0_BN, layer(x_BN))
        return x_BN


def cross_network(width: int, layers: int, *, rank: int | None) -> nn.Module:
    """Full cross layers, or torchrec's low-rank ones (W = U V of rank `rank`)."""
    if rank is None:
        return CrossNetwork(width, layers)
    return LowRankCrossNet(width, layers, low_rank=rank)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Cast once where autocast would cast in front of every layer (7 % of a training step)."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
