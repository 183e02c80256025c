"""Ranges of batches that events speak of."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.read.arrays import integers

Batches = NDArray[np.int64]

_EXPLAIN_MISSING_ROWS = ("gap", "failed_row", "failed_write", "damaged_file")


class Spans:
    """Ranges of batches, both ends included.

    Args:
        starts: first batch of each range.
        ends: last batch of each range.
    """

    def __init__(self, starts: Batches, ends: Batches) -> None:
        order = np.argsort(starts, kind="stable")
        self._starts = starts[order]
        self._reach = np.maximum.accumulate(ends[order]) if len(ends) else ends

    def overlap(self, first: Batches, last: Batches) -> NDArray[np.bool_]:
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
