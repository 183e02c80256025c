"""A long column as few points, with every spike, gap and non-finite value still to be seen.

The rows are cut into as many slices as the picture has pixels, and of each the lowest and the highest value are kept,
where they lie. Source: Jugel et al., M4: A Visualization-Oriented Time Series Data Aggregation, VLDB 2014 (min-max).
"""

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


def thinned(batches: Batches, values: Floats, breaks: Bools, num_slices: int) -> Points:
    """A line: the lowest and the highest finite value of each slice of rows, broken wherever something is missing.

    Args:
        batches: [rows] rising.
        values: [rows]; the line is broken where one is not finite.
        breaks: [rows] the line is broken before this row too.
        num_slices: at most so many are made; up to twice as many rows are kept as they are.
    """
    size = _slice_size(len(values), num_slices)
    is_finite = np.isfinite(values)
    gaps = _firsts(breaks | ~is_finite, size)
    return _broken(batches, values, _extremes(values, is_finite, size), gaps)


def first_of_slices(batches: Batches, values: Floats, marked: Bools, num_slices: int) -> Points:
    """The first marked row of each slice."""
    rows = _firsts(marked, _slice_size(len(values), num_slices))
    return Points(batches[rows], values[rows])


def _slice_size(num_rows: int, num_slices: int) -> int:
    return 1 if num_rows <= 2 * num_slices else -(-num_rows // num_slices)


def _extremes(values: Floats, is_finite: Bools, size: int) -> NDArray[np.intp]:
    """Rows of the lowest and the highest finite value of each slice, in order."""
    lowest = _slices(np.where(is_finite, values, np.inf), size, np.inf).argmin(axis=1)
    highest = _slices(np.where(is_finite, values, -np.inf), size, -np.inf).argmax(axis=1)
    starts = np.arange(len(lowest)) * size
    rows = np.unique(np.concatenate([starts + lowest, starts + highest]))
    rows = rows[rows < len(values)]
    return np.asarray(rows[is_finite[rows]], dtype=np.intp)


def _firsts(marked: Bools, size: int) -> NDArray[np.intp]:
    """The first marked row of each slice."""
    cut = _slices(marked, size, fill=False)
    rows = np.arange(len(cut)) * size + cut.argmax(axis=1)
    return np.asarray(rows[cut.any(axis=1)], dtype=np.intp)


def _slices(values: NDArray[Scalar], size: int, fill: float) -> NDArray[Scalar]:
    """[slices, size]; the last one filled up."""
    return np.pad(values, (0, -len(values) % size), constant_values=fill).reshape(-1, size)


def _broken(batches: Batches, values: Floats, line: NDArray[np.intp], gaps: NDArray[np.intp]) -> Points:
    """Points of the line with a nan before each gap's row; one is enough where no point lies between two gaps."""
    places = np.searchsorted(line, gaps)
    places, first = np.unique(places, return_index=True)
    at = batches[gaps[first]]
    return Points(np.insert(batches[line], places, at), np.insert(values[line], places, np.nan))
