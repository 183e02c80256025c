"""Rows that are read a part at a time, so that memory does not grow with the length of a run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.tables import check_batches, check_has_batches
from ava_pipeline.contract.untrusted import UNUSABLE, TextAllowance, check_declared_size, text_columns
from ava_pipeline.errors import DamagedFileError

ROWS_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class RowStream:
    """Rows of a table, wherever they lie.

    Attributes:
        schema: of every batch.
        read: yields the rows in order; each call begins anew.
    """

    schema: pa.Schema
    read: Callable[[], Iterable[pa.RecordBatch]]

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """Rows that are in memory already."""
        return cls(rows.schema, rows.to_batches)

    def blocks(self) -> Iterator[pa.Table]:
        """The rows in blocks of `ROWS_PER_BLOCK`, the last one shorter, whatever batches they come in."""
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

    def matching(self, rule: Callable[[pa.RecordBatch], "pa.Array[pa.BooleanScalar]"]) -> "RowStream":
        """Those of the rows that a rule picks."""
        return RowStream(self.schema, lambda: (batch.filter(rule(batch)) for batch in self.read()))

    def as_columns(self, schema: pa.Schema) -> "RowStream":
        """The rows with the columns of another schema; those that they lack are null.

        Raises, while being read:
            ArrowException: a column's type cannot become the other one.
        """
        return RowStream(schema, lambda: (_as_columns(batch, schema) for batch in self.read()))

    def _block(self, batches: list[pa.RecordBatch]) -> pa.Table:
        # Copied together: the many buffers of small batches take more memory than what is in them.
        return pa.Table.from_batches(batches, self.schema).combine_chunks()


def _as_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def joined(*parts: RowStream) -> RowStream:
    """The rows of some streams behind each other, with the columns of all of them; those that a part lacks are null.

    Raises, also while being read:
        ArrowException: a column has types that do not go together.
    """
    found = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")
    lacking = {field.name for field in found if any(field.name not in part.schema.names for part in parts)}
    fields = [field.with_nullable(field.nullable or field.name in lacking) for field in found]
    schema = pa.schema(fields).with_metadata(found.metadata)
    return RowStream(schema, lambda: (batch for part in parts for batch in part.as_columns(schema).read()))


def same_rows(one: RowStream, other: RowStream) -> bool:
    """Whether two streams hold the same rows bit for bit, read side by side."""
    if not one.schema.equals(other.schema):
        return False
    pairs = zip_longest(one.blocks(), other.blocks())
    return all(left is not None and right is not None and same_bits(left, right) for left, right in pairs)


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values bit for bit; unlike `Table.equals`, nan is equal to nan."""
    pairs = zip(one.columns, other.columns, strict=False)
    return bool(one.schema.equals(other.schema)) and all(_bits(left).equals(_bits(right)) for left, right in pairs)


def _bits(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    if not pa.types.is_floating(column.type):
        return column
    bits = pa.int32() if column.type.bit_width == 32 else pa.int64()  # noqa: PLR2004  # float32
    return pa.chunked_array([chunk.view(bits) for chunk in column.chunks], type=bits)


def num_rows(batches: Iterable[pa.RecordBatch]) -> int:
    """How many rows there are, none of them kept."""
    return sum(batch.num_rows for batch in batches)


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
