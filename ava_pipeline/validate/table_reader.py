"""Reads the files of a table window by window: CSV in blocks of lines, and Parquet with the journal after it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.journal import JournalReader
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import RowStream, concat_rows, num_parquet_rows, parquet_rows
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import MAX_LINE_BYTES, check_csv_size
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import csv_options, header_names
from ava_pipeline.validate.checked_run import CheckedFile, CheckedTable, Window
from ava_pipeline.validate.listing import Breach, Listing, without_path
from ava_pipeline.validate.rules_files import (
    COLUMNS,
    JOURNAL,
    LINE_END,
    TORN,
    UNREADABLE,
    check_lines,
    check_schema,
    nullable,
)
from ava_pipeline.validate.rules_rows import ParquetComparison

Check = Callable[[Window], Iterable[Breach]]

BLOCK_BYTES = 4 * 2**20  # of CSV
WINDOW_ROWS = 2**16  # of Parquet
# While the rules check one block, two more are parsed.
_NUM_PARSED_AHEAD = 3
_NUM_THREADS = 2
_CRLF = b"\r\n"


class UnusableFileError(Exception):
    """A file that cannot be used; the reason is in the listing already."""


def read_files(
    layout: RunLayout, declaration: RunTable, checks: Sequence[Check], listing: Listing, *, is_open: bool
) -> CheckedTable:
    """Read the files of a run's table, and check their rows; the rows of two equal files are checked once.

    The listing receives the breaches; of a file that cannot be used, only the reason. If the run is open, the last
    line may be unfinished.
    """
    path = layout.csv(declaration.table.name)
    parquet, journal = path.with_suffix(".parquet"), path.with_suffix(".journal")
    file, parquet_file = (each.relative_to(layout.root).as_posix() for each in (path, parquet))
    stored = None
    if parquet.exists() or journal.exists():
        stored = StoredFile.open(parquet_file, parquet, journal, declaration, listing)
    if not path.exists():
        return CheckedTable(parquet=stored.checked(checks, listing) if stored else None)
    tables = CsvFile(file, path, declaration, listing, is_open=is_open).tables()
    if stored is None:
        return CheckedTable(read_through(CheckedFile(file, declaration), path, tables, checks, listing))
    comparison = ParquetComparison(stored.tables, stored.schema, lambda: stored.checked(checks, listing))
    checked = read_through(CheckedFile(file, declaration), path, tables, [*checks, comparison.check], listing)
    if checked is not None and comparison.is_same and not comparison.has_rows_after(checked.num_rows):
        return CheckedTable(checked, checked.renamed(stored.file), is_same=True)
    return CheckedTable(checked, stored.checked(checks, listing))


def read_through(
    checked: CheckedFile, path: Path, tables: Iterable[pa.Table], checks: Sequence[Check], listing: Listing
) -> CheckedFile | None:
    """Add the rows of a file to `checked`, which has none yet, and check them.

    Return `checked`; of a file that cannot be used, list only the reason, and return None.
    """
    found: Listing | None = None
    try:
        for rows in tables:
            window = checked.append(rows)
            for check in checks:
                for breach in check(window):
                    found = found or listing.empty_copy()
                    found.add(breach)
    except UnusableFileError:
        return None
    except DamagedFileError as error:
        listing.add(UNREADABLE.broken(checked.file, without_path(error, path)))
        return None
    for breach in found.breaches() if found is not None else ():
        listing.add(breach)
    return checked


class StoredFile:
    """A Parquet file and the journal beside it, one of which may be missing; findings name the Parquet file.

    The rows have `schema`: the declared types, and any value may be null.
    """

    def __init__(self, file: str, path: Path, declaration: RunTable, schema: pa.Schema, stored: RowStream) -> None:
        self.file = file
        self.schema = nullable(schema)
        self._path = path
        self._declaration = declaration
        self._stored = stored
        self._checked: list[CheckedFile | None] = []

    @classmethod
    def open(
        cls, file: str, parquet: Path, journal: Path, declaration: RunTable, listing: Listing
    ) -> "StoredFile | None":
        """Open the files; None if they cannot be used, which is listed."""
        try:
            stored = _stored_rows(file, parquet, journal, declaration, listing)
        except (DamagedFileError, pa.ArrowException) as error:
            listing.add(UNREADABLE.broken(file, without_path(error, parquet)))
            return None
        schema = declaration.arrow_schema
        if not check_schema(stored.schema, schema, file, listing.add):
            return None
        return cls(file, parquet, declaration, schema, stored)

    def tables(self) -> Iterator[pa.Table]:
        """Every row in the order of writing, about `WINDOW_ROWS` at a time; raise DamagedFileError if unreadable."""
        waiting: list[pa.RecordBatch] = []
        num_waiting = 0
        for batch in self._stored.read():
            waiting.append(batch)
            num_waiting += batch.num_rows
            if num_waiting >= WINDOW_ROWS:
                yield self._table(waiting)
                waiting, num_waiting = [], 0
        if waiting:
            yield self._table(waiting)

    def checked(self, checks: Sequence[Check], listing: Listing) -> CheckedFile | None:
        """Read the file to its end and check its rows, once; None if it cannot be used."""
        if not self._checked:
            file = CheckedFile(self.file, self._declaration)
            self._checked.append(read_through(file, self._path, self.tables(), checks, listing))
        return self._checked[0]

    def _table(self, batches: list[pa.RecordBatch]) -> pa.Table:
        rows = pa.Table.from_batches(batches, self._stored.schema).combine_chunks()
        try:
            return rows.cast(self.schema)
        except pa.ArrowException as error:
            raise DamagedFileError(f"its values cannot be cast to the declared types: {error}") from error


def _stored_rows(file: str, parquet: Path, journal: Path, declaration: RunTable, listing: Listing) -> RowStream:
    """The rows of both files, with a journal's damage in the listing.

    Raise DamagedFileError if the Parquet file cannot be read, or if its columns and the journal's exclude each other.
    """
    # The journal first: if it becomes Parquet meanwhile, its rows are found there, and not read twice.
    journal_schema = None
    if journal.exists():
        reader = JournalReader(journal, declaration.arrow_schema)
        with suppress(FileNotFoundError):
            for _ in reader.batches():
                pass
            journal_schema = reader.schema
        for finding in reader.damage:
            if finding.severity == "error":
                listing.add(JOURNAL.broken(file.replace(parquet.name, journal.name), finding.message))
    streams = [parquet_rows(parquet, WINDOW_ROWS)] if parquet.exists() else []
    if journal_schema is not None:
        num_stored = num_parquet_rows(parquet) if streams else 0
        streams.append(RowStream(journal_schema, lambda: _new_rows(journal, declaration, num_stored)))
    if len(streams) == 1:
        return streams[0]
    try:
        return concat_rows(*streams) if streams else RowStream.of(pa.table({}))
    except pa.ArrowException as error:
        raise DamagedFileError(f"{parquet} and the journal beside it have different columns: {error}.") from error


def _new_rows(journal: Path, declaration: RunTable, num_stored: int) -> Iterator[pa.RecordBatch]:
    """The journal's rows after those of the Parquet file; none if the run ended, and it became Parquet, meanwhile."""
    with suppress(FileNotFoundError):
        yield from JournalReader(journal, declaration.arrow_schema).new_batches(num_stored)


class CsvFile:
    """A CSV file of a table; the listing receives the line numbers of its rows and the findings about its lines.

    If the run is open, the last line may be unfinished.
    """

    def __init__(self, file: str, path: Path, declaration: RunTable, listing: Listing, *, is_open: bool) -> None:
        self._file = file
        self._path = path
        self._declaration = declaration
        self._listing = listing
        self._lines = listing.line_numbers(file)
        self._is_open = is_open
        self._has_crlf = False
        self._is_damaged = False
        schema = declaration.arrow_schema
        self._names = schema.names
        self._parse, self._convert = csv_options(schema)

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each block of lines; of a damaged file those before the first damaged block.

        Raise UnusableFileError if the file cannot be used; for a damaged one, after all of its lines were checked.
        """
        try:
            yield from self._tables()
        except DamagedFileError as error:
            self._listing.add(UNREADABLE.broken(self._file, without_path(error, self._path)))
            self._is_damaged = True
        if self._is_damaged:
            raise UnusableFileError

    def _tables(self) -> Iterator[pa.Table]:
        blocks = self._blocks()
        header = next(blocks)
        if self._is_torn(header, 0):
            return
        self._check_line_ends(header, 0)
        self._check_header(header)
        for data, rows in self._parsed(blocks):
            if self._is_torn(data, self._lines.num_rows + 1):
                return
            if not self._parse.newlines_in_values:  # text may hold any line end
                self._check_line_ends(data, self._lines.num_rows + 1)
            if isinstance(rows, pa.ArrowInvalid):
                self._explain_damage(header, data, rows)
                continue
            self._lines.append(data, rows.num_rows)
            if not self._is_damaged:
                yield rows

    def _blocks(self) -> Iterator[bytes]:
        """The first line, then blocks of whole lines; last, if there are any, bytes after the last line feed.

        A block of a table with text ends outside of quoted text, which may hold line feeds.
        """
        check_csv_size(self._path)
        has_text = self._parse.newlines_in_values
        with self._path.open("rb") as file:
            yield file.readline(MAX_LINE_BYTES)
            rest = b""
            while read := file.read(BLOCK_BYTES):
                data = rest + read
                end = data.rfind(b"\n") + 1
                if has_text and data.count(b'"', 0, end) % 2:
                    end = 0
                if end:
                    yield data[:end]
                rest = data[end:]
                if len(rest) > MAX_LINE_BYTES:
                    raise DamagedFileError(f"it has a line of more than {MAX_LINE_BYTES} bytes, which no table has")
        whole = rest.rfind(b"\n") + 1
        yield from (part for part in (rest[:whole], rest[whole:]) if part)

    def _parsed(self, blocks: Iterator[bytes]) -> Iterator[tuple[bytes, pa.Table | pa.ArrowInvalid]]:
        """Each block with its rows, or with the reason why it has none, in order; the next blocks are parsed ahead."""
        ahead: deque[Future[tuple[bytes, pa.Table | pa.ArrowInvalid]]] = deque()
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="ava-csv") as pool:
            for block in blocks:
                ahead.append(pool.submit(self._parsed_block, block))
                if len(ahead) >= _NUM_PARSED_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _parsed_block(self, data: bytes) -> tuple[bytes, pa.Table | pa.ArrowInvalid]:
        # One chunk per block, so that NumPy takes its columns without a copy.
        read = csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(data) + 1)
        try:
            return data, csv.read_csv(BytesIO(data), read, self._parse, self._convert)
        except pa.ArrowInvalid as error:
            return data, error

    def _is_torn(self, data: bytes, row: int) -> bool:
        if data.endswith(b"\n"):
            return False
        if data and not self._is_open:
            message = f"expected a line feed at the end of the file, got {len(data)} bytes of an unfinished row."
            self._listing.add(TORN.broken(self._file, message, row=row))
        return True

    def _check_line_ends(self, data: bytes, row: int) -> None:
        """Report the first CRLF of the file; `row` is that of the first line of `data`, 0 for the header."""
        if _CRLF in data and not self._has_crlf:
            self._has_crlf = True
            row += sum(map(bool, data.partition(_CRLF)[0].split(b"\n")[:-1]))  # blank lines are not rows
            message = (
                "expected a line that ends in LF, got CRLF: another program rewrote the file. Turn CRLF into LF, or "
                "restore the file."
            )
            self._listing.add(LINE_END.broken(self._file, message, row=row))

    def _check_header(self, header: bytes) -> None:
        names = header_names(header)
        if names != self._names:
            message = (
                f"expected the columns {','.join(self._names)}, got {','.join(names)}. Restore the file from a backup."
            )
            self._listing.add(COLUMNS.broken(self._file, message, row=0))
            raise UnusableFileError

    def _explain_damage(self, header: bytes, data: bytes, error: pa.ArrowInvalid) -> None:
        self._is_damaged = True
        found, num_rows = check_lines(header + data, self._file, self._declaration, start=self._lines.num_rows)
        for breach in found or [UNREADABLE.broken(self._file, without_path(error, self._path))]:
            self._listing.add(breach)
        self._lines.append(data, num_rows or data.count(b"\n"))  # of bytes that are not text, each line counts
