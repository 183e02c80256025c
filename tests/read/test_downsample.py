"""Long columns as few points."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ava_pipeline.read.downsample import first_of_slices, thinned

_VALUES = arrays(np.float64, st.integers(0, 300), elements=st.floats(0, 1e6) | st.just(float("nan")))


@given(_VALUES, st.integers(1, 20))
def test_no_extreme_is_lost_and_little_is_kept(values: np.ndarray, num_slices: int) -> None:
    """Of any column: its lowest and highest value are there, at their own batch, in order."""
    batches = np.arange(10, 10 + len(values))
    line = thinned(batches, values, np.zeros(len(values), dtype=bool), num_slices)
    finite = np.isfinite(line.values)
    assert finite.sum() <= 2 * num_slices
    assert np.array_equal(line.values[finite], values[line.batches[finite] - 10])
    assert np.all(np.diff(line.batches) >= 0)
    if np.isfinite(values).any():
        assert np.nanmin(line.values) == np.nanmin(values)
        assert np.nanmax(line.values) == np.nanmax(values)


@given(_VALUES, st.integers(1, 20))
def test_what_is_not_finite_breaks_the_line(values: np.ndarray, num_slices: int) -> None:
    """Between two points that belong to slices around a gap there is a nan."""
    line = thinned(np.arange(len(values)), values, np.zeros(len(values), dtype=bool), num_slices)
    size = 1 if len(values) <= 2 * num_slices else -(-len(values) // num_slices)
    for before, after in zip(
        *(np.flatnonzero(np.isfinite(line.values))[part] for part in (slice(-1), slice(1, None))), strict=True
    ):
        between = values[line.batches[before] + 1 : line.batches[after]]
        is_whole_slice_missing = len(between) >= 2 * size and np.isnan(between).all()
        if is_whole_slice_missing:
            assert after - before > 1


def test_one_missing_row_in_a_million_breaks_the_line() -> None:
    """It is narrower than a pixel, and is seen."""
    values = np.ones(1_000_000)
    breaks = np.zeros(1_000_000, dtype=bool)
    breaks[123_456] = True
    assert np.isnan(thinned(np.arange(1_000_000), values, breaks, 500).values).sum() == 1


def test_one_nan_in_a_million_is_marked() -> None:
    """Where it lies."""
    values = np.ones(1_000_000)
    values[123_456] = np.inf
    marked = first_of_slices(np.arange(1_000_000), values, ~np.isfinite(values), 500)
    assert marked.batches.tolist() == [123_456]
    assert marked.values.tolist() == [np.inf]
