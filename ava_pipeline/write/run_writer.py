"""Every file that telemetry writes in one run directory, from the start of an attempt to its end."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ava_pipeline.contract.events import EVENTS, Event
from ava_pipeline.contract.files import sync_folder
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, Status
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import DamagedFileError, WriteError, in_words
from ava_pipeline.write.attempts import RunFacts, begin_attempt, begin_table
from ava_pipeline.write.channel import Numbers, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import (
    EventLog,
    added_columns_event,
    moved_event,
    unread_step_event,
    unsynced_event,
)
from ava_pipeline.write.lock import RunLock
from ava_pipeline.write.manifest_writer import ManifestWriter
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.own_writers import OwnWriter, open_own_writers
from ava_pipeline.write.resumed_tables import add_columns, holdout_events
from ava_pipeline.write.setup import RowSource, Setup
from ava_pipeline.write.snapshots import SnapshotWriter
from ava_pipeline.write.table_writer import TableWriter
from ava_pipeline.write.writers import DEFAULT_FORMATS, CsvWriter, Format, Formats, ParquetWriter, TableFiles, Writer

RETRY_S = 5.0

_BUILT_IN_WRITERS: Mapping[Format, type[Writer]] = {"csv": CsvWriter, "parquet": ParquetWriter}


class RunWriter:
    """Writes the files of one run. One thread uses it.

    `open` touches the first file. Trouble while writing goes to the event log and to the manifest's counters; it is
    never raised.

    The sources are the measures, one per table. Events are always CSV, whatever the formats of the tables. `writers`
    are the user's own, which write each table in one more format. With `fsync`, every file is synced after each write.
    `metrics` belongs to the training thread, which writes metrics.csv; `snapshots` saves weights. `doing` says in words
    what the thread is busy with, for the case that it hangs.
    """

    def __init__(  # noqa: PLR0913  # what is written, and how, each with its name
        self,
        root: Path,
        sources: Sequence[RowSource],
        facts: RunFacts,
        log: EventLog,
        *,
        formats: Formats = DEFAULT_FORMATS,
        writers: Sequence[OwnWriter] = (),
        fsync: bool = False,
        retry_s: float = RETRY_S,
        signs: OnlineSigns | None = None,
        metrics: MetricsLog | None = None,
        snapshots: SnapshotWriter | None = None,
    ) -> None:
        self._layout = RunLayout(root)
        self.setup = Setup(sources, facts.groups, facts.rate_names, facts.holdout_ids)
        self._facts = facts
        self._log = log
        self._formats = formats
        self._own_writers = tuple(writers)
        self._fsync = fsync
        self._retry_s = retry_s
        self._signs = signs
        self._metrics = metrics or MetricsLog(self._layout)
        self._snapshots = snapshots
        self.doing = "waiting for rows"
        self._refusal = ""
        self._closed_until = -math.inf
        self._lock: RunLock | None = None
        self._tables: list[TableWriter] = []
        self._manifest: ManifestWriter | None = None
        self._before = TelemetryStats()
        self._last_batch_idx = 0

    @property
    def root(self) -> Path:
        """The run directory."""
        return self._layout.root

    @property
    def is_open(self) -> bool:
        """Whether an attempt has started and not ended."""
        return self._manifest is not None

    def open(self, stats: TelemetryStats) -> None:
        """Start an attempt, unless one is running: lock the run, take care of older rows, open every file.

        If the run directory was moved, removed or taken over during an attempt, a new attempt starts in its place.
        Steps that `stats` counts as settled before do not count as the new attempt's own. After a failure the next call
        tries again once `retry_s` have passed; never, if another process writes the run: this process would move that
        one's rows away as soon as it ends.

        Raise WriteError if another process writes the run or it is too early to try again, OSError if the disk refuses,
        and DamagedFileError if an older file cannot be read.
        """
        self._leave_if_moved(stats)
        if self.is_open:
            return
        if time.monotonic() < self._closed_until:
            raise WriteError(self._refusal)
        self.doing = "opening the run, which waits for the disk, or for a writer on another host"
        try:
            self._open()
        except Exception as error:
            is_final = isinstance(error, WriteError)
            self._refuse_until(math.inf if is_final else time.monotonic() + self._retry_s, error)
            if is_final:
                self._metrics.refuse(self._refusal)
            raise

    def adopt(self, setup: Setup, step: PendingStep, stats: TelemetryStats) -> None:
        """Write by another setup from this step on: its further tables and columns, and its groups in the manifest.

        Raise OSError or DamagedFileError if that fails. The attempt then ends, and the next `open` begins another one,
        which adds them. It also ends if older rows of a table cannot be empty in the columns.
        """
        if setup is self.setup or self._manifest is None:
            return
        self.doing = "adding columns to the files, and the disk may be stuck"
        self.setup = setup
        self._facts = replace(
            self._facts, groups=setup.groups, rate_names=setup.rate_names, holdout_ids=setup.holdout_ids
        )
        if not self._manifest.can_adopt(setup):
            self._leave(stats)
            self.open(stats)
            return
        manifest = self._manifest.manifest
        others = holdout_events(manifest.holdout_ids, setup.holdout_ids, step.batch_idx - 1)
        try:
            added, changes = self._begin_tables(manifest, step)
            wider = self._manifest.adopt(setup, step.batch_idx)
            for event in (*changes, *others):
                self._log.add(event)
            for table in self._tables:
                table.adopt(setup)
                if table.name in wider:
                    num_older = len(table.column_names)
                    self._widen(table, wider[table.name])
                    if any(table.num_rows.values()):
                        self._log.add(added_columns_event(step, table.name, table.column_names[num_older:]))
            self._add_tables(added, manifest)
        except Exception as error:
            self._refuse_until(time.monotonic() + self._retry_s, error)
            self._leave(stats)
            raise
        if self._signs is not None:
            self._signs.groups = self._manifest.groups

    def write(self, steps: Sequence[PendingStep]) -> int:
        """Write the rows of collected steps to every table, and return the number of steps that failed.

        A step failed if a measure, a rule or a writer refused a row, or the disk refused to sync.
        """
        self.doing = "writing rows, and the disk or the device may be stuck"
        read, numbers, unread = _read_steps(steps)
        for step, error in unread:
            self._log.add(unread_step_event(step, error))
        failed = {step.batch_idx for step, _ in unread}
        for table in self._tables:
            failed |= table.write(read, numbers)
        if self._manifest is not None:
            self._manifest.attempt.deferred += sum(step.is_deferred for step in steps)
        self._last_batch_idx = steps[-1].batch_idx
        if self._signs is not None:
            self._signs.add_steps(steps)
        self._log.write()
        if self._fsync and not self._is_synced(steps):
            return len(steps)
        return len(failed)

    def write_snapshot(self, stats: TelemetryStats) -> None:
        """Write the weight snapshot that waits, if there is one. What fails costs the snapshot, and is an event."""
        if self._snapshots is None or not self._snapshots.is_waiting:
            return
        try:
            self.open(stats)
        except Exception as error:  # noqa: BLE001  # whatever it is, it costs this snapshot and not the thread
            self._snapshots.fail(in_words(error))
            return
        if self._manifest is not None:
            self.doing = "writing a weight snapshot, and the disk may be stuck"
            count = partial(self._manifest.beat, stats, self._num_rows())
            self._snapshots.write(self._manifest.attempt.weight_snapshots, count)

    def heartbeat(self, stats: TelemetryStats) -> None:
        """Search for signs, write the events that are due, and from time to time renew the manifest's heartbeat."""
        self._leave_if_moved(stats)
        if self._signs is not None:
            self._signs.check()
        self._log.write()
        if self._manifest is not None and self._manifest.is_due():
            self._note_metrics(self._manifest)
            self._manifest.beat(stats, self._num_rows())

    def close(self, stats: TelemetryStats, status: Status, error: str | None) -> None:
        """End the attempt: finish every file, then the manifest.

        A run that was moved away is left as it is: to finish it here would make a directory without rows.
        """
        self.doing = "finishing the files, and the disk may be stuck"
        self._leave_if_moved(stats)
        manifest, self._manifest = self._manifest, None
        if self._signs is not None:
            self._signs.check(is_last=True)
        if manifest is not None:
            for table in self._tables:
                table.close()
            self._log.close()
            self._note_metrics(manifest)
            manifest.end(stats, self._num_rows(), status, error)
        self._unlock()

    def _open(self) -> None:
        self._layout.telemetry.mkdir(parents=True, exist_ok=True)
        check_inside(self._layout)
        with ExitStack() as opened:  # if one file cannot be opened, those before it are released
            self._lock = RunLock(self._layout.lock)
            opened.callback(self._unlock)
            tables = [source.run_table for source in self.setup.sources]
            manifest, events = begin_attempt(self._layout, tables, self._facts, self._formats)
            if any(attempt.logs_metrics for attempt in manifest.attempts):
                self._metrics.begin()  # if none of them does, metrics.csv may be a file of the user's own
            tables = [manifest.tables[table.table.name].declaration for table in tables]
            writers = [self._open_built_in_writers(table, opened) for table in tables]
            self._log.open(self._layout.csv("events"))
            opened.callback(self._log.abandon)
            self._manifest = ManifestWriter(self._layout.manifest, manifest, self._log, self._facts, self._before)
            opened.pop_all()
        self._tables = []
        for index, (source, table) in enumerate(zip(self.setup.sources, tables, strict=True)):
            own = self._open_own_writers(table, manifest.attempt.number)
            files = TableFiles(table, [*writers[index], *own])
            self._tables.append(TableWriter(source, index, files, self._log, self._signs))
        events_table = RunTable.of(EVENTS)
        copies = self._open_own_writers(events_table, manifest.attempt.number)
        self._log.copy_to(TableFiles(events_table, copies))
        for event in events:
            self._log.add(event)

    def _begin_tables(self, manifest: Manifest, step: PendingStep) -> tuple[list[tuple[int, RowSource]], list[Event]]:
        """Declare the setup's tables that the attempt does not have yet; return their sources with their positions."""
        known = {table.name for table in self._tables}
        sources = enumerate(self.setup.sources)
        added = [(index, source) for index, source in sources if source.run_table.table.name not in known]
        events: list[Event] = []
        for _, source in added:
            events += begin_table(self._layout, source.run_table, manifest, self._formats, step)
        return added, events

    def _add_tables(self, added: Sequence[tuple[int, RowSource]], manifest: Manifest) -> None:
        """Open the files of tables that were declared."""
        for index, source in added:
            files = self._open_files(manifest.tables[source.run_table.table.name].declaration)
            self._tables.append(TableWriter(source, index, files, self._log, self._signs))

    def _widen(self, table: TableWriter, declaration: RunTable) -> None:
        """Close the files of a table, add its further columns, and open them again."""
        table.close()
        if not add_columns(self._layout, declaration):
            raise DamagedFileError(f"the files of {table.name} do not have the columns that the manifest declares.")
        table.replace_files(self._open_files(declaration))

    def _open_files(self, declaration: RunTable) -> TableFiles:
        with ExitStack() as opened:
            writers = self._open_built_in_writers(declaration, opened)
            opened.pop_all()
        attempt = 0 if self._manifest is None else self._manifest.attempt.number
        own = self._open_own_writers(declaration, attempt)
        return TableFiles(declaration, [*writers, *own])

    def _open_built_in_writers(self, table: RunTable, opened: ExitStack) -> list[Writer]:
        writers = []
        for name in self._formats.of(table.table):
            path = self._layout.telemetry / f"{table.table.name}.{name}"
            writers.append(_BUILT_IN_WRITERS[name](path, table.arrow_schema))
            opened.callback(writers[-1].abandon)
        return writers

    def _open_own_writers(self, table: RunTable, attempt: int) -> list[Writer]:
        """The user's writers of a table; of the events, of those that take them."""
        is_events = table.table.name == EVENTS.name
        makers = [one for one in self._own_writers if not is_events or getattr(one, "takes_events", False)]
        return list(open_own_writers(makers, self._layout, table, self._log, attempt=attempt))

    def _leave_if_moved(self, stats: TelemetryStats) -> None:
        """Release files that are no longer in the run directory, or no longer ours; the next rows start an attempt."""
        if self.is_open and self._lock is not None and not self._lock.is_held():
            self._leave(stats)
            self._log.add(moved_event(self._layout.root, self._last_batch_idx))

    def _leave(self, stats: TelemetryStats) -> None:
        """Release every file as it is; the next `open` begins an attempt behind the last row."""
        for table in self._tables:
            table.abandon()
        self._log.abandon()
        self._unlock()
        self._manifest = None
        settled = stats.collected - stats.pending
        self._before = replace(stats, collected=settled, pending=0)
        self._facts = replace(self._facts, resumed_from=max(self._last_batch_idx, self._facts.resumed_from))

    def _refuse_until(self, until_s: float, error: Exception) -> None:
        self._closed_until, self._refusal = until_s, in_words(error)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _is_synced(self, steps: Sequence[PendingStep]) -> bool:
        """Sync every file, then the folder that names them; return whether the steps are safe now."""
        are_safe = [table.sync(steps) for table in self._tables]
        self._log.sync()
        try:
            sync_folder(self._layout.telemetry)
        except OSError as error:
            self._log.add(unsynced_event(steps, in_words(error), file=self._layout.telemetry.name))
            return False
        return all(are_safe)

    def _note_metrics(self, manifest: "ManifestWriter") -> None:
        manifest.attempt.logs_metrics = self._metrics.has_rows

    def _num_rows(self) -> dict[str, int]:
        rows = {name: count for table in self._tables for name, count in table.num_rows.items()}
        return rows | self._log.num_rows


def _read_steps(
    steps: Sequence[PendingStep],
) -> tuple[list[PendingStep], list[list[Numbers]], list[tuple[PendingStep, Exception]]]:
    """Wait for the numbers; return the steps whose numbers arrived, these numbers, and the other steps with errors."""
    read: list[PendingStep] = []
    numbers: list[list[Numbers]] = []
    refused: list[tuple[PendingStep, Exception]] = []
    for step in steps:
        try:
            numbers.append(step.staged.read())
            read.append(step)
        except Exception as error:  # noqa: BLE001  # a device can fail in any way: it costs this step only
            refused.append((step, error))
    return read, numbers, refused
