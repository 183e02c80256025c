"""Arrow columns as NumPy arrays, without the pandas that Arrow's own conversions import."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ava_pipeline.contract.columns import null_mask, numpy_values

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
    return {name: floats(rows, name) for name in names}


def differing(rows: pa.Table, others: pa.Table) -> dict[str, Bools]:
    """Where two tables of one schema and length differ: of each column, a mask [rows].

    Floats are compared bit for bit, but any nan equals any nan; null equals only null.
    """
    return {
        name: _differing(one, other)
        for name, one, other in zip(rows.column_names, rows.columns, others.columns, strict=True)
    }


def _differing(one: Column, other: Column) -> Bools:
    if pa.types.is_string(one.type):
        differ = numpy_values(pc.not_equal(one, other).cast(pa.uint8())) != 0  # False at a null
    else:
        first, second = numpy_values(one), numpy_values(other)
        bits = np.dtype(f"i{first.dtype.itemsize}")
        differ = first.view(bits) != second.view(bits)
        if pa.types.is_floating(one.type):
            differ &= ~(np.isnan(first) & np.isnan(second))
    return np.asarray(differ | (nulls(one) != nulls(other)), dtype=np.bool_)


def text(rows: pa.Table, name: str, position: int) -> str:
    """One value as a finding shows it; null is "null"."""
    value = rows.column(name)[position].as_py()
    return "null" if value is None else str(value)
