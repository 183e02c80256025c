"""Rows that are read a part at a time, so that memory does not grow with the length of a run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Self

import pyarrow as pa

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
