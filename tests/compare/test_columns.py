"""One column of two runs: equal bits, rounding, and values that are no numbers."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.compare.columns import ColumnComparison, compare_column
from ava_pipeline.compare.noise import WINDOW
from ava_pipeline.compare.values import Pair, Value, plain

NAN, INF = float("nan"), float("inf")


def compared(a: list[Any], b: list[Any], dtype: Any = None, *, is_exact: bool = False) -> ColumnComparison:
    """The values of batches 10, 20, 30, ..."""
    batches = np.arange(1, len(a) + 1, dtype=np.int64) * 10
    columns = (pa.chunked_array([pa.array(one, dtype or pa.float64())]) for one in (a, b))
    return compare_column("x", batches, *columns, is_exact=is_exact)


@pytest.mark.parametrize("value", [None, NAN, INF, -INF, 0.0, 1.5])
def test_a_value_equals_itself(value: float | None) -> None:
    """Null, nan and inf too; a column that neither run measured is called so."""
    found = compared([value], [value])
    assert (found.num_unequal, found.first_unequal, found.beyond_noise) == (0, None, None)
    assert found.state == ("not measured" if value is None else "equal")


@pytest.mark.parametrize(("a", "b"), [(None, NAN), (None, 0.0), (NAN, 0.0), (INF, -INF), (NAN, INF), (0.0, -0.0)])
def test_kinds_of_values_are_kept_apart(a: float | None, b: float | None) -> None:
    """Each kind equals only itself, in either order."""
    for one, other in ((a, b), (b, a)):
        found = compared([1.0, one], [1.0, other])
        assert found.num_unequal == 1
        assert found.first_unequal is not None
        assert found.first_unequal.batch_idx == 20
        assert (found.num_only_a, found.num_only_b) == (int(other is None), int(one is None))


def test_nan_in_one_run_alone_is_beyond_noise_at_once() -> None:
    """In JSON it is a text, because null means not measured."""
    a, b = [0.5] * 40, [0.5] * 40
    b[20] = NAN
    found = compared(a, b)
    assert found.beyond_noise is not None
    assert found.beyond_noise.batch_idx == 210
    assert not found.beyond_noise.is_at_end
    assert plain(found)["beyond_noise"]["values"] == {"a": 0.5, "b": "nan", "relative": None}
    assert plain(found)["state"] == "beyond noise"


def test_null_in_one_run_alone_is_no_difference_of_values() -> None:
    """It is counted, and a column that one run never measured is called so."""
    values = [0.5 + 0.01 * (row % 7) for row in range(40)]
    found = compared([*values[:39], None], values)
    assert (found.state, found.num_only_b, found.num_only_a) == ("within noise", 1, 0)
    assert compared([None] * 40, values).state == "measured in one run alone"


def test_few_rows_are_not_judged() -> None:
    """They differ, and how much that means is not known."""
    found = compared([1.0] * (WINDOW - 1), [9.0] * (WINDOW - 1))
    assert (found.state, found.is_judged, found.beyond_noise) == ("too few rows to tell", False, None)
    assert found.first_unequal is not None
    assert found.first_unequal.values == Pair(1.0, 9.0)


def test_rows_of_nan_and_null_do_not_count_as_rows() -> None:
    """The batch of a difference is that of its row, whatever was measured before."""
    before: list[float | None] = [None, NAN, INF] * 10
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=60) for _ in range(2))
    found = compared([*before, *a], [*before, *a[:30], *(b[30:] + 100)])
    assert found.beyond_noise is not None
    assert found.beyond_noise.batch_idx == 10 * (30 + 30 + 1)
    assert found.beyond_noise.is_at_end


@pytest.mark.parametrize(
    ("a", "b", "is_beyond"),
    [(1e-3, 1e-2, True), (1e-3, 1e-3 * (1 + 1e-6), True), (1e-3, 1e-3 * (1 + 1e-14), False), (1e-300, 0.0, False)],
)
def test_rates_are_exact_up_to_rounding(a: float, b: float, is_beyond: bool) -> None:  # noqa: FBT001  # a parameter
    """One row decides; another order of the same operations is no other rate, also where a schedule ends at 0."""
    found = compared([1.0, a], [1.0, b], is_exact=True)
    assert found.num_unequal == 1
    assert (found.beyond_noise is not None) == is_beyond
    assert found.state == ("beyond noise" if is_beyond else "within noise")


@pytest.mark.parametrize(
    ("dtype", "a", "b"), [(pa.int64(), 2**53, 2**53 + 1), (pa.string(), "a", "b"), (pa.bool_(), True, False)]
)
def test_whole_numbers_texts_and_booleans_are_exact(dtype: Any, a: Value, b: Value) -> None:
    """Bit for bit, null kept apart."""
    found = compared([a, None, a], [a, None, b], dtype)
    assert found.is_exact
    assert found.beyond_noise is not None
    assert (found.beyond_noise.batch_idx, found.beyond_noise.values) == (30, Pair(a, b))
    assert compared([a, None], [a, a], dtype).num_only_b == 1


def test_columns_of_other_width_are_compared_as_numbers() -> None:
    """A float32 equals the float64 of the same value alone."""
    one = pa.chunked_array([pa.array([0.5, 0.1], pa.float32())])
    other = pa.chunked_array([pa.array([0.5, 0.1], pa.float64())])
    found = compare_column("x", np.array([1, 2]), one, other, is_exact=False)
    assert found.first_unequal is not None
    assert found.first_unequal.batch_idx == 2


def test_relative_distances_and_texts() -> None:
    """Of the larger value, without overflow; as many digits as tell two numbers apart."""
    assert Pair(1.0, 4.0).relative == 0.75
    assert Pair(1e308, -1e308).relative == 2.0
    assert Pair(0.0, 0.0).relative == 0.0
    assert (Pair(None, 1.0).relative, Pair(NAN, 1.0).relative, Pair("a", "b").relative) == (None, None, None)
    assert Pair(0.1, 0.10000001).texts() == ("0.1", "0.10000001")
    assert Pair(None, NAN).texts() == ("not measured", "nan")
