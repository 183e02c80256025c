"""Where numbers from a device arrive: memory that is used again, and the event that says when they are there."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Slot(ABC):
    """Memory on the host for one step's numbers, and the event behind the copy into it.

    Attributes:
        buffer: (numbers,), float32; to be looked at behind `wait` only.
    """

    buffer: Tensor

    @abstractmethod
    def record(self) -> None:
        """Set the event behind all that the current stream of the device was given so far."""

    @abstractmethod
    def wait(self) -> None:
        """Sleep until the device has come to the event."""


class PinnedSlot(Slot):
    """Pinned memory and an event of the device.

    Args:
        device: that copies into it.
        num_numbers: the buffer's length.
    """

    def __init__(self, device: torch.device, num_numbers: int) -> None:
        self._device = device
        module: Any = torch.get_device_module(device)
        is_cuda = device.type == "cuda"
        self.buffer = torch.empty(num_numbers, dtype=torch.float32, pin_memory=is_cuda)
        # A blocking event lets the worker sleep in wait() without the GIL, where the device knows such events.
        self._event = module.Event(blocking=True) if is_cuda else module.Event()

    def record(self) -> None:
        """Set it, on the stream that copies from this device are issued on, be it the current device or not."""
        if self._device.type == "cuda":
            self._event.record(torch.cuda.current_stream(self._device))
        else:
            self._event.record()

    def wait(self) -> None:
        """Sleep until the copy is there."""
        self._event.synchronize()
