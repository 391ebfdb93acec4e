"""Cross layers against the paper's equation, written as loops, and against torchrec's own."""

import torch
from torchrec.modules.crossnet import CrossNet

from ranking.cross_network import CrossNetwork, cross_network


def test_one_layer_on_two_numbers_by_hand() -> None:
    network = CrossNetwork(2, 1)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        network.layers[0].bias.copy_(torch.tensor([0.5, 1.0]))
    # W x = (3 + 2*4, -4), + b = (11.5, -3); x0 * that = (34.5, -12); + x = (37.5, -8)
    assert torch.equal(network(torch.tensor([[3.0, 4.0]])), torch.tensor([[37.5, -8.0]]))


def test_equals_the_equation_written_as_loops() -> None:
    torch.manual_seed(0)
    network = CrossNetwork(5, 3)
    x0 = torch.randn(4, 5)
    with torch.no_grad():
        got = network(x0)
    for b in range(4):
        x = x0[b].clone()
        for layer in network.layers:
            x = torch.stack(
                [
                    x0[b, i] * (sum(layer.weight[i, j] * x[j] for j in range(5)) + layer.bias[i]) + x[i]
                    for i in range(5)
                ]
            )
        torch.testing.assert_close(got[b], x.detach())


def test_equals_the_cross_network_of_torchrec() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossNetwork(7, 2), CrossNet(7, 2)
    with torch.no_grad():
        for i, layer in enumerate(ours.layers):
            layer.weight.copy_(theirs.kernels[i])
            layer.bias.copy_(theirs.bias[i].squeeze(1))
    x = torch.randn(3, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_network_of_zeros_is_the_identity() -> None:
    network = CrossNetwork(6, 2)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 6)
    assert torch.equal(network(x), x)


def test_the_low_rank_network_keeps_the_width() -> None:
    assert cross_network(8, 2, rank=3)(torch.randn(5, 8)).shape == (5, 8)
