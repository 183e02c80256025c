"""A run that is followed: the latest rows of each table, brought up to date again and again."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.arrays import Bools, Floats, floats, integers, null_mask
from ava_pipeline.contract.builtin_tables import HOLDOUT, METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest, Status, status_now
from ava_pipeline.contract.tables import RunTable, measured_columns
from ava_pipeline.contract.untrusted import MAX_LINE_BYTES, read_line
from ava_pipeline.errors import DamagedFileError, RunError
from ava_pipeline.read.csv import csv_options
from ava_pipeline.read.run import Run

EVENTS_TABLE = EVENTS.name
METRICS_TABLE = METRICS.name
MAX_ROWS = 1024
MAX_HOLDOUT_ROWS = 2**16  # of some 1,000 steps with 50 samples each
_FIRST_READ_BYTES = 2**19
_REMEMBERED_BYTES = 64

Columns: TypeAlias = dict[str, tuple[Floats, Bools]]


@dataclass(slots=True)
class LiveRun:
    """A run as of its last update."""

    run: Run
    manifest: Manifest | None = None  # None until the run has one
    status: Status | None = None
    tables: dict[str, "LatestRows"] = field(default_factory=dict)  # by name; also the events, and metrics.csv
    problem: str = ""  # the reason if a file could not be read in the last update
    _tails: dict[str, "CsvTail | StoredTail | MetricsTail"] = field(default_factory=dict)

    def update(self, now: datetime) -> None:
        """Read the rows that are new.

        A file that cannot be read, as while a resumed run moves its rows, sets `problem` and is read again in the next
        update.
        """
        try:
            self._update(self.run.manifest, now)
            self.problem = ""
        except (RunError, OSError) as error:
            self.problem = str(error)

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished and all of its rows were read."""
        return self.status == "finished" and not self.problem

    def _update(self, manifest: Manifest, now: datetime) -> None:
        if self.manifest is None or _table_signature(manifest) != _table_signature(self.manifest):
            self._start_over(manifest)
        # The status is set before the rows are read: once it says finished, all rows of the run are on disk.
        self.manifest, self.status = manifest, status_now(manifest, now)
        for name, tail in self._tails.items():
            self.tables[name].add(tail.read_new())

    def _start_over(self, manifest: Manifest) -> None:
        """A new attempt may have superseded rows, or may measure other columns: read the current rows again."""
        self._tails = {EVENTS_TABLE: CsvTail(self.run, RunTable.of(EVENTS))}
        for name, entry in manifest.tables.items():
            if entry.declaration.table.is_long and name != HOLDOUT:
                continue  # no column of a table with several rows per batch is one line
            tail = CsvTail if "csv" in entry.formats else StoredTail
            self._tails[name] = tail(self.run, entry.declaration)
        self._tails[METRICS_TABLE] = MetricsTail(self.run)
        self.tables = {name: LatestRows(MAX_HOLDOUT_ROWS if name == HOLDOUT else MAX_ROWS) for name in self._tails}


def _table_signature(manifest: Manifest) -> tuple[object, ...]:
    return len(manifest.attempts), tuple((name, entry.declaration) for name, entry in manifest.tables.items())


@dataclass(frozen=True, slots=True, eq=False)
class NewRows:
    """Rows that were added to a table since it was last read."""

    rows: pa.Table  # of a long table that is read for the first time, the latest
    replace_all: bool = False  # the rows read before no longer belong to the table


class LatestRows:
    """The last rows of one table, at most `most`."""

    def __init__(self, most: int = MAX_ROWS) -> None:
        self._most = most
        self._rows: pa.Table | None = None

    def add(self, new: NewRows) -> None:
        """Append new rows, and drop the oldest if they are too many."""
        parts = [new.rows] if new.replace_all or self._rows is None else [self._rows, new.rows]
        joined = pa.concat_tables(parts, promote_options="permissive")
        self._rows = joined.slice(max(0, joined.num_rows - self._most)).combine_chunks()

    @property
    def rows(self) -> pa.Table | None:
        """None before the first row."""
        return self._rows if self._rows is not None and self._rows.num_rows else None

    def columns(self) -> Columns:
        """The values of each column of numbers as float64, and where they are null."""
        rows = self.rows
        if rows is None:
            return {}
        return {name: (floats(rows, name), null_mask(rows[name])) for name in measured_columns(rows.schema)}


class CsvTail:
    """The end of a CSV file, to which whole lines are appended; of a long file, only the last half megabyte is read."""

    def __init__(self, run: Run, declaration: RunTable) -> None:
        self._path = run.layout.csv(declaration.table.name)
        self._declaration = declaration
        self._inode = 0
        self._offset = 0
        self._last_bytes = b""

    def read_new(self) -> NewRows:
        """Read the lines appended since the last call. Raise DamagedFileError for an invalid line."""
        try:
            with self._path.open("rb") as file:
                replace_all = self._start_over_if_changed(file)
                data = file.read(MAX_LINE_BYTES)  # the next call reads what is beyond
        except FileNotFoundError:
            return NewRows(self._declaration.arrow_schema.empty_table())
        lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(lines)
        self._last_bytes = (self._last_bytes + lines)[-_REMEMBERED_BYTES:]
        return NewRows(self._rows(lines), replace_all)

    def _start_over_if_changed(self, file: BinaryIO) -> bool:
        """Seek to the first new line; start over if the file was replaced, or was cut and then grew again."""
        stat = os.fstat(file.fileno())
        file.seek(self._offset - len(self._last_bytes))
        if (
            stat.st_ino == self._inode
            and file.read(len(self._last_bytes)) == self._last_bytes
            and stat.st_size >= self._offset
        ):
            return False
        file.seek(0)
        header = read_line(file)
        self._inode = stat.st_ino if header.endswith(b"\n") else 0
        self._offset = len(header) if self._inode else 0
        late = stat.st_size - _FIRST_READ_BYTES
        if late > self._offset:
            file.seek(late)
            self._offset = late + len(read_line(file))  # start at a whole line
        file.seek(self._offset)
        self._last_bytes = b""
        return True

    def _rows(self, lines: bytes) -> pa.Table:
        schema = self._declaration.arrow_schema
        if not lines:
            return schema.empty_table()
        options = csv.ReadOptions(column_names=schema.names, use_threads=False)
        try:
            return csv.read_csv(BytesIO(lines), options, *csv_options(schema))
        except pa.ArrowInvalid as error:
            raise DamagedFileError(
                f"{self._path} cannot be read: {error}. `ava-pipeline validate` names the line."
            ) from error


class StoredTail:
    """The end of a table without CSV of ours: its files, which are read again when they change."""

    def __init__(self, run: Run, declaration: RunTable) -> None:
        self._run = run
        self._declaration = declaration
        self._stamps: tuple[tuple[int, int], ...] = ()
        self._last_batch = 0

    def read_new(self) -> NewRows:
        """Read the rows added since the last call. Raise DamagedFileError if a file cannot be read."""
        stamps = self._file_stamps()
        if stamps == self._stamps:
            return NewRows(self._declaration.arrow_schema.empty_table())
        rows = self._run.ordered(self._declaration.table.name, batches=(self._last_batch + 1, None))
        self._stamps = stamps
        if rows.num_rows:
            self._last_batch = int(np.max(integers(rows, "batch_idx")))
        return NewRows(rows)

    def _file_stamps(self) -> tuple[tuple[int, int], ...]:
        return _stamps(*self._run.files_of(self._declaration.table.name))


class MetricsTail:
    """The metrics, which are read again when their file changes: new values may belong to older rows."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stamps: tuple[tuple[int, int], ...] = ()

    def read_new(self) -> NewRows:
        """Read all rows if the file changed; none if it is not a file of log_metrics() or `ava-pipeline train`."""
        stamps = _stamps(*self._run.metrics_files())
        rows = pa.table({})
        if stamps != self._stamps:
            with suppress(DamagedFileError):  # a loop may write a metrics.csv in a form of its own
                found = self._run.arrow_metrics()
                rows = rows if found is None else found
        replace_all, self._stamps = stamps != self._stamps, stamps
        return NewRows(rows, replace_all)


def _stamps(*paths: Path) -> tuple[tuple[int, int], ...]:
    stats = [path.stat() for path in paths if path.exists()]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
