"""A CSV table read a block of lines at a time, so that memory does not grow with the file."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.lines import MAX_LINE_BYTES
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import check_size, convert_options, parse_options

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
