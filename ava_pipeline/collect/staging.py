"""Copies a step's numbers from the device to reused memory on the host, without making the training thread wait."""

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
from ava_pipeline.write.channel import Numbers, StagedNumbers


class Slot(ABC):
    """Host memory for one step's float32 numbers, valid only after `wait`, and an event that ends the copy into it."""

    buffer: Tensor

    @abstractmethod
    def record(self) -> None:
        """Record the event after all work queued so far on the device's current stream."""

    @abstractmethod
    def wait(self) -> None:
        """Sleep until the device has reached the event."""


class PinnedSlot(Slot):
    """Pinned memory and an event of the device."""

    def __init__(self, device: torch.device, num_numbers: int) -> None:
        self._device = device
        module: Any = torch.get_device_module(device)
        is_cuda = device.type == "cuda"
        self.buffer = torch.empty(num_numbers, dtype=torch.float32, pin_memory=is_cuda)
        # With a blocking event the worker sleeps in wait() without holding the GIL; only CUDA has such events.
        self._event = module.Event(blocking=True) if is_cuda else module.Event()

    def record(self) -> None:
        """Record the event on the stream that copies from this device, which need not be the current device."""
        if self._device.type == "cuda":
            self._event.record(torch.cuda.current_stream(self._device))
        else:
            self._event.record()

    def wait(self) -> None:
        """Sleep until the copy has arrived."""
        self._event.synchronize()


SPARE_NUMBERS = 64


class Staging(ABC):
    """Hands a step's readings over to the background thread."""

    @abstractmethod
    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Start the copy of the numbers to the host, without waiting for the device."""


def staging_for(device: torch.device) -> Staging:
    """The staging for the device that holds the gradients."""
    return HostStaging() if device.type == "cpu" else DeviceStaging(device)


class _HostNumbers:
    def __init__(self, numbers: list[Numbers]) -> None:
        self._numbers = numbers

    def read(self) -> list[Numbers]:
        return self._numbers


class HostStaging(Staging):
    """For gradients on the CPU: the numbers are on the host already."""

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Read the numbers."""
        return _HostNumbers([_host_numbers(reading.numbers) for reading in readings])


def _host_numbers(numbers: Tensor | Sequence[object]) -> Numbers:
    if isinstance(numbers, Tensor):
        vector: NDArray[np.floating] = numbers.detach().numpy()
        return vector
    return [number.item() if isinstance(number, Tensor) else number for number in numbers]


class DeviceStaging(Staging):
    """For gradients on an accelerator: one asynchronous copy per step, into a slot that is reused.

    The copy and the slot's event are queued on the current stream, so the stream itself runs them after the kernels
    that compute the numbers and before any later work.
    """

    def __init__(self, device: torch.device, new_slot: Callable[[torch.device, int], Slot] = PinnedSlot) -> None:
        self._device = device
        self._new_slot = new_slot
        self._free: deque[Slot] = deque()

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Queue the copy. There are as many slots as pending steps, whose number the channel limits."""
        parcel = Parcel(self._device)
        places = [parcel.add(reading.numbers) for reading in readings]
        if not parcel.parts:
            return _HostNumbers([_host_numbers(reading.numbers) for reading in readings])
        vector = torch.cat(parcel.parts)
        slot = self._free.popleft() if self._free else None
        if slot is None or slot.buffer.numel() < vector.numel():
            slot = self._new_slot(self._device, vector.numel() + SPARE_NUMBERS)
        slot.buffer[: vector.numel()].copy_(vector, non_blocking=True)
        slot.record()
        return _CopiedNumbers(slot, vector.numel(), places, self._free)


@dataclass(frozen=True, slots=True)
class _Position:
    """The position of a device scalar in the copied vector."""

    position: int


class Parcel:
    """The tensors that one copy joins, and the position of each number in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end = 0
        self.parts: list[Tensor] = []

    def add(self, numbers: Tensor | Sequence[object]) -> slice | list[object]:
        """Add a reading's tensors, and return where their numbers are after the copy; scalars on the host stay."""
        if isinstance(numbers, Tensor):
            return self._append(numbers)
        return [self._scalar(number) for number in numbers]

    def _scalar(self, number: object) -> object:
        if not isinstance(number, Tensor):
            return number
        if number.device.type == "cpu":
            return number.item()
        return _Position(self._append(number.detach().reshape(1)).start)

    def _append(self, vector: Tensor) -> slice:
        start, self._end = self._end, self._end + vector.numel()
        self.parts.append(vector.to(self._device, torch.float32, non_blocking=True))
        return slice(start, self._end)


class _CopiedNumbers:
    """Numbers that the device may still be copying."""

    def __init__(self, slot: Slot, num_numbers: int, places: Sequence[slice | list[object]], free: deque[Slot]) -> None:
        self._slot = slot
        self._num_numbers = num_numbers
        self._places = places
        self._free = free

    def read(self) -> list[Numbers]:
        """Wait for the copy, take the numbers out of the slot and free the slot."""
        try:
            self._slot.wait()
            vector = self._slot.buffer[: self._num_numbers].numpy().copy()
        finally:
            self._free.append(self._slot)
        return [_numbers_at(vector, place) for place in self._places]


def _numbers_at(vector: NDArray[np.float32], place: slice | list[object]) -> Numbers:
    if isinstance(place, slice):
        return vector[place]
    return [float(vector[number.position]) if isinstance(number, _Position) else number for number in place]
