"""A CSV file of a table, window by window: blocks of lines, their rows, and what is wrong with them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import MAX_LINE_BYTES
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import ONE_THREAD, check_header, check_size, convert_options, parse_options
from ava_pipeline.validate.rules_files import (
    COLUMNS,
    LINE,
    LINE_END,
    TORN,
    UNREADABLE,
    VALUE,
    Take,
    UnusableFileError,
    nullable,
    relative,
    without_path,
)
from ava_pipeline.validate.violations import Breach, Cell
from ava_pipeline.validate.windows import Window, windows_of

BLOCK_BYTES = 4 * 2**20
# One block is looked at while two are parsed.
_NUM_PARSED_AHEAD = 3
_NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class CsvBlock:
    """Whole lines of a CSV file.

    Attributes:
        data: the lines.
        rows: what they hold, with the declared columns and types; or why they hold none.
    """

    data: bytes
    rows: pa.Table | pa.ArrowInvalid


def blocks_of_lines(path: Path, declaration: RunTable) -> Iterator[bytes]:
    """The first line, then blocks of whole lines; last, where there are any, bytes that no line feed ends.

    A block of a table with text ends where no quoted text is open, since such text may hold line feeds.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: the file is larger than any table, or has a line longer than any.
    """
    check_size(path)
    has_text = parse_options(declaration).newlines_in_values
    with path.open("rb") as file:
        rest = file.readline(MAX_LINE_BYTES)
        yield rest
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
                raise DamagedFileError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes, which no table has.")
    whole = rest.rfind(b"\n") + 1
    yield from (part for part in (rest[:whole], rest[whole:]) if part)


def parsed(blocks: Iterator[bytes], declaration: RunTable) -> Iterator[CsvBlock]:
    """Each block's rows, in order; the next ones are parsed meanwhile."""
    ahead: deque[Future[CsvBlock]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="ava-csv") as pool:
        for block in blocks:
            ahead.append(pool.submit(_parse, block, declaration))
            if len(ahead) >= _NUM_PARSED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _parse(data: bytes, declaration: RunTable) -> CsvBlock:
    names = list(declaration.column_names)
    # One chunk a block: its rows are looked at as one array.
    read = csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1)
    convert = convert_options({field.name: field.type for field in declaration.arrow_schema})
    try:
        return CsvBlock(data, csv.read_csv(BytesIO(data), read, parse_options(declaration), convert))
    except pa.ArrowInvalid as error:
        return CsvBlock(data, error)


Strings: TypeAlias = "pa.Array[Any]"


def csv_breaches(data: bytes, file: str, declaration: RunTable, *, start: int = 0) -> tuple[list[Breach], int]:
    """Every line of a CSV file with too many or too few fields, and every field that is not of its type.

    Args:
        data: the header, which is right, and whole lines.
        file: path below the run directory.
        declaration: the columns.
        start: how many rows of the file stand between the header and the lines.

    Returns:
        Also how many rows the lines are, which text with line feeds in it makes fewer.
    """
    torn: list[csv.InvalidRow] = []
    options = parse_options(declaration)
    options.invalid_row_handler = lambda row: torn.append(row) or "skip"  # type: ignore[func-returns-value]  # append, then say skip
    types: dict[str, pa.DataType] = dict.fromkeys(declaration.column_names, pa.string())
    try:
        # Arrow cannot hand over a line that is no UTF-8; with marks in place of such bytes it is listed like any other.
        readable = BytesIO(data.decode(errors="replace").encode())
        text = csv.read_csv(readable, ONE_THREAD, options, convert_options(types))
    except pa.ArrowInvalid:
        return [], 0  # no text at all; the caller tells what Arrow said
    breaches = [_line_breach(file, row, start) for row in torn]
    rows = _row_numbers(text.num_rows, [row.number - 1 for row in torn if row.number is not None])
    return breaches + list(_value_breaches(text, file, declaration, rows, start)), text.num_rows + len(torn)


def _line_breach(file: str, row: csv.InvalidRow, start: int) -> Breach:
    message = f"the line has {row.actual_columns} fields; the table has {row.expected_columns} columns."
    return LINE.found(file, Cell(message, value=row.text), row=None if row.number is None else start + row.number - 1)


def _row_numbers(num_rows: int, left_out: list[int]) -> NDArray[np.intp]:
    """The 0-based position in the file of each row that was not left out."""
    every = np.arange(num_rows + len(left_out))
    return np.delete(every, np.asarray(left_out, dtype=np.intp) - 1)


def _value_breaches(
    text: pa.Table, file: str, declaration: RunTable, rows: NDArray[np.intp], start: int
) -> Iterator[Breach]:
    for field in declaration.arrow_schema:
        column = text.column(field.name).combine_chunks()
        # Each text is tried once: what is wrong is often the same in many rows.
        texts = column.dictionary_encode()
        bad = np.asarray(list(_not_of(texts.dictionary, field.type, 0)), dtype=np.intp)
        broken = np.flatnonzero(np.isin(texts.indices.fill_null(-1).to_numpy(), bad))
        if len(broken):
            yield VALUE.at(file, rows[broken], _Explain(field.name, field.type, column, rows), start=start)


@dataclass(frozen=True, slots=True)
class _Explain:
    """What is wrong with a field of a row."""

    name: str
    dtype: pa.DataType
    values: Strings
    rows: NDArray[np.intp]

    def __call__(self, row: int) -> Cell:
        value = self.values[int(np.searchsorted(self.rows, row))].as_py()
        return Cell(f"{value!r} is no {self.dtype}.", self.name, value)


def _not_of(column: Strings, dtype: pa.DataType, start: int) -> Iterator[int]:
    """Positions whose text is not of a type, by halving: a million good fields take one cast."""
    try:
        column.cast(dtype)
    except pa.ArrowInvalid:
        if len(column) == 1:
            yield start
            return
        half = len(column) // 2
        yield from _not_of(column[:half], dtype, start)
        yield from _not_of(column[half:], dtype, start + half)


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
            self._take(UNREADABLE.found(self._file, without_path(error, self._path)))
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
            self._take(COLUMNS.found(self._file, without_path(error, self._path)))
            raise UnusableFileError from error

    def _tell(self, header: bytes, block: CsvBlock, error: pa.ArrowInvalid) -> int:
        """What is wrong with the lines, and how many rows they are; of what is no text each line counts."""
        self._is_damaged = True
        found, num_rows = csv_breaches(header + block.data, self._file, self._declaration, start=self._num_rows)
        for breach in found or [UNREADABLE.found(self._file, without_path(error, self._path))]:
            self._take(breach)
        return num_rows or block.data.count(b"\n")
