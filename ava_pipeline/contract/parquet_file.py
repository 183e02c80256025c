"""Parquet files: they appear complete, read back before they do, and are read with all that is in them checked.

They are opened here and not by Arrow, which takes no name that is not UTF-8.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.contract.declared_size import check_declared_size
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.keys import check_batches, check_has_batches
from ava_pipeline.contract.messages import UNUSABLE
from ava_pipeline.contract.packed_text import TextAllowance, text_columns
from ava_pipeline.contract.row_stream import ROWS_PER_BLOCK, RowStream, num_rows, same_rows
from ava_pipeline.errors import DamagedFileError

ROWS_PER_GROUP = 2**14
BYTES_PER_GROUP = 8 * 2**20
# Measured numbers seldom repeat: a dictionary of them takes more memory and more of the file than it saves.
_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}


def write_parquet(path: Path, rows: pa.Table | RowStream) -> None:
    """Write a Parquet file that appears complete or not at all, read back before it appears.

    Args:
        path: the file; one of that name is replaced.
        rows: a stream is read twice, a row group of it in memory at a time.

    Raises:
        OSError: it cannot be written.
        DamagedFileError: what was read back is not what was written, or the rows cannot be read.
    """
    with written_aside(path) as file:
        write_checked(file, rows)


def write_checked(file: BinaryIO, rows: pa.Table | RowStream) -> None:
    """Write Parquet into a new file, and read it back.

    Args:
        file: empty, and open under a name.
        rows: a stream is read twice, a row group of it in memory at a time.

    Raises:
        OSError: it cannot be written.
        DamagedFileError: what was read back is not what was written, or the rows cannot be read.
    """
    stream = rows if isinstance(rows, RowStream) else RowStream.of(rows)
    with pq.ParquetWriter(file, stream.schema, **_OPTIONS) as writer:
        for group in _groups(stream):
            writer.write_table(group, row_group_size=group.num_rows)
    file.flush()
    if not same_rows(parquet_rows(Path(file.name)), stream):
        raise DamagedFileError(f"{file.name} reads back other than it was written: check the disk.")


def _groups(stream: RowStream) -> Iterator[pa.Table]:
    """Row groups, bounded in rows and, for tables of many columns, in bytes."""
    waiting: list[pa.Table] = []
    for block in stream.blocks():
        waiting.append(block)
        is_wide = sum(one.nbytes for one in waiting) >= BYTES_PER_GROUP
        if is_wide or len(waiting) * ROWS_PER_BLOCK >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def read_parquet(path: Path) -> pa.Table:
    """Read a complete Parquet file into memory, its checksums verified.

    Raises:
        DamagedFileError: the file cannot be read, or would take more memory than such a file can need.
    """
    stream = parquet_rows(path, ROWS_PER_GROUP)
    return pa.Table.from_batches(stream.read(), stream.schema)


def parquet_rows(path: Path, rows_per_batch: int = ROWS_PER_BLOCK) -> RowStream:
    """The rows of a complete Parquet file, a part at a time, its checksums verified.

    Args:
        path: the file.
        rows_per_batch: at most so many at a time.

    Raises, also while being read:
        DamagedFileError: the file cannot be read, or would take more memory than such a file can need.
    """
    return RowStream(parquet_schema(path), lambda: _batches(path, rows_per_batch))


def parquet_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        DamagedFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return pq.read_schema(file)
    except UNUSABLE as error:
        raise _unreadable(path, error) from error


def num_parquet_rows(path: Path) -> int:
    """How many rows a Parquet file says it holds.

    Raises:
        DamagedFileError: it does not say.
    """
    try:
        with path.open("rb") as file:
            return int(pq.read_metadata(file).num_rows)
    except UNUSABLE as error:
        raise _unreadable(path, error) from error


def check_parquet(path: Path) -> int:
    """Read all of a table's Parquet file, and keep none of it.

    Returns:
        How many rows it holds.

    Raises:
        DamagedFileError: the file cannot be read, or does not tell of each row which batch it is of.
    """
    rows = parquet_rows(path)
    try:
        check_has_batches(rows.schema)
    except DamagedFileError as error:
        raise _unreadable(path, error) from error
    return num_rows(_batches(path, ROWS_PER_BLOCK, check_batches))


def _batches(
    path: Path, rows_per_batch: int, check: Callable[[pa.RecordBatch], None] = lambda _: None
) -> Iterator[pa.RecordBatch]:
    try:
        # What is buffered ahead stays in memory until the file is closed.
        options: dict[str, Any] = {"pre_buffer": False, "page_checksum_verification": True}
        with path.open("rb") as file:
            schema = pq.read_schema(file)
            parquet = pq.ParquetFile(file, read_dictionary=text_columns(schema), **options)
            text = TextAllowance(check_declared_size(parquet.metadata, path.stat().st_size))
            for packed in parquet.iter_batches(rows_per_batch, use_threads=False):  # one thread, beside the training
                packed.validate(full=True)
                batch = text.unpacked(packed, schema)
                batch.validate(full=True)
                check(batch)
                yield batch
    except UNUSABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DamagedFileError:
    reason = str(error).partition("\n")[0].removesuffix(".")
    return DamagedFileError(f"{path} cannot be read as Parquet: {reason}. Restore it from a backup, or move it away.")
