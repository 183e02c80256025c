"""Columns of a table: their types, the rules of their values, and their way into Arrow and back to NumPy.

A `Column` declares what its values are. Two checks follow from it and agree on every value: `Column.checked` takes a
single value and says what is wrong with it, for the pydantic row model and for messages; `to_arrow` and
`broken_values` take a whole column at once.

Arrays are built from NumPy buffers and read back as NumPy buffers, because `pa.array`, `pa.scalar`, `to_numpy` and
`RecordBatch.from_pylist` import pandas, which takes 0.4 s in the middle of a training.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ava_pipeline.contract.lockless_cached_property import lockless_cached_property

Dtype = Literal["int64", "float32", "float64", "string", "timestamp"]
Values: TypeAlias = Sequence[object] | NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
ArrowColumn: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"

# The rules of values, by the ids that `ava-pipeline validate` prints.
NULL, DTYPE, RANGE, CHOICE = "values.null", "values.dtype", "values.range", "values.choice"


class _Type(NamedTuple):
    arrow: pa.DataType
    python: type
    numpy_kind: str  # of the NumPy vectors that need no check of each value


_TYPES: Mapping[Dtype, _Type] = {
    "int64": _Type(pa.int64(), int, "i"),
    "float32": _Type(pa.float32(), float, "f"),
    "float64": _Type(pa.float64(), float, "f"),
    "string": _Type(pa.string(), str, ""),
    "timestamp": _Type(pa.timestamp("us", tz="UTC"), datetime, "M"),
}
_COUNTING_NAMES = frozenset({"batch_idx", "batch_idx_end", "epoch"})
_LARGEST_INTEGERS: Mapping[Dtype, int] = {"float32": 2**24, "float64": 2**53}  # up to here each integer has a float
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_MAX_SHOWN = 200
MAX_TEXT_BYTES = 2**31 - 1  # of one Arrow array


class Declaration(BaseModel):
    """A part of a table's declaration: immutable, and read from manifests that anyone may have written."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(lockless_cached_property,))


class Column(Declaration):
    """One column: its dtype and the rules of its values.

    Attributes:
        name: letters, digits and `_ . - /`, beginning with a letter or `_`.
        dtype: how values are stored. A float column takes integers too, if the float holds them exactly.
        description: one sentence for readers of the schema, with the unit.
        nullable: whether a row may have no value here, which means "not measured".
        not_below: the least number allowed; nan, which means "measured and not finite", is always allowed.
        one_of: the only texts allowed.

    Example:
        >>> Column(name="loss", dtype="float64", description="Mean loss of the batch.", nullable=True)
    """

    name: str
    dtype: Dtype
    description: str
    nullable: bool = False
    not_below: int | None = None
    one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _has_rules_of_its_dtype(self) -> Self:
        if self.name in _COUNTING_NAMES and self.dtype != "int64":
            raise ValueError(f"column {self.name!r} must be int64, got {self.dtype}")
        is_number = self.dtype in {"int64", "float32", "float64"}
        if self.not_below is not None and not (is_number and abs(self.not_below) <= _LARGEST_INTEGERS["float64"]):
            raise ValueError(
                f"column {self.name!r}: not_below needs a number column and a limit between -2**53 and 2**53"
            )
        if self.one_of is not None and not (self.dtype == "string" and self.one_of):
            raise ValueError(f"column {self.name!r}: one_of needs a string column and at least one text")
        return self

    @property
    def arrow_field(self) -> "pa.Field[Any]":
        """The column in an Arrow schema."""
        return pa.field(self.name, _TYPES[self.dtype].arrow, nullable=self.nullable)

    @property
    def annotation(self) -> Any:
        """The column's values as pydantic checks them and as JSON Schema describes them."""
        value: Any = Literal[self.one_of] if self.one_of else _TYPES[self.dtype].python
        if self.not_below is not None:  # not `ge`, which refuses nan
            value = Annotated[value, Field(json_schema_extra={"minimum": self.not_below})]
        return Annotated[value | None if self.nullable else value, BeforeValidator(self.checked)]

    def checked(self, value: object) -> object:
        """Check one value.

        Returns:
            It as an exact `int`, `float`, `str`, `datetime` or None.

        Raises:
            PydanticCustomError: it breaks a rule. Its type is the rule's id, its text says what was expected.
        """
        if value is None:
            if not self.nullable:
                raise _error(NULL, "expected a value in every row, got null.")
            return None
        try:
            exact: Any = _exact(self.dtype, value)
        except (TypeError, ValueError, OverflowError) as error:
            reason = f", {error}" if isinstance(error, OverflowError) else ""
            raise _error(DTYPE, f"expected {self.dtype}, got {shown(value)}{reason}.") from error
        if self.not_below is not None and exact < self.not_below:
            raise _error(RANGE, f"expected {self.not_below} or more, got {shown(value)}.")
        if self.one_of is not None and exact not in self.one_of:
            raise _error(CHOICE, f"expected one of {', '.join(self.one_of)}, got {shown(value)}.")
        return exact


def shown(value: object) -> str:
    """A value as messages show it, shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # a value of any type may come here, and its row must not cost others theirs
        text = object.__repr__(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _error(rule: str, message: str) -> PydanticCustomError:
    return PydanticCustomError(rule, "{message}", {"message": message})


def _exact(dtype: Dtype, value: Any) -> Any:
    """One value as an exact `int`, `float`, `str` or `datetime`.

    Raise TypeError, ValueError or OverflowError if a column of this dtype cannot hold it.
    """
    value = value.item() if isinstance(value, np.generic) else value
    python: Any = _TYPES[dtype].python
    accepted: Any = int | float if python is float else python
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError
    if dtype == "string":
        return value.encode().decode()  # also of a subclass; UnicodeEncodeError, a ValueError, for a lone surrogate
    if dtype == "timestamp":
        return _EPOCH + _microseconds(value) * _MICROSECOND
    if dtype == "int64" and not -(2**63) <= value < 2**63:
        raise OverflowError("which needs more than 64 bits")
    if python is float and isinstance(value, int) and abs(value) > _LARGEST_INTEGERS[dtype]:
        raise OverflowError("an integer that it may not hold exactly")
    return python(value)


def _microseconds(time: datetime) -> int:
    """Since 1970 UTC; a time without a zone is taken for UTC."""
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def to_arrow(column: Column, values: Values) -> "tuple[pa.Array[Any], Bools | None]":
    """Make an Arrow array of a column's values, and find the rows [rows] that break a rule: None if every row is good.

    Values are Python values with None for null, or a NumPy vector of the column's type (floats, integers, or
    `datetime64`, whose NaT is null). The array is null at rows whose value has another type.
    """
    broken = []
    try:
        stored = _stored(column.dtype, values) if _is_plain(column.dtype, values) else None
    except (OverflowError, UnicodeEncodeError):  # a value that Arrow cannot hold
        stored = None
    if stored is None:
        exact, is_wrong = _without_wrong(column.dtype, values)
        try:
            stored = _stored(column.dtype, exact)
        except OverflowError:  # each value can be stored, all of them together are too large for one array
            is_wrong[:] = True
            stored = _stored(column.dtype, [None] * len(values))
        broken = [is_wrong] if is_wrong.any() else []
    broken += [is_broken for _, is_broken in _broken(column, *stored)]
    return stored.array, np.logical_or.reduce(broken) if broken else None


def broken_values(column: Column, values: ArrowColumn) -> Iterator[tuple[str, Bools]]:
    """Yield the id of each rule of the column that a value breaks, and the rows [rows] that break it."""
    numbers = None if column.not_below is None else numpy_values(values)
    return _broken(column, values, numbers, null_mask(values) if values.null_count else None)


def _broken(
    column: Column, values: ArrowColumn, numbers: "NDArray[Any] | None", is_null: Bools | None
) -> Iterator[tuple[str, Bools]]:
    if is_null is not None and not column.nullable:
        yield NULL, is_null
    broken = []
    if column.not_below is not None and numbers is not None:
        broken.append((RANGE, numbers < column.not_below))  # False at nan
    if column.one_of is not None:
        broken.append((CHOICE, ~bools(pc.is_in(values, _stored("string", column.one_of).array))))
    for rule, is_outside in broken:
        is_broken = is_outside if is_null is None else is_outside & ~is_null
        if is_broken.any():
            yield rule, is_broken


def _is_plain(dtype: Dtype, values: Values) -> bool:
    """Whether every value has the exact type of its column, so that NumPy may convert them all at once."""
    if isinstance(values, np.ndarray):
        return type(values) is np.ndarray and values.dtype.kind in _TYPES[dtype].numpy_kind
    return {_TYPES[dtype].python, type(None)}.issuperset(map(type, values))


def _without_wrong(dtype: Dtype, values: Values) -> tuple[list[object], Bools]:
    """The values with their exact types, None in place of those that have another type, and where those are."""
    exact: list[object] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    is_wrong = np.zeros(len(exact), dtype=np.bool_)
    for row, value in enumerate(exact):
        try:
            exact[row] = None if value is None else _exact(dtype, value)
        except (TypeError, ValueError, OverflowError):
            exact[row], is_wrong[row] = None, True
    return exact, is_wrong


class _Stored(NamedTuple):
    array: "pa.Array[Any]"
    numbers: "NDArray[Any] | None"  # before they are rounded to float32; None of texts
    is_null: Bools | None


def _stored(dtype: Dtype, values: Any) -> _Stored:
    """Values of the exact types of a column in Arrow."""
    is_vector = isinstance(values, np.ndarray)
    is_null = None
    if is_vector and dtype == "timestamp":
        is_null = np.isnat(values) if np.isnat(values).any() else None
        values = values.astype("datetime64[us]").view(np.int64)
    elif not is_vector and None in values:
        is_null = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    if dtype == "string":
        encoded = [b"" if value is None else value.encode() for value in values]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        if offsets[-1] > MAX_TEXT_BYTES:
            raise OverflowError("more text than one Arrow array holds")
        return _Stored(_array(pa.string(), offsets.astype(np.int32), is_null, b"".join(encoded)), None, is_null)
    if dtype in _LARGEST_INTEGERS:
        numbers = np.array(values, dtype=np.float64)  # None becomes nan
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            rounded = numbers.astype(np.float32) if dtype == "float32" else numbers
        return _Stored(_array(_TYPES[dtype].arrow, rounded, is_null), numbers, is_null)
    if dtype == "timestamp" and not is_vector:
        values = [0 if value is None else _microseconds(value) for value in values]
    elif is_null is not None:
        values = [0 if value is None else value for value in values]
    numbers = np.array(values, dtype=np.int64)
    return _Stored(_array(_TYPES[dtype].arrow, numbers, is_null), numbers, is_null)


def _array(arrow_type: Any, values: "NDArray[Any]", is_null: Bools | None, *more: bytes) -> "pa.Array[Any]":
    """An Arrow array of NumPy's numbers; of texts, `values` are their offsets and `more` is their bytes."""
    data: Any = values
    buffers = [None if is_null is None else _bits(~is_null), *map(pa.py_buffer, (data, *more))]
    return pa.Array.from_buffers(arrow_type, len(values) - len(more), buffers)


def bool_array(mask: Bools) -> Any:
    """A mask [rows] for `filter`."""
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, _bits(mask)])


def _bits(mask: Bools) -> pa.Buffer:
    packed: Any = np.packbits(mask, bitorder="little")
    return pa.py_buffer(packed)


class NumberColumns(NamedTuple):
    """The keys and the float columns of some rows, as NumPy vectors [rows].

    `floats` holds by name the numbers, nan at a null, and the null mask of a column that has nulls.
    """

    batch_idx: NDArray[np.int64]
    epoch: NDArray[np.int64]
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


def _one_array(values: ArrowColumn) -> Any:
    if not isinstance(values, pa.ChunkedArray):
        return values
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks or [pa.nulls(0, values.type)])
