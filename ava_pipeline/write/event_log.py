"""events.csv: every event of a run, the warning logged with it, and the sentences that say which steps are missing."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ava_pipeline.contract.events import EVENTS, Event, EventName, event_columns, name_samples
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.logs import logger
from ava_pipeline.signs.evidence import collected_steps
from ava_pipeline.write.channel import Gap, PendingStep
from ava_pipeline.write.writers import CsvWriter, TableFiles

MAX_ARRIVING = 10_000
MAX_EXACT = 100
MERGED_EVERY_S = 60.0

# Events that say which steps are missing: those that wait together become one range of batches.
_MISSING_STEPS = frozenset({"gap", "failed_write"})


class EventLog:
    """Writes events to `events.csv` and logs the first of each type as a warning.

    Events can be added from any thread and before the file is open, without a lock that a fork could leave held. The
    worker writes them to the file; until then, and while the disk refuses them, they wait in an `EventQueue`.
    `first_error` has a remedy; it is None if nothing went wrong.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # The worker empties it at every turn, so that only a worker stuck for very long reaches the bound.
        self._arriving: deque[Event] = deque(maxlen=MAX_ARRIVING)
        self._queue = EventQueue()
        self._warned: set[str] = set()
        self._files: TableFiles | None = None
        self._copies: TableFiles | None = None
        self.first_error: WriteError | None = None

    def open(self, path: Path) -> None:
        """Open the file; raise OSError if the disk refuses, DamagedFileError if the file has other columns."""
        table = RunTable.of(EVENTS)
        self.abandon()
        self._files = TableFiles(table, [CsvWriter(path, table.arrow_schema)])

    def copy_to(self, files: TableFiles) -> None:
        """Write every event to the files of the user's own writers too, once it is in `events.csv`."""
        self._copies = files

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows written, by file name."""
        return dict(self._files.num_rows) if self._files else {}

    def add(self, event: Event) -> None:
        """Record an event; the first of its name and column is also logged, unless its severity is info."""
        self._arriving.append(event)
        if event.severity != "info":
            place = f"batch {event.batch_idx}" if event.batch_idx else "before the first batch"
            self._warn_once(f"{event.event} {event.column}", f"{place}: {event.message}")
        if event.severity == "error":
            self._remember(event.message)

    def resolve(self, event: Event) -> None:
        """Record and log that the cause of earlier events of this name and column is gone; the next is logged again."""
        self._arriving.append(event)
        self._warned.discard(f"{event.event} {event.column}")
        logger.warning("telemetry of %s: batch %d: %s", self._root, event.batch_idx, event.message)

    def fail(self, error: BaseException, what: str) -> None:
        """Log an error once per type and `what`, such as "manifest.json could not be written", and keep the first."""
        message = f"{what}: {in_words(error)}"
        self._warn_once(f"{what} {type(error).__name__}", f"{message} Training continues without it.")
        self._remember(message)

    def write(self, *, is_last: bool = False) -> None:
        """Write the events that are due; those that cannot be written keep waiting. Only the worker calls it."""
        while self._arriving:
            self._queue.add(self._arriving.popleft())
        due = self._queue.due(is_last=is_last)
        if self._files is None or not due:
            return
        columns = event_columns([waiting.merged_event for waiting in due])
        outcome = self._files.write(columns, len(due))
        self._fail_each(outcome.errors, "could not be written")
        if not outcome.errors:
            self._queue.discard(due)
            if self._copies is not None:
                self._fail_each(self._copies.write(columns, len(due)).errors, "could not be written")
        for finding in outcome.findings:
            self.fail(ValueError(f"{finding.column}: {finding.message}"), "an event could not be written")

    def sync(self) -> None:
        """Wait until every event written survives a power loss."""
        for files in self._open_files():
            self._fail_each(files.sync(), "could not be synced")

    def close(self) -> None:
        """Write every waiting event and close the file."""
        self.write(is_last=True)
        for files in self._open_files():
            self._fail_each(files.close(), "could not be finished")

    def abandon(self) -> None:
        """Close the file as it is; waiting events go to the next one."""
        for files in self._open_files():
            self._fail_each(files.abandon(), "could not be released")
        self._files = self._copies = None

    def _open_files(self) -> list[TableFiles]:
        return [files for files in (self._files, self._copies) if files is not None]

    def _fail_each(self, errors: Mapping[str, Exception], what: str) -> None:
        for name, error in errors.items():
            self.fail(error, f"{name} {what}")

    def _remember(self, message: str) -> None:
        remedy = f"Some telemetry is missing from {self._root / 'telemetry'}: fix the cause, or set on_error='warn'."
        self.first_error = self.first_error or WriteError(f"{message} {remedy}")

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("telemetry of %s: %s", self._root, message)


EventKey = tuple[str, str, str | None]


@dataclass(slots=True)
class WaitingEvent:
    """An event to be written, and the number of events that it represents."""

    key: EventKey
    event: Event
    num_merged: int = 1

    def merge(self, other: Event) -> None:
        """Extend the event over the other's batches; values that count steps add up."""
        first = self.event
        is_count = first.event in _MISSING_STEPS and first.value is not None and other.value is not None
        self.event = replace(
            first,
            batch_idx=min(first.batch_idx, other.batch_idx),
            batch_idx_end=max(first.batch_idx_end, other.batch_idx_end),
            value=(first.value or 0.0) + (other.value or 0.0) if is_count else first.value,
        )
        self.num_merged += 1

    @property
    def merged_event(self) -> Event:
        """The event, with a message that says how many others it represents."""
        if self.num_merged == 1:
            return self.event
        more = f"And {self.num_merged - 1} more of this kind, up to batch {self.event.batch_idx_end}."
        return replace(self.event, message=f"{self.event.message} {more}")


class EventQueue:
    """Keeps events until they are written, and merges those of one key.

    A problem that lasts for days must fill neither memory nor the disk. So the first `MAX_EXACT` events of a key (name,
    severity and column) are written one by one; after that, a key is written once per `MERGED_EVERY_S`, as one event
    over all batches concerned. Missing steps that wait at the same time are merged from the start: while nothing can
    be written, they are one range of batches. The clock is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[WaitingEvent] = []
        self._num_added: Counter[EventKey] = Counter()
        self._written_s: dict[EventKey, float] = {}

    def add(self, event: Event) -> None:
        """Add an event, or merge it into one that already waits."""
        key = (event.event, event.severity, event.column)
        if event.event in _MISSING_STEPS or self._num_added[key] >= MAX_EXACT:
            latest = next((waiting for waiting in reversed(self._waiting) if waiting.key == key), None)
            if latest is not None:
                latest.merge(event)
                return
        self._num_added[key] += 1
        self._waiting.append(WaitingEvent(key, event))

    def due(self, *, is_last: bool = False) -> list[WaitingEvent]:
        """The events to write now, oldest first; all of them with `is_last`. They keep waiting until `discard`."""
        return [waiting for waiting in self._waiting if is_last or self._is_due(waiting.key)]

    def discard(self, written: Sequence[WaitingEvent]) -> None:
        """Remove events that were written."""
        now = self._clock()
        self._written_s.update((waiting.key, now) for waiting in written)
        ids = {id(waiting) for waiting in written}
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in ids]

    def _is_due(self, key: EventKey) -> bool:
        is_exact = self._num_added[key] <= MAX_EXACT
        return is_exact or self._clock() >= self._written_s.get(key, -MERGED_EVERY_S) + MERGED_EVERY_S

    def __len__(self) -> int:
        return len(self._waiting)


def gap_event(gap: Gap) -> Event:
    """Steps that were dropped before they reached the worker."""
    return Event(
        event="gap",
        severity="warning",
        message=f"{collected_steps(gap.num_steps)} had to be dropped: {gap.reason}.",
        batch_idx=gap.first_batch_idx,
        batch_idx_end=gap.last_batch_idx,
        epoch=gap.epoch,
        value=float(gap.num_steps),
    )


def lost_event(steps: Sequence[PendingStep], reason: object, *, file: str | None = None) -> Event:
    """Steps, at least one and in order, that could not be written to a file; None means all files."""
    return Event(
        event="failed_write",
        severity="error",
        message=f"{collected_steps(len(steps))} could not be written{f' to {file}' if file else ''}: {reason}",
        batch_idx=steps[0].batch_idx,
        batch_idx_end=steps[-1].batch_idx,
        epoch=steps[0].epoch,
        column=file,
        value=float(len(steps)),
    )


def unsynced_event(steps: Sequence[PendingStep], reason: object, *, file: str) -> Event:
    """Steps, at least one and in order, that were written to a file and could not be synced to the disk."""
    message = f"{collected_steps(len(steps))} in {file} could not be synced and may not survive a power loss: {reason}"
    return replace(lost_event(steps, reason, file=file), event="failed_sync", message=message)


def refused_row_event(step: PendingStep, table: str, finding: Finding) -> Event:
    """A row that broke a rule of its table."""
    message = f"{table}.{finding.column}: {finding.message} The row was not written."
    return _failed_row(step, message, finding.column)


def unmade_row_event(step: PendingStep, table: str, reason: str) -> Event:
    """A row that could not be made from the numbers of its step."""
    return _failed_row(step, f"{table}: no row could be made from the step: {reason}", table)


def unread_step_event(step: PendingStep, error: Exception) -> Event:
    """A step whose numbers could not be read from the device."""
    return _failed_row(step, f"The step's numbers could not be read: {type(error).__name__}: {error}", None)


def added_columns_event(step: PendingStep, table: str, columns: Sequence[str]) -> Event:
    """Columns that a table gets during the run; older rows leave them empty."""
    return Event(
        event="changed_columns",
        severity="info",
        message=f"{table}: new from batch {step.batch_idx} on: {', '.join(columns)}. Older rows leave it empty.",
        batch_idx=step.batch_idx,
        batch_idx_end=step.batch_idx,
        epoch=step.epoch,
    )


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


def damage_event(finding: Finding, first_batch_idx: int, last_batch_idx: int) -> Event:
    """Damage of a file, which may have cost rows of these batches."""
    file = PurePosixPath(finding.file or "").name
    return Event(
        event="damaged_file",
        severity="warning",
        message=f"{file}: {finding.message} {finding.advice}".rstrip(),
        batch_idx=first_batch_idx,
        batch_idx_end=last_batch_idx,
        epoch=0,
    )


def snapshot_event(
    batch_idx: int,
    epoch: int,
    message: str,
    *,
    event: EventName = "failed_snapshot",
    severity: Severity = "error",
) -> Event:
    """Trouble with the weight snapshot of a batch."""
    return Event(
        event=event,
        severity=severity,
        message=f"weight_snapshots: {message}",
        batch_idx=batch_idx,
        batch_idx_end=batch_idx,
        epoch=epoch,
        column="weight_snapshots",
    )


def moved_event(root: Path, last_batch_idx: int) -> Event:
    """A run directory that was moved, removed or taken over by another process during the run."""
    return Event(
        event="damaged_file",
        severity="error",
        message=f"{root} was moved or removed, or another process took it over, while the run was being written. "
        f"It held the rows up to batch {last_batch_idx}.",
        batch_idx=min(1, last_batch_idx),
        batch_idx_end=last_batch_idx,
        epoch=0,
    )


def with_samples(event: Event, steps: Mapping[int, PendingStep]) -> Event:
    """Name the samples of the event's first batch, if the user gave their ids; `steps` are by batch_idx."""
    ids = steps[event.batch_idx].sample_ids if event.batch_idx in steps else None
    if ids is None:
        return event
    return replace(event, message=name_samples(event.message, event.batch_idx, id_list(ids)))


def id_list(ids: object) -> list[object]:
    """Sample ids as a list; tensors and arrays convert themselves."""
    try:
        found = ids.tolist() if hasattr(ids, "tolist") else ids
    except Exception as error:  # noqa: BLE001  # ids on a failing device must not cost the rows of their step
        return [f"unknown ({type(error).__name__}: {error})"]
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
