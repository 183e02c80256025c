"""Copies a step's numbers from the device to reused memory on the host, without making the training thread wait."""

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ava_pipeline.collect.capture import leave_captures_alone
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
        # Named, because the user may have set another default device.
        self.buffer = torch.empty(num_numbers, dtype=torch.float32, device="cpu", pin_memory=is_cuda)
        # With a blocking event the worker sleeps in wait() without holding the GIL; only CUDA has such events.
        self._event = module.Event(blocking=True) if is_cuda else module.Event()

    def record(self) -> None:
        """Record the event on the stream that copies from this device, which need not be the current device."""
        if self._device.type == "cuda":
            self._event.record(torch.cuda.current_stream(self._device))
        else:
            self._event.record()

    def wait(self) -> None:
        """Sleep until the copy has arrived, in the background thread."""
        if self._device.type == "cuda":
            leave_captures_alone(self._device)
        self._event.synchronize()


SPARE_NUMBERS = 64


class Staging:
    """Hands a step's readings over to the background thread, without waiting for the device.

    Numbers on the host are taken as they are. Those on accelerators are joined to one vector on the device of the
    first, and copied by one asynchronous copy per step into a slot that is reused. The copy and the slot's event are
    queued on the current stream, so the stream itself runs them after the kernels that compute the numbers and before
    any later work. The devices are those of the numbers, because a model may move, and a loss may be on an accelerator
    while the parameters are not.

    `host` is the type of device whose numbers need no copy.
    """

    def __init__(self, new_slot: Callable[[torch.device, int], Slot] = PinnedSlot, *, host: str = "cpu") -> None:
        self._new_slot = new_slot
        self._host = host
        self._free: defaultdict[torch.device, deque[Slot]] = defaultdict(deque)

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Queue the copy. There are as many slots as pending steps, whose number the channel limits."""
        parcel = _Parcel(self._host)
        places = [parcel.add(reading.numbers) for reading in readings]
        return _StagedStep(places, None if parcel.device is None else self._copy(torch.cat(parcel.parts)))

    def _copy(self, vector: Tensor) -> "_Copy":
        free = self._free[vector.device]
        slot = free.popleft() if free else None
        if slot is None or slot.buffer.numel() < vector.numel():
            slot = self._new_slot(vector.device, vector.numel() + SPARE_NUMBERS)
        slot.buffer[: vector.numel()].copy_(vector, non_blocking=True)
        slot.record()
        return _Copy(slot, vector.numel(), free)


@dataclass(frozen=True, slots=True)
class _Position:
    """The position of a device scalar in the copied vector."""

    position: int


_Place: TypeAlias = Numbers | slice


class _Parcel:
    """The tensors that one copy joins, and the position of each number in it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._end = 0
        self.parts: list[Tensor] = []
        self.device: torch.device | None = None  # None if every number is on the host

    def add(self, numbers: Tensor | Sequence[object]) -> _Place:
        """Add a reading's numbers: those on the host are returned, for others their position after the copy."""
        if isinstance(numbers, Tensor):
            vector = numbers.detach()
            return vector.numpy() if vector.device.type == self._host else self._append(vector)
        return [self._scalar(number) if isinstance(number, Tensor) else number for number in numbers]

    def _scalar(self, number: Tensor) -> object:
        if number.device.type == self._host:
            return number.item()
        return _Position(self._append(number.detach().reshape(1)).start)

    def _append(self, vector: Tensor) -> slice:
        if self.device is None:
            self.device = vector.device
        start, self._end = self._end, self._end + vector.numel()
        self.parts.append(vector.to(self.device, torch.float32, non_blocking=True))
        return slice(start, self._end)


class _Copy:
    """Numbers that the device may still be copying."""

    def __init__(self, slot: Slot, num_numbers: int, free: deque[Slot]) -> None:
        self._slot = slot
        self._num_numbers = num_numbers
        self._free = free

    def wait(self) -> NDArray[np.float32]:
        """Wait for the copy, take the numbers out of the slot and free the slot."""
        try:
            self._slot.wait()
            vector: NDArray[np.float32] = self._slot.buffer[: self._num_numbers].numpy().copy()
        finally:
            self._free.append(self._slot)
        return vector


class _StagedStep:
    """One step's numbers: on the host, or in a copy that is waited for."""

    def __init__(self, places: list[_Place], copy: _Copy | None) -> None:
        self._places = places
        self._copy = copy

    def read(self) -> list[Numbers]:
        vector = _NO_NUMBERS if self._copy is None else self._copy.wait()
        return [_numbers_at(vector, place) for place in self._places]


_NO_NUMBERS = np.empty(0, dtype=np.float32)


def _numbers_at(vector: NDArray[np.float32], place: _Place) -> Numbers:
    if isinstance(place, slice):
        return vector[place]
    if isinstance(place, np.ndarray):
        return place
    return [float(vector[number.position]) if isinstance(number, _Position) else number for number in place]
