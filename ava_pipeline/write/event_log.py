"""Events that say which steps are missing, where, and why."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ava_pipeline.contract.events import EVENTS, Event, name_samples
from ava_pipeline.contract.tables import RowProblem, RunTable
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.write.channel import Gap
from ava_pipeline.write.pending import PendingStep
from ava_pipeline.write.table_files import TableFiles
from ava_pipeline.write.writers import CsvWriter


def gap_event(gap: Gap) -> Event:
    """Steps that were dropped before they reached the worker."""
    return Event(
        event="gap",
        severity="warning",
        message=f"{gap.num_steps} collected steps were dropped: {gap.reason}.",
        batch_idx=gap.first_batch_idx,
        batch_idx_end=gap.last_batch_idx,
        epoch=gap.epoch,
        value=float(gap.num_steps),
    )


def lost_event(steps: Sequence[PendingStep], reason: object, *, file: str | None = None) -> Event:
    """Steps that were not written: by one file, or by none.

    Args:
        steps: at least one, in order.
        reason: why.
        file: the one that lacks them; None where all do.
    """
    return Event(
        event="failed_write",
        severity="error",
        message=f"{file or 'telemetry'} did not take {len(steps)} collected steps: {reason}",
        batch_idx=steps[0].batch_idx,
        batch_idx_end=steps[-1].batch_idx,
        epoch=steps[0].epoch,
        column=file,
        value=float(len(steps)),
    )


def unsynced_event(steps: Sequence[PendingStep], reason: object, *, file: str) -> Event:
    """Steps that a file took and the disk did not sync.

    Args:
        steps: at least one, in order.
        reason: why.
        file: the one that holds them.
    """
    message = f"{file} took {len(steps)} collected steps that could not be synced, so a power loss may take them:"
    return replace(lost_event(steps, reason, file=file), event="failed_sync", message=f"{message} {reason}")


def refused_row_event(step: PendingStep, table: str, problem: RowProblem) -> Event:
    """A row that broke a rule of its table."""
    what = f"{table}.{problem.column} was {problem.value}: {problem.message}. The row was not written."
    return _failed_row(step, what, problem.column)


def unmade_row_event(step: PendingStep, table: str, error: Exception) -> Event:
    """A row that could not be made of its numbers."""
    return _failed_row(step, f"{table}: no row could be made of the step: {type(error).__name__}: {error}", table)


def unread_step_event(step: PendingStep, error: Exception) -> Event:
    """A step whose numbers did not come from the device."""
    return _failed_row(step, f"The step's numbers could not be read: {type(error).__name__}: {error}", None)


def moved_event(root: Path, last_batch_idx: int) -> Event:
    """A run directory that is no longer where it was, or that another process has begun to write."""
    return Event(
        event="damaged_file",
        severity="error",
        message=f"{root} was moved or removed, or another process took it over, while it was written: "
        f"rows up to batch {last_batch_idx} went with it.",
        batch_idx=1,
        batch_idx_end=last_batch_idx,
        epoch=0,
    )


def with_samples(event: Event, steps: Mapping[int, PendingStep]) -> Event:
    """Name what the event's first batch consisted of, where the user said so.

    Args:
        event: of some batches.
        steps: by batch_idx.
    """
    ids = steps[event.batch_idx].sample_ids if event.batch_idx in steps else None
    if ids is None:
        return event
    return replace(event, message=name_samples(event.message, event.batch_idx, listed(ids)))


def listed(ids: object) -> list[object]:
    """The ids as a list; a tensor or an array knows how to make one of itself."""
    try:
        found = ids.tolist() if hasattr(ids, "tolist") else ids
    except Exception as error:  # noqa: BLE001  # ids on a device that fails must not cost the rows beside them
        return [f"unknown ({type(error).__name__}: {error})"]
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]


def _failed_row(step: PendingStep, message: str, column: str | None) -> Event:
    return Event(
        event="failed_row",
        severity="error",
        message=message,
        batch_idx=step.batch_idx,
        batch_idx_end=step.batch_idx,
        epoch=step.epoch,
        column=column,
    )


MAX_EXACT = 100
MERGED_EVERY_S = 60.0

# Events that say which steps are missing: what waits together is one stretch.
_MISSING_STEPS = frozenset({"gap", "failed_write"})

EventKind = tuple[str, str, str | None]


@dataclass(slots=True)
class WaitingEvent:
    """One event to be written, and how many it stands for."""

    kind: EventKind
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
        self._waiting: list[WaitingEvent] = []
        self._num_added: Counter[EventKind] = Counter()
        self._written_s: dict[EventKind, float] = {}

    def add(self, event: Event) -> None:
        """Let an event wait, by itself or as part of one that waits already."""
        kind = (event.event, event.severity, event.column)
        is_merged = event.event in _MISSING_STEPS or self._num_added[kind] >= MAX_EXACT
        older = self._latest(kind) if is_merged else None
        if older is not None:
            older.merge(event)
            return
        self._num_added[kind] += 1
        self._waiting.append(WaitingEvent(kind, event))

    def due(self, *, is_last: bool = False) -> list[WaitingEvent]:
        """What is to be written now, oldest first; with `is_last`, all there is. It waits on until `let_go`."""
        return [one for one in self._waiting if is_last or self._is_due(one)]

    def let_go(self, written: Sequence[WaitingEvent]) -> None:
        """Forget what was written."""
        now = self._clock()
        self._written_s.update((one.kind, now) for one in written)
        gone = {id(one) for one in written}
        self._waiting = [one for one in self._waiting if id(one) not in gone]

    def _is_due(self, one: WaitingEvent) -> bool:
        is_exact = self._num_added[one.kind] <= MAX_EXACT
        return is_exact or self._clock() >= self._written_s.get(one.kind, -MERGED_EVERY_S) + MERGED_EVERY_S

    def _latest(self, kind: EventKind) -> WaitingEvent | None:
        return next((one for one in reversed(self._waiting) if one.kind == kind), None)

    def __len__(self) -> int:
        return len(self._waiting)


_log = logging.getLogger("ava_pipeline")

MAX_ARRIVING = 10_000


class EventLog:
    """Events on their way to `events.csv`.

    Events can be added from any thread and before the file is open, without a lock that a fork could leave held.
    Those that the disk does not take wait in an `EventQueue`, which keeps them few.

    Args:
        root: the run directory, for messages.

    Attributes:
        trouble: the first thing that went wrong, with its remedy; None while all is well.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # Emptied by the worker at every turn, so that the bound is reached only by a worker stuck for very long.
        self._arriving: deque[Event] = deque(maxlen=MAX_ARRIVING)
        self._queue = EventQueue()
        self._warned: set[str] = set()
        self._files: TableFiles | None = None
        self.trouble: WriteError | None = None

    def open(self, path: Path) -> None:
        """Begin to write.

        Raises:
            OSError: the file cannot be opened.
            DamagedFileError: the file holds something else.
        """
        table = RunTable.of(EVENTS)
        self.abandon()
        self._files = TableFiles(table, [CsvWriter(path, table.arrow_schema)])

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows written, by file name."""
        return dict(self._files.num_rows) if self._files else {}

    def add(self, event: Event) -> None:
        """Record an event, and log it where it is the first of its kind and more than information."""
        self._arriving.append(event)
        if event.severity != "info":
            where = f"batch {event.batch_idx}" if event.batch_idx else "before the first batch"
            self._warn(_kind(event), f"{where}: {event.message}")
        if event.severity == "error":
            self._remember(event.message)

    def end(self, event: Event) -> None:
        """Record that what events of this name and column told is over; it is logged, and the next will be too."""
        self._arriving.append(event)
        self._warned.discard(_kind(event))
        _log.warning("telemetry of %s: batch %d: %s", self._root, event.batch_idx, event.message)

    def fail(self, error: BaseException, what: str) -> None:
        """Log once a kind that `what` went wrong, and keep the first error for `on_error="raise"`."""
        self._warn(f"{what} {type(error).__name__}", f"{what}: {in_words(error)} Training goes on without it.")
        self._remember(f"{what}: {in_words(error)}")

    def write(self, *, is_last: bool = False) -> None:
        """Bring what is due to the file; what it does not take waits on. Called by the worker only."""
        while self._arriving:
            self._queue.add(self._arriving.popleft())
        due = self._queue.due(is_last=is_last)
        if self._files is None or not due:
            return
        outcome = self._files.write([one.told.row() for one in due])
        for error in outcome.errors.values():
            self.fail(error, "events.csv could not be written")
        if not outcome.errors:
            self._queue.let_go(due)
        for problem in outcome.problems:
            broken = ValueError(f"{problem.column} was {problem.value}: {problem.message}.")
            self.fail(broken, "an event could not be written")

    def sync(self) -> None:
        """Wait until every event written survives a power loss."""
        if self._files is not None:
            for error in self._files.sync().values():
                self.fail(error, "events.csv could not be synced")

    def close(self) -> None:
        """Write what waits and close the file."""
        self.write(is_last=True)
        if self._files is not None:
            for error in self._files.close().values():
                self.fail(error, "events.csv could not be closed")

    def abandon(self) -> None:
        """Let go of the file; what waits goes to the next one."""
        if self._files is not None:
            self._files.abandon()
            self._files = None

    def _remember(self, message: str) -> None:
        remedy = f"Some rows are missing from {self._root / 'telemetry'}; mend the cause, or set on_error='warn'."
        self.trouble = self.trouble or WriteError(f"{message} {remedy}")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("telemetry of %s: %s", self._root, message)


def _kind(event: Event) -> str:
    return f"{event.event} {event.column}"
