"""Long columns reduced to a few points."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ava_pipeline.report.series import first_of_slices, reduced_line

_VALUES = arrays(np.float64, st.integers(0, 300), elements=st.floats(0, 1e6) | st.just(float("nan")))


@given(_VALUES, st.integers(1, 20))
def test_few_points_keep_the_lowest_and_the_highest_value(values: np.ndarray, num_slices: int) -> None:
    """They stand at their own batches, in order, whatever the column."""
    batches = np.arange(10, 10 + len(values))
    line = reduced_line(batches, values, np.zeros(len(values), dtype=bool), num_slices)
    finite = np.isfinite(line.middle.values)
    for points in (line.lowest, line.middle, line.highest):
        assert np.array_equal(np.isfinite(points.values), finite)
        assert finite.sum() <= 2 * num_slices
        assert np.array_equal(points.values[finite], values[points.batches[finite] - 10])
        assert np.all(np.diff(points.batches) >= 0)
    assert np.all((line.lowest.values <= line.middle.values)[finite])
    assert np.all((line.middle.values <= line.highest.values)[finite])
    if np.isfinite(values).any():
        assert np.nanmin(line.lowest.values) == np.nanmin(values)
        assert np.nanmax(line.highest.values) == np.nanmax(values)


def test_a_short_column_is_kept_as_it_is() -> None:
    """Every row is a point, and there is no range around the line."""
    values = np.array([3.0, 1.0, np.nan, 2.0])
    line = reduced_line(np.arange(4), values, np.zeros(4, dtype=bool), 2)
    assert line.is_complete
    assert np.array_equal(line.middle.values, values, equal_nan=True)


def test_the_middle_is_the_median() -> None:
    """The median of finite values; other values break the line."""
    values = np.array([5.0, 1.0, 3.0, np.inf, 9.0, 2.0, 8.0, 7.0])
    middle = reduced_line(np.arange(8), values, np.zeros(8, dtype=bool), 2).middle
    assert middle.values[np.isfinite(middle.values)].tolist() == [3.0, 7.0]


@given(_VALUES, st.integers(1, 20))
def test_values_that_are_not_finite_break_the_line(values: np.ndarray, num_slices: int) -> None:
    """Between the points on both sides of a missing slice stands a nan."""
    line = reduced_line(np.arange(len(values)), values, np.zeros(len(values), dtype=bool), num_slices).middle
    size = 1 if len(values) <= 2 * num_slices else -(-len(values) // num_slices)
    for before, after in zip(
        *(np.flatnonzero(np.isfinite(line.values))[part] for part in (slice(-1), slice(1, None))), strict=True
    ):
        between = values[line.batches[before] + 1 : line.batches[after]]
        is_whole_slice_missing = len(between) >= 2 * size and np.isnan(between).all()
        if is_whole_slice_missing:
            assert after - before > 1


def test_one_missing_row_in_a_million_breaks_the_line() -> None:
    """The break is kept although it is narrower than a pixel."""
    values = np.ones(1_000_000)
    breaks = np.zeros(1_000_000, dtype=bool)
    breaks[123_456] = True
    assert np.isnan(reduced_line(np.arange(1_000_000), values, breaks, 500).middle.values).sum() == 1


def test_one_nan_in_a_million_is_marked() -> None:
    """At its own batch."""
    values = np.ones(1_000_000)
    values[123_456] = np.inf
    marked = first_of_slices(np.arange(1_000_000), values, ~np.isfinite(values), 500)
    assert marked.batches.tolist() == [123_456]
    assert marked.values.tolist() == [np.inf]
