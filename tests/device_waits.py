"""What makes a host wait for its GPU, found without one: while it is entered, notes each such call.

A call waits if it brings a number of a tensor to Python, if the shape of its result depends on numbers, or if
it makes a tensor of numbers that Python has: out of memory that is not pinned, a copy waits, too. On a CPU
all tensors count as the device's, so what belongs to the host must happen before the mode is entered.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_REPOSITORY = str(Path(__file__).parents[1])
#: fbgemm reads its counter of steps, which is on the host whatever the device.
_COUNTS_ON_HOST = "fbgemm_gpu/split_table_batched_embeddings_ops_training.py"
#: Operators that wait in any case.
_OPERATORS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "bincount",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "_unique",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
    )
}
_TO_HOST = {
    getattr(Tensor, name): name
    for name in (
        "__bool__",
        "__contains__",
        "__float__",
        "__index__",
        "__int__",
        "cpu",
        "item",
        "numpy",
        "tolist",
    )
}
_FROM_HOST: dict[Callable[..., Any], str] = {
    torch.tensor: "tensor",
    torch.as_tensor: "as_tensor",
    Tensor.new_tensor: "new_tensor",
}


class DeviceWaits:
    """A context; `calls` are those that would wait, each with the line of the project that made it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._modes = (_Functions(self), _Operators(self))

    def note(self, name: str) -> None:
        stack = [
            frame
            for frame in traceback.extract_stack()
            if frame.filename != __file__ and "site-packages/torch/" not in frame.filename
        ]
        if stack[-1].filename.endswith(_COUNTS_ON_HOST):
            return
        here = [
            f"{Path(frame.filename).relative_to(_REPOSITORY)}:{frame.lineno}"
            for frame in stack
            if frame.filename.startswith(_REPOSITORY) and "site-packages" not in frame.filename
        ]
        self.calls.append(f"{name} at {here[-1] if here else 'unknown'}")

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Functions(TorchFunctionMode):
    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _TO_HOST.get(func) or _FROM_HOST.get(func)
        if name is not None:
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name()
        if name.partition(".")[0] in _OPERATORS or _selects_by_content(name, args, kwargs or {}):
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


def _selects_by_content(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Rows chosen by a mask, or repeated as often as a tensor says."""
    if name.startswith("aten::repeat_interleave"):
        return kwargs.get("output_size") is None
    if name.partition(".")[0] not in ("aten::index", "aten::index_put", "aten::index_put_"):
        return False
    by_mask = any(isinstance(index, Tensor) and index.dtype is torch.bool for index in tree_leaves(args[1]))
    filled_with_one_number = len(args) > 2 and args[2].numel() == 1
    return by_mask and not filled_with_one_number
