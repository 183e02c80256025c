"""Arrow columns as NumPy arrays, without the pandas that Arrow's own conversions import."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ava_pipeline.contract.columns import null_mask, numpy_columns, numpy_values

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
BatchIndices: TypeAlias = NDArray[np.int64]
Column: TypeAlias = "pa.ChunkedArray[Any]"


def floats(rows: pa.Table, name: str) -> Floats:
    """A column of numbers [rows] as float64; null becomes nan.

    Example:
        >>> floats(pa.table({"norm": [1, None]}), "norm")
        array([ 1., nan])
    """
    return numpy_values(rows.column(name).cast(pa.float64()))


def integers(rows: pa.Table, name: str) -> BatchIndices:
    """A column of integers [rows] as int64; null becomes 0."""
    return numpy_values(rows.column(name)).astype(np.int64, copy=False)


def nulls(column: Column) -> Bools:
    """Where a column is null [rows]."""
    return null_mask(column)


def float_columns(rows: pa.Table, names: Iterable[str]) -> dict[str, Floats]:
    """Several columns of numbers [rows] as float64, by name; null becomes nan."""
    schema = pa.schema([(name, pa.float64()) for name in names])
    return numpy_columns(rows.select(schema.names).cast(schema))


def differing(rows: pa.Table, others: pa.Table) -> dict[str, Bools]:
    """Where two tables of one schema and length differ: of each column, a mask [rows].

    Floats are compared bit for bit, but any nan equals any nan; null equals only null.
    """
    first, second = numpy_columns(rows), numpy_columns(others)
    found = {}
    for name, one, other in zip(rows.column_names, rows.columns, others.columns, strict=True):
        if name in first:
            differ = _differing_numbers(first[name], second[name])
        else:
            differ = numpy_values(pc.not_equal(one, other).cast(pa.uint8())) != 0  # False at a null
        has_nulls = one.null_count or other.null_count
        found[name] = differ | (nulls(one) != nulls(other)) if has_nulls else differ
    return found


def _differing_numbers(first: NDArray[Any], second: NDArray[Any]) -> Bools:
    bits = np.dtype(f"i{first.dtype.itemsize}")
    differ = first.view(bits) != second.view(bits)
    if first.dtype.kind == "f":
        differ &= ~(np.isnan(first) & np.isnan(second))
    return np.asarray(differ, dtype=np.bool_)


def take_rows(rows: pa.Table, positions: NDArray[np.intp]) -> pa.Table:
    """The rows at 0-based positions [positions]."""
    numbers: Any = np.ascontiguousarray(positions, dtype=np.int64)
    return rows.take(pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)]))


def text(rows: pa.Table, name: str, position: int) -> str:
    """One value as a finding shows it; null is "null"."""
    value = rows.column(name)[position].as_py()
    return "null" if value is None else str(value)
