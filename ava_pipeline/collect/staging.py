"""Where numbers from a device arrive: memory that is used again, and the event that says when they are there."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ava_pipeline.collect.measures.measure import Reading
from ava_pipeline.write.pending import Numbers, StagedNumbers


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


SPARE_NUMBERS = 64


class Staging(ABC):
    """Takes a step's readings off the training thread's hands."""

    @abstractmethod
    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Begin to bring the numbers to the host, without waiting for the device."""


def staging_for(device: torch.device) -> Staging:
    """The staging of the device that gradients lie on."""
    return HostStaging() if device.type == "cpu" else DeviceStaging(device)


class _OnHost:
    """Numbers that are there already."""

    def __init__(self, numbers: list[Numbers]) -> None:
        self._numbers = numbers

    def read(self) -> list[Numbers]:
        return self._numbers


class HostStaging(Staging):
    """Gradients on the CPU: the reading's numbers are new ones, and are there."""

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Read the numbers."""
        return _OnHost([_host_numbers(reading.numbers) for reading in readings])


def _host_numbers(numbers: Tensor | Sequence[object]) -> Numbers:
    if isinstance(numbers, Tensor):
        vector: NDArray[np.floating] = numbers.detach().numpy()
        return vector
    return [one.item() if isinstance(one, Tensor) else one for one in numbers]


class DeviceStaging(Staging):
    """Gradients on an accelerator: one asynchronous copy a step into a slot that is used again.

    The copy and the slot's event are issued on the stream that is current, so the stream itself orders them behind
    the kernels that compute the numbers and before whatever comes next.

    Args:
        device: that the gradients lie on.
        new_slot: makes a slot for the device, of so many numbers.
    """

    def __init__(self, device: torch.device, new_slot: Callable[[torch.device, int], Slot] = PinnedSlot) -> None:
        self._device = device
        self._new_slot = new_slot
        self._free: deque[Slot] = deque()

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Issue the copy. Slots are as many as steps are pending, which the channel bounds."""
        parcel = Parcel(self._device)
        places = [parcel.add(reading.numbers) for reading in readings]
        if not parcel.parts:
            return _OnHost([_host_numbers(reading.numbers) for reading in readings])
        vector = torch.cat(parcel.parts)
        slot = self._free.popleft() if self._free else None
        if slot is None or slot.buffer.numel() < vector.numel():
            slot = self._new_slot(self._device, vector.numel() + SPARE_NUMBERS)
        slot.buffer[: vector.numel()].copy_(vector, non_blocking=True)
        slot.record()
        return _OnItsWay(slot, vector.numel(), places, self._free)


@dataclass(frozen=True, slots=True)
class _At:
    """A scalar's place in the vector."""

    position: int


class Parcel:
    """What goes in one copy: tensors to be joined, and where each number will be found."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end = 0
        self.parts: list[Tensor] = []

    def add(self, numbers: Tensor | Sequence[object]) -> slice | list[object]:
        """Take a reading's tensors; scalars on the host stay where they are."""
        if isinstance(numbers, Tensor):
            return self._append(numbers)
        return [self._scalar(one) for one in numbers]

    def _scalar(self, one: object) -> object:
        if not isinstance(one, Tensor):
            return one
        if one.device.type == "cpu":
            return one.item()
        return _At(self._append(one.detach().reshape(1)).start)

    def _append(self, vector: Tensor) -> slice:
        start, self._end = self._end, self._end + vector.numel()
        self.parts.append(vector.to(self._device, torch.float32, non_blocking=True))
        return slice(start, self._end)


class _OnItsWay:
    """Numbers that the device is still bringing."""

    def __init__(self, slot: Slot, num_numbers: int, places: Sequence[slice | list[object]], free: deque[Slot]) -> None:
        self._slot = slot
        self._num_numbers = num_numbers
        self._places = places
        self._free = free

    def read(self) -> list[Numbers]:
        """Wait for the copy, take it out of the slot and give the slot back."""
        try:
            self._slot.wait()
            vector = self._slot.buffer[: self._num_numbers].numpy().copy()
        finally:
            self._free.append(self._slot)
        return [_found(vector, place) for place in self._places]


def _found(vector: NDArray[np.float32], place: slice | list[object]) -> Numbers:
    if isinstance(place, slice):
        return vector[place]
    return [float(vector[one.position]) if isinstance(one, _At) else one for one in place]
