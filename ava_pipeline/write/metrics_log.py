"""The metrics that a training loop logs: whose rows metrics.csv holds, and rows that wait for the disk."""

import threading
from contextlib import suppress

from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import DamagedFileError, MisuseError, WriteError
from ava_pipeline.logs import logger
from ava_pipeline.write.lock import check_unlocked
from ava_pipeline.write.metrics_file import MetricsFile, MetricValues

MAX_WAITING_ROWS = 10_000


class MetricsLog:
    """Writes the rows of this attempt to metrics.csv, after moving the rows that it replaces to `superseded/`.

    The training thread writes. The background thread calls only `begin`, when it begins the tables, and `refuse`; a
    lock keeps the two apart. A forked child must not write, since the lock may be held there for ever.

    Rows that the disk refuses wait in memory, at most `max_waiting`, and are written together with the next ones. So do
    all rows while metrics.csv is a file of another program, such as Lightning's CSVLogger: it is never changed.

    Attributes:
        has_begun: whether the rows of earlier attempts have been taken care of.
        has_rows: whether this attempt has written a row.
    """

    def __init__(self, layout: RunLayout, *, fsync: bool = False, max_waiting: int = MAX_WAITING_ROWS) -> None:
        self._layout = layout
        self._file = MetricsFile(layout, fsync=fsync)
        self._max_waiting = max_waiting
        self._waiting: dict[Moment, dict[str, float | None]] = {}
        self._kept_up_to: tuple[int, int] | None = None
        self._refusal = ""
        self._is_claimed = False  # whether the rows that are there were logged in this run
        self._lock = threading.RLock()  # a signal handler may log metrics while a row is being written
        self.has_begun = False
        self.has_rows = False

    def resume(self, batch_idx: int, epoch: int) -> None:
        """Keep the rows of earlier attempts up to a checkpoint's batch and epoch; without this call, none is kept.

        The row of the checkpoint's own epoch is kept too: the checkpoint may be from the end of the epoch. Otherwise
        the row's values are replaced when the epoch is logged again. Raise MisuseError if rows were written before.
        """
        if self.has_begun:
            raise MisuseError("load_state_dict() came after log_metrics(): call it before the first metrics.")
        self._kept_up_to = (batch_idx, epoch) if batch_idx else None

    def begin(self) -> None:
        """Move rows that this attempt replaces to `superseded/`, once, if the manifest says that metrics were logged.

        Raise OSError or DamagedFileError. A file of another program stays: `write` then says so.
        """
        with self._lock:
            self._is_claimed = True
            if not self._file.is_foreign(is_claimed=True):
                self._begin()

    def refuse(self, reason: str) -> None:
        """Write nothing from now on, because another process writes the run."""
        self._refusal = reason

    @property
    def num_waiting(self) -> int:
        """Rows that wait to be written."""
        return len(self._waiting)

    def is_waiting(self, moment: Moment) -> bool:
        """Whether a row waits to be written."""
        return moment in self._waiting

    def write(self, moment: Moment, values: MetricValues) -> None:
        """Write a row or add to it, after those that wait.

        Raise OSError, DamagedFileError or WriteError if that fails. The row then waits, unless too many do already.
        """
        with self._lock:
            if len(self._waiting) >= self._max_waiting and moment not in self._waiting:
                raise WriteError(f"{len(self._waiting)} rows are waiting already, so this one is lost.")
            measured = {name: value for name, value in values.items() if value is not None}
            self._waiting[moment] = {**values, **self._waiting.get(moment, {}), **measured}
            self._write_waiting()

    def write_again(self) -> None:
        """Try once more to write the rows that wait; raise as `write` does."""
        if self._waiting:
            with self._lock:
                self._write_waiting()

    def _write_waiting(self) -> None:
        if self._refusal:
            raise WriteError(self._refusal)
        if not self.has_begun:
            # In a system without locks, or if this process holds the lock itself, nobody else is known to write.
            with suppress(OSError):
                check_unlocked(self._layout.lock)
            self._is_claimed = self._is_claimed or self._was_logged_before()
        if self._file.is_foreign(is_claimed=self._is_claimed):
            raise WriteError(
                f"{self._layout.metrics} is of another program, so it stays as it is: move it away, or give the "
                "collector another output_dir."
            )
        self._begin()
        self._file.write(self._waiting)
        self._waiting.clear()
        self.has_rows = self._is_claimed = True

    def _was_logged_before(self) -> bool:
        try:
            attempts = read_manifest(self._layout.manifest).attempts
        except (OSError, DamagedFileError):  # as with enabled=False: then the content of the file decides
            return False
        return any(attempt.logs_metrics for attempt in attempts)

    def _is_kept(self, row: Moment) -> bool:
        if self._kept_up_to is None:
            return False
        batch_idx, epoch = self._kept_up_to
        return row.epoch <= epoch if row.batch_idx is None else row.batch_idx <= batch_idx

    def _begin(self) -> None:
        if self.has_begun:
            return
        place = self._file.supersede(self._is_kept)
        self.has_begun = True
        if place is not None:
            logger.warning("%s held rows that this attempt replaces: they are in %s now.", self._layout.metrics, place)
