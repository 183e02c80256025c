"""CSV and Parquet hold the same rows, to the bit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.arrays import differing, text
from ava_pipeline.validate.batches import Lookup
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun
from ava_pipeline.validate.violations import MAX_LISTED, Breach, Cell, Rule
from ava_pipeline.validate.windows import RowCursor, Window

SAME = Rule("files.csv-parquet", "CSV and Parquet hold the same rows: floats bit for bit, nan and null kept apart.")

FORMAT_RULES = (SAME,)


class Twin:
    """The Parquet file of a table, against which its CSV file is held, window by window.

    Args:
        parquet: reads the file through; None where it cannot be used. Asked for where something differs.
        rows: of the file.

    Attributes:
        is_same: whether all that was compared is the same, row by row.
    """

    def __init__(self, parquet: Callable[[], CheckedFile | None], rows: RowCursor) -> None:
        self.is_same = True
        self._parquet = parquet
        self._rows = rows
        self._lookup: Lookup | None = None

    def check(self, window: Window) -> Iterator[Breach]:
        """Values that are others in the Parquet file; rows are matched by place, from the first odd one on by batch."""
        num_same = self._num_same(window) if self.is_same else 0
        if num_same == window.rows.num_rows:
            return
        self.is_same = False
        parquet = self._parquet()
        if parquet is not None and parquet.has_keys and window.is_of_steps:
            self._lookup = self._lookup or Lookup(parquet.batches)
            places = self._lookup.rows_of(window.batches)
            places[:num_same] = -1
            yield from self._other_values(window, parquet.name, places)

    def has_more(self, num_rows: int) -> bool:
        """Whether the file goes on behind so many rows, with what can be read or not."""
        try:
            return self._rows.rows(num_rows, 1).num_rows > 0
        except DamagedFileError:
            return True  # told where the file is read through

    def _num_same(self, window: Window) -> int:
        """How many rows, from the first on, the file has in the same place."""
        try:
            others = self._rows.rows(window.start, window.rows.num_rows)
        except DamagedFileError:
            return 0  # told where the file is read through
        rows, odd = window.rows.slice(0, others.num_rows), np.zeros(others.num_rows + 1, np.bool_)
        odd[-1] = True
        for name in window.declaration.column_names:
            odd[:-1] |= differing(rows.column(name), others.column(name))
        return int(odd.argmax())

    def _other_values(self, window: Window, other: str, places: NDArray[np.intp]) -> Iterator[Breach]:
        found = places[places >= 0]
        if not len(found):
            return
        first = int(found.min())
        held = self._rows.rows(first, int(found.max()) - first + 1)
        # While rows come, the file may have grown since this reading of it began.
        here = np.flatnonzero((places >= 0) & (places < first + held.num_rows))
        there = places[here]
        rows, others = window.rows.take(here), held.take(there - first)
        for name in window.declaration.column_names:
            broken = np.flatnonzero(differing(rows.column(name), others.column(name)))
            explain = _Other(name, other, rows, others, there)
            cells = [(window.start + int(here[at]) + 1, explain(int(at))) for at in broken[:MAX_LISTED]]
            if cells:
                yield SAME.some(window.file, cells, num=len(broken))


@dataclass(frozen=True, slots=True)
class _Other:
    """What a value is in the other file."""

    column: str
    name: str
    rows: pa.Table
    others: pa.Table
    there: NDArray[np.intp]

    def __call__(self, at: int) -> Cell:
        value, other = text(self.rows, self.column, at), text(self.others, self.column, at)
        return Cell(f"{value} here, {other} in row {self.there[at] + 1} of {self.name}.", self.column, value)


def check_formats(run: CheckedRun) -> Iterator[Breach]:
    """Rows that only one of a table's files has."""
    for table in run.tables.values():
        csv, parquet = table.csv, table.parquet
        if csv and parquet and not table.is_same and csv.has_keys and parquet.has_keys:
            yield from _only_in(run, csv, parquet)
            yield from _only_in(run, parquet, csv)


def _only_in(run: CheckedRun, part: CheckedFile, other: CheckedFile) -> Iterator[Breach]:
    """Rows that only one file has and no event explains; while rows come, the other file may lag behind."""
    rows, lost = Lookup(other.batches).lost(part.batches)
    told = ~run.missing.overlap(lost, lost)
    if run.is_open:
        told &= lost <= other.batches.greatest
    cells = [
        (
            row + 1,
            Cell(
                f"the row of batch {batch} is not in {other.name}, and no event explains it.", "batch_idx", str(batch)
            ),
        )
        for row, batch in zip(rows[told][:MAX_LISTED].tolist(), lost[told][:MAX_LISTED].tolist(), strict=True)
    ]
    if cells:
        yield SAME.some(part.file, cells, num=int(told.sum()))
