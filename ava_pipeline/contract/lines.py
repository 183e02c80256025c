"""Lines of a CSV file, none of them longer than memory permits: a sparse file may claim any size in one line."""

from collections.abc import Iterator
from typing import BinaryIO

from ava_pipeline.errors import DamagedFileError

MAX_LINE_BYTES = 64 * 2**20


def read_line(file: BinaryIO) -> bytes:
    """The next line, its line feed included where it has one; empty at the end of the file.

    Raises:
        DamagedFileError: it is longer than any line of a table.
    """
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise DamagedFileError(f"it has a line of more than {MAX_LINE_BYTES} bytes, which no table has")
    return line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Every line from here on.

    Raises:
        DamagedFileError: one is longer than any line of a table.
    """
    yield from iter(lambda: read_line(file), b"")
