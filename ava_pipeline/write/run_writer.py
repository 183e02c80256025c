"""Every file that telemetry writes in one run directory, from opening an attempt to ending it."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ava_pipeline.contract.files import sync_folder
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, Manifest, Status, StepCounters, utc_now, write_manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.write.attempts import RunFacts, begin_attempt
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.event_log import EventLog, moved_event, unread_step_event, unsynced_event
from ava_pipeline.write.lock import RunLock
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.pending import PendingStep, RowSource, read_steps
from ava_pipeline.write.table_files import TableFiles
from ava_pipeline.write.table_writer import TableWriter
from ava_pipeline.write.writers import CsvWriter, ParquetWriter, Writer

RETRY_S = 5.0

Format = Literal["csv", "parquet"]


class RunWriter:
    """The files of one run, used by one thread.

    Nothing is touched before `open`. Trouble while writing is told in the event log and in the manifest's counters;
    it is never raised.

    Args:
        root: the run directory.
        sources: one a table.
        facts: what the manifest says of the run.
        log: where to tell what happens.
        formats: file formats of the tables; events are CSV whatever they are.
        fsync: sync every file after each write.
        retry_s: after an opening that failed, how long the disk is left alone.
        watch: looks at the rows for warning signs; None does not look.

    Attributes:
        doing: what a thread that does not come back is busy with, in words.
    """

    def __init__(  # noqa: PLR0913  # what is written, and how, each with its name
        self,
        root: Path,
        sources: Sequence[RowSource],
        facts: RunFacts,
        log: EventLog,
        *,
        formats: Sequence[Format] = ("csv", "parquet"),
        fsync: bool = False,
        retry_s: float = RETRY_S,
        watch: OnlineSigns | None = None,
    ) -> None:
        self._layout = RunLayout(root)
        self._sources = sources
        self._facts = facts
        self._log = log
        self._formats = tuple(formats)
        self._fsync = fsync
        self._retry_s = retry_s
        self._watch = watch
        self.doing = "waiting for rows"
        self._refusal = ""
        self._closed_until = -math.inf
        self._lock: RunLock | None = None
        self._tables: list[TableWriter] = []
        self._manifest: ManifestWriter | None = None
        self._before = TelemetryStats()
        self._last_batch_idx = 0

    @property
    def is_open(self) -> bool:
        """Whether an attempt has begun and not ended."""
        return self._manifest is not None

    def open(self, stats: TelemetryStats) -> None:
        """Begin an attempt, unless one is under way: lock the run, see to older rows, open every file.

        Where the run directory was moved, removed or taken over under a running attempt, a new one begins in its
        place. After a failure the next call tries again, once `retry_s` have passed; never, where another process
        writes the run: its rows would be set aside by this one as soon as it ends.

        Args:
            stats: the counters; what was settled before this attempt is not counted as its own.

        Raises:
            OSError: the disk refused.
            WriteError: another process writes this run, or it is too early to try again.
            DamagedFileError: an older file cannot be read.
        """
        self._leave_where_moved(stats)
        if self.is_open:
            return
        if time.monotonic() < self._closed_until:
            raise WriteError(self._refusal)
        self.doing = "opening the run, which waits for the disk, or for a writer on another host"
        try:
            self._open()
        except Exception as error:
            self._refusal = in_words(error)
            is_final = isinstance(error, WriteError)
            self._closed_until = math.inf if is_final else time.monotonic() + self._retry_s
            raise

    def write(self, steps: Sequence[PendingStep]) -> int:
        """Write the rows of some steps to every table.

        Returns:
            How many of the steps failed: a measure, a rule or a writer refused one of their rows, or the disk to sync
            them.
        """
        self.doing = "writing rows, and the disk or the device may be stuck"
        read, numbers, unread = read_steps(steps)
        for step, error in unread:
            self._log.add(unread_step_event(step, error))
        failed = {step.batch_idx for step, _ in unread}
        for table in self._tables:
            failed |= table.write(read, numbers)
        if self._manifest is not None:
            self._manifest.attempt.deferred += sum(step.is_deferred for step in steps)
        self._last_batch_idx = steps[-1].batch_idx
        if self._watch is not None:
            self._watch.add_steps(steps)
        self._log.write()
        if self._fsync and not self._is_synced(steps):
            return len(steps)
        return len(failed)

    def heartbeat(self, stats: TelemetryStats) -> None:
        """Look for signs, write what there is to tell, and now and then say in the manifest that the run lives."""
        self._leave_where_moved(stats)
        if self._watch is not None:
            self._watch.check()
        self._log.write()
        if self._manifest is not None and self._manifest.is_due():
            self._manifest.beat(stats, self._num_rows())

    def close(self, stats: TelemetryStats, status: Status, error: str | None) -> None:
        """End the attempt: finish every file, then say so in the manifest.

        A run that was moved away is left as it lies: finishing it here would make a directory that holds no row.
        """
        self.doing = "finishing the files, and the disk may be stuck"
        self._leave_where_moved(stats)
        manifest, self._manifest = self._manifest, None
        if self._watch is not None:
            self._watch.check(is_last=True)
        if manifest is not None:
            for table in self._tables:
                table.close()
            self._log.close()
            manifest.end(stats, self._num_rows(), status, error)
        self._unlock()

    def _open(self) -> None:
        self._layout.telemetry.mkdir(parents=True, exist_ok=True)
        check_inside(self._layout)
        with ExitStack() as opened:  # trouble with one file lets go of those before it
            self._lock = RunLock(self._layout.lock)
            opened.callback(self._unlock)
            tables = [source.run_table for source in self._sources]
            manifest, events = begin_attempt(self._layout, tables, self._facts, self._formats)
            self._tables = []
            for index, source in enumerate(self._sources):
                table = manifest.tables[source.run_table.table.name].declaration
                files = TableFiles(table, self._writers(table, opened))
                self._tables.append(TableWriter(source, index, files, self._log, self._watch))
            self._log.open(self._layout.csv("events"))
            opened.callback(self._log.abandon)
            self._manifest = ManifestWriter(self._layout.manifest, manifest, self._log, before=self._before)
            opened.pop_all()
        for event in events:
            self._log.add(event)

    def _writers(self, table: RunTable, opened: ExitStack) -> list[Writer]:
        writers = []
        for kind in self._formats:
            writers.append(self._writer(table, kind))
            opened.callback(writers[-1].abandon)
        return writers

    def _writer(self, table: RunTable, kind: Format) -> Writer:
        name = table.table.name
        if kind == "csv":
            return CsvWriter(self._layout.csv(name), table.arrow_schema)
        return ParquetWriter(self._layout.parquet(name), self._layout.journal(name), table.arrow_schema)

    def _leave_where_moved(self, stats: TelemetryStats) -> None:
        """Let go of files that are not in the run directory any more, or not ours; what follows is another attempt."""
        if not self.is_open or self._lock is None or self._lock.is_held():
            return
        for table in self._tables:
            table.abandon()
        self._log.abandon()
        self._unlock()
        self._manifest = None
        settled = stats.collected - stats.pending
        self._before = replace(stats, collected=settled, pending=0)
        self._facts = replace(self._facts, resumed_from=self._last_batch_idx)
        self._log.add(moved_event(self._layout.root, self._last_batch_idx))

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _is_synced(self, steps: Sequence[PendingStep]) -> bool:
        """Sync every file, then the folder that names them; whether that keeps the steps safe."""
        are_safe = [table.sync(steps) for table in self._tables]
        self._log.sync()
        try:
            sync_folder(self._layout.telemetry)
        except OSError as error:
            self._log.add(unsynced_event(steps, in_words(error), file=self._layout.telemetry.name))
            return False
        return all(are_safe)

    def _num_rows(self) -> dict[str, int]:
        rows = {name: count for table in self._tables for name, count in table.num_rows.items()}
        return rows | self._log.num_rows


HEARTBEAT_S = 10.0


class ManifestWriter:
    """Rewrites the manifest every `HEARTBEAT_S` and at the end, never more often: each time is a sync of the disk.

    Args:
        path: of the manifest.
        manifest: its last attempt is the running one.
        log: where to tell of trouble.
        before: steps that this process settled in attempts before this one.

    Raises:
        OSError: it cannot be written. Rows without it would belong to no attempt.
    """

    def __init__(self, path: Path, manifest: Manifest, log: EventLog, *, before: TelemetryStats) -> None:
        self._path = path
        self._manifest = manifest
        self._log = log
        self._before = before
        self._write()

    @property
    def attempt(self) -> Attempt:
        """The running attempt."""
        return self._manifest.attempt

    def is_due(self) -> bool:
        """Whether it is time for a heartbeat."""
        return time.monotonic() >= self._due

    def beat(self, stats: TelemetryStats, rows: Mapping[str, int]) -> None:
        """Say that the run lives, and how much was written."""
        self._count(stats, rows)
        self._try_to_write()

    def end(self, stats: TelemetryStats, rows: Mapping[str, int], status: Status, error: str | None) -> None:
        """Say how the attempt ended."""
        self._count(stats, rows)
        self.attempt.status, self.attempt.error, self.attempt.ended_utc = status, error, utc_now()
        self._manifest.status = status
        self._try_to_write()

    def _count(self, stats: TelemetryStats, rows: Mapping[str, int]) -> None:
        self.attempt.counters = StepCounters(
            collected=stats.collected - self._before.collected,
            written=stats.written - self._before.written,
            dropped=stats.dropped - self._before.dropped,
            failed=stats.failed - self._before.failed,
            pending=stats.pending - self._before.pending,
        )
        self.attempt.rows = dict(rows)
        self._manifest.heartbeat_utc = utc_now()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001  # whatever it is, it costs this heartbeat and no row
            self._log.fail(error, "manifest.json could not be written")

    def _write(self) -> None:
        self._due = time.monotonic() + HEARTBEAT_S
        write_manifest(self._path, self._manifest)
