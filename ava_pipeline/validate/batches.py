"""The batches that the rows of a file are of, in little memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.read.arrays import BatchIndices, integers


class _Even(NamedTuple):
    """Batches that lie evenly spaced."""

    first: int
    step: int
    num: int

    def to_numpy(self) -> BatchIndices:
        return np.arange(self.num, dtype=np.int64) * self.step + self.first


class BatchNumbers:
    """The `batch_idx` of every row, in file order; rows that lie evenly spaced take next to no memory.

    Attributes:
        is_rising: whether each is above the one before.
        least: the lowest; None without rows.
        greatest: the highest; 0 without rows.
    """

    def __init__(self) -> None:
        self.is_rising = True
        self.least: int | None = None
        self.greatest = 0
        self._stretches: list[_Even | BatchIndices] = []
        self._last: int | None = None

    def append(self, batches: BatchIndices) -> None:
        """Add those of the rows that follow."""
        if not len(batches):
            return
        least, last = int(batches.min()), int(batches[-1])
        rises = bool((batches[1:] > batches[:-1]).all())
        self.is_rising = self.is_rising and rises and (self._last is None or least > self._last)
        self.least = least if self.least is None else min(least, self.least)
        self.greatest = max(self.greatest, int(batches.max()))
        self._stretches.append(_compact(batches) if rises else batches.copy())
        self._last = last

    def stretches(self) -> Iterator[BatchIndices]:
        """All of them, in the parts in which they were added."""
        return (one.to_numpy() if isinstance(one, _Even) else one for one in self._stretches)

    def to_numpy(self) -> BatchIndices:
        """All of them [rows]."""
        return np.concatenate([np.empty(0, np.int64), *self.stretches()])


class Lookup:
    """Finds the row of a batch.

    Args:
        batches: of the rows; of a batch that stands twice, the first row is found.
    """

    def __init__(self, batches: BatchNumbers) -> None:
        self._sorted = batches.to_numpy()
        self._order: NDArray[np.intp] | None = None
        if not batches.is_rising:
            self._order = np.argsort(self._sorted, kind="stable")
            self._sorted = self._sorted[self._order]

    def rows_of(self, batches: BatchIndices) -> NDArray[np.intp]:
        """0-based row of each batch; -1 where it has none."""
        if not len(self._sorted):
            return np.full(len(batches), -1, dtype=np.intp)
        found = np.minimum(np.searchsorted(self._sorted, batches), len(self._sorted) - 1)
        rows = found if self._order is None else self._order[found]
        return np.where(self._sorted[found] == batches, rows, -1)

    def lost(self, batches: BatchNumbers) -> tuple[NDArray[np.intp], BatchIndices]:
        """Those of `batches` that have no row here: their 0-based rows in their own file, and they themselves."""
        rows, lost, start = [np.empty(0, np.intp)], [np.empty(0, np.int64)], 0
        for some in batches.stretches():
            gone = np.flatnonzero(self.rows_of(some) < 0)
            rows.append(gone + start)
            lost.append(some[gone])
            start += len(some)
        return np.concatenate(rows), np.concatenate(lost)


def _compact(batches: BatchIndices) -> _Even | BatchIndices:
    step = int((batches[1:2] - batches[:1])[0]) if len(batches) > 1 else 1
    one = _Even(int(batches[0]), step, len(batches))
    return one if np.array_equal(one.to_numpy(), batches) else batches.copy()


_EXPLAIN_MISSING_ROWS = ("gap", "failed_row", "failed_write", "damaged_file")


class Spans:
    """Ranges of batches, both ends included.

    Args:
        starts: first batch of each range.
        ends: last batch of each range.
    """

    def __init__(self, starts: BatchIndices, ends: BatchIndices) -> None:
        order = np.argsort(starts, kind="stable")
        self._starts = starts[order]
        self._reach = np.maximum.accumulate(ends[order]) if len(ends) else ends

    def overlap(self, first: BatchIndices, last: BatchIndices) -> NDArray[np.bool_]:
        """Whether each of the ranges first..last shares a batch with one of these."""
        num_begun = np.searchsorted(self._starts, last, side="right")
        if not len(self._starts):
            return np.zeros(len(first), dtype=np.bool_)
        return np.asarray((num_begun > 0) & (self._reach[np.maximum(num_begun - 1, 0)] >= first), dtype=np.bool_)


class EventSpans:
    """Gathers the batches whose rows may be missing, as events tell that are read some rows at a time."""

    def __init__(self) -> None:
        self._starts = [np.empty(0, np.int64)]
        self._ends = [np.empty(0, np.int64)]

    def add(self, events: pa.Table) -> None:
        """Go on by some rows of events."""
        told = events.filter(pa.compute.is_in(events.column("event"), pa.array(_EXPLAIN_MISSING_ROWS)))
        told = told.select(["batch_idx", "batch_idx_end"]).drop_null()
        self._starts.append(integers(told, "batch_idx"))
        self._ends.append(integers(told, "batch_idx_end"))

    def of_missing_rows(self) -> Spans:
        """All of them so far."""
        return Spans(np.concatenate(self._starts), np.concatenate(self._ends))
