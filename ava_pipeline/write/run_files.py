"""Every file that telemetry writes in one run directory, from opening an attempt to ending it."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, Status, StepCounters, utc_now, write_manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.signs.non_finite import non_finite_events
from ava_pipeline.write.attempts import RunFacts, begin_attempt
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.csv import CsvWriter
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.lock import RunLock
from ava_pipeline.write.parquet import ParquetWriter
from ava_pipeline.write.rows import PendingRow, RowSource, rows_of
from ava_pipeline.write.table_files import Outcome, TableFiles
from ava_pipeline.write.writer import Writer

HEARTBEAT_S = 10.0

Format = Literal["csv", "parquet"]


class RunFiles:
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
    """

    def __init__(
        self,
        root: Path,
        sources: Sequence[RowSource],
        facts: RunFacts,
        log: EventLog,
        *,
        formats: Sequence[Format] = ("csv", "parquet"),
        fsync: bool = False,
    ) -> None:
        self._layout = RunLayout(root)
        self._sources = sources
        self._facts = facts
        self._log = log
        self._formats = tuple(formats)
        self._fsync = fsync
        self._lock: RunLock | None = None
        self._tables: list[TableFiles] = []
        self._manifest: Manifest | None = None
        self._heartbeat_due = 0.0

    @property
    def is_open(self) -> bool:
        """Whether an attempt has begun and not ended."""
        return self._manifest is not None

    def open(self) -> None:
        """Begin an attempt: lock the run, make older rows whole or set them aside, open every file.

        Raises:
            OSError: the disk refused.
            WriteError: another process writes this run.
            DamagedFileError: an older file cannot be read.
        """
        self._layout.telemetry.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or RunLock(self._layout.lock)
        tables = [source.run_table for source in self._sources]
        manifest, events = begin_attempt(self._layout, tables, self._facts, self._formats)
        with ExitStack() as opened:  # trouble with one file closes those before it: opening is tried again
            files = []
            for table in tables:
                files.append(TableFiles(table, [self._writer(table, kind) for kind in self._formats]))
                opened.callback(files[-1].close)
            self._log.open(self._layout.csv("events"))
            opened.pop_all()
        self._tables = files
        self._manifest = manifest
        for event in events:
            self._log.add(event)
        self._write_manifest(manifest)

    def write(self, steps: Sequence[PendingRow]) -> int:
        """Write the rows of some steps to every table.

        Returns:
            How many of the steps failed: a rule or a writer refused one of their rows.
        """
        numbers = [step.staged.read() for step in steps]
        failed: set[int] = set()
        for index, (source, files) in enumerate(zip(self._sources, self._tables, strict=True)):
            rows = rows_of(source, index, steps, numbers)
            outcome = files.write(rows)
            self._tell(outcome, files, steps)
            for event in non_finite_events(rows):
                self._log.add(event)
            failed |= outcome.failed
        if self._manifest is not None:
            self._manifest.attempt.deferred += sum(step.is_deferred for step in steps)
        self._log.write()
        self._sync()
        return len(failed)

    def heartbeat(self, stats: TelemetryStats) -> None:
        """Say in the manifest that the run lives, at most every `HEARTBEAT_S`."""
        if self._manifest is not None and time.monotonic() >= self._heartbeat_due:
            self._log.write()
            self._count(self._manifest, stats)
            self._write_manifest(self._manifest)

    def close(self, stats: TelemetryStats, status: Status, error: str | None) -> None:
        """End the attempt: finish every file, then say so in the manifest."""
        manifest, self._manifest = self._manifest, None
        if manifest is not None:
            for files in self._tables:
                for name, trouble in files.close().items():
                    self._log.fail(trouble, f"{name} could not be finished")
            self._log.close()
            self._count(manifest, stats)
            attempt = manifest.attempt
            attempt.status, attempt.error, attempt.ended_utc = status, error, utc_now()
            manifest.status = status
            self._write_manifest(manifest)
        if self._lock is not None:
            self._lock.release()

    def _writer(self, table: RunTable, kind: Format) -> Writer:
        name = table.table.name
        if kind == "csv":
            return CsvWriter(self._layout.csv(name), table.arrow_schema)
        return ParquetWriter(self._layout.parquet(name), self._layout.journal(name), table.arrow_schema)

    def _tell(self, outcome: Outcome, files: TableFiles, steps: Sequence[PendingRow]) -> None:
        table = files.run_table.table.name
        for problem in outcome.problems:
            what = f"{table}.{problem.column} was {problem.value}: {problem.message}. The row was not written."
            self._tell_of(steps[problem.row : problem.row + 1], "failed_row", what, problem.column)
        for name, error in outcome.errors.items():
            self._tell_of(steps, "failed_write", f"{name} did not take {len(steps)} rows: {error}", name)

    def _tell_of(
        self, steps: Sequence[PendingRow], event: Literal["failed_row", "failed_write"], message: str, column: str
    ) -> None:
        self._log.add(
            Event(
                event=event,
                severity="error",
                message=message,
                batch_idx=steps[0].batch_idx,
                batch_idx_end=steps[-1].batch_idx,
                epoch=steps[0].epoch,
                column=column,
            )
        )

    def _sync(self) -> None:
        for files in self._tables if self._fsync else ():
            try:
                files.sync()
            except OSError as error:
                self._log.fail(error, f"{files.run_table.table.name} could not be synced")

    def _count(self, manifest: Manifest, stats: TelemetryStats) -> None:
        manifest.attempt.counters = StepCounters(
            collected=stats.collected,
            written=stats.written,
            dropped=stats.dropped,
            failed=stats.failed,
            pending=stats.pending,
        )
        rows = {name: count for table in self._tables for name, count in table.num_rows.items()}
        manifest.attempt.rows = rows | self._log.num_rows
        manifest.heartbeat_utc = utc_now()

    def _write_manifest(self, manifest: Manifest) -> None:
        self._heartbeat_due = time.monotonic() + HEARTBEAT_S
        try:
            write_manifest(self._layout.manifest, manifest)
        except OSError as error:
            self._log.fail(error, "manifest.json could not be written")
