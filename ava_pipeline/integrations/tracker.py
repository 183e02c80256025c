"""A tracker, a program that shows runs: what it is given, and the thread in which it is given that while training."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.integrations.points import Note, Point, Points, has_points
from ava_pipeline.write.writers import Writer

MAX_WAITING_BATCHES = 1024
FINISH_TIMEOUT_S = 10.0


class Tracker(ABC):
    """A program that shows runs, such as TensorBoard. One thread uses it; whatever it raises costs points only.

    Attributes:
        pause_s: how long it may wait for new points; None for as long as it takes. `log` is called at least so often.
    """

    pause_s: float | None = None

    @abstractmethod
    def start(self, *, is_resumed: bool) -> None:
        """Begin an attempt; one that is resumed goes on behind the points of an earlier one."""

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Show points, in the order of their steps; there may be none."""

    @abstractmethod
    def note(self, notes: Sequence[Note]) -> None:
        """Show events."""

    @abstractmethod
    def finish(self) -> None:
        """Pass on what still waits. Nothing is shown afterwards, until the next `start`."""


class TrackerWriter:
    """Gives a tracker the rows and the events of a run, in a thread of its own; an item of a collector's `writers`.

    So a tracker that hangs or fails costs no row of any file: at most `MAX_WAITING_BATCHES` Arrow batches wait for it;
    then the rows count as failed for `<table>.<suffix>`, which is a name in counters and events and no file. Closing
    waits for it `FINISH_TIMEOUT_S` at most.
    """

    takes_events = True

    def __init__(self, suffix: str, tracker: Tracker) -> None:
        self.suffix = suffix
        self._tracker = tracker
        self._sender: _Sender | None = None
        self._num_open = 0

    def __call__(self, path: Path, schema: pa.Schema, /) -> Writer | None:
        """Make the writer of one table; None for a table that has no curves."""
        if path.stem != EVENTS.name and not has_points(schema):
            return None
        if self._num_open == 0:
            if self._sender is not None and self._sender.is_alive:
                raise WriteError(f"{self.suffix} still has rows of the attempt before.")
            manifest = read_manifest(RunLayout(path.parents[1]).manifest)
            self._sender = _Sender(self.suffix, self._tracker, is_resumed=manifest.attempt.resumed_from > 0)
        self._num_open += 1
        return _TableWriter(path, schema, self)

    def put(self, table: str, rows: pa.RecordBatch) -> None:
        """Hand rows to the thread; raise WriteError if it takes none, or could not show earlier ones."""
        if self._sender is not None:
            self._sender.put(table, rows)

    def release(self) -> None:
        """Finish with one table; with the last one, wait until the tracker has taken every row."""
        self._num_open -= 1
        if self._num_open == 0 and self._sender is not None:
            self._sender.finish(FINISH_TIMEOUT_S)


class _TableWriter(Writer):
    suffix = ""  # that of its TrackerWriter is in the path

    def __init__(self, path: Path, schema: pa.Schema, owner: TrackerWriter) -> None:
        super().__init__(path, schema)
        self._owner = owner

    def write(self, batch: pa.RecordBatch) -> None:
        self._owner.put(self.path.stem, batch)

    def sync(self) -> None:
        """Do nothing: a tracker stores points in its own time, and the run's files have them."""

    def close(self) -> None:
        self._owner.release()


class _Sender:
    """The thread of one attempt, and the rows that wait for it."""

    def __init__(self, name: str, tracker: Tracker, *, is_resumed: bool) -> None:
        self._name = name
        self._tracker = tracker
        self._is_resumed = is_resumed
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, pa.RecordBatch]] = deque()
        self._is_last = False
        self._error: Exception | None = None
        self._is_broken = False
        self._thread = threading.Thread(target=self._run, name=f"ava-telemetry-{name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, table: str, rows: pa.RecordBatch) -> None:
        self._raise_error()
        with self._changed:
            if len(self._waiting) >= MAX_WAITING_BATCHES:
                raise WriteError(f"{self._name} does not answer: {MAX_WAITING_BATCHES} batches of rows wait for it.")
            self._waiting.append((table, rows))
            self._changed.notify()

    def finish(self, timeout_s: float) -> None:
        with self._changed:
            self._is_last = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self.is_alive:
            raise WriteError(f"{self._name} did not take its last rows within {timeout_s:g} s; the files have them.")
        self._raise_error()

    def _raise_error(self) -> None:
        """Raise the error of earlier rows, once; again and again if the tracker could not be started."""
        error = self._error
        if error is not None:
            self._error = error if self._is_broken else None
            raise WriteError(in_words(error))

    def _run(self) -> None:
        points = Points()
        self._is_broken = True
        if not self._succeeds(partial(self._tracker.start, is_resumed=self._is_resumed)):
            return
        self._is_broken = False
        is_last = False
        while not is_last:
            batches, is_last = self._take()
            for table, rows in batches:
                if table != EVENTS.name:
                    points.add(table, rows)
            ready = points.take(is_last=is_last)
            notes = [note for table, rows in batches if table == EVENTS.name for note in points.notes(rows)]
            self._succeeds(partial(self._tracker.log, ready))
            if notes:
                self._succeeds(partial(self._tracker.note, notes))
        self._succeeds(self._tracker.finish)

    def _succeeds(self, call: Callable[[], None]) -> bool:
        """Call the tracker; what it raises is reported by the next `put` or `finish`."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  # a tracker may raise anything, and the next points may go through
            self._error = error
            return False
        return True

    def _take(self) -> tuple[list[tuple[str, pa.RecordBatch]], bool]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_last, self._tracker.pause_s)
            batches = list(self._waiting)
            self._waiting.clear()
            return batches, self._is_last
