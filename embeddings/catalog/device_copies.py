"""Tensors on their way to a GPU, or from it, that nobody waits for."""

import torch
from torch import Tensor


def asking_waits(tensor: Tensor) -> bool:
    """Whether who asks for a number of `tensor` waits until its device has done all that it was asked for."""
    return tensor.device.type != "cpu"


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; a GPU copies it when its turn comes, and the host goes on.

    Out of memory that is not pinned, the host waits until all that the GPU was asked for before is done.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """A tensor on its way to the host; on a CPU it is there at once.

    >>> ToHost(torch.ones(2)).read()
    tensor([1., 1.])
    """

    def __init__(self, tensor: Tensor) -> None:
        """Ask the device for it, behind the work that makes it."""
        self._arrival: torch.cuda.Event | None = None
        self._copy = tensor
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def read(self) -> Tensor:
        """The tensor; waits until it has arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy.cpu()
