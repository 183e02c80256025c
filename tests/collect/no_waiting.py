"""Fake CUDA tensors that raise on every operation that makes the host wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ava_pipeline.collect.staging import Slot

REFUSED = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "allclose")
REFUSED_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class WaitedError(AssertionError):
    """Something would have made the host wait."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Refuses every operation whose result the host has to wait for, and every copy that is not asynchronous.

    Attributes:
        pinned: memory on the host that the device copies to asynchronously.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Check the operation, then run it."""
        name = func.overloadpacket.__name__
        if name in REFUSED or REFUSED_TAGS.intersection(func.tags):
            raise WaitedError(f"{name} waits for the device")
        out = func(*args, **(kwargs or {}))
        if name == "copy_" and self._is_asynchronous(*args):
            return out
        read, written = _kinds((args, kwargs)), _kinds(args[0] if name.endswith("_") else out)
        if "cuda" in read and "cpu" in written:
            raise WaitedError(f"{name} copies from the device to the host")
        is_asynchronous = name == "_to_copy" and (kwargs or {}).get("non_blocking")
        if name in {"copy_", "_to_copy"} and "cpu" in read and "cuda" in written and not is_asynchronous:
            raise WaitedError(f"{name} waits for what it copies to the device")
        return out

    def _is_asynchronous(self, to: Tensor, source: Tensor, non_blocking: object = False, /) -> bool:  # noqa: FBT002  # as torch calls it
        if to.device.type == source.device.type:
            return True
        memory = to.untyped_storage()._cdata
        is_pinned = to.is_cuda or any(memory == one.untyped_storage()._cdata for one in self.pinned)
        return bool(non_blocking) and is_pinned


def _kinds(tree: object) -> set[str]:
    return {one.device.type for one in tree_leaves(tree) if isinstance(one, Tensor)}


class FakeSlot(Slot):
    """Memory that a fake device copies to; the numbers that arrive are ones."""

    def __init__(self, num_numbers: int) -> None:
        self.buffer = torch.empty(num_numbers)

    def record(self) -> None:
        """Do nothing: the device is fake and has no stream."""

    def wait(self) -> None:
        """In the background thread, where tensors are real."""
        self.buffer = torch.ones(self.buffer.numel())


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoWaiting]:
    """Fake tensors, no waiting, and synchronize calls that raise, in this thread."""

    def refuse(*_: object) -> None:
        raise WaitedError("synchronize waits for the device")

    for place in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
        monkeypatch.setattr(place, "synchronize", refuse)
    with FakeTensorMode(), NoWaiting() as mode:
        yield mode
