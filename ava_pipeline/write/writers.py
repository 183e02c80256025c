"""Writers: one file format for one table each."""

import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.files import append_whole
from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.parquet import num_parquet_rows
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.errors import DamagedFileError


class Writer(ABC):
    """Takes a table's Arrow batches and brings them to one file.

    A writer is used by one thread. `write` takes a batch in full or raises and takes none of it, so that the next
    batch can be tried again after trouble with the disk.
    """

    @property
    @abstractmethod
    def file_name(self) -> str:
        """The file that the rows end up in, for counters and messages."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch: after this it survives the process being killed.

        Raises:
            OSError: the batch was not taken, none of it.
        """

    @abstractmethod
    def sync(self) -> None:
        """Wait until every batch taken survives a power loss.

        Raises:
            OSError: the disk refused.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish the file. Nothing is written afterwards.

        Raises:
            OSError: the file could not be finished; what was taken can still be recovered.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Let go of the file as it is: what was taken stays where it lies. Never raises, never names the file."""


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
        self._end = append_whole(self._file.fileno(), _csv_lines(batch), self._end)

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


def _csv_lines(batch: pa.RecordBatch) -> bytes:
    if not any(pa.types.is_string(field.type) for field in batch.schema):
        return _arrow_lines(batch)
    # Arrow quotes every text or none: here each is quoted by itself, where it must be.
    columns = [_csv_fields(batch.select([index])) for index in range(batch.num_columns)]
    return b"".join(b",".join(fields) + b"\n" for fields in zip(*columns, strict=True))


def _csv_fields(column: pa.RecordBatch) -> list[bytes]:
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


class ParquetWriter(Writer):
    """Journals a table's rows beside its Parquet file and turns both into one file on close.

    A Parquet file that was not finished cannot be read, so rows wait in the journal, of which every whole batch can.

    Args:
        parquet: the file; one that exists goes on.
        journal: must not exist; `store_journal` empties an older one.
        schema: the table's Arrow schema.

    Raises:
        OSError: the journal cannot be made.
        DamagedFileError: the Parquet file cannot be read.
    """

    def __init__(self, parquet: Path, journal: Path, schema: pa.Schema) -> None:
        self._parquet = parquet
        self._journal_path = journal
        self._schema = schema
        rows_before = num_parquet_rows(parquet) if parquet.exists() else 0
        self._journal = JournalWriter(journal, schema, rows_before=rows_before)

    @property
    def file_name(self) -> str:
        """The Parquet file that the journal becomes."""
        return self._parquet.name

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch to the journal, all of it or none."""
        self._journal.write(batch)

    def sync(self) -> None:
        """Wait until the journal is on the disk."""
        self._journal.sync()

    def close(self) -> None:
        """Write the Parquet file aside, read it back, rename it, and remove the journal."""
        self._journal.close()
        store_journal(self._parquet, self._journal_path, self._schema)

    def abandon(self) -> None:
        """Close the journal and leave it: every batch of it can be read."""
        with contextlib.suppress(OSError):  # nothing is buffered here, so nothing is lost
            self._journal.close()


class MemoryWriter(Writer):
    """Keeps a table's batches.

    Attributes:
        batches: every batch taken, in order.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.batches: list[pa.RecordBatch] = []

    @property
    def file_name(self) -> str:
        """A name for the counters; there is no file."""
        return self._name

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep the batch."""
        self.batches.append(batch)

    def sync(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to finish."""

    def abandon(self) -> None:
        """Nothing to let go of."""
