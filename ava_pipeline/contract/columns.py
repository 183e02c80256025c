"""Columns of a table: their types, the rules of their values, and their way into Arrow and back to NumPy.

A `Column` declares what its values are. Two checks follow from it and agree on every value: `Column.checked` takes a
single value and says what is wrong with it, for the pydantic row model and for messages; `to_arrow` and
`broken_values` take a whole column at once.

Arrays are built from NumPy buffers and read back as NumPy buffers, because `pa.array`, `pa.scalar`, `to_numpy` and
`RecordBatch.from_pylist` import pandas, which takes 0.4 s in the middle of a training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

_ARROW_TYPES: Mapping[Dtype, pa.DataType] = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_PYTHON_TYPES: Mapping[Dtype, type] = {
    "int64": int,
    "float32": float,
    "float64": float,
    "string": str,
    "timestamp": datetime,
}
_COUNTING_NAMES = frozenset({"batch_idx", "batch_idx_end", "epoch"})
_LARGEST_INTEGERS: Mapping[Dtype, int] = {"float32": 2**24, "float64": 2**53}  # up to here each integer has a float
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_MAX_SHOWN = 200


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
        return pa.field(self.name, _ARROW_TYPES[self.dtype], nullable=self.nullable)

    @property
    def annotation(self) -> Any:
        """The column's values as pydantic checks them and as JSON Schema describes them."""
        value: Any = Literal[self.one_of] if self.one_of else _PYTHON_TYPES[self.dtype]
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
            exact: Any = _EXACT[self.dtype](_python_value(value))
        except (TypeError, ValueError, OverflowError) as error:
            reason = f", {error}" if isinstance(error, OverflowError) else ""
            raise _error(DTYPE, f"expected {self.dtype}, got {shown(value)}{reason}.") from error
        if self.not_below is not None and exact < self.not_below:
            raise _error(RANGE, f"expected {self.not_below} or more, got {shown(value)}.")
        if self.one_of is not None and exact not in self.one_of:
            raise _error(CHOICE, f"expected one of {', '.join(self.one_of)}, got {shown(value)}.")
        return exact


def arrow_fields(columns: Sequence[Column]) -> "list[pa.Field[Any]]":
    """Several columns in an Arrow schema."""
    return [column.arrow_field for column in columns]


def shown(value: object) -> str:
    """A value as messages show it, shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # a value of any type may come here, and its row must not cost others theirs
        text = object.__repr__(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _error(rule: str, message: str) -> PydanticCustomError:
    return PydanticCustomError(rule, "{message}", {"message": message})


def _python_value(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _exact_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if not -(2**63) <= value < 2**63:
        raise OverflowError("which needs more than 64 bits")
    return int(value)


def _exact_float(value: object, largest: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if isinstance(value, int) and abs(value) > largest:
        raise OverflowError("an integer that it may not hold exactly")
    return float(value)


def _exact_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.encode().decode()  # also of a subclass; UnicodeEncodeError, a ValueError, for a lone surrogate


def _exact_time(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError
    return _EPOCH + _microseconds(value) * _MICROSECOND


_EXACT: Mapping[Dtype, Callable[[object], object]] = {
    "int64": _exact_int,
    "float32": lambda value: _exact_float(value, _LARGEST_INTEGERS["float32"]),
    "float64": lambda value: _exact_float(value, _LARGEST_INTEGERS["float64"]),
    "string": _exact_text,
    "timestamp": _exact_time,
}


def _microseconds(time: datetime) -> int:
    """Since 1970 UTC; a time without a zone is taken for UTC."""
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, slots=True)
class ArrowValues:
    """A column's values in Arrow.

    Attributes:
        array: of the column's Arrow type; null at rows whose value has another type.
        is_broken: [rows] where a value breaks a rule; None if every value is good.
    """

    array: "pa.Array[Any]"
    is_broken: Bools | None


def to_arrow(columns: Sequence[Column], values: Mapping[str, Values], num_rows: int) -> list[ArrowValues]:
    """Make Arrow arrays of the values of some columns, and find the values that break a rule.

    Args:
        columns: what the values are.
        values: by column, one per row: Python values with None for null, or a NumPy vector of the column's type
            (floats, integers, or `datetime64`, whose NaT is null). A column that is missing is null in every row.
        num_rows: how many rows there are.
    """
    return [_to_arrow(column, values.get(column.name, [None] * num_rows)) for column in columns]


def _to_arrow(column: Column, values: Values) -> ArrowValues:
    is_wrong = None
    if not _is_plain(column.dtype, values):
        values, is_wrong = _without_wrong(column, values)
    try:
        stored = _STORED[column.dtype](values)
    except (OverflowError, UnicodeEncodeError):  # plain types, and a value among them that Arrow cannot hold
        values, is_wrong = _without_wrong(column, values)
        stored = _stored_or_refused(column, values, is_wrong)
    broken = [mask for _, mask in _broken(column, stored.array, stored.numbers, stored.is_null)]
    broken += [is_wrong] if is_wrong is not None and is_wrong.any() else []
    return ArrowValues(stored.array, np.logical_or.reduce(broken) if broken else None)


def broken_values(columns: Sequence[Column], rows: pa.Table) -> Iterator[tuple[Column, str, Bools]]:
    """Find the stored values that break a rule of their column.

    Args:
        columns: the declarations.
        rows: a table with these columns, in their Arrow types.

    Yields:
        The column, the id of a rule, and the rows [rows] that break it, at least one.
    """
    for column in columns:
        values = rows.column(column.name)
        is_null = null_mask(values) if values.null_count else None
        numbers = None if column.not_below is None else numpy_values(values)
        for rule, is_broken in _broken(column, values, numbers, is_null):
            yield column, rule, is_broken


def _broken(
    column: Column, values: ArrowColumn, numbers: "NDArray[Any] | None", is_null: Bools | None
) -> Iterator[tuple[str, Bools]]:
    if is_null is not None and not column.nullable:
        yield NULL, is_null
    if column.not_below is not None and numbers is not None:
        is_below = numbers < column.not_below  # False at nan
        if is_null is not None:
            is_below &= ~is_null
        if is_below.any():
            yield RANGE, is_below
    if column.one_of is not None:
        is_other = ~bools(pc.is_in(values, _texts(column.one_of).array))
        if is_null is not None:
            is_other &= ~is_null
        if is_other.any():
            yield CHOICE, is_other


_PLAIN: Mapping[Dtype, frozenset[type]] = {
    "int64": frozenset({int, type(None)}),
    "float32": frozenset({float, type(None)}),
    "float64": frozenset({float, type(None)}),
    "string": frozenset({str, type(None)}),
    "timestamp": frozenset({datetime, type(None)}),
}
_PLAIN_KINDS: Mapping[Dtype, str] = {"int64": "i", "float32": "f", "float64": "f", "string": "", "timestamp": "M"}


def _is_plain(dtype: Dtype, values: Values) -> bool:
    """Whether every value has the exact type of its column, so that NumPy may convert them all at once."""
    if isinstance(values, np.ndarray):
        return type(values) is np.ndarray and values.dtype.kind in _PLAIN_KINDS[dtype]
    return _PLAIN[dtype].issuperset(map(type, values))


def _without_wrong(column: Column, values: Values) -> tuple[list[object], Bools]:
    """The values with their exact types, None in place of those that have another type, and where those are."""
    exact: list[object] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    is_wrong = np.zeros(len(exact), dtype=np.bool_)
    convert = _EXACT[column.dtype]
    for row, value in enumerate(exact):
        if value is not None:
            try:
                exact[row] = convert(_python_value(value))
            except (TypeError, ValueError, OverflowError):
                exact[row], is_wrong[row] = None, True
    return exact, is_wrong


@dataclass(frozen=True, slots=True)
class _Stored:
    array: "pa.Array[Any]"
    numbers: "NDArray[Any] | None" = None  # before they are rounded to float32
    is_null: Bools | None = None


def _stored_or_refused(column: Column, values: list[object], is_wrong: Bools) -> _Stored:
    """Each value can be stored; should all of them together be too large for one array, every row is refused."""
    try:
        return _STORED[column.dtype](values)
    except OverflowError:
        is_wrong[:] = True
        return _STORED[column.dtype]([None] * len(values))


def _nulls(values: Values) -> Bools | None:
    if isinstance(values, np.ndarray) or None not in values:
        return None
    return np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))


def _floats(values: Values, dtype: Dtype) -> _Stored:
    numbers = np.array(values, dtype=np.float64)  # None becomes nan
    is_null = _nulls(values) if np.isnan(numbers).any() else None
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        stored = numbers.astype(np.float32) if dtype == "float32" else numbers
    return _Stored(_array(_ARROW_TYPES[dtype], stored, is_null), numbers, is_null)


def _integers(values: Values) -> _Stored:
    is_null = _nulls(values)
    known = values if is_null is None else [0 if value is None else value for value in values]
    numbers = np.array(known, dtype=np.int64)
    return _Stored(_array(pa.int64(), numbers, is_null), numbers, is_null)


def _times(values: Values) -> _Stored:
    if isinstance(values, np.ndarray):
        is_null: Bools | None = np.isnat(values)
        microseconds = values.astype("datetime64[us]").view(np.int64)
    else:
        is_null = _nulls(values)
        times = (_EPOCH if value is None else value for value in values)
        microseconds = np.array([_microseconds(time) for time in times if isinstance(time, datetime)], dtype=np.int64)
    is_null = is_null if is_null is not None and is_null.any() else None
    return _Stored(_array(_ARROW_TYPES["timestamp"], microseconds, is_null), None, is_null)


def _texts(values: Values) -> _Stored:
    is_null = _nulls(values)
    encoded = [value.encode() if isinstance(value, str) else b"" for value in values]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    if offsets[-1] > MAX_TEXT_BYTES:
        raise OverflowError("more text than one Arrow array holds")
    array = _array(pa.string(), offsets.astype(np.int32), is_null, b"".join(encoded))
    return _Stored(array, None, is_null)


MAX_TEXT_BYTES = 2**31 - 1

_STORED: Mapping[Dtype, Callable[[Values], _Stored]] = {
    "int64": _integers,
    "float32": lambda values: _floats(values, "float32"),
    "float64": lambda values: _floats(values, "float64"),
    "string": _texts,
    "timestamp": _times,
}


def _array(arrow_type: Any, values: "NDArray[Any]", is_null: Bools | None, *more: bytes) -> "pa.Array[Any]":
    """An Arrow array of NumPy's numbers; of texts, `values` are their offsets and `more` is their bytes."""
    data: Any = np.ascontiguousarray(values)
    buffers = [None if is_null is None else _bits(~is_null), pa.py_buffer(data), *map(pa.py_buffer, more)]
    return pa.Array.from_buffers(arrow_type, len(values) - len(more), buffers)


def bool_array(mask: Bools) -> Any:
    """A mask [rows] for `filter`."""
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, _bits(mask)])


def _bits(mask: Bools) -> pa.Buffer:
    packed: Any = np.packbits(mask, bitorder="little")
    return pa.py_buffer(packed)


class NumberColumns(NamedTuple):
    """The keys and the float columns of some rows, as NumPy vectors.

    Attributes:
        batch_idx: int64 [rows].
        epoch: int64 [rows].
        floats: by name, the numbers [rows], nan at a null, and the null mask [rows] of a column that has nulls.
    """

    batch_idx: NDArray[np.int64]
    epoch: NDArray[np.int64]
    floats: "dict[str, tuple[NDArray[Any], Bools | None]]"


def number_columns(rows: pa.RecordBatch | pa.Table) -> NumberColumns:
    """The keys and the float columns of some rows."""
    names = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    floats = {
        name: (numpy_values(column), null_mask(column) if column.null_count else None)
        for name, column in ((name, rows.column(name)) for name in names)
    }
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
