"""Parquet files: written whole and read back, read a part at a time, so that memory does not grow with a run's length.

`RowStream` represents the rows of a table without holding them. Writing compares the new file with its rows bit for bit
before it gets its name; reading verifies the checksum of every page.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.tables import BATCH, check_batches, check_has_batches
from ava_pipeline.contract.untrusted import UNREADABLE, check_parquet_size, check_values
from ava_pipeline.errors import DamagedFileError

ROWS_PER_BLOCK = 1024
ROWS_PER_GROUP = 2**14
BYTES_PER_GROUP = 8 * 2**20
_WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
# What Arrow buffers ahead stays in memory until the file is closed.
_READ_OPTIONS: dict[str, Any] = {"pre_buffer": False, "page_checksum_verification": True}
_FLOAT32_BITS = 32


@dataclass(frozen=True, slots=True)
class RowStream:
    """The rows of a table, read when they are needed; each call of `read` starts over.

    Example:
        >>> rows = RowStream.of(pa.table({"batch_idx": [1, 2]}))
        >>> sum(batch.num_rows for batch in rows.read())
        2
    """

    schema: pa.Schema
    read: Callable[[], Iterable[pa.RecordBatch]]

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """The rows of a table in memory."""
        return cls(rows.schema, rows.to_batches)

    def blocks(self) -> Iterator[pa.Table]:
        """The rows in blocks of `ROWS_PER_BLOCK`, the last one shorter, whatever the size of the batches."""
        waiting: list[pa.RecordBatch] = []
        num_waiting = 0
        for batch in self.read():
            start = 0
            while num_waiting + batch.num_rows - start >= ROWS_PER_BLOCK:
                end = start + ROWS_PER_BLOCK - num_waiting
                yield self._block([*waiting, batch.slice(start, end - start)])
                waiting, num_waiting, start = [], 0, end
            if start < batch.num_rows:
                waiting.append(batch.slice(start))
                num_waiting += batch.num_rows - start
        if waiting:
            yield self._block(waiting)

    def _block(self, batches: list[pa.RecordBatch]) -> pa.Table:
        # Copied together: the many buffers of small batches take more memory than their rows.
        return pa.Table.from_batches(batches, self.schema).combine_chunks()

    def matching(self, rule: Callable[[pa.RecordBatch], "pa.Array[pa.BooleanScalar]"]) -> "RowStream":
        """The rows for which a rule is true: batch [rows] -> booleans [rows]."""
        return RowStream(self.schema, lambda: (batch.filter(rule(batch)) for batch in self.read()))

    def as_columns(self, schema: pa.Schema) -> "RowStream":
        """The rows with the columns of another schema; columns that they lack are null.

        Reading raises ArrowException if a column cannot be cast to its new type.
        """
        return RowStream(schema, lambda: (_as_columns(batch, schema) for batch in self.read()))


def _as_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def concat_rows(*streams: RowStream) -> RowStream:
    """The rows of several streams, one after the other, with all their columns; columns that a stream lacks are null.

    Raise ArrowException, also while being read, if a column has types that contradict each other.
    """
    unified = pa.unify_schemas([stream.schema for stream in streams], promote_options="permissive")
    lacking = {field.name for field in unified if any(field.name not in one.schema.names for one in streams)}
    fields = [field.with_nullable(field.nullable or field.name in lacking) for field in unified]
    schema = pa.schema(fields).with_metadata(unified.metadata)
    return RowStream(schema, lambda: (batch for one in streams for batch in one.as_columns(schema).read()))


def same_rows(one: RowStream, other: RowStream) -> bool:
    """Whether two streams hold the same rows bit for bit; they are read side by side."""
    if not one.schema.equals(other.schema):
        return False
    pairs = zip_longest(one.blocks(), other.blocks())
    return all(left is not None and right is not None and same_bits(left, right) for left, right in pairs)


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values bit for bit; unlike in `Table.equals`, nan equals nan."""
    pairs = zip(one.columns, other.columns, strict=False)
    return bool(one.schema.equals(other.schema)) and all(_bits(left).equals(_bits(right)) for left, right in pairs)


def _bits(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    if not pa.types.is_floating(column.type):
        return column
    bits = pa.int32() if column.type.bit_width == _FLOAT32_BITS else pa.int64()
    return pa.chunked_array([chunk.view(bits) for chunk in column.chunks], type=bits)


def write_parquet(path: Path, rows: pa.Table | RowStream) -> None:
    """Write a Parquet file, replacing an older one, that appears complete or not at all; see `write_checked`."""
    with written_aside(path) as file:
        write_checked(file, rows)


def write_checked(file: BinaryIO, rows: pa.Table | RowStream) -> None:
    """Write Parquet into an empty file that is open under a name, and read it back.

    A stream is read twice, with one row group in memory at a time. Raise DamagedFileError if the file reads back with
    other values, or if the rows cannot be read.
    """
    stream = rows if isinstance(rows, RowStream) else RowStream.of(rows)
    with pq.ParquetWriter(file, stream.schema, **_WRITE_OPTIONS, **_encodings(stream.schema)) as writer:
        for group in _groups(stream):
            writer.write_table(group, row_group_size=group.num_rows)
    file.flush()
    if not same_rows(parquet_rows(Path(file.name)), stream):
        raise DamagedFileError(f"{file.name} reads back with other values than were written. Check the disk.")


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """How columns are encoded: texts as a dictionary, since they repeat; and in a table with texts, floats by bytes.

    Measured numbers seldom repeat: a dictionary of them takes more memory and more of the file than it saves.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {"use_dictionary": texts or False, "use_byte_stream_split": floats if texts else False}


def _groups(stream: RowStream) -> Iterator[pa.Table]:
    """Row groups, bounded in rows and, for tables with many columns, in bytes."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for block in stream.blocks():
        waiting.append(block)
        num_bytes += block.nbytes
        if num_bytes >= BYTES_PER_GROUP or len(waiting) * ROWS_PER_BLOCK >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
) -> pa.Table:
    """Read these columns, in this order, or all columns of a Parquet file into memory.

    With `batches`, row groups without a `batch_idx` from the first to the last of them are skipped; None as the last
    means all later ones, and an integer column `batch_idx` must exist. Raise DamagedFileError if the file cannot be
    read, or would take more memory than a file of its size can need.
    """
    schema = parquet_schema(path)
    found = _batches(path, ROWS_PER_GROUP, columns=columns, batches=batches)
    if columns is None:
        return pa.Table.from_batches(found, schema)
    return pa.Table.from_batches(
        (batch.select(columns) for batch in found), pa.schema([schema.field(name) for name in columns])
    )


def parquet_rows(path: Path, rows_per_batch: int = ROWS_PER_BLOCK, columns: Sequence[str] | None = None) -> RowStream:
    """The rows of a Parquet file, or these columns of them; at most `rows_per_batch` are in memory at a time.

    Raise DamagedFileError as `read_parquet` does, also while being read.
    """
    schema = parquet_schema(path)
    if columns is None:
        return RowStream(schema, lambda: _batches(path, rows_per_batch))
    wanted = pa.schema([schema.field(name) for name in columns])
    return RowStream(
        wanted, lambda: (batch.select(wanted.names) for batch in _batches(path, rows_per_batch, columns=wanted.names))
    )


def parquet_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file; raise DamagedFileError if it cannot be read."""
    return parquet_metadata(path).schema.to_arrow_schema()


def num_parquet_rows(path: Path) -> int:
    """The number of rows that a Parquet file declares; raise DamagedFileError if it cannot be read."""
    return int(parquet_metadata(path).num_rows)


def parquet_metadata(path: Path) -> pq.FileMetaData:
    """The footer of a Parquet file; raise DamagedFileError as `read_parquet` does."""
    try:
        with path.open("rb") as file:
            metadata = pq.read_metadata(file)
            check_parquet_size(metadata, path.stat().st_size)
            metadata.schema.to_arrow_schema()  # raises for a name that is not UTF-8
            return metadata
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def check_parquet(path: Path) -> int:
    """Read a whole Parquet file of a table, keep none of it in memory, and return the number of rows.

    Raise DamagedFileError if the file cannot be read, or a row has no batch_idx.
    """
    schema = parquet_schema(path)
    try:
        check_has_batches(schema)
    except DamagedFileError as error:
        raise _unreadable(path, error) from error
    return sum(batch.num_rows for batch in _batches(path, ROWS_PER_BLOCK, has_keys=True))


def _batches(
    path: Path,
    rows_per_batch: int,
    *,
    columns: Sequence[str] | None = None,
    batches: tuple[int, int | None] | None = None,
    has_keys: bool = False,
) -> Iterator[pa.RecordBatch]:
    try:
        with path.open("rb") as file, pq.ParquetFile(file, **_READ_OPTIONS) as parquet:
            check_parquet_size(parquet.metadata, path.stat().st_size)
            numbers = range(parquet.num_row_groups)
            groups = [number for number in numbers if _may_hold(parquet.metadata.row_group(number), batches)]
            wanted = None if columns is None else list(columns)
            # One thread, since training runs meanwhile.
            for batch in parquet.iter_batches(rows_per_batch, groups, wanted, use_threads=False):
                check_values(batch)
                if has_keys:
                    check_batches(batch)
                yield batch
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _may_hold(group: pq.RowGroupMetaData, batches: tuple[int, int | None] | None) -> bool:
    """Whether a row group may hold a row of these batches, as far as its statistics say."""
    if batches is None:
        return True
    columns = (group.column(place) for place in range(group.num_columns))
    statistics: Any = next((column.statistics for column in columns if column.path_in_schema == BATCH), None)
    if statistics is None or not statistics.has_min_max:
        return True
    first, last = batches
    return bool(statistics.max >= first and (last is None or statistics.min <= last))


def _unreadable(path: Path, error: Exception) -> DamagedFileError:
    reason = str(error).partition("\n")[0].removesuffix(".")
    return DamagedFileError(f"{path} cannot be read as Parquet: {reason}. Restore it from a backup, or move it away.")
