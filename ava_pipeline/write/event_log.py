"""What there is to tell: rows of `events.csv`, and one logged warning a kind."""

import logging
from collections import deque
from pathlib import Path

from ava_pipeline.contract.events import EVENTS, Event
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import WriteError
from ava_pipeline.write.csv import CsvWriter
from ava_pipeline.write.table_files import TableFiles

_log = logging.getLogger("ava_pipeline")

MAX_WAITING_EVENTS = 10_000


class EventLog:
    """Events on their way to `events.csv`.

    Events can be added from any thread and before the file is open; those that the disk does not take wait, the
    latest `MAX_WAITING_EVENTS` of them.

    Args:
        root: the run directory, for messages.

    Attributes:
        trouble: the first thing that went wrong, with its remedy; None while all is well.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING_EVENTS)
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
        self._files = TableFiles(table, [CsvWriter(path, table.arrow_schema)])

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows written, by file name."""
        return dict(self._files.num_rows) if self._files else {}

    def add(self, event: Event) -> None:
        """Record an event, and log it where it is the first of its kind and more than information."""
        self._waiting.append(event)
        if event.severity != "info":
            where = f"batch {event.batch_idx}" if event.batch_idx else "before the first batch"
            self._warn(f"{event.event} {event.column}", f"{where}: {event.message}")
        if event.severity == "error":
            self._remember(event.message)

    def fail(self, error: Exception, what: str) -> None:
        """Log once a kind that `what` went wrong, and keep the first error for `on_error="raise"`."""
        self._warn(f"{what} {type(error).__name__}", f"{what}: {error} Training goes on without it.")
        self._remember(f"{what}: {error}")

    def write(self) -> None:
        """Bring what waits to the file; what it does not take waits on."""
        if self._files is None or not self._waiting:
            return
        events = [self._waiting.popleft() for _ in range(len(self._waiting))]
        outcome = self._files.write([event.row() for event in events])
        for error in outcome.errors.values():
            self._waiting.extendleft(reversed(events))
            self.fail(error, "events.csv could not be written")

    def close(self) -> None:
        """Write what waits and close the file."""
        self.write()
        if self._files is not None:
            for error in self._files.close().values():
                self.fail(error, "events.csv could not be closed")

    def _remember(self, message: str) -> None:
        remedy = f"Some rows are missing from {self._root / 'telemetry'}; mend the cause, or set on_error='warn'."
        self.trouble = self.trouble or WriteError(f"{message} {remedy}")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("telemetry of %s: %s", self._root, message)
