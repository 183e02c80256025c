"""Writers, which bring one table's rows to one file of one format each, and the files of one table together."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.files import append_whole
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.parquet import num_parquet_rows
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.errors import DamagedFileError

Format = Literal["csv", "parquet"]

_ROWS = csv.WriteOptions(include_header=False, quoting_style="needed")
_QUOTED_CHARACTERS = frozenset(',"\r\n')


@dataclass(frozen=True, slots=True)
class Formats:
    """The file formats of tables; `csv_of_all` makes CSV of tables too that are not `in_csv`, as they are very long."""

    names: tuple[Format, ...] = ("csv", "parquet")
    csv_of_all: bool = False

    def of(self, table: Table) -> tuple[Format, ...]:
        """The formats of one table, at least one."""
        is_in_csv = table.in_csv or self.csv_of_all
        return tuple(name for name in self.names if is_in_csv or name != "csv") or self.names


DEFAULT_FORMATS = Formats()


class Writer(ABC):
    r"""Writes one table to one file, in one format.

    Subclass it and give the class to `TelemetryCollector(..., writers=[MyWriter])`. The collector makes one object per
    table, with the path `telemetry/<table>.<suffix>`, and calls it in the background thread only. The file starts over
    at each attempt: an older file is moved to `telemetry/superseded/`.

    If a writer raises, the rows are missing from its own file only; their steps are counted as failed and named in
    `events.csv`. `write` writes a batch in full, or raises and writes none of it, so that the next batch can be written
    when the disk works again.

    Args:
        path: the file.
        schema: the table's Arrow schema; every batch has it.

    Attributes:
        suffix: the last part of the file name, without the dot.
        takes_events: whether the events are written too, as the table `events`; by default they are not.
        path: as given.
        schema: as given.

    Example:
        class JsonLines(Writer):
            suffix = "jsonl"

            def __init__(self, path, schema):
                super().__init__(path, schema)
                self.file = path.open("xb", buffering=0)

            def write(self, batch):
                lines = [json.dumps(row, default=str) + "\n" for row in batch.to_pylist()]
                self.file.write("".join(lines).encode())

            def sync(self):
                os.fsync(self.file.fileno())

            def close(self):
                self.file.close()
    """

    suffix: ClassVar[str]
    takes_events: ClassVar[bool] = False

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema

    @property
    def file_name(self) -> str:
        """The name of the file, for counters and messages."""
        return self.path.name

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Write one batch: after this it survives the process being killed.

        Raises:
            OSError: nothing of the batch was written.
        """

    @abstractmethod
    def sync(self) -> None:
        """Wait until every batch written survives a power loss.

        Raises:
            OSError: the disk refused.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish the file. Nothing is written afterwards.

        Raises:
            OSError: the file could not be finished.
        """

    def abandon(self) -> None:
        """Release the file as it is, because its directory was moved or taken over; here, `close` it."""
        self.close()


@dataclass(slots=True)
class Outcome:
    """The outcome of new rows: those that keep the table's rules, the values that break a rule, and every row.

    A finding's `row` is 1-based among the new rows. `failed` are 0-based positions of the rows that a rule or a writer
    refused. `errors` are exceptions of writers, by file name.
    """

    kept: pa.RecordBatch
    findings: list[Finding]
    every: pa.RecordBatch
    failed: set[int]
    errors: dict[str, Exception] = field(default_factory=dict)


class TableFiles:
    """The files of one table, each with its writer; `num_rows` counts the rows written so far, by file name.

    If one writer refuses a batch, the others still get it: a row on the disk is not taken back because another file
    lacks it. Its step counts as failed, and the event names the file and the batches that it lacks.
    """

    def __init__(self, run_table: RunTable, writers: Sequence[Writer]) -> None:
        self._run_table = run_table
        self._writers = {writer.file_name: writer for writer in writers}
        self.num_rows: Counter[str] = Counter(dict.fromkeys(self._writers, 0))

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the table."""
        return self._run_table.column_names

    def write(self, columns: Mapping[str, Values], num_rows: int) -> Outcome:
        """Write the rows that keep the table's rules; the columns are as `RunTable.check` takes them."""
        kept, findings, every = self._run_table.check(columns, num_rows)
        outcome = Outcome(kept, findings, every, failed={finding.row - 1 for finding in findings if finding.row})
        if kept.num_rows:
            outcome.errors = self._for_each(lambda writer: writer.write(kept))
            self.num_rows.update({name: kept.num_rows for name in self._writers if name not in outcome.errors})
        if outcome.errors:
            outcome.failed = set(range(num_rows))
        return outcome

    def sync(self) -> dict[str, Exception]:
        """Wait until every row written survives a power loss; return exceptions of writers, by file name."""
        return self._for_each(lambda writer: writer.sync())

    def close(self) -> dict[str, Exception]:
        """Finish every file, even if another could not be finished; return exceptions, by file name."""
        return self._for_each(lambda writer: writer.close())

    def abandon(self) -> dict[str, Exception]:
        """Release every file as it is, even if another could not be released; return exceptions, by file name."""
        return self._for_each(lambda writer: writer.abandon())

    def _for_each(self, call: Callable[[Writer], None]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for name, writer in self._writers.items():
            try:
                call(writer)
            except Exception as error:  # noqa: BLE001  # whatever breaks one file must not cost the others theirs
                errors[name] = error
        return errors


class CsvWriter(Writer):
    """Appends a table's rows to a CSV file; a new file begins with the header.

    An older file must end with a whole line; raise DamagedFileError if it has other columns.
    """

    suffix = "csv"

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
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
        """Close the file, even if its disk fails."""
        with contextlib.suppress(OSError):  # nothing is buffered here, so nothing is lost
            self._file.close()

    def _check(self, header: bytes) -> None:
        self._file.seek(0)
        found = self._file.read(len(header))
        if found != header:
            raise DamagedFileError(
                f"{self.path}: expected this run's columns {header!r}, got {found!r}. "
                "Move the file away, or write to another output directory."
            )


def _csv_lines(batch: pa.RecordBatch) -> bytes:
    if not any(pa.types.is_string(field.type) for field in batch.schema):
        return _arrow_lines(batch)
    # Arrow quotes every text or none: here a text is quoted only if it must be.
    columns = [_csv_fields(batch.select([index])) for index in range(batch.num_columns)]
    return b"".join(b",".join(fields) + b"\n" for fields in zip(*columns, strict=True))


def _csv_fields(column: pa.RecordBatch) -> list[bytes]:
    if not pa.types.is_string(column.schema.field(0).type):
        return _arrow_lines(column).split(b"\n")[:-1]
    return [_quoted(text) for text in column.column(0).to_pylist()]


def _quoted(text: str | None) -> bytes:
    """A field; an empty text is quoted, to keep it apart from null."""
    if text is None:
        return b""
    is_plain = text and not _QUOTED_CHARACTERS.intersection(text)
    return (text if is_plain else '"' + text.replace('"', '""') + '"').encode()


def _arrow_lines(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    csv.write_csv(batch, sink, _ROWS)
    return sink.getvalue().to_pybytes()


class ParquetWriter(Writer):
    """Appends a table's rows to a journal beside its Parquet file, and turns both into one Parquet file on close.

    A Parquet file that was not finished cannot be read, so rows wait in the journal, of which every whole batch can.
    An older Parquet file keeps its rows; raise DamagedFileError if it cannot be read. The journal beside it must not
    exist; `store_journal` empties an older one.
    """

    suffix = "parquet"

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
        self._journal_path = path.with_suffix(".journal")
        rows_before = num_parquet_rows(path) if path.exists() else 0
        self._journal = JournalWriter(self._journal_path, schema, rows_before=rows_before)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch to the journal, all of it or none."""
        self._journal.write(batch)

    def sync(self) -> None:
        """Wait until the journal is on the disk."""
        self._journal.sync()

    def close(self) -> None:
        """Write the Parquet file under another name, read it back, rename it, and remove the journal."""
        self._journal.close()
        store_journal(self.path, self._journal_path, self.schema)

    def abandon(self) -> None:
        """Close the journal and leave it in place: every batch of it can be read."""
        with contextlib.suppress(OSError):  # nothing is buffered here, so nothing is lost
            self._journal.close()
