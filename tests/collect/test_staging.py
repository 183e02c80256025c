"""Slots are reused, and never before they are read; tested with a device that copies as late as possible."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import numpy as np
import pytest
import torch

from ava_pipeline.collect.measures.measure import Reading
from ava_pipeline.collect.staging import SPARE_NUMBERS, Slot, Staging
from ava_pipeline.write.channel import StagedNumbers
from tests.collect.late_device import LateDevice, late_device

LENGTH = 10


@pytest.fixture
def device() -> Iterator[LateDevice]:
    """A device that copies late."""
    with late_device() as device:
        yield device


def staging_on(device: LateDevice) -> Staging:
    """A staging to which the CPU's numbers are on this device, with its memory and events."""
    return Staging(device.new_slot, host="")


def stage(staging: Staging, step: int, length: int = LENGTH) -> StagedNumbers:
    """Stage a step whose numbers differ from those of other steps."""
    return staging.stage([Reading(torch.full((length,), float(step)))])


def assert_read(staged: StagedNumbers, step: int, length: int = LENGTH) -> None:
    """The step's numbers come, and no others."""
    assert np.asarray(staged.read()[0]).tolist() == [float(step)] * length


def test_what_was_given_comes_back_in_place(device: LateDevice) -> None:
    """Vectors, and scalars on the device among other scalars."""
    readings = [Reading(torch.arange(3.0)), Reading([0.5, None, torch.tensor(2.0)]), Reading(torch.ones(2))]
    norms, scalars, ones = staging_on(device).stage(readings).read()
    assert np.asarray(norms).tolist() == [0.0, 1.0, 2.0]
    assert list(scalars) == [0.5, None, 2.0]
    assert np.asarray(ones).tolist() == [1.0, 1.0]


def test_numbers_that_require_gradients_keep_no_graph_alive(device: LateDevice) -> None:
    """A measure that forgets `no_grad` costs nothing: the slot's memory stays out of the graph, step after step."""
    staging = staging_on(device)
    for step in (1.0, 2.0):
        vector = torch.full((LENGTH,), step, requires_grad=True) * 3
        staged = staging.stage([Reading(vector), Reading([vector[0]])])
        assert not any(slot.buffer.requires_grad for slot in device.slots)
        whole, first = staged.read()
        assert np.asarray(whole).tolist() == [3 * step] * LENGTH
        assert list(first) == [3 * step]
    assert len(device.slots) == 1


class UsedAtOnce(deque[Slot]):
    """Free slots, each of which the training thread uses in the very moment that it is given back."""

    def __init__(self, staging: Staging) -> None:
        super().__init__()
        self.staged: list[StagedNumbers] = []
        self._staging = staging

    def append(self, slot: Slot) -> None:
        """Free a slot, which is used at once."""
        super().append(slot)
        self.staged.append(stage(self._staging, 1000 + len(self.staged)))


def test_a_slot_is_not_used_again_before_it_is_read(device: LateDevice) -> None:
    """The worker waits, takes the numbers out, and gives the slot back, in that order."""
    staging = staging_on(device)
    free = staging._free[torch.device("cpu")] = UsedAtOnce(staging)
    for step, one in [(step, stage(staging, step)) for step in range(5)]:
        assert_read(one, step)
    assert len(device.slots) == 5
    for place, one in enumerate(free.staged[:5]):
        assert_read(one, 1000 + place)


def test_slots_are_as_many_as_steps_are_pending(device: LateDevice) -> None:
    """However long the run: the training thread stages and the worker reads, each at a different pace."""
    staging = staging_on(device)
    pending: Queue[StagedNumbers] = Queue(maxsize=4)
    with ThreadPoolExecutor(1) as worker:
        found = worker.submit(lambda: [pending.get().read()[0] for _ in range(300)])
        for step in range(300):
            pending.put(stage(staging, step))
        vectors = np.array(found.result())
    assert np.array_equal(vectors, np.repeat(np.arange(300.0), LENGTH).reshape(300, LENGTH))
    assert len(device.slots) <= 4 + 2  # one more is being staged, and one being read


def test_a_slot_that_could_not_be_waited_for_comes_back(device: LateDevice) -> None:
    """A device's error costs the step, and not memory at every further one."""
    staging = staging_on(device)
    for step in range(3):
        device.is_broken = True
        with pytest.raises(RuntimeError, match="the device is broken"):
            stage(staging, step).read()
        device.is_broken = False
        assert_read(stage(staging, step), step)
    assert len(device.slots) == 1


def test_a_longer_vector_gets_a_longer_slot_for_good(device: LateDevice) -> None:
    """As when layers are unfrozen; shorter vectors go into it afterwards."""
    staging, long = staging_on(device), LENGTH + SPARE_NUMBERS + 1
    for step, length in enumerate((LENGTH, LENGTH + SPARE_NUMBERS, long, LENGTH, long)):
        assert_read(stage(staging, step, length), step, length)
    assert [slot.buffer.numel() for slot in device.slots] == [LENGTH + SPARE_NUMBERS, long + SPARE_NUMBERS]
