"""The bounded hand-off between the training thread and the worker: its policy and its counters."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from ava_pipeline.errors import ChannelClosedError, ChannelFullError

Item = TypeVar("Item")

MAX_ROWS_PER_WAKE = 128


@dataclass(frozen=True, slots=True)
class TelemetryStats:
    """Collected steps so far: `collected == written + dropped + failed + pending`, always.

    Attributes:
        collected: steps of which a row was to be written.
        written: every configured writer took every row of the step; Parquet's are safe in the journal.
        dropped: the channel had no room, or was closed.
        failed: a rule or a writer refused a row of the step, or the disk did not sync it where `fsync` asks for that.
        pending: handed over, not yet one of the others.
    """

    collected: int = 0
    written: int = 0
    dropped: int = 0
    failed: int = 0
    pending: int = 0


NO_ROOM = "the files took rows more slowly than they came"
CLOSED = "they came after rows were no longer taken"


class Gap(NamedTuple):
    """Collected steps that were dropped for one reason: the first and the last batch, how many, and why."""

    first_batch_idx: int
    last_batch_idx: int
    epoch: int
    num_steps: int
    reason: str


class Channel(Generic[Item]):
    """A bounded queue that drops or blocks when it is full, and counts what becomes of every item.

    An item is pending until `settle` says that it was written or failed, so the bound holds for everything in memory
    and not only for what waits to be taken.

    Args:
        max_pending: items that may be pending.
        on_full: "drop" refuses the new item at once, "block" waits for room first.
        block_timeout_s: how long "block" waits.
    """

    def __init__(
        self, max_pending: int, *, on_full: Literal["drop", "block"] = "drop", block_timeout_s: float = 1.0
    ) -> None:
        self._max_pending = max_pending
        self._wait_s = block_timeout_s if on_full == "block" else 0.0
        self._wake_at = max(1, min(MAX_ROWS_PER_WAKE, max_pending // 2))
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._num_accepted = 0
        self._num_written = 0
        self._num_failed = 0
        self._num_dropped = 0
        self._flush_up_to = 0
        self._gaps: dict[str, Gap] = {}
        self._closed = False

    def stats(self) -> TelemetryStats:
        """The counters at one instant."""
        with self._changed:
            return TelemetryStats(
                collected=self._num_accepted + self._num_dropped,
                written=self._num_written,
                dropped=self._num_dropped,
                failed=self._num_failed,
                pending=self._num_pending,
            )

    def reserve(self, batch_idx: int, epoch: int) -> None:
        """Make sure there is room for the item of this batch, before anything is spent on it.

        Raises:
            ChannelFullError: there is none; the step is counted as dropped.
            ChannelClosedError: the channel takes no more items; the step is counted as dropped.
        """
        with self._changed:
            if self._wait_s:
                self._changed.wait_for(self._has_room_or_is_closed, self._wait_s)
            if not self._closed and self._has_room():
                return
            self._drop(batch_idx, epoch, CLOSED if self._closed else NO_ROOM)
            if self._closed:
                raise ChannelClosedError("The channel is closed; no row is taken after close().")
        raise ChannelFullError(
            f"{self._max_pending} collected steps wait to be written, as many as max_pending_rows allows. "
            "The disk is slower than training: raise collect_every_n or max_pending_rows."
        )

    def offer(self, item: Item, batch_idx: int, epoch: int) -> None:
        """Hand an item over.

        Raises:
            ChannelFullError: no room; the step is counted as dropped.
            ChannelClosedError: closed; the step is counted as dropped.
        """
        with self._changed:  # held from looking for room to filling it, so that no other producer comes between
            self.reserve(batch_idx, epoch)
            self._items.append(item)
            self._num_accepted += 1
            if len(self._items) >= self._wake_at:
                self._changed.notify_all()

    def drop(self, batch_idx: int, epoch: int, *, reason: str = "they could not be measured") -> None:
        """Count a step that came to nothing before it could be handed over.

        Args:
            batch_idx: 1-based, of the run.
            epoch: 0-based.
            reason: why, one of a few fixed texts: steps are counted together by it.
        """
        with self._changed:
            self._drop(batch_idx, epoch, reason)

    def take(self, timeout_s: float) -> tuple[list[Item], list[Gap]]:
        """Wait until many items are there, a flush is asked for, the channel is closed or the time is up.

        Returns:
            All items that wait, oldest first, and what was dropped since the last call, a gap a reason. The items
            stay pending.
        """
        with self._changed:
            self._changed.wait_for(self._is_worth_waking, timeout_s)
            items, gaps = list(self._items), list(self._gaps.values())
            self._items.clear()
            self._gaps.clear()
            return items, gaps

    def settle(self, *, written: int = 0, failed: int = 0) -> None:
        """Say what became of items taken: they are pending no longer."""
        with self._changed:
            self._num_written += written
            self._num_failed += failed
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything accepted so far is settled; False when the time is up first."""
        with self._changed:
            target = self._num_accepted
            self._flush_up_to = max(self._flush_up_to, target)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._num_settled >= target, timeout_s)

    def close(self) -> None:
        """Take no more items; those that wait can still be taken. Closing twice is closing once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def give_up(self) -> list[Item]:
        """Close, and count everything pending as failed: nobody will take or settle it any more.

        Returns:
            The items that were never taken.
        """
        with self._changed:
            items = list(self._items)
            self._items.clear()
            self.close()
            self.settle(failed=self._num_pending)
            return items

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def _num_settled(self) -> int:
        return self._num_written + self._num_failed

    @property
    def _num_pending(self) -> int:
        return self._num_accepted - self._num_settled

    def _has_room(self) -> bool:
        return self._num_pending < self._max_pending

    def _has_room_or_is_closed(self) -> bool:
        return self._closed or self._has_room()

    def _is_worth_waking(self) -> bool:
        return self._closed or len(self._items) >= self._wake_at or self._num_settled < self._flush_up_to

    def _drop(self, batch_idx: int, epoch: int, reason: str) -> None:
        self._num_dropped += 1
        gap = self._gaps.get(reason, Gap(batch_idx, batch_idx, epoch, 0, reason))
        self._gaps[reason] = gap._replace(
            first_batch_idx=min(gap.first_batch_idx, batch_idx),
            last_batch_idx=max(gap.last_batch_idx, batch_idx),
            num_steps=gap.num_steps + 1,
        )
