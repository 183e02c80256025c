"""A run that is followed: the latest rows of each table, brought up to date at each look."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import MAX_LINE_BYTES, read_line
from ava_pipeline.errors import DamagedFileError, RunError
from ava_pipeline.read.arrays import Floats, integers
from ava_pipeline.read.csv import convert_options, parse_options
from ava_pipeline.read.run import Run
from ava_pipeline.read.status import StatusNow, status_now

_FIRST_LOOK_BYTES = 2**19
_REMEMBERED_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class NewRows:
    """What is new in a table.

    Attributes:
        rows: the new rows; at the first look the latest ones.
        is_anew: the rows before are no longer the table's.
    """

    rows: pa.Table
    is_anew: bool


class Tail(Protocol):
    """Looks at the end of a table, again and again."""

    def look(self) -> NewRows:
        """Read what is new.

        Raises:
            DamagedFileError: it cannot be read.
        """


class CsvTail:
    """The end of a CSV file, which is appended by whole lines; of a long one only the last half megabyte is read.

    Args:
        run: of the table.
        declaration: of the table.
    """

    def __init__(self, run: Run, declaration: RunTable) -> None:
        self._path = run.layout.csv(declaration.table.name)
        self._declaration = declaration
        self._file = 0
        self._offset = 0
        self._before = b""

    def look(self) -> NewRows:
        """See `Tail`."""
        try:
            with self._path.open("rb") as file:
                is_anew = self._begin_if_changed(file)
                data = file.read(MAX_LINE_BYTES)  # what is behind it comes with the next look
        except FileNotFoundError:
            return NewRows(self._declaration.arrow_schema.empty_table(), is_anew=False)
        lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(lines)
        self._before = (self._before + lines)[-_REMEMBERED_BYTES:]
        return NewRows(self._rows(lines), is_anew)

    def _begin_if_changed(self, file: BinaryIO) -> bool:
        """Go to the first line that is new; a file that is another one, or was cut and written on, is begun anew."""
        found = os.fstat(file.fileno())
        file.seek(self._offset - len(self._before))
        if (
            found.st_ino == self._file
            and file.read(len(self._before)) == self._before
            and found.st_size >= self._offset
        ):
            return False
        file.seek(0)
        header = read_line(file)
        self._file = found.st_ino if header.endswith(b"\n") else 0
        self._offset = len(header) if self._file else 0
        late = found.st_size - _FIRST_LOOK_BYTES
        if late > self._offset:
            file.seek(late)
            self._offset = late + len(read_line(file))  # from the next whole line on
        file.seek(self._offset)
        self._before = b""
        return True

    def _rows(self, lines: bytes) -> pa.Table:
        schema = self._declaration.arrow_schema
        if not lines:
            return schema.empty_table()
        options = csv.ReadOptions(column_names=schema.names, use_threads=False)
        types = convert_options({field.name: field.type for field in schema})
        try:
            return csv.read_csv(BytesIO(lines), options, parse_options(self._declaration), types)
        except pa.ArrowInvalid as error:
            raise DamagedFileError(
                f"{self._path} cannot be read: {error}. `ava-pipeline validate` says more."
            ) from error


class StoredTail:
    """The end of a table that is only Parquet and journal; read again where a file changed.

    Args:
        run: of the table.
        declaration: of the table.
    """

    def __init__(self, run: Run, declaration: RunTable) -> None:
        self._run = run
        self._name = declaration.table.name
        self._declaration = declaration
        self._seen: tuple[tuple[int, int], ...] = ()
        self._last = 0

    def look(self) -> NewRows:
        """See `Tail`."""
        seen = tuple(self._stamps())
        if seen == self._seen:
            return NewRows(self._declaration.arrow_schema.empty_table(), is_anew=False)
        rows = self._run.arrow(self._name, batches=(self._last + 1, None))
        self._seen = seen
        if rows.num_rows:
            self._last = int(integers(rows, "batch_idx").max())
        return NewRows(rows, is_anew=False)

    def _stamps(self) -> list[tuple[int, int]]:
        paths = (self._run.layout.parquet(self._name), self._run.layout.journal(self._name))
        found = [path.stat() for path in paths if path.exists()]
        return [(one.st_size, one.st_mtime_ns) for one in found]


NUM_KEPT = 1024


class LatestRows:
    """The last rows of one table."""

    def __init__(self) -> None:
        self._rows: pa.Table | None = None

    def add(self, news: NewRows) -> None:
        """Take what is new, and let go of what is old."""
        parts = [news.rows] if news.is_anew or self._rows is None else [self._rows, news.rows]
        joined = pa.concat_tables(parts, promote_options="permissive")
        self._rows = joined.slice(max(0, joined.num_rows - NUM_KEPT)).combine_chunks()

    @property
    def rows(self) -> pa.Table | None:
        """None before the first one."""
        return self._rows if self._rows is not None and self._rows.num_rows else None

    def columns(self) -> dict[str, tuple[Floats, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]]:
        """The values of each number column but the keys, and where nothing was measured."""
        if self.rows is None:
            return {}
        return {
            field.name: (
                np.asarray(self.rows[field.name].cast(pa.float64()).to_numpy(), dtype=np.float64),
                np.asarray(self.rows[field.name].is_null().to_numpy(), dtype=np.bool_),
            )
            for field in self.rows.schema
            if pa.types.is_floating(field.type)
        }


EVENTS_TABLE = EVENTS.name


@dataclass(slots=True)
class LiveRun:
    """A run, as far as it was seen.

    Attributes:
        run: which one.
        manifest: as of the last look; None before there is one.
        status: of the run; None before there is a manifest.
        tables: the latest rows of each, by name, the events among them.
        trouble: what could not be read at the last look.
    """

    run: Run
    manifest: Manifest | None = None
    status: StatusNow | None = None
    tables: dict[str, LatestRows] = field(default_factory=dict)
    trouble: str = ""
    _tails: dict[str, Tail] = field(default_factory=dict)

    def look(self, now: datetime) -> None:
        """Read what is new. What cannot be read just now, as while a resumed run moves its rows, is tried again."""
        try:
            self._look(self.run.manifest, now)
            self.trouble = ""
        except (RunError, OSError) as error:
            self.trouble = str(error)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end, and all of it was seen."""
        return self.status == "finished" and not self.trouble

    def _look(self, manifest: Manifest, now: datetime) -> None:
        if self.manifest is None or _shape(manifest) != _shape(self.manifest):
            self._begin(manifest)
        # The status first: rows that were written before the end are there when the end is.
        self.manifest, self.status = manifest, status_now(manifest, now)
        for name, tail in self._tails.items():
            self.tables[name].add(tail.look())

    def _begin(self, manifest: Manifest) -> None:
        """A new attempt may have set rows aside, or measure other columns: begin with the rows that count now."""
        self._tails = {EVENTS_TABLE: CsvTail(self.run, RunTable.of(EVENTS))}
        for name, entry in manifest.tables.items():
            kind = CsvTail if "csv" in entry.formats else StoredTail
            self._tails[name] = kind(self.run, entry.declaration)
        self.tables = {name: LatestRows() for name in self._tails}


def _shape(manifest: Manifest) -> tuple[object, ...]:
    return len(manifest.attempts), tuple((name, entry.declaration) for name, entry in manifest.tables.items())
