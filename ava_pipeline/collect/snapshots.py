"""Weight snapshots in the training thread: which tensors they hold, and copying them without waiting for the device."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ava_pipeline.collect.staging import PinnedSlot, Slot
from ava_pipeline.collect.targets import is_sharded, prefixes_of, unwrap
from ava_pipeline.contract.snapshots import TENSOR_TYPES
from ava_pipeline.write.event_log import EventLog, snapshot_event
from ava_pipeline.write.snapshots import PendingSnapshot, SnapshotHandOver, Weight

NewSlot: TypeAlias = Callable[[torch.device, int], Slot]

MAX_NAMED = 5
_ALIGNMENT_BYTES = 64
_NUMBER_BYTES = 4  # of a slot's float32 numbers
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # NumPy has one for each size

_NAMES: dict[torch.dtype, str] = {
    getattr(torch, one.name): one.name for one in TENSOR_TYPES if hasattr(torch, one.name)
}
_PLAIN_TYPES = (Tensor, nn.Parameter)
_type_of = attrgetter("dtype", "shape", "device", "layout")


class WeightSnapshots:
    """Copies the weights of a model to the host and leaves them for the background thread.

    A snapshot has the names of the model's `state_dict`, without those of wrappers: parameters and persistent buffers.
    A tensor with several names is saved under the first. A tensor of which this process has only a part, or whose type
    cannot be saved, is left out, and an event names it.

    On an accelerator the copies go to pinned memory that is reused; they are queued on the current stream, with an
    event behind them, for which the background thread waits. On a CPU it is one copy to memory that is reused.

    Args:
        modules: returns the modules that are trained; models are not kept alive.
        events: gets an event for each snapshot that is skipped.
        new_slot: makes the memory that a device copies to.
        host: the type of device whose tensors are copied at once.
    """

    def __init__(
        self,
        modules: Callable[[], Sequence[nn.Module]],
        events: EventLog,
        *,
        new_slot: NewSlot = PinnedSlot,
        host: str = "cpu",
    ) -> None:
        self._modules = modules
        self._events = events
        self._new_slot = new_slot
        self._host = host
        self._free: deque[_Memory] = deque(maxlen=1)
        self._left_out: tuple[str, ...] = ()
        self.hand_over = SnapshotHandOver()

    @torch.no_grad()
    def take(self, batch_idx: int, epoch: int) -> bool:
        """Copy the weights of a batch; return whether a snapshot waits to be written.

        While an earlier one is still being written, this one is skipped. If an exception interrupts the copy, nothing
        was handed over, and the memory is not used again: the device may still be copying to it.
        """
        if self.hand_over.waiting is not None:
            earlier = self.hand_over.waiting.batch_idx
            message = f"the weights of this batch are not saved, because those of batch {earlier} are still written."
            self._events.add(snapshot_event(batch_idx, epoch, message, event="skipped_snapshot", severity="warning"))
            return False
        modules = self._modules()
        found = _Named.of(modules)
        self._report(found.left_out, batch_idx, epoch)
        if not found.tensors:
            message = "the weights of this batch are not saved, because the model is gone, or none can be saved."
            self._events.add(snapshot_event(batch_idx, epoch, message))
            return False
        tensors = list(found.tensors.values())
        memory = self._free.pop() if self._free else None
        kinds = [(*_type_of(tensor), tensor.stride()) for tensor in tensors]
        if memory is None or memory.kinds != kinds:
            memory = None  # before the new memory is taken, so that both are never held at once
            memory = _Memory(tensors, kinds, self._slot)
        memory.copy(tensors)
        staged = _Staged(tuple(found.tensors), memory, self._free)
        self.hand_over.waiting = PendingSnapshot(batch_idx, epoch, memory.num_bytes, found.tied, staged)
        return True

    def _slot(self, device: torch.device, num_numbers: int) -> Slot:
        return _HostSlot(num_numbers) if device.type == self._host else self._new_slot(device, num_numbers)

    def _report(self, left_out: Sequence[str], batch_idx: int, epoch: int) -> None:
        """Name the tensors that are left out, when they are others than before."""
        names, self._left_out = self._left_out, tuple(left_out)
        if left_out and names != self._left_out:
            more = f" and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
            message = (
                f"these tensors are not in the snapshots: {', '.join(left_out[:MAX_NAMED])}{more}. This process has "
                "only a part of each, it has no values, or its type cannot be saved."
            )
            self._events.add(snapshot_event(batch_idx, epoch, message, severity="warning"))


@dataclass(slots=True)
class _Named:
    """The tensors of modules by plain name, each once, the further names of those, and the names that are left out."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> "_Named":
        of_modules = [dict(_named_tensors(module)) for module in modules]
        prefixes = prefixes_of(of_modules, "{}.")
        found = cls()
        names: dict[int, str] = {}
        for prefix, module, named in zip(prefixes, modules, of_modules, strict=True):
            are_parts = is_sharded(module)
            for plain, tensor in named.items():
                name = prefix + plain
                first = names.setdefault(id(tensor), name)
                if are_parts or not _can_be_saved(tensor):
                    found.left_out.append(name)
                elif first == name:
                    found.tensors[name] = tensor
                else:
                    found.tied[name] = first
        return found


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `state_dict`, in its order and under its names inside wrappers, without calling its hooks.

    Hooks of the user's may wait for the device or for other processes.
    """
    for path, module in unwrap(model).named_modules(remove_duplicate=False):
        prefix = f"{path}.".replace("_orig_mod.", "") if path else ""  # parts may be compiled by themselves
        volatile = module._non_persistent_buffers_set  # noqa: SLF001  # it has no public name
        for named, left_out in ((module._parameters, ()), (module._buffers, volatile)):  # noqa: SLF001  # by their own names
            for name, tensor in named.items():
                if tensor is not None and name not in left_out:
                    yield prefix + name, tensor


def _can_be_saved(tensor: Tensor) -> bool:
    is_plain = type(tensor) in _PLAIN_TYPES or not hasattr(tensor, "__tensor_flatten__")  # as a DTensor has
    return is_plain and tensor.dtype in _NAMES and tensor.layout is torch.strided and not tensor.is_meta


class _HostSlot(Slot):
    """Memory on the host, for tensors that are there already."""

    def __init__(self, num_numbers: int) -> None:
        self.buffer = torch.empty(num_numbers, dtype=torch.float32, device="cpu")

    def record(self) -> None:
        """Do nothing: the copy has been made."""

    def wait(self) -> None:
        """Do nothing: the copy has been made."""


class _Memory:
    """Memory on the host for tensors of these kinds: one slot for each device, and in it a place for each tensor.

    A place has the order of its tensor's memory, channels-last for instance, so that copying does not reorder numbers.
    """

    def __init__(self, tensors: Sequence[Tensor], kinds: Sequence[object], new_slot: NewSlot) -> None:
        self.kinds = kinds
        ends: dict[torch.device, int] = {}
        begins = []
        for tensor in tensors:
            begin = -(-ends.get(tensor.device, 0) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            begins.append(begin)
            ends[tensor.device] = begin + tensor.numel() * tensor.element_size()
        self._slots = {device: new_slot(device, -(-end // _NUMBER_BYTES)) for device, end in ends.items()}
        self.num_bytes = sum(ends.values())
        self._is_on_host = all(isinstance(slot, _HostSlot) for slot in self._slots.values())
        self._places: list[Tensor] = []
        self.arrays: list[Tensor] = []  # the same places, as integers
        self.dtypes = [_NAMES[tensor.dtype] for tensor in tensors]
        buffers = {device: slot.buffer.view(torch.uint8) for device, slot in self._slots.items()}
        for tensor, begin in zip(tensors, begins, strict=True):
            size = tensor.element_size()
            numbers = buffers[tensor.device][begin : begin + tensor.numel() * size]
            strides = torch.empty_like(tensor, device="meta").stride()
            self._places.append(numbers.view(tensor.dtype).as_strided(tensor.shape, strides))
            self.arrays.append(numbers.view(_INTEGERS[size]).as_strided(tensor.shape, strides))

    def copy(self, tensors: list[Tensor]) -> None:
        """Queue a copy of each tensor on the current stream of its device, and an event behind them."""
        if self._is_on_host:
            torch._foreach_copy_(self._places, tensors)  # one call for 300 copies of 50 µs each
        else:
            for place, tensor in zip(self._places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
        for slot in self._slots.values():
            slot.record()

    def wait(self) -> None:
        """Wait until every copy has arrived, in the background thread."""
        for slot in self._slots.values():
            slot.wait()


class _Staged:
    """Weights in memory that is free again when they are written."""

    def __init__(self, names: Sequence[str], memory: _Memory, free: "deque[_Memory]") -> None:
        self._names = names
        self._memory = memory
        self._free_memory = free

    def read(self) -> list[Weight]:
        """Wait for the copies, and return the weights in place."""
        self._memory.wait()
        memory = self._memory
        return [
            Weight(name, dtype, tuple(array.shape), array.numpy())
            for name, dtype, array in zip(self._names, memory.dtypes, memory.arrays, strict=True)
        ]

    def free(self) -> None:
        """Let the next snapshot use the memory."""
        self._free_memory.append(self._memory)
