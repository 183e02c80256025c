"""Where the run is, and at which batch `step` has more to do than to count."""

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from ava_pipeline.collect.arguments import process_rank, whole_number
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.errors import MisuseError


class BatchCount:
    """Where the run is, and at which batch `step` has more to do than to count.

    `every` is infinity if nothing is collected, `snapshots_every` if no weights are saved. `batch_idx`, 1-based and 0
    before the first, and `epoch` are those of the latest `step`. `due` is the batch at which `step` does more than
    count: `next_row` or `next_snapshot`, or -1 before the first batch, whose arguments are checked, and if a finding
    waits for delivery. `num_accumulating` counts the calls in this process that only accumulated gradients,
    `named_calls` the others by the optimizer that they name. `steps_before` are the optimizer steps before this
    process; None if they are not known.
    """

    def __init__(self, every: float, snapshots_every: float = math.inf) -> None:
        self._every, self._snapshots_every = every, snapshots_every
        self._has_holes = False
        self.epoch = self.batch_idx = self.resumed_from = self.num_accumulating = 0
        self.next_row, self.next_snapshot, self.due = every, snapshots_every, -1.0
        self.named_calls: Counter[str] = Counter()
        self.steps_before: int | None = 0
        self._last_epoch = 0
        self._called: set[str] = set()
        self._num_named_batches = 0

    @classmethod
    def of(cls, config: TelemetryConfig) -> Self:
        """The count by which this process collects; nothing, if telemetry is off or another rank writes."""
        if not config.enabled or process_rank() != 0:
            return cls(math.inf)
        return cls(
            config.collect_every_n, config.weight_snapshot_every_n if config.track_weight_snapshots else math.inf
        )

    def resume(self, batch_idx: int, epoch: int, global_step: int | None) -> None:
        """Continue after a checkpoint's batch, and after its optimizer steps if they are known."""
        self.batch_idx = self.resumed_from = batch_idx
        self.epoch = epoch
        self.steps_before = global_step
        self.schedule_row(batch_idx)
        self.schedule_snapshot(batch_idx)

    @property
    def last_epoch(self) -> int:
        """The epoch of the latest `step` whose epoch is a whole number, as far as it was read."""
        with suppress(MisuseError):
            self._last_epoch = whole_number("epoch", self.epoch)
        return self._last_epoch

    def begins_batch(self, optimizer: str, *, accumulating: bool) -> bool:
        """Count a call that names an optimizer; whether it is the first of its batch: a name comes once in each."""
        if not accumulating:
            self.named_calls[optimizer] += 1
        is_first = not self._called or optimizer in self._called
        self._called = {optimizer} if is_first else {*self._called, optimizer}
        self._num_named_batches += is_first and not accumulating
        return is_first

    def is_batch_open(self, optimizers: Iterable[str]) -> bool:
        """Whether one of these optimizers was called in every batch before, and not yet in this one."""
        num_before = self._num_named_batches - 1
        return any(name not in self._called and self.named_calls[name] == num_before for name in optimizers)

    def follow(self, batch_idx: int) -> str | None:
        """Take over the user's count; if it does not rise, add one to the own count and return what is wrong."""
        before = self.batch_idx
        if batch_idx > before:
            self._has_holes |= batch_idx != before + 1
            self.batch_idx = batch_idx
            return None
        self.batch_idx += 1
        return (
            f"batch_idx {batch_idx} came after {before} and does not rise, so the collector continues its own count. "
            "Give a count of the whole run, which does not start over with an epoch, or leave it out."
        )

    def schedule_row(self, after: int) -> None:
        """Set the next row to the first multiple of `every` after a batch."""
        self.next_row = (after // self._every + 1) * self._every

    def schedule_snapshot(self, after: int) -> None:
        """Set the next weight snapshot to the first multiple of `snapshots_every` after a batch."""
        self.next_snapshot = (after // self._snapshots_every + 1) * self._snapshots_every

    def schedule_step(self) -> None:
        """Let `step` only count until the next row or the next snapshot."""
        self.due = min(self.next_row, self.next_snapshot)

    def wake(self) -> None:
        """Make the next `step` deliver findings; called in the background thread."""
        self.due = -1

    @property
    def is_collecting(self) -> bool:
        """Whether any row will be due."""
        return self._every != math.inf

    def stop(self) -> None:
        """Collect nothing from now on."""
        self._every = self._snapshots_every = self.next_row = self.next_snapshot = self.due = math.inf

    def finish(self) -> None:
        """Make every further `step` due, so that it raises: the collector is closed."""
        self.next_row = self.due = 0
        self.next_snapshot = math.inf

    @property
    def num_calls(self) -> int | None:
        """Calls in this process that did not only accumulate; None if the user's count left out batches."""
        return None if self._has_holes else self.batch_idx - self.resumed_from - self.num_accumulating
