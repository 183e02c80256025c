"""Columns and the pydantic row model agree on every value, and values come back as they were."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import numpy_values
from ava_pipeline.contract.columns import Column, Dtype, broken_values, to_arrow
from ava_pipeline.contract.tables import RunTable, Table

DTYPES: list[Dtype] = ["int64", "float32", "float64", "string", "timestamp"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400, 0, 1, -1]),
    st.floats(),
    st.sampled_from([-1e-50, -0.0, 1e300, np.float32(0.5), np.float64("nan"), np.int64(3), np.bool_(True)]),  # noqa: FBT003  # a value
    st.text(),
    st.sampled_from(["good", "bad", "1.0", "\ud800", ""]),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.sampled_from([Decimal(1), 1j, b"bytes", [1.0], object()]),
)


@st.composite
def columns(draw: st.DrawFn) -> Column:
    """A column of any dtype with any rules of it."""
    dtype = draw(st.sampled_from(DTYPES))
    limits = st.none() | st.sampled_from([-(2**53), -1, 0, 1, 2**53])
    return Column(
        name="x",
        dtype=dtype,
        description="",
        nullable=draw(st.booleans()),
        not_below=draw(limits) if dtype in {"int64", "float32", "float64"} else None,
        one_of=draw(st.none() | st.just(("good", "bad"))) if dtype == "string" else None,
    )


@settings(max_examples=400, deadline=None)
@given(column=columns(), values=st.lists(VALUES, min_size=1, max_size=6))
def test_columns_and_pydantic_agree_on_every_value(column: Column, values: list[object]) -> None:
    """The rows that the vectorised rules keep are those that the row model keeps, whatever stands beside them."""
    table = RunTable.of(Table(name="t", description="", columns=(column,)))
    good = [row for row, value in enumerate(values) if not table.problems([{"x": value}])]
    kept, findings, _ = table.check({"x": values}, len(values))
    assert [finding.row for finding in findings] == [row + 1 for row in range(len(values)) if row not in good]
    assert kept.num_rows == len(good)
    assert {finding.id for finding in findings} <= {"values.null", "values.dtype", "values.range", "values.choice"}
    exact = [column.checked(values[row]) for row in good]
    if column.dtype == "float32":
        with np.errstate(over="ignore"):
            exact = [None if value is None else float(np.float32(value)) for value in exact]  # type: ignore[arg-type]  # checked
    assert [_text(value) for value in kept.column(0).to_pylist()] == [_text(value) for value in exact]


NUMPY_DTYPES: list[Any] = [np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.uint64, np.bool_]
VECTORS = st.sampled_from(NUMPY_DTYPES).flatmap(lambda dtype: arrays(dtype, st.integers(1, 6)))


@settings(max_examples=300, deadline=None)
@given(column=columns(), vector=VECTORS)
def test_a_vector_is_checked_as_its_numbers_are(column: Column, vector: NDArray[Any]) -> None:
    """Measures return vectors: a row is kept if pydantic accepts its number."""
    table = RunTable.of(Table(name="t", description="", columns=(column,)))
    good = [row for row, value in enumerate(vector) if not table.problems([{"x": value}])]
    kept, findings, _ = table.check({"x": vector}, len(vector))
    assert [finding.row for finding in findings] == [row + 1 for row in range(len(vector)) if row not in good]
    assert kept.num_rows == len(good)


STORED: dict[Dtype, st.SearchStrategy[object]] = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "string": st.sampled_from(["good", "bad", "other", ""]),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
}


@settings(max_examples=300, deadline=None)
@given(column=columns(), data=st.data())
def test_rules_of_files_and_pydantic_agree(column: Column, data: st.DataObject) -> None:
    """`validate` finds in a file the rows that were never written."""
    values = data.draw(st.lists(st.none() | STORED[column.dtype], min_size=1, max_size=6))
    table = RunTable.of(Table(name="t", description="", columns=(column,)))
    stored = pa.table({"x": pa.array(values, table.arrow_schema.field("x").type)})
    broken = {row for _, _, rows in broken_values([column], stored) for row in np.flatnonzero(rows)}
    given_back = stored["x"].to_pylist()
    assert broken == {row for row, value in enumerate(given_back) if table.problems([{"x": value}])}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return "nan" if isinstance(value, float) and math.isnan(value) else repr(value)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", "12.3.4", "expected float32, got '12.3.4'."),
        ("float64", 2**53 + 1, "expected float64, got 9007199254740993, an integer that it may not hold exactly."),
        ("int64", 2**63, "expected int64, got 9223372036854775808, which needs more than 64 bits."),
        ("int64", None, "expected a value in every row, got null."),
        ("timestamp", "2026-01-02", "expected timestamp, got '2026-01-02'."),
        ("string", "\ud800", r"expected string, got '\ud800'."),
    ],
)
def test_a_finding_says_what_was_expected_and_what_was_given(dtype: Dtype, value: object, message: str) -> None:
    """In the words of the declaration."""
    table = RunTable.of(Table(name="t", description="", columns=(Column(name="x", dtype=dtype, description=""),)))
    (finding,) = table.check({"x": [value]}, 1).findings
    assert finding.message == message


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
def test_numpy_vectors_are_accepted_and_come_back(dtype: Dtype) -> None:
    """A measure may return vectors, also those that are slices of a matrix."""
    column = Column(name="x", dtype=dtype, description="", not_below=1)
    matrix = np.arange(6).reshape(3, 2).astype(dtype)
    array, is_broken = to_arrow(column, matrix[:, 1])
    matrix[:] = 0
    assert numpy_values(array).tolist() == [1, 3, 5]
    assert is_broken is None


def test_a_vector_of_times_may_hold_no_time() -> None:
    """NaT is null."""
    column = Column(name="x", dtype="timestamp", description="", nullable=True)
    array, _ = to_arrow(column, np.array(["2026-01-02", "NaT"], dtype="datetime64[s]"))
    assert array.to_pylist() == [datetime(2026, 1, 2, tzinfo=UTC), None]
