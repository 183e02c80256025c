"""The rows of a table that are new since the last look."""

import os
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Protocol

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.lines import MAX_LINE_BYTES, read_line
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.arrays import integers
from ava_pipeline.read.csv import convert_options, parse_options
from ava_pipeline.read.run import Run

_FIRST_LOOK_BYTES = 2**19
_REMEMBERED_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class News:
    """What is new in a table.

    Attributes:
        rows: the new rows; at the first look the latest ones.
        is_anew: the rows before are no longer the table's.
    """

    rows: pa.Table
    is_anew: bool


class Tail(Protocol):
    """Looks at the end of a table, again and again."""

    def look(self) -> News:
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

    def look(self) -> News:
        """See `Tail`."""
        try:
            with self._path.open("rb") as file:
                is_anew = self._begin_if_changed(file)
                data = file.read(MAX_LINE_BYTES)  # what is behind it comes with the next look
        except FileNotFoundError:
            return News(self._declaration.arrow_schema.empty_table(), is_anew=False)
        lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(lines)
        self._before = (self._before + lines)[-_REMEMBERED_BYTES:]
        return News(self._rows(lines), is_anew)

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

    def look(self) -> News:
        """See `Tail`."""
        seen = tuple(self._stamps())
        if seen == self._seen:
            return News(self._declaration.arrow_schema.empty_table(), is_anew=False)
        rows = self._run.arrow(self._name, batches=(self._last + 1, None))
        self._seen = seen
        if rows.num_rows:
            self._last = int(integers(rows, "batch_idx").max())
        return News(rows, is_anew=False)

    def _stamps(self) -> list[tuple[int, int]]:
        paths = (self._run.layout.parquet(self._name), self._run.layout.journal(self._name))
        found = [path.stat() for path in paths if path.exists()]
        return [(one.st_size, one.st_mtime_ns) for one in found]
