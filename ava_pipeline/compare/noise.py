"""When do two curves differ by more than what each of them scatters?

Values of a training scatter from batch to batch. Two trainings with other seeds differ in every row, and yet their
curves may be at the same level; two trainings with the same seed on other hardware differ by rounding, and drift apart
slowly. Neither says that one of them learns otherwise. So curves are compared by their level:

    The rows that are finite numbers in both runs are read through a window of 30 consecutive rows. In a window,
    - the level of a curve is its median,
    - its scatter is 1.4826 times the median distance of its rows from the straight line through the medians of the
      window's halves: the standard deviation, if rows are normally distributed, and not changed by single spikes or by
      a trend;
    - two curves differ beyond noise if their levels are further apart than 3 times the scatter of the curve that
      scatters more, and further than 1e-5 of the level, which is the rounding of sums in float32.

The place of a difference is, in the first such window, the first row in which the values themselves are that far apart.
It exists, because medians cannot differ by more than the values do in every row.

Why 30 and 3: in 200 pairs of curves of 1,000 rows that scatter around the same level (normal, Laplace, uniform,
log-normal and Cauchy values, and normal ones that depend on the row before with a correlation of 0.5), no window
differs by 3 times the scatter. Curves that wander for tens of rows, with a correlation of 0.8 and above, may.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ava_pipeline.contract.arrays import Floats

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 30  # rows
FACTOR = 3.0
ROUNDING = 1e-5  # relative

_HALF = WINDOW // 2
_AS_STANDARD_DEVIATION = 1.4826
_BLOCK = 4096  # windows at a time, so that a long run needs little memory


class Departure(NamedTuple):
    """Where two curves begin to differ beyond noise.

    Attributes:
        position: 0-based, in the first window in which they do, the first row in which the values themselves differ.
        level_a: the median of the first curve, in the window around `position` that shows the difference best.
        level_b: that of the second curve.
        scatter: there, of the curve that scatters more.
        is_at_end: whether the curves also differ beyond noise in the last window.
    """

    position: int
    level_a: float
    level_b: float
    scatter: float
    is_at_end: bool


def first_departure(a: Floats, b: Floats) -> Departure | None:
    """Compare two curves of finite numbers [rows]; None if they never differ beyond noise.

    Fewer rows than one window are never told apart.
    """
    num_windows = len(a) - WINDOW + 1
    for start in range(0, max(0, num_windows), _BLOCK):
        stop = min(start + _BLOCK, num_windows)
        windows = _Windows.of(a, b, start, stop)
        found = np.flatnonzero(windows.is_beyond)
        if len(found):
            begin = start + int(found[0])
            is_far = np.abs(a[begin : begin + WINDOW] - b[begin : begin + WINDOW]) > windows.limit[found[0]]
            position = begin + int(np.argmax(is_far))
            clearest = _Windows.of(a, b, begin, min(position, num_windows - 1) + 1).clearest()
            at_end = _Windows.of(a, b, num_windows - 1, num_windows)
            return Departure(position, *clearest, is_at_end=bool(at_end.is_beyond[0]))
    return None


class _Windows(NamedTuple):
    """The windows from `start` to `stop`: levels, scatter and limit, each [windows]."""

    level_a: Floats
    level_b: Floats
    scatter: Floats
    limit: Floats

    @classmethod
    def of(cls, a: Floats, b: Floats, start: int, stop: int) -> "_Windows":
        rows = slice(start, stop + WINDOW - 1)
        of_a, of_b = sliding_window_view(a[rows], WINDOW), sliding_window_view(b[rows], WINDOW)
        level_a, level_b = _median(of_a), _median(of_b)
        scatter: Floats = np.maximum(_scatter(of_a), _scatter(of_b))
        rounding = ROUNDING * np.maximum(np.abs(level_a), np.abs(level_b))
        return cls(level_a, level_b, scatter, np.maximum(FACTOR * scatter, rounding))

    @property
    def is_beyond(self) -> "NDArray[np.bool_]":
        return np.asarray(self._difference > self.limit, dtype=np.bool_)

    def clearest(self) -> tuple[float, float, float]:
        """Levels and scatter of the window whose difference is the largest multiple of its limit."""
        times = np.divide(self._difference, self.limit, out=np.zeros_like(self.limit), where=self.limit > 0)
        best = int(np.argmax(times))
        return float(self.level_a[best]), float(self.level_b[best]), float(self.scatter[best])

    @property
    def _difference(self) -> Floats:
        difference: Floats = np.abs(self.level_a - self.level_b)
        return difference


def _scatter(windows: Floats) -> Floats:
    """The robust standard deviation [windows] of rows [windows, WINDOW] around each window's trend."""
    slope = (_median(windows[:, _HALF:]) - _median(windows[:, :_HALF])) / _HALF
    level = windows - slope[:, None] * (np.arange(WINDOW) - (WINDOW - 1) / 2)
    return _AS_STANDARD_DEVIATION * _median(np.abs(level - _median(level)[:, None]))


def _median(rows: Floats) -> Floats:
    median: Floats = np.median(rows, axis=1)
    return median
