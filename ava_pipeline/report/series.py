"""Columns of a run as lines over its batches, reduced to as many points as a plot needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import BatchIndices, Bools, Floats, floats, integers, null_mask
from ava_pipeline.contract.manifest import Manifest, Role
from ava_pipeline.contract.tables import measured_columns
from ava_pipeline.report.run_data import RunData

NORMS, RATES, STEPS = "gradient_norms", "learning_rates", "steps"
_COUNTERS = {"global_step", "num_batches"}  # they count, like batch_idx

Scalar = TypeVar("Scalar", np.float64, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Points of a column, in the order of their batches."""

    batches: BatchIndices  # [points]
    values: Floats  # [points]; nan where the line breaks


@dataclass(frozen=True, slots=True, eq=False)
class ReducedLine:
    """A column in slices of rows: three points for each slice, or a nan in all three where the line breaks."""

    lowest: Points
    middle: Points  # medians
    highest: Points

    @property
    def is_complete(self) -> bool:
        """Whether the line shows every row."""
        return np.array_equal(self.lowest.batches, self.highest.batches)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A column of a run over its batches."""

    run: str
    column: str  # or the name of computed values
    batches: BatchIndices  # [rows]
    epochs: BatchIndices  # [rows]
    values: Floats  # [rows]; nan also where nothing was measured
    is_null: Bools  # [rows]
    breaks: Bools  # [rows] whether rows are missing before this row
    is_log: bool = True
    num_batches: BatchIndices | None = None  # [rows] over how many batches each value spans, if it spans several

    def line(self, num_slices: int) -> ReducedLine:
        """The line to draw; a logarithmic scale has no place for 0 and below."""
        values = np.where(self.values > 0, self.values, np.nan) if self.is_log else self.values
        return reduced_line(self.batches, values, self.breaks, num_slices)

    def zeros(self, num_slices: int) -> Points:
        """The rows whose value is 0, if the scale cannot show it."""
        return first_of_slices(self.batches, self.values, (self.values == 0) & self.is_log, num_slices)

    def not_finite(self, num_slices: int) -> Points:
        """The rows in which nan or inf was measured."""
        is_not_finite = ~np.isfinite(self.values) & ~self.is_null
        return first_of_slices(self.batches, self.values, is_not_finite, num_slices)


def columns_of(
    run: RunData, table: str, *, is_log: bool = True, is_wanted: Callable[[str], bool] = lambda _: True
) -> list[Series]:
    """A series for each wanted column of numbers in which a value was measured; none if the table has no rows.

    Columns of the norms and the rates are kept even if all of their values are null.
    """
    rows = run.table(table)
    if rows is None:
        return []
    names = [name for name in measured_columns(rows.schema) if name not in _COUNTERS and is_wanted(name)]
    breaks = breaks_of(integers(rows, "batch_idx"), run.manifest)
    series = [_series(run.name, name, rows, floats(rows, name), null_mask(rows[name]), breaks) for name in names]
    if table in {NORMS, RATES}:
        return series
    return [replace(column, is_log=is_log) for column in series if not column.is_null.all()]


def ratio_of(run: RunData) -> list[Series]:
    """The norm of the last backbone stage divided by that of the head, if the run has both."""
    rows = run.table(NORMS)
    backbone, head = ratio_columns(run)
    if rows is None or backbone is None or head is None:
        return []
    numerator, denominator = floats(rows, backbone), floats(rows, head)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Divided by inf, the ratio would be 0, like that of a backbone that is not learning.
        values = np.where(np.isfinite(denominator), numerator / denominator, np.nan)
    is_null = null_mask(rows[backbone]) | null_mask(rows[head])
    breaks = breaks_of(integers(rows, "batch_idx"), run.manifest)
    return [_series(run.name, f"{backbone} / {head}", rows, values, is_null, breaks)]


def ratio_columns(run: RunData) -> tuple[str | None, str | None]:
    """The columns of the last backbone stage and of the head."""
    return _column_of_role(run, "backbone_last"), _column_of_role(run, "head")


def epoch_starts(series: Sequence[Series]) -> dict[int, int]:
    """The first batch of each epoch; empty if the runs differ, so that no epoch is marked at a wrong batch."""
    starts: dict[int, int] = {}
    for column in series:
        first = np.flatnonzero(np.diff(column.epochs, prepend=-1))
        for epoch, start in zip(column.epochs[first].tolist(), column.batches[first].tolist(), strict=True):
            if starts.setdefault(epoch, start) != start:
                return {}
    return starts


def _series(run: str, column: str, rows: pa.Table, values: Floats, is_null: Bools, breaks: Bools) -> Series:
    return Series(run, column, integers(rows, "batch_idx"), integers(rows, "epoch"), values, is_null, breaks)


def _column_of_role(run: RunData, role: Role) -> str | None:
    """The first column whose group has this role."""
    rows = run.table(NORMS)
    if run.manifest is None or rows is None:
        return None
    groups = run.manifest.groups.items()
    return next((name for name, group in groups if group.role == role and name in rows.column_names), None)


def breaks_of(batches: BatchIndices, manifest: Manifest | None) -> Bools:
    """Whether rows are missing before each row.

    A batch that only accumulates gradients defers its row, so that spacings vary a little. A spacing is a gap only if
    it is at least twice the collected spacing and well above the median of the run.
    """
    spacing = np.diff(batches)
    if not len(spacing):
        return np.zeros(len(batches), dtype=np.bool_)
    every = max((attempt.collect_every_n for attempt in manifest.attempts), default=1) if manifest else 1
    is_gap = (spacing >= 2 * every) & (spacing > 1.5 * np.median(spacing))
    return np.append(np.False_, is_gap)


def reduced_line(batches: BatchIndices, values: Floats, breaks: Bools, num_slices: int) -> ReducedLine:
    """The lowest, the median and the highest finite value of each slice of rows, at their own batches.

    The line breaks before the rows marked in `breaks` and at values that are not finite. A column of up to twice as
    many rows as slices is kept as it is.
    """
    size = _slice_size(len(values), num_slices)
    is_finite = np.isfinite(values)
    has_value = _slices(is_finite, size, fill=False).any(axis=1)
    has_break = _slices(breaks | ~is_finite, size, fill=False).any(axis=1)
    # One nan is enough for a break that spans several slices.
    places = np.unique(np.searchsorted(np.flatnonzero(has_value), np.flatnonzero(has_break)))
    rows = (row[has_value] for row in _rows_of_slices(np.where(is_finite, values, np.nan), size))
    return ReducedLine(*(_with_breaks(batches[row], values[row], places) for row in rows))


def first_of_slices(batches: BatchIndices, values: Floats, is_marked: Bools, num_slices: int) -> Points:
    """The first marked row of each slice."""
    size = _slice_size(len(values), num_slices)
    marked = _slices(is_marked, size, fill=False)
    rows = (np.arange(len(marked)) * size + marked.argmax(axis=1))[marked.any(axis=1)]
    return Points(batches[rows], values[rows])


def _slice_size(num_rows: int, num_slices: int) -> int:
    return 1 if num_rows <= 2 * num_slices else -(-num_rows // num_slices)


def _rows_of_slices(values: Floats, size: int) -> Iterator[NDArray[np.intp]]:
    """[slices] rows of the lowest, the median and the highest value of each slice, nan left out."""
    sliced = _slices(values, size, np.nan)
    order = np.argsort(sliced, axis=1, kind="stable")  # nan last
    num_finite = np.isfinite(sliced).sum(axis=1)
    starts = np.arange(len(sliced)) * size
    for place in (np.zeros_like(num_finite), (num_finite - 1) // 2, num_finite - 1):
        yield starts + np.take_along_axis(order, np.maximum(place, 0)[:, None], axis=1)[:, 0]


def _slices(values: NDArray[Scalar], size: int, fill: float) -> NDArray[Scalar]:
    """[slices, size]; the last slice is padded with `fill`."""
    return np.pad(values, (0, -len(values) % size), constant_values=fill).reshape(-1, size)


def _with_breaks(batches: BatchIndices, values: Floats, places: NDArray[np.intp]) -> Points:
    """The line with a nan before each of these places, at the batch of the next point."""
    if not len(batches):
        return Points(batches, values)
    next_batches = batches[np.minimum(places, len(batches) - 1)]
    return Points(np.insert(batches, places, next_batches), np.insert(values, places, np.nan))
