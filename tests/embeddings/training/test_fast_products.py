"""Linear layers give what torch's own give, forward and backward, whichever library multiplies."""

import pytest
import torch
from torch import nn

from embeddings.training import fast_products
from embeddings.training.fast_products import FastLinear, use_fast_products


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries for float32, whatever this processor would choose."""
    monkeypatch.setattr(fast_products, "onednn_multiplies_float32", lambda: request.param == "oneDNN")
    return request.param


def gradients(layer: nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_(True)
    result = layer(x)
    (result * torch.arange(1.0, 1 + result.numel()).view_as(result)).sum().backward()
    found = [result, x.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad()
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (1, 1, 3), (64, 3), (8, 43, 3)])
def test_a_fast_layer_is_the_plain_layer_and_has_its_gradients(library, bias, shape):
    torch.manual_seed(1)
    layer = nn.Linear(3, 6, bias=bias)
    x = torch.randn(shape)
    expected = gradients(layer, x)
    use_fast_products(layer)
    assert type(layer) is FastLinear
    for found, wanted in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_onednn_meets_few_shapes_however_long_the_texts(monkeypatch):
    """It keeps a kernel for each shape."""
    met: set[int] = set()
    product = fast_products._onednn_product
    monkeypatch.setattr(fast_products, "onednn_multiplies_float32", lambda: True)
    monkeypatch.setattr(
        fast_products,
        "_onednn_product",
        lambda x, weight, bias: (met.update((*x.shape, *weight.shape)), product(x, weight, bias))[1],
    )
    layer = FastLinear(3, 2)
    for tokens in range(3, 60):
        layer(torch.randn(16, tokens, 3, requires_grad=True)).sum().backward()
    assert met == {2, 3, 64, 256}


def test_a_view_and_a_frozen_layer_are_multiplied_as_they_are(library):
    layer = FastLinear(3, 2).requires_grad_(False)
    x = torch.randn(4, 5, 3)[:, 0].requires_grad_(True)  # rows that do not follow each other
    result = layer(x)
    torch.testing.assert_close(result, x @ layer.weight.t() + layer.bias)
    assert torch.autograd.grad(result.sum(), x)[0].shape == x.shape


def test_no_rows_and_bfloat16_go_the_way_of_the_plain_layer(library):
    layer = FastLinear(3, 2)
    assert layer(torch.zeros(0, 7, 3)).shape == (0, 7, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.zeros(1, 3)).dtype is torch.bfloat16


def test_weights_keep_their_names_and_layers_of_other_classes_stay(library):
    class Own(nn.Linear):
        pass

    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), Own(3, 1))
    names = list(plain.state_dict())
    use_fast_products(plain)
    assert [type(part) for part in plain] == [FastLinear, nn.ReLU, Own]
    assert list(plain.state_dict()) == names
