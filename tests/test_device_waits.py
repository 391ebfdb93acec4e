"""What waits for a GPU is noted; what does not is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.device_waits import DeviceWaits

X, MASK = torch.arange(6.0), torch.arange(6) % 2 == 0


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("item", lambda: X[0].item()),
        ("float", lambda: float(X[0])),
        ("if", lambda: 1 if X[0] else 2),
        ("tolist", lambda: X.tolist()),
        ("cpu", lambda: X.cpu()),
        ("numpy", lambda: X.numpy()),
        ("nonzero", lambda: MASK.nonzero()),
        ("mask", lambda: X[MASK]),
        ("assigning by a mask", lambda: X.clone().__setitem__(MASK, X[:3])),
        ("repeat_interleave", lambda: X.repeat_interleave(torch.arange(6))),
        ("unique", lambda: X.unique()),
        ("equal", lambda: torch.equal(X, X)),
        ("tensor", lambda: torch.tensor(1.0)),
    ],
)
def test_a_call_that_waits_is_noted_with_its_line(name: str, work: Callable[[], object]) -> None:
    with DeviceWaits() as waits:
        work()
    assert waits.calls
    assert "tests/test_device_waits.py" in waits.calls[0]


def test_a_step_of_training_that_waits_for_nothing_has_no_calls() -> None:
    weight = torch.ones(6, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)

    def loss_of(x: Tensor) -> Tensor:
        chosen = torch.where(MASK, x * weight, 0).index_select(0, torch.arange(3))
        return chosen.sum() / x.new_full((), 3.0) + x.repeat_interleave(torch.arange(6), output_size=15).sum()

    with DeviceWaits() as waits:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(X).backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
    assert waits.calls == []
