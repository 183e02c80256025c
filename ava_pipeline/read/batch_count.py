"""Batches that are counted anew in each epoch, counted on over the run.

Many loops number batches by `enumerate`, from 0 or 1 in each epoch. Here `batch_idx` counts every batch of a run, so
that rows are in order and two epochs never share a batch. How many batches an epoch has is taken from the log, or from
a table that has a row of each batch; a table of every n-th batch does not prove it, because up to n - 1 batches may
follow its last row. If it is not known, rows have a place, which is in order, and are named by epoch and batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ava_pipeline.contract.arrays import BatchIndices, Integers


class EpochRows(NamedTuple):
    """The batches of one epoch that have a row in a table."""

    first: int
    last: int
    is_every: bool  # a row of each batch, from the first one of the epoch on


@dataclass(frozen=True, slots=True)
class TableBatches:
    """The batches of one table by epoch, and whether a later epoch begins at a batch that an earlier one had."""

    file: str
    epochs: Mapping[int, EpochRows]
    restarts: bool

    @property
    def lowest(self) -> int:
        """The lowest number of a batch."""
        return min((rows.first for rows in self.epochs.values()), default=1)

    @property
    def highest(self) -> int:
        """The highest number of a batch."""
        return max((rows.last for rows in self.epochs.values()), default=0)


@dataclass(frozen=True, slots=True)
class BatchCount:
    """How the batches of a run are counted.

    Attributes:
        offsets: epoch -> batches before it, which are added to the numbers of its rows; empty if nothing is added.
        per_epoch: the numbers of a table that goes beyond are not counted anew in each epoch.
        source: where the batches of an epoch are known from, in words.
        is_known: whether `offsets` are the true numbers; if not, a sum is a place in order, and no count of batches.
        shift: 1 if the files count from 0.
    """

    offsets: Mapping[int, int]
    per_epoch: int = 0
    source: str = ""
    is_known: bool = True
    shift: int = 0

    def over_the_run(self, batches: BatchIndices, epochs: Integers) -> BatchIndices:
        """The 1-based numbers, or places, over the run of a table's rows [rows]."""
        shifted = batches + self.shift
        if not self.offsets or (self.is_known and len(shifted) and int(shifted.max()) > self.per_epoch):
            return shifted
        numbers, place = np.unique(epochs, return_inverse=True)
        before = np.array([self.offsets.get(int(epoch), 0) for epoch in numbers], dtype=np.int64)
        return np.asarray(shifted + before[place], dtype=np.int64) if len(numbers) else shifted

    def text(self, batch_idx: int) -> str:
        """`batch 37`; or `epoch 2, batch 5` if batches are not counted over the run."""
        if self.is_known:
            return f"batch {batch_idx}"
        epoch, before = max(
            ((epoch, before) for epoch, before in self.offsets.items() if before < batch_idx), key=lambda pair: pair[1]
        )
        return f"epoch {epoch}, batch {batch_idx - before - self.shift}"


def batches_by_epoch(file: str, batches: BatchIndices, epochs: Integers) -> TableBatches:
    """Summarise the batches of a table's rows [rows]."""
    found: dict[int, EpochRows] = {}
    restarts = False
    highest = -1
    for epoch in np.unique(epochs).tolist():
        numbers = np.unique(batches[epochs == epoch])
        first, last = int(numbers[0]), int(numbers[-1])
        found[epoch] = EpochRows(first, last, first <= 1 and len(numbers) == last - first + 1)
        restarts = restarts or first <= highest
        highest = max(highest, last)
    return TableBatches(file, found, restarts)


def count_batches(tables: Iterable[TableBatches], logged: Iterable[int]) -> BatchCount:
    """Count the batches of a run's tables; `logged` are the totals that its log names, such as 12 of `Batch 5/12`."""
    known = [table for table in tables if table.epochs]
    shift = 1 if any(table.lowest == 0 for table in known) else 0
    restarting = [table for table in known if table.restarts]
    if not restarting:
        return BatchCount({}, shift=shift)
    highest = max(table.highest for table in restarting) + shift
    epochs = sorted({epoch for table in known for epoch in table.epochs})
    begin = 1 if epochs[0] == 1 else 0  # a run that begins later was resumed
    totals = {total for total in logged if total >= highest}
    if len(totals) == 1:
        total = totals.pop()
        offsets = {epoch: (epoch - begin) * total for epoch in epochs}
        return BatchCount(offsets, total, f"training.log, which names {total} batches per epoch", shift=shift)
    for table in restarting:
        if _is_complete(table, epochs, begin):
            lasts = [table.epochs[epoch].last + shift for epoch in sorted(table.epochs)]
            before = np.concatenate([[0], np.cumsum(lasts[:-1])]).tolist()
            offsets = dict(zip(sorted(table.epochs), before, strict=True))
            return BatchCount(offsets, highest, f"{table.file}, which has a row of each batch", shift=shift)
    places = {epoch: (epoch - begin) * highest for epoch in epochs}
    return BatchCount(places, highest, is_known=False, shift=shift)


def _is_complete(table: TableBatches, epochs: list[int], begin: int) -> bool:
    """Whether a table has each epoch of the run, and each batch of it."""
    has_epochs = sorted(table.epochs) == epochs == list(range(begin, begin + len(epochs)))
    return has_epochs and all(rows.is_every for rows in table.epochs.values())
