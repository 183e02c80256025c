"""Knowing the losses without waiting for the device."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A CUDA stream takes about a thousand launches before it makes the host wait; a loss this old has long been computed.
_MAX_BEHIND = 64
_NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """One batch's loss, known by now.

    Attributes:
        epoch: 0-based.
        batch: 1-based in the epoch.
        image_ids: of the batch.
        value: may be nan or inf.
    """

    epoch: int
    batch: int
    image_ids: list[int]
    value: float

    def __str__(self) -> str:
        """Where and what, for a sentence."""
        shown = ", ".join(map(str, self.image_ids[:_NUM_SHOWN]))
        more = ", ..." if len(self.image_ids) > _NUM_SHOWN else ""
        return f"The loss of epoch {self.epoch}, batch {self.batch} is {self.value} (images {shown}{more})"


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    host: Tensor
    copied: torch.cuda.Event
    epoch: int
    batch: int
    image_ids: list[int]

    def is_known(self) -> bool:
        """Whether the copy has arrived, without waiting for it."""
        return bool(self.copied.query())  # type: ignore[no-untyped-call]  # torch leaves it out


class LossWatch:
    """Follows the losses: at once on the CPU, some batches behind on CUDA, where nothing waits.

    Args:
        on_nonfinite: called with every loss that is nan or inf, once, as soon as it is known.
    """

    def __init__(self, on_nonfinite: Callable[[BatchLoss], None]) -> None:
        self._on_nonfinite = on_nonfinite
        self._behind: deque[_OnItsWay] = deque()
        self.latest = math.nan

    def add(self, loss: Tensor, *, epoch: int, batch: int, image_ids: list[int]) -> None:
        """Take one batch's loss, a scalar on any device; what has become known meanwhile is looked at."""
        if loss.device.type != "cuda":
            self._look(BatchLoss(epoch, batch, image_ids, float(loss.detach())))
            return
        host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        host.copy_(loss.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
        copied.record()
        self._behind.append(_OnItsWay(host, copied, epoch, batch, image_ids))
        while self._behind and (self._behind[0].is_known() or len(self._behind) > _MAX_BEHIND):
            self._take()

    def catch_up(self) -> None:
        """Wait until every loss is known: before a checkpoint, which must not hold weights that are nan."""
        while self._behind:
            self._take()

    def _take(self) -> None:
        oldest = self._behind.popleft()
        oldest.copied.synchronize()
        self._look(BatchLoss(oldest.epoch, oldest.batch, oldest.image_ids, float(oldest.host)))

    def _look(self, loss: BatchLoss) -> None:
        self.latest = loss.value
        if not math.isfinite(loss.value):
            self._on_nonfinite(loss)
