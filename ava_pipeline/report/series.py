"""Columns of a run as lines over its batches, and as few points of them as a plot needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.manifest import Manifest, Role
from ava_pipeline.read.arrays import BatchIndices, Bools, Floats, floats, integers, nulls
from ava_pipeline.report.run_data import RunData

Scalar = TypeVar("Scalar", np.float64, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Some points of a column, in order of their batches.

    Attributes:
        batches: [points] of each.
        values: [points]; nan where the line breaks.
    """

    batches: BatchIndices
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


def thinned(batches: BatchIndices, values: Floats, breaks: Bools, num_slices: int) -> Thinned:
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


def first_of_slices(batches: BatchIndices, values: Floats, marked: Bools, num_slices: int) -> Points:
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


def _broken(batches: BatchIndices, values: Floats, places: NDArray[np.intp]) -> Points:
    """The line with a nan before each of these places, at the batch of the point beside it."""
    if not len(batches):
        return Points(batches, values)
    beside = batches[np.minimum(places, len(batches) - 1)]
    return Points(np.insert(batches, places, beside), np.insert(values, places, np.nan))


NORMS, RATES, STEPS = "gradient_norms", "learning_rates", "steps"
_KEYS = {"batch_idx", "epoch"}


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A column of a run over its batches.

    Attributes:
        run: name of the run.
        column: name of the column, or what the values are.
        batches: [rows].
        epochs: [rows].
        values: [rows]; nan, too, where nothing was measured.
        is_null: [rows] nothing was measured.
        breaks: [rows] rows are missing before this one.
        is_log: it is drawn on a logarithmic scale.
    """

    run: str
    column: str
    batches: BatchIndices
    epochs: BatchIndices
    values: Floats
    is_null: Bools
    breaks: Bools
    is_log: bool = True

    def line(self, num_slices: int) -> Thinned:
        """What can be drawn: on a logarithmic scale nought has no place."""
        shown = np.where(self.values > 0, self.values, np.nan) if self.is_log else self.values
        return thinned(self.batches, shown, self.breaks, num_slices)

    def zeros(self, num_slices: int) -> Points:
        """Where the value is 0 and cannot be drawn."""
        return first_of_slices(self.batches, self.values, (self.values == 0) & self.is_log, num_slices)

    def not_finite(self, num_slices: int) -> Points:
        """Where nan or inf was measured."""
        marked = ~np.isfinite(self.values) & ~self.is_null
        return first_of_slices(self.batches, self.values, marked, num_slices)


def columns_of(seen: RunData, table: str) -> list[Series]:
    """A series for each measured column of a table; none where it has no rows."""
    rows = seen.table(table)
    if rows is None:
        return []
    names = [field.name for field in rows.schema if field.name not in _KEYS and pa.types.is_floating(field.type)]
    breaks = _breaks(integers(rows, "batch_idx"), seen.manifest)
    return [_make_series(seen.name, name, rows, floats(rows, name), nulls(rows[name]), breaks) for name in names]


def ratio_of(seen: RunData) -> list[Series]:
    """The norm of the last backbone stage over that of the head, where the run has both."""
    rows = seen.table(NORMS)
    backbone, head = ratio_columns(seen)
    if rows is None or backbone is None or head is None:
        return []
    above, below = floats(rows, backbone), floats(rows, head)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(np.isfinite(below), above / below, np.nan)  # over inf it would be 0, as of a dead backbone
    is_null = nulls(rows[backbone]) | nulls(rows[head])
    breaks = _breaks(integers(rows, "batch_idx"), seen.manifest)
    return [_make_series(seen.name, f"{backbone} / {head}", rows, values, is_null, breaks)]


def values_of(seen: RunData) -> list[Series]:
    """The columns of `steps` that were measured at all; their scale is linear, since a loss may be below 0."""
    return [replace(one, is_log=False) for one in columns_of(seen, STEPS) if not one.is_null.all()]


def ratio_columns(seen: RunData) -> tuple[str | None, str | None]:
    """The last backbone stage and the head."""
    return _of_role(seen, "backbone_last"), _of_role(seen, "head")


def epoch_starts(series: Sequence[Series]) -> dict[int, int]:
    """The first batch of each epoch; empty where the runs differ in it, so that no mark is wrong for one of them."""
    starts: dict[int, int] = {}
    for one in series:
        for epoch, start in _starts(one):
            if starts.setdefault(epoch, start) != start:
                return {}
    return starts


def _starts(series: Series) -> Iterator[tuple[int, int]]:
    first = np.flatnonzero(np.diff(series.epochs, prepend=-1))
    return zip(series.epochs[first].tolist(), series.batches[first].tolist(), strict=True)


def _make_series(run: str, column: str, rows: pa.Table, values: Floats, is_null: Bools, breaks: Bools) -> Series:
    return Series(run, column, integers(rows, "batch_idx"), integers(rows, "epoch"), values, is_null, breaks)


def _of_role(seen: RunData, role: Role) -> str | None:
    """The first column whose group has a role."""
    rows = seen.table(NORMS)
    if seen.manifest is None or rows is None:
        return None
    return next(
        (name for name, group in seen.manifest.groups.items() if group.role == role and name in rows.column_names), None
    )


def _breaks(batches: BatchIndices, manifest: Manifest | None) -> Bools:
    """Before which rows others are missing.

    A batch that only accumulates gradients defers a row, so that spacings differ a little; only one of twice the
    collected spacing, and above what is usual in the run, is a gap.
    """
    spacing = np.diff(batches)
    if not len(spacing):
        return np.zeros(len(batches), dtype=np.bool_)
    every = max((attempt.collect_every_n for attempt in manifest.attempts), default=1) if manifest else 1
    is_gap = (spacing >= 2 * every) & (spacing > 1.5 * np.median(spacing))
    return np.append(np.False_, is_gap)
