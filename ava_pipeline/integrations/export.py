"""Give a tracker what a run directory holds, of a run that has ended or is still being written."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import bool_array, integers
from ava_pipeline.contract.manifest import Manifest, status_now, utc_now
from ava_pipeline.contract.tables import BATCH
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.integrations.points import Points, has_points
from ava_pipeline.integrations.tracker import Tracker
from ava_pipeline.read.run import Run

STEPS_PER_CALL = 1000
_MAX_SHARE = 0.1  # of the time that may be spent reading a live run


def export_run(
    run: Run,
    tracker: Tracker,
    *,
    follow: bool = False,
    interval_s: float = 2.0,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Show a run in a tracker; return the number of points.

    Args:
        run: the run.
        tracker: a tracker that was not started yet.
        follow: go on with new rows until the run has ended.
        interval_s: seconds between two looks at the run; more if reading it takes more than a tenth of that.
        sleep: waits for a number of seconds.

    Raises:
        NotARunError: the run has no manifest.
        DamagedFileError: a file of a run that has ended cannot be read.
    """
    reader, num_points = _NewRows(run), 0
    tracker.start(is_resumed=False)
    try:
        while True:
            begin_s = time.monotonic()
            status = status_now(run.manifest, utc_now())  # before the rows: once it has ended, all of them are there
            is_live = follow and status == "running"
            with suppress(*([DamagedFileError] if is_live else [])):  # while a resumed run moves its rows
                num_points += reader.show_in(tracker)
            if not is_live:
                return num_points
            sleep(max(interval_s, (time.monotonic() - begin_s) / _MAX_SHARE))
    finally:
        tracker.finish()


class _NewRows:
    """The rows of a run that were not shown yet."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._points = Points()
        self._last_batches: dict[str, int] = {}
        self._num_events = 0
        self._num_attempts = 0

    def show_in(self, tracker: Tracker) -> int:
        """Give the tracker what is new, some steps at a time; return the number of points."""
        manifest, num_points = self._run.manifest, 0
        if self._num_attempts not in {0, len(manifest.attempts)}:
            self._start_over(manifest, tracker)
        self._num_attempts = len(manifest.attempts)
        tables = {
            name: self._read(name)
            for name, entry in manifest.tables.items()
            if has_points(entry.declaration.arrow_schema)
        }
        events = self._run.arrow_events()
        new_events, self._num_events = events.slice(self._num_events), events.num_rows
        for first, last in _ranges(tables):
            for name, rows in tables.items():
                self._points.add(name, _between(rows, first, last))
            points = self._points.take(is_last=True)
            tracker.log(points)
            tracker.note(self._points.notes(_between(new_events, first, last)))
            num_points += len(points)
        return num_points

    def _read(self, name: str) -> pa.Table:
        rows = self._run.ordered(name, batches=(self._last_batches.get(name, 0) + 1, None))
        if rows.num_rows:
            self._last_batches[name] = int(integers(rows, BATCH).max())
        return rows

    def _start_over(self, manifest: Manifest, tracker: Tracker) -> None:
        """Go on behind the batch from which a new attempt replaces the rows."""
        resumed_from = manifest.attempt.resumed_from
        self._points = Points()
        self._last_batches = {name: min(last, resumed_from) for name, last in self._last_batches.items()}
        self._num_events = self._num_events if resumed_from else 0
        tracker.finish()
        tracker.start(is_resumed=resumed_from > 0)


def _ranges(tables: Mapping[str, pa.Table]) -> list[tuple[float, float]]:
    """Ranges of batches, each end included, of at most `STEPS_PER_CALL` steps; together they cover every batch."""
    batches = np.unique(np.concatenate([integers(rows, BATCH) for rows in tables.values()] or [np.empty(0, np.int64)]))
    ends = [float(batch) for batch in batches[STEPS_PER_CALL - 1 :: STEPS_PER_CALL]]
    return list(zip([-math.inf, *(end + 1 for end in ends)], [*ends, math.inf], strict=True))


def _between(rows: pa.Table, first: float, last: float) -> pa.Table:
    batch_idx = integers(rows, BATCH)
    return rows.filter(bool_array((batch_idx >= first) & (batch_idx <= last)))
