"""A run as the rules see it: the manifest, windows of rows while a file is read, and afterwards its batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import BatchIndices, Bools, integers, null_mask, numpy_columns
from ava_pipeline.contract.events import EXPLAIN_MISSING_ROWS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.validate.listing import Breach, Cell, Rule

KEYS = ("batch_idx", "epoch")


class Keys(NamedTuple):
    """The keys of one row, each None if it is null or the table has no such column."""

    batch_idx: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive rows of one file after its first `start` rows, with the columns and types of its declaration.

    `file` is a path below the run directory; the rows of a journal count as its Parquet file's. `batches` and `epochs`
    [rows] are 0 for a null, and empty if the table has no key columns. `before` holds the keys of the row before.
    """

    file: str
    declaration: RunTable
    rows: pa.Table
    start: int
    has_key_columns: bool
    batches: BatchIndices
    epochs: BatchIndices
    before: Keys

    def breaches(self, rule: Rule, is_broken: Bools, explain: Callable[[int], Cell]) -> Iterator[Breach]:
        """The rows for which `is_broken` [rows], if any; `explain` is called with a 0-based position in this window."""
        positions = np.flatnonzero(is_broken)
        if len(positions):
            rows = positions + self.start + 1
            yield rule.broken_rows(self.file, rows, lambda index: explain(int(positions[index])))


class CheckedFile:
    """One file that is read to its end; `file` is its path below the run directory.

    `has_keys` says whether every row has a `batch_idx` and an `epoch`; if not, `batches` is incomplete. Of a long
    table, `batches` has each batch once. The manifest counts rows by `name`, which has no folder.
    """

    def __init__(self, file: str, declaration: RunTable) -> None:
        self.file = file
        self.name = file.rpartition("/")[2]
        self.declaration = declaration
        self.num_rows = 0
        self.has_keys = True
        self.batches = BatchNumbers()
        self._last = Keys()
        self._first_rows: list[NDArray[np.intp]] = []  # of each batch, in a long table

    def append(self, rows: pa.Table) -> Window:
        """Add the next rows, and return them as a window for the rules of rows."""
        has_columns = set(KEYS) <= set(rows.column_names)
        keys = numpy_columns(rows.select(KEYS)) if has_columns else {}
        batches, epochs = (keys[key] if keys else np.empty(0, np.int64) for key in KEYS)
        start, before = self.num_rows, self._last
        self.num_rows += rows.num_rows
        self.has_keys = self.has_keys and has_columns and not any(rows.column(key).null_count for key in KEYS)
        if self.has_keys and self.declaration.table.is_long:
            begins = np.flatnonzero(np.diff(batches, prepend=before.batch_idx or 0))
            self._first_rows.append(begins + start)
            self.batches.append(batches[begins])
        elif self.has_keys:
            self.batches.append(batches)
        if has_columns and rows.num_rows:
            self._last = Keys(*(rows.column(key)[-1].as_py() for key in KEYS))
        return Window(self.file, self.declaration, rows, start, has_columns, batches, epochs, before)

    def renamed(self, file: str) -> "CheckedFile":
        """Another file with the same rows."""
        same = CheckedFile(file, self.declaration)
        same.num_rows, same.has_keys, same.batches = self.num_rows, self.has_keys, self.batches
        same._first_rows = self._first_rows
        return same

    def first_rows(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """The 0-based first row of each batch, by its position among `batches`; of the end, the number of rows."""
        if not self.declaration.table.is_long:
            return positions
        return np.concatenate([*self._first_rows, [self.num_rows]])[positions]


@dataclass(frozen=True, slots=True)
class CheckedTable:
    """The readable files of one table: its CSV file, and its Parquet file with the journal that continues it.

    `is_same` says whether both hold the same values, row by row.
    """

    csv: CheckedFile | None = None
    parquet: CheckedFile | None = None
    is_same: bool = False

    @property
    def files(self) -> list[CheckedFile]:
        """Every readable file."""
        return [file for file in (self.csv, self.parquet) if file is not None]


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """One run directory, read for validation; `manifest` and `metrics` are None if missing or unusable.

    `is_open` says that rows may still come, or that the process that wrote them was killed. `is_of_train` says that
    `ava-pipeline train` wrote the run, so that more is known of its files than of those of other loops. `now` is the
    time that heartbeats are compared with.
    """

    layout: RunLayout
    manifest: Manifest | None
    is_open: bool
    is_of_train: bool
    tables: Mapping[str, CheckedTable]
    events: CheckedTable
    metrics: Window | None
    explained: "ExplainedBatches"
    now: datetime

    def keyed_files(self) -> list[CheckedFile]:
        """The files whose rows all have keys; of two files with the same rows only the first."""
        files = [file for table in self.tables.values() for file in (table.files[:1] if table.is_same else table.files)]
        return [file for file in files if file.has_keys]


def is_of_train(layout: RunLayout, manifest: Manifest | None) -> bool:
    """Whether `ava-pipeline train` wrote a run, as its manifest says; without one, whether it has the job's files.

    A config.yaml alone proves nothing, since other loops have one too; the job writes split.csv before anything else.
    """
    if manifest is not None:
        return manifest.is_of_train
    return layout.split.exists() and (layout.config.exists() or layout.metrics.exists())


class BatchNumbers:
    """The `batch_idx` of every row of a file, in file order; evenly spaced rows take next to no memory.

    Without rows, `lowest` is None and `highest` 0.
    """

    def __init__(self) -> None:
        self.is_rising = True
        self.lowest: int | None = None
        self.highest = 0
        self._parts: list[_EvenlySpaced | BatchIndices] = []
        self._last: int | None = None

    def append(self, batches: BatchIndices) -> None:
        """Add the numbers of the rows that follow."""
        if not len(batches):
            return
        lowest, last = int(batches.min()), int(batches[-1])
        rises = bool((batches[1:] > batches[:-1]).all())
        self.is_rising = self.is_rising and rises and (self._last is None or lowest > self._last)
        self.lowest = lowest if self.lowest is None else min(lowest, self.lowest)
        self.highest = max(self.highest, int(batches.max()))
        self._parts.append(_compact(batches) if rises else batches.copy())
        self._last = last

    def to_numpy(self) -> BatchIndices:
        """All numbers [rows]."""
        return np.concatenate([np.empty(0, np.int64), *self.arrays()])

    def arrays(self) -> list[BatchIndices]:
        """All numbers, in the parts in which they were added."""
        return [part.to_numpy() if isinstance(part, _EvenlySpaced) else part for part in self._parts]


class _EvenlySpaced(NamedTuple):
    first: int
    step: int
    num: int

    def to_numpy(self) -> BatchIndices:
        return np.arange(self.num, dtype=np.int64) * self.step + self.first


def _compact(batches: BatchIndices) -> _EvenlySpaced | BatchIndices:
    step = int((batches[1:2] - batches[:1])[0]) if len(batches) > 1 else 1
    even = _EvenlySpaced(int(batches[0]), step, len(batches))
    return even if np.array_equal(even.to_numpy(), batches) else batches.copy()


class RowsByBatch:
    """Finds the place of a batch among the batches of a file; of a batch that is there twice, the first.

    The place is that of its row; in a long table, `CheckedFile.first_rows` knows the rows.
    """

    def __init__(self, batches: BatchNumbers) -> None:
        self._sorted = batches.to_numpy()
        self._order: NDArray[np.intp] | None = None
        if not batches.is_rising:
            self._order = np.argsort(self._sorted, kind="stable")
            self._sorted = self._sorted[self._order]

    def rows_of(self, batches: BatchIndices) -> NDArray[np.intp]:
        """0-based row of each batch; -1 for a batch without a row."""
        if not len(self._sorted):
            return np.full(len(batches), -1, dtype=np.intp)
        nearest = np.minimum(np.searchsorted(self._sorted, batches), len(self._sorted) - 1)
        rows = nearest if self._order is None else self._order[nearest]
        return np.where(self._sorted[nearest] == batches, rows, -1)

    def missing(self, batches: BatchNumbers) -> tuple[NDArray[np.intp], BatchIndices]:
        """The batches of another file that have no row here: their 0-based rows in that file, and their numbers."""
        rows, missing, start = [np.empty(0, np.intp)], [np.empty(0, np.int64)], 0
        for part in batches.arrays():
            positions = np.flatnonzero(self.rows_of(part) < 0)
            rows.append(positions + start)
            missing.append(part[positions])
            start += len(part)
        return np.concatenate(rows), np.concatenate(missing)


class ExplainedBatches:
    """The batches whose rows may be missing, from the events that explain it."""

    def __init__(self) -> None:
        self._starts = np.empty(0, np.int64)
        self._highest_ends = np.empty(0, np.int64)  # of all ranges up to each one

    def add(self, events: pa.Table) -> None:
        """Add rows of the events' table."""
        is_known = np.array(
            [name in EXPLAIN_MISSING_ROWS for name in events.column("event").to_pylist()], dtype=np.bool_
        )
        is_known &= ~null_mask(events.column("batch_idx")) & ~null_mask(events.column("batch_idx_end"))
        starts = np.concatenate([self._starts, integers(events, "batch_idx")[is_known]])
        ends = np.concatenate([self._highest_ends, integers(events, "batch_idx_end")[is_known]])
        order = np.argsort(starts, kind="stable")
        self._starts = starts[order]
        self._highest_ends = np.maximum.accumulate(ends[order]) if len(ends) else ends

    def overlap(self, first: BatchIndices, last: BatchIndices) -> Bools:
        """Whether each range of batches, from `first` to `last` with both included, has an explained one in it."""
        if not len(self._starts):
            return np.zeros(len(first), dtype=np.bool_)
        num_begun = np.searchsorted(self._starts, last, side="right")
        return np.asarray((num_begun > 0) & (self._highest_ends[np.maximum(num_begun - 1, 0)] >= first), dtype=np.bool_)
