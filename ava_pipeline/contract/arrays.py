"""Arrow columns as NumPy arrays and back.

Arrow's own conversions (`pa.array`, `pa.scalar`, `to_numpy`, `RecordBatch.from_pylist`) import pandas, which takes
0.4 s in the middle of a training. These go through the buffers of both.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
BatchIndices: TypeAlias = Integers
ArrowColumn: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"


def bool_array(mask: Bools) -> Any:
    """A mask [rows] for `filter`."""
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, bit_buffer(mask)])


def arrow_array(arrow_type: Any, values: NDArray[Any], is_null: Bools | None, *more: bytes) -> "pa.Array[Any]":
    """An Arrow array of NumPy's numbers; of texts, `values` are their offsets and `more` is their bytes."""
    data: Any = np.packbits(values, bitorder="little") if values.dtype.kind == "b" else values
    buffers = [None if is_null is None else bit_buffer(~is_null), *map(pa.py_buffer, (data, *more))]
    return pa.Array.from_buffers(arrow_type, len(values) - len(more), buffers)


def bit_buffer(mask: Bools) -> pa.Buffer:
    """A mask [rows] as the bits of an Arrow buffer."""
    packed: Any = np.packbits(mask, bitorder="little")
    return pa.py_buffer(packed)


class NumberColumns(NamedTuple):
    """The keys and the float columns of some rows, as NumPy vectors [rows].

    `floats` holds by name the numbers, nan at a null, and the null mask of a column that has nulls.
    """

    batch_idx: BatchIndices
    epoch: Integers
    floats: "dict[str, tuple[NDArray[Any], Bools | None]]"


def number_columns(rows: pa.RecordBatch | pa.Table) -> NumberColumns:
    """The keys and the float columns of some rows."""
    columns = [(field.name, rows.column(field.name)) for field in rows.schema if pa.types.is_floating(field.type)]
    floats = {name: (numpy_values(one), null_mask(one) if one.null_count else None) for name, one in columns}
    return NumberColumns(numpy_values(rows.column("batch_idx")), numpy_values(rows.column("epoch")), floats)


def numpy_columns(rows: pa.Table) -> "dict[str, NDArray[Any]]":
    """The columns of numbers of a table, by name, as `numpy_values` gives each."""
    return {
        field.name: numpy_values(column)
        for field, column in zip(rows.schema, rows.columns, strict=True)
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }


def numpy_values(values: ArrowColumn) -> "NDArray[Any]":
    """A column of numbers or timestamps [rows] in its own width: nan at a null of a float column, 0 at other nulls.

    Timestamps are int64, in their own unit. A column without nulls is not copied.
    """
    array = _one_array(values)
    kind = "f" if pa.types.is_floating(array.type) else "u" if pa.types.is_unsigned_integer(array.type) else "i"
    dtype = np.dtype(f"{kind}{array.type.bit_width // 8}")
    data: Any = array.buffers()[1]
    missing = dtype.type(np.nan if kind == "f" else 0)
    if data is None or not len(array):
        return np.full(len(array), missing)
    numbers: NDArray[Any] = np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
    return np.where(null_mask(array), missing, numbers) if array.null_count else numbers


def null_mask(values: ArrowColumn) -> Bools:
    """Where a column is null [rows]."""
    return bools(values.is_null())


def bools(values: ArrowColumn) -> Bools:
    """A boolean column [rows]; undefined at nulls."""
    array = _one_array(values)
    data: Any = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(len(array), dtype=np.bool_)
    octets: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    bits: Bools = np.unpackbits(octets, count=array.offset + len(array), bitorder="little").astype(np.bool_)
    return bits[array.offset :]


def floats(rows: pa.RecordBatch | pa.Table, name: str) -> Floats:
    """A column of numbers [rows] as float64; null becomes nan."""
    return numpy_values(rows.column(name).cast(pa.float64()))


def integers(rows: pa.RecordBatch | pa.Table, name: str) -> Integers:
    """A column of integers [rows] as int64; null becomes 0."""
    return numpy_values(rows.column(name)).astype(np.int64, copy=False)


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
        found[name] = differ | (null_mask(one) != null_mask(other)) if has_nulls else differ
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


def cell_text(rows: pa.Table, name: str, position: int) -> str:
    """One value as a finding shows it; null is "null"."""
    value = rows.column(name)[position].as_py()
    return "null" if value is None else str(value)


def _one_array(values: ArrowColumn) -> Any:
    if not isinstance(values, pa.ChunkedArray):
        return values
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks or [pa.nulls(0, values.type)])
