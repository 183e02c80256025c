"""The rule of formats: CSV and Parquet hold the same rows, to the bit."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.arrays import differing, take_rows, text
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun, RowsByBatch, Window
from ava_pipeline.validate.listing import MAX_LISTED, Breach, Cell, Rule

SAME = Rule("files.csv-parquet", "CSV and Parquet hold the same rows: floats bit for bit, nan and null kept apart.")


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """Rows that are in one file of a table only; `ParquetComparison` compares the values of rows in both."""
    for table in run.tables.values():
        csv, parquet = table.csv, table.parquet
        if csv and parquet and not table.is_same and csv.has_keys and parquet.has_keys:
            yield from _only_in(run, csv, parquet)
            yield from _only_in(run, parquet, csv)


def _only_in(run: CheckedRun, file: CheckedFile, other: CheckedFile) -> Iterator[Breach]:
    rows, batches = RowsByBatch(other.batches).missing(file.batches)
    is_broken = ~run.explained.overlap(batches, batches)
    if run.is_open:  # the other file may lag behind
        is_broken &= batches <= other.batches.highest
    rows, batches = rows[is_broken], batches[is_broken]

    def explain(index: int) -> Cell:
        message = (
            f"expected the row of batch {batches[index]} in {other.name} too; no event explains why it is missing."
        )
        return Cell(message, "batch_idx", str(batches[index]))

    if len(rows):
        yield SAME.broken_rows(file.file, rows + 1, explain)


class ParquetComparison:
    """Compares the rows of a CSV file, window by window, with those of the table's Parquet file.

    Each call of `read` yields the Parquet rows, with `schema`, from the first one on. `checked` reads the whole Parquet
    file, or returns None if it cannot be used; it is called at the first difference. `is_same` holds while all rows
    compared are equal.
    """

    def __init__(
        self, read: Callable[[], Iterator[pa.Table]], schema: pa.Schema, checked: Callable[[], CheckedFile | None]
    ) -> None:
        self.is_same = True
        self._rows = RowCursor(read, schema)
        self._checked = checked
        self._by_batch: RowsByBatch | None = None

    def check(self, window: Window) -> Iterator[Breach]:
        """Values that differ in the Parquet file; rows are matched by position, and after a difference by batch."""
        num_same = self._num_same(window) if self.is_same else 0
        if num_same == window.rows.num_rows:
            return
        self.is_same = False
        parquet = self._checked()
        if parquet is not None and parquet.has_keys and window.has_key_columns:
            self._by_batch = self._by_batch or RowsByBatch(parquet.batches)
            parquet_rows = self._by_batch.rows_of(window.batches)
            parquet_rows[:num_same] = -1
            yield from self._different_values(window, parquet.name, parquet_rows)

    def has_rows_after(self, num_rows: int) -> bool:
        """Whether the Parquet file has more than `num_rows` rows, even if they cannot be read."""
        try:
            return self._rows.rows(num_rows, 1).num_rows > 0
        except DamagedFileError:
            return True  # reported when the file is read to its end

    def _num_same(self, window: Window) -> int:
        """How many rows, from the first on, are the same at the same position of the Parquet file."""
        try:
            others = self._rows.rows(window.start, window.rows.num_rows)
        except DamagedFileError:
            return 0  # reported when the file is read to its end
        rows = window.rows.slice(0, others.num_rows)
        different = np.flatnonzero(np.any(list(differing(rows, others).values()), axis=0))
        return int(different[0]) if len(different) else others.num_rows

    def _different_values(self, window: Window, other: str, parquet_rows: NDArray[np.intp]) -> Iterator[Breach]:
        found = parquet_rows[parquet_rows >= 0]
        if not len(found):
            return
        first = int(found.min())
        held = self._rows.rows(first, int(found.max()) - first + 1)
        # While rows come, the file may have grown since this reading of it began.
        here = np.flatnonzero((parquet_rows >= 0) & (parquet_rows < first + held.num_rows))
        there = parquet_rows[here]
        rows, others = take_rows(window.rows, here), take_rows(held, there - first)
        for name, is_different in differing(rows, others).items():
            broken = np.flatnonzero(is_different)[:MAX_LISTED]
            values = [(text(rows, name, int(at)), text(others, name, int(at))) for at in broken]
            cells = [
                Cell(
                    f"expected equal values, got {ours} here and {theirs} in row {there[at] + 1} of {other}.",
                    name,
                    ours,
                )
                for at, (ours, theirs) in zip(broken, values, strict=True)
            ]
            if cells:
                file_rows = here[broken] + window.start + 1
                num = int(is_different.sum())
                yield SAME.broken_rows(window.file, file_rows, cells.__getitem__, num=num)


class RowCursor:
    """Rows by their position; asking for ever later rows reads the file once. Each call of `read` starts over."""

    def __init__(self, read: Callable[[], Iterator[pa.Table]], schema: pa.Schema) -> None:
        self._read = read
        self._empty = pa.Table.from_batches([], schema)
        self._start = 0
        self._tables = read()
        self._held = self._empty

    def rows(self, start: int, num: int) -> pa.Table:
        """`num` rows from the 0-based row `start` on, or fewer at the end; raise DamagedFileError if unreadable."""
        if start < self._start:
            self._start, self._tables, self._held = 0, self._read(), self._empty
        while self._start + self._held.num_rows < start + num:
            table = next(self._tables, None)
            if table is None:
                break
            self._drop_before(start)
            self._held = pa.concat_tables([self._held, table])
        self._drop_before(start)
        return self._held.slice(0, num)

    def _drop_before(self, start: int) -> None:
        num = min(max(0, start - self._start), self._held.num_rows)
        self._held = self._held.slice(num)
        self._start += num
