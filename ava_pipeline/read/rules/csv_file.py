"""A CSV file of a table, window by window."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import check_header, parse_options
from ava_pipeline.read.csv_blocks import CsvBlock, blocks_of_lines, parsed
from ava_pipeline.read.rules.csv_text import csv_breaches
from ava_pipeline.read.rules.files import (
    COLUMNS,
    LINE_END,
    TORN,
    UNREADABLE,
    Take,
    UnusableFileError,
    nullable,
    relative,
    told,
)
from ava_pipeline.read.window import Window, windows_of

_CRLF = b"\r\n"


def csv_windows(file: str, path: Path, declaration: RunTable, *, is_open: bool, take: Take) -> Iterator[Window]:
    """The rows of a CSV file; what is wrong with its lines is told to `take`.

    Args:
        file: the file, as violations name it.
        path: the file.
        declaration: of the table.
        is_open: rows may still come, so the last line may be unfinished.
        take: is told.

    Raises:
        OSError: the file cannot be opened.
        UnusableFileError: the file cannot be used, once all of its lines were looked at.
    """
    lines = _Lines(file, path, declaration, is_open=is_open, take=take)
    return windows_of(file, declaration, lines.rows())


def read_csv_rows(layout: RunLayout, path: Path, declaration: RunTable, *, is_open: bool, take: Take) -> Window | None:
    """Read a small CSV file as one window; None where it cannot be used, which is told to `take`."""
    file = relative(layout, path)
    try:
        windows = list(csv_windows(file, path, declaration, is_open=is_open, take=take))
    except UnusableFileError:
        return None
    empty = nullable(declaration.arrow_schema).empty_table()
    return Window(file, declaration, pa.concat_tables([empty, *(window.rows for window in windows)]))


class _Lines:
    """What the lines of a file hold, and what is wrong with them."""

    def __init__(self, file: str, path: Path, declaration: RunTable, *, is_open: bool, take: Take) -> None:
        self._file = file
        self._path = path
        self._declaration = declaration
        self._is_open = is_open
        self._take = take
        self._num_rows = 0
        self._has_crlf = False
        self._is_damaged = False

    def rows(self) -> Iterator[pa.Table]:
        """The rows of each block of lines; of a damaged file those before the first odd line."""
        try:
            yield from self._rows()
        except DamagedFileError as error:
            self._take(UNREADABLE.found(self._file, told(error, self._path)))
            self._is_damaged = True
        if self._is_damaged:
            raise UnusableFileError

    def _rows(self) -> Iterator[pa.Table]:
        blocks = blocks_of_lines(self._path, self._declaration)
        header = next(blocks)
        if self._is_torn(header):
            return
        self._check_line_ends(header, 0)
        self._check_header(header)
        for block in parsed(blocks, self._declaration):
            if self._is_torn(block.data):
                return
            if not self._has_text:
                self._check_line_ends(block.data, self._num_rows + 1)
            if isinstance(block.rows, pa.ArrowInvalid):
                self._num_rows += self._tell(header, block, block.rows)
                continue
            if not self._is_damaged:
                yield block.rows
            self._num_rows += block.rows.num_rows

    @property
    def _has_text(self) -> bool:
        """Text may hold any line end, so of a table with text only the header tells."""
        return bool(parse_options(self._declaration).newlines_in_values)

    def _is_torn(self, data: bytes) -> bool:
        if data.endswith(b"\n"):
            return False
        if data and not self._is_open:
            message = f"the last line has no line feed at its end: {len(data)} bytes of a row that was never finished."
            self._take(TORN.found(self._file, message, row=self._num_rows + 1))
        return True

    def _check_line_ends(self, data: bytes, row: int) -> None:
        """Told at the first such line of the file; the first of `data` is a row, or 0, the header."""
        if _CRLF in data and not self._has_crlf:
            self._has_crlf = True
            # A blank line is no row.
            row += sum(map(bool, data.partition(_CRLF)[0].split(b"\n")[:-1]))
            message = "a line ends in CRLF: another program rewrote the file. Turn CRLF into LF, or restore the file."
            self._take(LINE_END.found(self._file, message, row=row or None))

    def _check_header(self, header: bytes) -> None:
        try:
            check_header(self._path, header, self._declaration)
        except DamagedFileError as error:
            self._take(COLUMNS.found(self._file, told(error, self._path)))
            raise UnusableFileError from error

    def _tell(self, header: bytes, block: CsvBlock, error: pa.ArrowInvalid) -> int:
        """What is wrong with the lines, and how many rows they are; of what is no text each line counts."""
        self._is_damaged = True
        found, num_rows = csv_breaches(header + block.data, self._file, self._declaration, start=self._num_rows)
        for breach in found or [UNREADABLE.found(self._file, told(error, self._path))]:
            self._take(breach)
        return num_rows or block.data.count(b"\n")
