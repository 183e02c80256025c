"""Guards against what a run directory may hold after a disk, a copy or another program changed it.

A run directory may be on a broken disk, be copied in part, be unpacked from an archive or be edited by another
program. Reading it runs no code, follows no link out of it, crashes no library and takes a bounded amount of memory.
The checksums that `journal.py`, `parquet.py` and `check_zip` verify find changed bytes; this list holds the rest:

    threat: a link that leads out of the run directory, in a circle or to nothing
    check:  check_inside for telemetry's own names, check_name for a config, a checkpoint, metrics.csv and superseded/
    test:   tests/contract/test_inside.py::test_a_writer_follows_no_link_out_of_the_run

    threat: a folder or a pipe in place of a file, a file in place of a folder
    check:  check_inside, check_name
    test:   tests/contract/test_inside.py::test_a_folder_in_place_of_a_file_is_named

    threat: a table in the manifest whose name leads to another folder
    check:  the pattern of Table.name in tables.py
    test:   tests/contract/test_names.py::test_a_table_in_the_manifest_is_no_path

    threat: a manifest or a CSV file of gigabytes, such as a sparse file that an interrupted copy left
    check:  read_small_file, check_csv_size
    test:   tests/contract/test_untrusted.py::test_sparse_files_are_refused_unread

    threat: a CSV line of gigabytes, such as the zeros of lost blocks
    check:  read_line, read_lines
    test:   tests/read/test_memory_limits.py::test_a_csv_that_claims_ten_gigabytes_in_a_line_is_moved_unread

    threat: a Parquet footer, which has no checksum, that declares too many rows or bytes
    check:  check_parquet_size
    test:   tests/contract/test_untrusted.py::test_a_row_group_that_declares_gigabytes_is_refused_unread

    threat: a weight snapshot whose header declares other bytes than the file has, or is itself too large
    check:  read_header in snapshots.py
    test:   tests/contract/test_snapshots.py::test_a_damaged_header_is_refused

    threat: offsets outside their buffer, which let Arrow read memory that is not its own; text that is not UTF-8
    check:  check_values, on every batch of a journal or a Parquet file
    test:   tests/contract/test_untrusted.py::test_a_frame_that_holds_no_rows_of_the_table_costs_itself
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout
from ava_pipeline.errors import DamagedFileError

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_TABLE_BYTES = 8 * 2**30
MAX_LINE_BYTES = 64 * 2**20

ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeError)  # what Arrow raises for a damaged file
UNREADABLE = (*ARROW_ERRORS, DamagedFileError)

# A name with one of these suffixes is a file's name.
_FILE_SUFFIXES = frozenset(
    {".csv", ".parquet", ".journal", ".json", ".lock", ".yaml", ".pt", ".safetensors", PARTIAL_SUFFIX}
)
# A column of equal values is compressed thousandfold; the batches in the same table are not.
_MAX_PACKING = 10_000
_ALWAYS_ALLOWED_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_TEXT_BYTES = 8  # of a text in memory, at least


def check_inside(layout: RunLayout) -> None:
    """Refuse a run in which a name that telemetry reads or writes leads elsewhere or has the wrong type.

    The run directory itself may be a link, and its names may be links to other places inside it. Raise DamagedFileError
    if a link leads out of the run directory, in a circle or to nothing; or if a folder, a pipe or a device is in
    place of a file, or a file in place of a folder.
    """
    root, folders = layout.root.resolve(), layout.folders
    for folder in folders:
        _check(folder, root)
        if folder.exists() and not folder.is_dir():
            raise DamagedFileError(f"{folder} is a file, expected a folder. Move it away.")
    entries = chain.from_iterable(folder.iterdir() for folder in folders if folder.is_dir())
    for path in chain([layout.metrics], entries, folders[0].glob("superseded/*/*")):
        _check(path, root)


def check_name(layout: RunLayout, path: Path) -> None:
    """Refuse one name in a run directory, as `check_inside` refuses those of telemetry."""
    _check(path, layout.root.resolve())


def _check(path: Path, root: Path) -> None:
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # for a circle, Python's versions raise one or the other
        raise DamagedFileError(f"{path} is a link that leads in a circle. Remove it.") from error
    if not place.is_relative_to(root):
        raise DamagedFileError(
            f"{path} is a link out of the run directory, to {place}, and is neither read nor written. "
            "Put the file itself in its place, or make the whole run directory a link."
        )
    if path.is_symlink() and path.suffix in _FILE_SUFFIXES and not path.exists():
        raise DamagedFileError(f"{path} is a link that leads to nothing. Remove it.")
    if path.is_dir() and path.suffix in _FILE_SUFFIXES:
        raise DamagedFileError(f"{path} is a folder, expected a file. Move it away.")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DamagedFileError(f"{path} is neither a file nor a folder. Move it away.")


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Read a file that is small in every run; raise DamagedFileError if it is larger than `max_bytes`."""
    size = path.stat().st_size
    if size > max_bytes:
        raise DamagedFileError(f"{path}: expected at most {max_bytes} bytes, got {size}. Restore it from a backup.")
    return path.read_bytes()


def check_csv_size(path: Path) -> None:
    """Raise DamagedFileError if a CSV file is too large to be read into memory."""
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise DamagedFileError(
            f"{path} is {size} bytes; at most {MAX_TABLE_BYTES} are read into memory. "
            "Read it in parts with pyarrow.csv."
        )


def read_line(file: BinaryIO) -> bytes:
    """Read the next line with its line feed, if it has one; empty at the end of the file.

    Raise DamagedFileError if the line is longer than `MAX_LINE_BYTES`.
    """
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise DamagedFileError(f"it has a line of more than {MAX_LINE_BYTES} bytes, which a table never has")
    return line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Read every line from here on, as `read_line` does."""
    yield from iter(lambda: read_line(file), b"")


def num_csv_rows(path: Path) -> int:
    """The number of whole lines below the header, of whatever length."""
    with path.open("rb") as file:
        return max(0, sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b"")) - 1)


def check_zip(path: Path) -> None:
    """Raise DamagedFileError unless every part of a zip file, such as a checkpoint of torch, has its checksum."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    # What the reader of a damaged zip may raise.
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        raise DamagedFileError(str(error)) from error
    if damaged is not None:
        raise DamagedFileError(f"the checksum of its part {damaged} is wrong")


def check_parquet_size(metadata: pq.FileMetaData, file_bytes: int) -> None:
    """Refuse a Parquet file that declares more rows or bytes than a file of its size can hold.

    Raise DamagedFileError if it would take more than 64 MiB and 10,000 times its size in memory, or more than 8 GiB; or
    if its counts of rows contradict each other.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
        raise DamagedFileError(f"it declares {metadata.num_rows} rows, and row groups of {sum(rows)} rows")
    row_bytes = sum(_value_bytes(dtype) for dtype in metadata.schema.to_arrow_schema().types)
    declared = max(sum(group.total_byte_size for group in groups), metadata.num_rows * row_bytes)
    allowed = min(MAX_TABLE_BYTES, _ALWAYS_ALLOWED_BYTES + _MAX_PACKING * file_bytes)
    if declared > allowed:
        raise DamagedFileError(f"its {file_bytes} bytes declare {declared} bytes of rows; at most {allowed} are read")


def _value_bytes(dtype: pa.DataType) -> int:
    try:
        return max(1, dtype.bit_width // 8)
    except ValueError:  # a text
        return _TEXT_BYTES


def check_values(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid if an offset or an index points outside its buffer, or a text is not UTF-8."""
    batch.validate(full=True)
