"""What there is to tell: rows of `events.csv`, and one logged warning a kind."""

import logging
from collections import deque
from pathlib import Path

from ava_pipeline.contract.events import EVENTS, Event
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.write.csv import CsvWriter
from ava_pipeline.write.event_queue import EventQueue
from ava_pipeline.write.table_files import TableFiles

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
