"""From the training thread to the worker: a collected step, and the bounded channel that accepts, drops and counts."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.errors import ChannelClosedError, ChannelFullError

if TYPE_CHECKING:
    from ava_pipeline.write.setup import Setup

Item = TypeVar("Item")
Numbers: TypeAlias = NDArray[np.floating] | list[object]

MAX_ROWS_PER_WAKE = 128
FULL = "steps were collected faster than they could be written"
CLOSED = "the channel was closed"
UNMEASURED = "they could not be measured"


class StagedNumbers(Protocol):
    """One step's numbers while they are copied from the device to the host."""

    def read(self) -> list[Numbers]:
        """Wait for the copy and return the numbers of each measure. The worker calls it once."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """One collected step, of a 1-based batch of the run and a 0-based epoch.

    The layouts are what each measure returned with its numbers; a `FailedReading` if it raised. A deferred step was
    collected later than due, as after batches that only accumulated gradients. `setup` says what was measured; None if
    it never changes.
    """

    batch_idx: int
    epoch: int
    staged: StagedNumbers
    layouts: tuple[object, ...]
    is_deferred: bool = False
    sample_ids: Sequence[object] | None = None
    setup: "Setup | None" = None


@dataclass(frozen=True, slots=True)
class FailedReading:
    """The layout of a measure that raised in the training thread, so that its table has no row of the step.

    The reason is the exception in words; the exception itself would keep tensors alive.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class TelemetryStats:
    """Counts of collected steps; `collected == written + dropped + failed + pending` always holds.

    Attributes:
        collected: steps that were due to be written.
        written: every configured writer wrote every row of the step; for Parquet, the rows are safe in the journal.
        dropped: the channel was full or closed, or the step could not be measured or was interrupted.
        failed: a rule or a writer refused a row of the step, or the disk failed to sync it under `fsync`.
        pending: handed over, and neither written nor failed yet.

    Example:
        >>> TelemetryStats(collected=3, written=2, pending=1).dropped
        0
    """

    collected: int = 0
    written: int = 0
    dropped: int = 0
    failed: int = 0
    pending: int = 0


class Gap(NamedTuple):
    """Collected steps that were dropped for one reason, from the first to the last batch."""

    first_batch_idx: int
    last_batch_idx: int
    epoch: int
    num_steps: int
    reason: str


class Channel(Generic[Item]):
    """A bounded queue that drops or blocks when it is full, and counts the outcome of every item.

    An item is pending until `settle` reports it as written or failed. So the bound covers every item in memory, not
    only those waiting to be taken. "drop" refuses a new item at once, "block" first waits `block_timeout_s` for free
    space.

    A signal handler may raise at any place in the training thread. So an item is accepted or dropped there by a single
    call or assignment, from which the counters follow. And the lock is entered itself, not by way of its condition,
    whose `__enter__` is Python code that could be interrupted after it has taken the lock. A handler may also drop the
    step that it interrupts, and close; the step is then not counted again.
    """

    def __init__(
        self, max_pending: int, *, on_full: Literal["drop", "block"] = "drop", block_timeout_s: float = 1.0
    ) -> None:
        self._max_pending = max_pending
        self._wait_s = block_timeout_s if on_full == "block" else 0.0
        self._wake_at = max(1, min(MAX_ROWS_PER_WAKE, max_pending // 2))
        self._items: deque[Item] = deque()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._num_taken = 0
        self._num_written = 0
        self._num_failed = 0
        self._num_dropped_before = 0  # in gaps that were taken
        self._flush_up_to = 0
        self._is_woken = False
        self._gaps: dict[str, Gap] = {}
        self._last_dropped = 0
        self._closed = False

    def stats(self) -> TelemetryStats:
        """A consistent snapshot of the counters."""
        with self._lock:
            return TelemetryStats(
                collected=self.num_collected,
                written=self._num_written,
                dropped=self._num_dropped,
                failed=self._num_failed,
                pending=self._num_pending,
            )

    @property
    def num_collected(self) -> int:
        """How many steps were accepted or dropped so far."""
        with self._lock:
            return self._num_accepted + self._num_dropped

    def reserve(self, batch_idx: int, epoch: int) -> None:
        """Check that there is space for the item of this batch, before any work is spent on it.

        Raise ChannelFullError or ChannelClosedError if it cannot be accepted; the step is then counted as dropped.
        """
        with self._lock:
            if self._wait_s:
                self._changed.wait_for(lambda: self._closed or self._has_space(), self._wait_s)
            if not self._closed and self._has_space():
                return
            if not (self._closed and batch_idx == self._last_dropped):  # a handler that closed has counted its step
                self._drop(batch_idx, epoch, CLOSED if self._closed else FULL)
            if self._closed:
                raise ChannelClosedError("The channel is closed: rows cannot be handed over after close().")
        raise ChannelFullError(
            f"{self._max_pending} collected steps wait to be written, the most that max_pending_rows allows. "
            "The disk is slower than training: raise collect_every_n or max_pending_rows."
        )

    def offer(self, item: Item, batch_idx: int, epoch: int) -> None:
        """Hand an item over; raise as `reserve` does."""
        with self._lock:  # held from the check to the append, so that no other producer takes the space
            self.reserve(batch_idx, epoch)
            self._items.append(item)
            if len(self._items) >= self._wake_at:
                self._changed.notify_all()

    def drop(self, batch_idx: int, epoch: int, *, reason: str = UNMEASURED) -> None:
        """Count a step that failed before it could be handed over; dropped steps are grouped by the reason's text."""
        with self._lock:
            self._drop(batch_idx, epoch, reason)

    def take(self, timeout_s: float) -> tuple[list[Item], list[Gap]]:
        """Wait until many items wait, a flush is requested, the channel is woken or closed, or the time is up.

        Return all waiting items, oldest first, which stay pending, and the steps dropped since the last call, one gap
        per reason.
        """
        with self._lock:
            self._changed.wait_for(self._is_worth_waking, timeout_s)
            self._is_woken = False
            items, gaps = self._take_items(), list(self._gaps.values())
            self._num_dropped_before = self._num_dropped
            self._gaps.clear()
            return items, gaps

    def wake(self) -> None:
        """Let the present or the next `take` return at once, because there is other work."""
        with self._lock:
            self._is_woken = True
            self._changed.notify_all()

    def settle(self, *, written: int = 0, failed: int = 0) -> None:
        """Report the outcome of items that were taken; they are no longer pending."""
        with self._lock:
            self._num_written += written
            self._num_failed += failed
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every item accepted so far is settled; False if the time is up first."""
        with self._lock:
            target = self._num_accepted
            self._flush_up_to = max(self._flush_up_to, target)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._num_settled >= target, timeout_s)

    def close(self) -> None:
        """Accept no more items; waiting items can still be taken. Calling it again has no effect."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def give_up(self) -> list[Item]:
        """Close the channel, count every pending item as failed, and return the items that were never taken."""
        with self._lock:
            items = self._take_items()
            self.close()
            self.settle(failed=self._num_pending)
            return items

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def _num_accepted(self) -> int:
        return self._num_taken + len(self._items)

    @property
    def _num_dropped(self) -> int:
        return self._num_dropped_before + sum(gap.num_steps for gap in self._gaps.values())

    @property
    def _num_settled(self) -> int:
        return self._num_written + self._num_failed

    @property
    def _num_pending(self) -> int:
        return self._num_accepted - self._num_settled

    def _has_space(self) -> bool:
        return self._num_pending < self._max_pending

    def _is_worth_waking(self) -> bool:
        is_flushed = self._num_settled < self._flush_up_to
        return self._closed or self._is_woken or is_flushed or len(self._items) >= self._wake_at

    def _take_items(self) -> list[Item]:
        items = list(self._items)
        self._num_taken += len(items)
        self._items.clear()
        return items

    def _drop(self, batch_idx: int, epoch: int, reason: str) -> None:
        self._last_dropped = batch_idx
        gap = self._gaps.get(reason, Gap(batch_idx, batch_idx, epoch, 0, reason))
        self._gaps[reason] = gap._replace(
            first_batch_idx=min(gap.first_batch_idx, batch_idx),
            last_batch_idx=max(gap.last_batch_idx, batch_idx),
            num_steps=gap.num_steps + 1,
        )
