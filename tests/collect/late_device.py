"""A fake device that copies as late as possible: until a copy is waited for, its target memory holds poison."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import torch
from torch import Tensor

from ava_pipeline.collect.staging import Slot

POISON = float("nan")


class LateDevice:
    """Copies in the order of the requests, in its own thread, and each copy only when it is waited for.

    Attributes:
        slots: every slot ever made.
        is_broken: whether waiting for the device fails.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self.slots: list[LateSlot] = []
        self.is_broken = False
        self._thread = thread
        self._gates: list[Event] = []

    def new_slot(self, _: torch.device, num_numbers: int) -> Slot:
        """A slot of this device."""
        self.slots.append(LateSlot(self, num_numbers))
        return self.slots[-1]

    def issue(self, copy: Callable[[], object]) -> Callable[[], object]:
        """Request a copy; returns a function that waits for it and for all earlier ones."""
        gate = Event()
        self._gates.append(gate)
        gates = [*self._gates]
        done = self._thread.submit(lambda: (gate.wait(), copy()))

        def wait() -> object:
            for one in gates:
                one.set()
            return done.result()

        return wait

    def finish(self) -> None:
        """Make the copies that were never waited for."""
        for gate in self._gates:
            gate.set()


class LateSlot(Slot):
    """Memory that holds the copied numbers after `wait`, and poison before."""

    def __init__(self, device: LateDevice, num_numbers: int) -> None:
        self.buffer = torch.full((num_numbers,), POISON)
        self._device = device
        self._wait: Callable[[], object] = lambda: None

    def record(self) -> None:
        """Replace the numbers by poison until they are waited for."""
        numbers: Tensor = self.buffer.clone()
        self.buffer.fill_(POISON)
        self._wait = self._device.issue(lambda: self.buffer.copy_(numbers))

    def wait(self) -> None:
        """Make the device finish the copy."""
        self._wait()
        if self._device.is_broken:
            raise RuntimeError("the device is broken")


@contextmanager
def late_device() -> Iterator[LateDevice]:
    """A device, whose thread ends with the block."""
    with ThreadPoolExecutor(1) as thread:
        device = LateDevice(thread)
        try:
            yield device
        finally:
            device.finish()
