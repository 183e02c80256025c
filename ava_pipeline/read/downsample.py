"""A long column as few points, with every spike, gap and non-finite value still to be seen.

The rows are cut into as many slices as the picture has pixels, and of each the lowest, the median and the highest value
are kept, where they lie. Source: Jugel et al., M4: A Visualization-Oriented Time Series Data Aggregation, VLDB 2014.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.read.arrays import Bools
from ava_pipeline.read.spans import Batches

Floats = NDArray[np.float64]
Scalar = TypeVar("Scalar", np.float64, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Some points of a column, in order of their batches.

    Attributes:
        batches: [points] of each.
        values: [points]; nan where the line breaks.
    """

    batches: Batches
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Thinned:
    """A column in slices: a point of each, or a nan where the line breaks, at the same places in all three.

    Attributes:
        lowest: finite value of each slice.
        middle: one, the median.
        highest: one.
    """

    lowest: Points
    middle: Points
    highest: Points

    @property
    def is_whole(self) -> bool:
        """Whether the line shows every row."""
        return np.array_equal(self.lowest.batches, self.highest.batches)


def thinned(batches: Batches, values: Floats, breaks: Bools, num_slices: int) -> Thinned:
    """The lowest, the median and the highest finite value of each slice of rows, where they lie.

    Args:
        batches: [rows] rising.
        values: [rows]; the line is broken where one is not finite.
        breaks: [rows] the line is broken before this row too.
        num_slices: at most so many are made; up to twice as many rows are kept as they are.
    """
    size = _slice_size(len(values), num_slices)
    is_finite = np.isfinite(values)
    is_there = _slices(is_finite, size, fill=False).any(axis=1)
    is_broken = _slices(breaks | ~is_finite, size, fill=False).any(axis=1)
    places = np.unique(np.searchsorted(np.flatnonzero(is_there), np.flatnonzero(is_broken)))  # one nan is enough
    rows = (found[is_there] for found in _rows_of_slices(np.where(is_finite, values, np.nan), size))
    return Thinned(*(_broken(batches[one], values[one], places) for one in rows))


def first_of_slices(batches: Batches, values: Floats, marked: Bools, num_slices: int) -> Points:
    """The first marked row of each slice."""
    rows = _firsts(marked, _slice_size(len(values), num_slices))
    return Points(batches[rows], values[rows])


def _slice_size(num_rows: int, num_slices: int) -> int:
    return 1 if num_rows <= 2 * num_slices else -(-num_rows // num_slices)


def _rows_of_slices(values: Floats, size: int) -> Iterator[NDArray[np.intp]]:
    """[slices] rows of the lowest, of the median, and of the highest value of each; nan counts for nothing."""
    cut = _slices(values, size, np.nan)
    order = np.argsort(cut, axis=1, kind="stable")  # nan last
    num_there = np.isfinite(cut).sum(axis=1)
    starts = np.arange(len(cut)) * size
    for place in (np.zeros_like(num_there), (num_there - 1) // 2, num_there - 1):
        yield starts + np.take_along_axis(order, np.maximum(place, 0)[:, None], axis=1)[:, 0]


def _firsts(marked: Bools, size: int) -> NDArray[np.intp]:
    """The first marked row of each slice."""
    cut = _slices(marked, size, fill=False)
    rows = np.arange(len(cut)) * size + cut.argmax(axis=1)
    return np.asarray(rows[cut.any(axis=1)], dtype=np.intp)


def _slices(values: NDArray[Scalar], size: int, fill: float) -> NDArray[Scalar]:
    """[slices, size]; the last one filled up."""
    return np.pad(values, (0, -len(values) % size), constant_values=fill).reshape(-1, size)


def _broken(batches: Batches, values: Floats, places: NDArray[np.intp]) -> Points:
    """The line with a nan before each of these places, at the batch of the point beside it."""
    if not len(batches):
        return Points(batches, values)
    beside = batches[np.minimum(places, len(batches) - 1)]
    return Points(np.insert(batches, places, beside), np.insert(values, places, np.nan))
