"""Arrow columns as NumPy arrays."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Column: TypeAlias = "pa.ChunkedArray[Any]"


def floats(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """A number column [rows] as float64; null becomes nan."""
    return np.asarray(rows.column(name).cast(pa.float64()).to_numpy(), dtype=np.float64)


def integers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    """A whole-number column [rows]; null becomes 0."""
    column: Any = rows.column(name)
    return np.asarray(column.fill_null(0).to_numpy(), dtype=np.int64)


def nulls(column: Column) -> Bools:
    """Where a column holds null [rows]."""
    return np.asarray(column.is_null().to_numpy(), dtype=np.bool_)


def float_columns(rows: pa.Table, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Several number columns [rows] as float64, by name; null becomes nan."""
    return {name: floats(rows, name) for name in names}


def differing(rows: pa.Table, others: pa.Table) -> dict[str, Bools]:
    """Where two tables of one schema and length differ: of each column, a mask [rows].

    Floats are compared bit for bit, but nan is equal to nan; null is equal to null alone.
    """
    return {
        name: _differing(one, other)
        for name, one, other in zip(rows.column_names, rows.columns, others.columns, strict=True)
    }


def _differing(one: Column, other: Column) -> Bools:
    equal = _same_floats(one, other) if pa.types.is_floating(one.type) else _same_values(one, other)
    return np.asarray(~equal | (nulls(one) != nulls(other)), dtype=np.bool_)


def _same_floats(one: Column, other: Column) -> Bools:
    first, second = np.asarray(one.to_numpy()), np.asarray(other.to_numpy())
    bits = np.dtype(f"i{first.dtype.itemsize}")
    same = (first.view(bits) == second.view(bits)) | (np.isnan(first) & np.isnan(second))
    return np.asarray(same, dtype=np.bool_)


def _same_values(one: Column, other: Column) -> Bools:
    same: Any = pc.equal(one, other)  # null where one side is
    return np.asarray(same.fill_null(True), dtype=np.bool_)  # noqa: FBT003  # Arrow's own order


def text(rows: pa.Table, name: str, position: int) -> str:
    """One value as a finding shows it; null is "null"."""
    value = rows.column(name)[position].as_py()
    return "null" if value is None else str(value)


BatchIndices = NDArray[np.int64]

Floats = NDArray[np.float64]
