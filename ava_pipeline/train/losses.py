"""The training loss, squared earth mover's distance between score distributions, and losses that are not finite."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A CUDA stream queues about a thousand launches before the host must wait; a loss this old was computed long ago.
_MAX_PENDING = 64
_NUM_SHOWN = 5


def squared_emd(logits: Tensor, votes: Tensor) -> Tensor:
    """Squared EMD with r = 2: the mean squared difference of the cumulative distributions, a float32 scalar.

    Talebi and Milanfar, NIMA (2018), eq. 1, without the root, whose gradient is infinite at a perfect prediction.
    `logits` are [batch, 10] of any float dtype; softmax and sums are computed in float32 even under autocast. `votes`
    are [batch, 10] counts (or shares) of scores 1..10, no row all zero.
    """
    with torch.autocast(logits.device.type, enabled=False):
        predicted = logits.float().softmax(dim=1)
        truth = votes.float() / votes.float().sum(dim=1, keepdim=True)
        return (predicted - truth).cumsum(dim=1).square().mean()


def drop_unless(keep: Tensor, gradients: list[Tensor]) -> None:
    """Set gradients, nan and inf too, to zero in place unless the scalar `keep` is true; do not wait for the device."""
    for gradient in gradients:
        gradient.copy_(torch.where(keep, gradient, torch.zeros_like(gradient)))


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The known loss of one batch."""

    epoch: int  # 0-based
    batch: int  # 1-based in the epoch
    image_ids: list[int]
    value: float  # may be nan or inf

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.image_ids[:_NUM_SHOWN]))
        more = ", ..." if len(self.image_ids) > _NUM_SHOWN else ""
        return f"The loss of epoch {self.epoch}, batch {self.batch} is {self.value} (images {shown}{more})"


@dataclass(frozen=True, slots=True)
class _PendingLoss:
    host: Tensor
    copied: torch.cuda.Event
    epoch: int
    batch: int
    image_ids: list[int]

    def is_known(self) -> bool:
        """Whether the copy has arrived; does not wait for it."""
        return bool(self.copied.query())  # type: ignore[no-untyped-call]  # torch leaves it out


class LossWatch:
    """Calls `on_nonfinite` with each nan or inf loss: at once on the CPU; on CUDA later, so that nothing waits."""

    def __init__(self, on_nonfinite: Callable[[BatchLoss], None]) -> None:
        self._on_nonfinite = on_nonfinite
        self._pending: deque[_PendingLoss] = deque()
        self.latest = math.nan

    def add(self, loss: Tensor, *, epoch: int, batch: int, image_ids: list[int]) -> None:
        """Add one batch's loss, a scalar on any device, and check the losses that have become known."""
        if loss.device.type != "cuda":
            self._check(BatchLoss(epoch, batch, image_ids, float(loss.detach())))
            return
        # Named, because another default device may be set.
        host = torch.empty((), dtype=loss.dtype, device="cpu", pin_memory=True)
        host.copy_(loss.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
        copied.record()
        self._pending.append(_PendingLoss(host, copied, epoch, batch, image_ids))
        while self._pending and (self._pending[0].is_known() or len(self._pending) > _MAX_PENDING):
            self._take()

    def catch_up(self) -> None:
        """Wait until every loss is known. Call it before a checkpoint, which must not hold nan weights."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        oldest = self._pending.popleft()
        oldest.copied.synchronize()
        self._check(BatchLoss(oldest.epoch, oldest.batch, oldest.image_ids, float(oldest.host)))

    def _check(self, loss: BatchLoss) -> None:
        self.latest = loss.value
        if not math.isfinite(loss.value):
            self._on_nonfinite(loss)
