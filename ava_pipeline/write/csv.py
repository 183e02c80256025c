"""The CSV writer: whole lines appended, readable at any time."""

import contextlib
import os
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.journal import append_whole
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.write.writer import Writer

_LOOK_BACK_BYTES = 2**20
_ROWS = csv.WriteOptions(include_header=False, quoting_style="needed")
_MUST_BE_QUOTED = frozenset(',"\r\n')


class CsvWriter(Writer):
    """Appends a table's rows to a CSV file, making it with its header where there is none.

    Args:
        path: the file; one that exists must have the same header and end with a whole line.
        schema: the table's Arrow schema.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: the file holds other columns.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        header = (",".join(schema.names) + "\n").encode()
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
        try:
            self._end = self._file.seek(0, os.SEEK_END)
            if self._end == 0:
                self._end = append_whole(self._file.fileno(), header, 0)
            self._check(header)
        except BaseException:
            self._file.close()
            raise

    @property
    def file_name(self) -> str:
        """The CSV file."""
        return self._path.name

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch's lines, all or none."""
        self._end = append_whole(self._file.fileno(), _lines(batch), self._end)

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abandon(self) -> None:
        """Close the file, whatever became of its disk."""
        with contextlib.suppress(OSError):  # nothing is buffered here, so nothing is lost
            self._file.close()

    def _check(self, header: bytes) -> None:
        self._file.seek(0)
        found = self._file.read(len(header))
        if found != header:
            raise DamagedFileError(
                f"{self._path} begins with {found!r}, not with this run's columns {header!r}. "
                "Move it away, or write to another output directory."
            )


def cut_torn_line(path: Path) -> bytes:
    """Cut a last line that was never finished, so that the next row is not glued to it.

    Returns:
        The bytes cut; empty where the file ends with a whole line.
    """
    torn = torn_line(path)
    if torn:
        os.truncate(path, path.stat().st_size - len(torn))
    return torn


def torn_line(path: Path) -> bytes:
    """The last line of a file where it was never finished, else nothing."""
    with path.open("rb", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        blocks: list[bytes] = []
        whole = -1
        while start and whole < 0:
            end, start = start, max(0, start - _LOOK_BACK_BYTES)
            file.seek(start)
            block = file.read(end - start)
            whole = block.rfind(b"\n")
            blocks.append(block[whole + 1 :])
    return b"".join(reversed(blocks))


def _lines(batch: pa.RecordBatch) -> bytes:
    if not any(pa.types.is_string(field.type) for field in batch.schema):
        return _arrow_lines(batch)
    # Arrow quotes every text or none: here each is quoted by itself, where it must be.
    columns = [_fields(batch.select([index])) for index in range(batch.num_columns)]
    return b"".join(b",".join(fields) + b"\n" for fields in zip(*columns, strict=True))


def _fields(column: pa.RecordBatch) -> list[bytes]:
    if not pa.types.is_string(column.schema.field(0).type):
        return _arrow_lines(column).split(b"\n")[:-1]
    return [_quoted(text) for text in column.column(0).to_pylist()]


def _quoted(text: str | None) -> bytes:
    """An empty text is quoted, so that it is no null."""
    if text is None:
        return b""
    is_plain = text and not _MUST_BE_QUOTED.intersection(text)
    return (text if is_plain else '"' + text.replace('"', '""') + '"').encode()


def _arrow_lines(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    csv.write_csv(batch, sink, _ROWS)
    return sink.getvalue().to_pybytes()
