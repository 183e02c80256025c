"""Columns of a table: their types, the rules of their values, and their way into Arrow.

A `Column` declares what its values are. Two checks follow from it and agree on every value: `Column.checked` takes a
single value and says what is wrong with it, for the pydantic row model and for messages; `to_arrow` and
`broken_values` take whole columns at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ava_pipeline.contract.arrays import (
    ArrowColumn,
    Bools,
    arrow_array,
    bools,
    null_mask,
    numpy_columns,
    numpy_values,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Dtype = Literal["int64", "float32", "float64", "bool", "string", "timestamp"]
Values: TypeAlias = "Sequence[object] | NDArray[Any] | pa.Array[Any]"

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
    "bool": _Type(pa.bool_(), bool, "b"),
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

    model_config = ConfigDict(frozen=True, extra="forbid")


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
                f"column {self.name!r}: not_below needs a column of numbers and a limit between -2**53 and 2**53"
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
            It as an exact `int`, `float`, `bool`, `str`, `datetime` or None.

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


def arrow_schema(columns: Iterable[Column], metadata: dict[bytes | str, bytes | str]) -> pa.Schema:
    """The columns of a table in Arrow."""
    return pa.schema([column.arrow_field for column in columns], metadata=metadata)


def dtype_name(arrow_type: pa.DataType) -> str:
    """The name of an Arrow type as declarations give it; of other types, Arrow's name."""
    return next((dtype for dtype, one in _TYPES.items() if one.arrow == arrow_type), str(arrow_type))


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
    """One value as an exact `int`, `float`, `bool`, `str` or `datetime`.

    Raise TypeError, ValueError or OverflowError if a column of this dtype cannot hold it.
    """
    value = value.item() if isinstance(value, np.generic) else value
    python: Any = _TYPES[dtype].python
    accepted: Any = int | float if python is float else python
    if isinstance(value, bool) != (python is bool) or not isinstance(value, accepted):
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
    """Since 1970 UTC; a time without a zone counts as UTC."""
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def to_arrow(column: Column, values: Values) -> "tuple[pa.Array[Any], Bools | None]":
    """Make an Arrow array of a column's values, and find the rows [rows] that break a rule: None if every row is good.

    Values are Python values with None for null, a NumPy vector of the column's type (floats, integers, booleans, or
    `datetime64`, whose NaT is null), or an Arrow array of it. The array is null at rows whose value has another type.
    """
    if isinstance(values, pa.Array):
        values, stored = _of_arrow(column.dtype, values)
        if stored is not None:
            return stored.array, _any(is_broken for _, is_broken in _broken(column, *stored))
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
    return stored.array, _any(broken)


def _any(broken: Iterable[Bools]) -> Bools | None:
    masks = list(broken)
    return np.logical_or.reduce(masks) if masks else None


def _of_arrow(dtype: Dtype, values: "pa.Array[Any]") -> "tuple[Values, _Stored | None]":
    """Values that are an Arrow array already, which no row has to be converted for; else as Python values."""
    if values.type != _TYPES[dtype].arrow:
        return values.to_pylist(), None
    is_null = null_mask(values) if values.null_count else None
    is_number = dtype in {"int64", "float32", "float64"}
    return values, _Stored(values, numpy_values(values) if is_number else None, is_null)


def columns_to_arrow(
    columns: Iterable[Column], values: Mapping[str, Values], num_rows: int
) -> "tuple[list[pa.Array[Any]], Bools | None]":
    """Make Arrow arrays of new rows, and find the rows [rows] that break a rule, as `to_arrow` does for one column.

    A column that `values` lacks is null in every row.
    """
    nulls = [None] * num_rows
    made = [to_arrow(column, values.get(column.name, nulls)) for column in columns]
    return [array for array, _ in made], _any(is_broken for _, is_broken in made if is_broken is not None)


def broken_values(columns: Iterable[Column], rows: pa.Table) -> Iterator[tuple[Column, str, Bools]]:
    """Yield each column with the id of a rule that its values break, and the rows [rows] that break it."""
    numbers = numpy_columns(rows)
    for column in columns:
        values = rows.column(column.name)
        is_null = null_mask(values) if values.null_count else None
        for rule, is_broken in _broken(column, values, numbers.get(column.name), is_null):
            yield column, rule, is_broken


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
        return _Stored(arrow_array(pa.string(), offsets.astype(np.int32), is_null, b"".join(encoded)), None, is_null)
    if dtype in _LARGEST_INTEGERS:
        numbers = np.array(values, dtype=np.float64)  # None becomes nan
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            rounded = numbers.astype(np.float32) if dtype == "float32" else numbers
        return _Stored(arrow_array(_TYPES[dtype].arrow, rounded, is_null), numbers, is_null)
    if dtype == "bool":
        mask = np.array([value is True for value in values] if is_null is not None else values, dtype=np.bool_)
        return _Stored(arrow_array(pa.bool_(), mask, is_null), None, is_null)
    if dtype == "timestamp" and not is_vector:
        values = [0 if value is None else _microseconds(value) for value in values]
    elif is_null is not None:
        values = [0 if value is None else value for value in values]
    numbers = np.array(values, dtype=np.int64)
    return _Stored(arrow_array(_TYPES[dtype].arrow, numbers, is_null), numbers, is_null)
