"""Events that wait for their file, merged where there would be too many of them."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ava_pipeline.contract.events import Event

MAX_EXACT = 100
MERGED_EVERY_S = 60.0

# Events that say which steps are missing: what waits together is one stretch.
_MISSING_STEPS = frozenset({"gap", "failed_write"})

Kind = tuple[str, str, str | None]


@dataclass(slots=True)
class Waiting:
    """One event to be written, and how many it stands for."""

    kind: Kind
    event: Event
    num_merged: int = 1

    def merge(self, other: Event) -> None:
        """Stretch the event over the other's batches; figures that count steps add up."""
        one = self.event
        is_count = one.event in _MISSING_STEPS and one.value is not None and other.value is not None
        self.event = replace(
            one,
            batch_idx=min(one.batch_idx, other.batch_idx),
            batch_idx_end=max(one.batch_idx_end, other.batch_idx_end),
            value=(one.value or 0.0) + (other.value or 0.0) if is_count else one.value,
        )
        self.num_merged += 1

    @property
    def told(self) -> Event:
        """The event with a message that says how many it stands for."""
        if self.num_merged == 1:
            return self.event
        more = f"And {self.num_merged - 1} more of this kind, up to batch {self.event.batch_idx_end}."
        return replace(self.event, message=f"{self.event.message} {more}")


class EventQueue:
    """Keeps events until they are written.

    A trouble that lasts for days must fill neither memory nor the disk. So the first `MAX_EXACT` events of a kind (its
    name, severity and column) are written as they come; after those, a kind is written once in `MERGED_EVERY_S`, as
    one event over all batches concerned. Missing steps that wait at the same time are one event from the start: while
    nothing can be written they are one stretch.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[Waiting] = []
        self._num_added: Counter[Kind] = Counter()
        self._written_s: dict[Kind, float] = {}

    def add(self, event: Event) -> None:
        """Let an event wait, by itself or as part of one that waits already."""
        kind = (event.event, event.severity, event.column)
        is_merged = event.event in _MISSING_STEPS or self._num_added[kind] >= MAX_EXACT
        older = self._latest(kind) if is_merged else None
        if older is not None:
            older.merge(event)
            return
        self._num_added[kind] += 1
        self._waiting.append(Waiting(kind, event))

    def due(self, *, is_last: bool = False) -> list[Waiting]:
        """What is to be written now, oldest first; with `is_last`, all there is. It waits on until `let_go`."""
        return [one for one in self._waiting if is_last or self._is_due(one)]

    def let_go(self, written: Sequence[Waiting]) -> None:
        """Forget what was written."""
        now = self._clock()
        self._written_s.update((one.kind, now) for one in written)
        gone = {id(one) for one in written}
        self._waiting = [one for one in self._waiting if id(one) not in gone]

    def _is_due(self, one: Waiting) -> bool:
        is_exact = self._num_added[one.kind] <= MAX_EXACT
        return is_exact or self._clock() >= self._written_s.get(one.kind, -MERGED_EVERY_S) + MERGED_EVERY_S

    def _latest(self, kind: Kind) -> Waiting | None:
        return next((one for one in reversed(self._waiting) if one.kind == kind), None)

    def __len__(self) -> int:
        return len(self._waiting)
