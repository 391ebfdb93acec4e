"""Layers with hand-written gradients against autograd's of the plain formulas, in every precision."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from embeddings.training import fast_products
from embeddings.training.fast_products import input_gradient, linear, weight_gradient
from ranking.cross_network import CrossNetwork
from ranking.dense_layers import Mlp, join_columns, mlp

SIZES = st.integers(1, 9)


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries for float32, whatever this processor would choose."""
    monkeypatch.setattr(fast_products, "onednn_multiplies_float32", lambda: request.param == "oneDNN")
    return request.param


def plain_cross(network: CrossNetwork, x0: Tensor) -> Tensor:
    x = x0
    for layer in network.layers:
        x = x0 * layer(x) + x
    return x


def plain_mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def gradients(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Result, and gradients of the input and of all parameters, for an uneven gradient of the result."""
    x = x.clone().requires_grad_()
    result = function(x)
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape)
    found = torch.autograd.grad((result * weights).sum(), [x, *module.parameters()])
    return [result.detach(), *found]


def assert_same(found: list[Tensor], expected: list[Tensor], *, error: float) -> None:
    """Within `error` of the largest value, which is what rounding in another order may change."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=error * max(1.0, other.abs().max().item()))


@settings(deadline=None, max_examples=50)
@given(rows=SIZES, width=SIZES, outputs=SIZES, seed=st.integers(0, 99))
def test_a_bias_that_joins_its_product_changes_no_bit(rows: int, width: int, outputs: int, seed: int) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 here")
    torch.manual_seed(seed)
    x, weight, bias = (torch.randn(size).bfloat16() for size in ((rows, width), (outputs, width), (outputs,)))
    joined = fast_products._onednn_product(x, weight, bias)
    assert joined.dtype is torch.bfloat16
    torch.testing.assert_close(joined, torch.addmm(bias, x, weight.t()), rtol=0, atol=0)


@settings(deadline=None, max_examples=25)
@given(rows=SIZES, width=SIZES, layers=st.integers(0, 3))
def test_gradients_of_cross_layers_are_those_of_finite_differences(
    rows: int, width: int, layers: int
) -> None:
    torch.manual_seed(rows + 10 * width)
    network = CrossNetwork(width, layers).double()
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in network.named_parameters()]

    def of(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (x,))

    torch.autograd.gradcheck(of, (x, *network.parameters()), fast_mode=True)


@settings(deadline=None, max_examples=25)
@given(rows=SIZES, width=SIZES, hidden=st.lists(SIZES, min_size=1, max_size=3))
def test_gradients_of_fully_connected_layers_are_those_of_autograd(
    rows: int, width: int, hidden: list[int]
) -> None:
    torch.manual_seed(rows + 10 * width)
    layers = mlp(width, hidden, dropout=0.0).double()
    x = torch.randn(rows, width, dtype=torch.float64)
    assert_same(
        gradients(layers, layers, x), gradients(layers, lambda x: plain_mlp(layers, x), x), error=1e-13
    )


def test_float32_gradients_of_both_libraries_are_those_of_autograd(library: str) -> None:
    torch.manual_seed(0)
    network, layers, x = CrossNetwork(48, 3), mlp(48, (32, 16), dropout=0.0), torch.randn(65, 48)
    assert_same(
        gradients(network, network, x), gradients(network, lambda x: plain_cross(network, x), x), error=2e-6
    )
    assert_same(
        gradients(layers, layers, x), gradients(layers, lambda x: plain_mlp(layers, x), x), error=2e-6
    )


@pytest.mark.parametrize("rows, inputs, outputs", [(0, 3, 2), (1, 1, 1), (1, 7, 3), (5, 433, 1)])
def test_products_are_those_of_torch_in_every_shape(
    library: str, rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(rows, inputs), torch.randn(rows, outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.t() + bias)
    torch.testing.assert_close(linear(x, weight, None), x @ weight.t())
    torch.testing.assert_close(input_gradient(gradient, weight), gradient @ weight)
    torch.testing.assert_close(weight_gradient(gradient, x), gradient.t() @ x)


def test_bfloat16_stays_bfloat16_between_the_layers_and_gradients_are_float32() -> None:
    torch.manual_seed(0)
    network, layers, x = CrossNetwork(16, 2), mlp(16, (8,), dropout=0.0), torch.randn(33, 16)

    def by_autocast(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                result = function(x.bfloat16())
            assert result.dtype is torch.bfloat16
            return result.float()

        return run

    for module, plain in ((network, plain_cross), (layers, plain_mlp)):
        found = gradients(module, by_autocast(module), x)
        assert {tensor.dtype for tensor in found} == {torch.float32}
        # autograd of the plain formula on the same rounded input: a ReLU must not switch by rounding
        expected = gradients(module, by_autocast(partial(plain, module)), x.bfloat16().float())
        assert_same(found, expected, error=0.03)


def test_a_gradient_that_nobody_wants_is_not_computed() -> None:
    network = CrossNetwork(4, 2)
    network(torch.ones(2, 4)).sum().backward()  # the input is no parameter
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.requires_grad_(False)
    x = torch.ones(2, 4, requires_grad=True)
    network(x).sum().backward()
    assert x.grad is not None


def test_the_gradient_that_comes_in_is_left_as_it_is() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    given_BN = torch.randn(3, 4)
    before = given_BN.clone()
    for module in (CrossNetwork(4, 2), CrossNetwork(4, 0), mlp(4, (4,), dropout=0.0)):
        module(x).backward(given_BN)
        assert torch.equal(given_BN, before)


def test_a_value_that_is_no_number_is_not_hidden(library: str) -> None:
    layers = mlp(8, (4,), dropout=0.0)
    x = torch.ones(2, 8)
    x[1, 3] = float("nan")
    assert layers(x).isnan().any(dim=1).tolist() == [False, True]


def test_other_layers_and_slices_are_applied_one_by_one() -> None:
    torch.manual_seed(0)
    layers = Mlp(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2)).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(layers(x), plain_mlp(layers, x))
    torch.testing.assert_close(layers[1:](layers[0](x)), layers(x))
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(0, 5), widths=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_joined_columns_and_their_gradients_are_those_of_cat(rows: int, widths: list[int]) -> None:
    parts = [torch.randn(rows, width, requires_grad=True) for width in widths]
    joined = join_columns(parts, torch.bfloat16)
    expected = torch.cat(parts, dim=1).bfloat16()
    assert torch.equal(joined, expected)
    weights = torch.arange(expected.numel(), dtype=torch.bfloat16).reshape(expected.shape)
    found = torch.autograd.grad((joined * weights).sum(), parts)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), parts), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
