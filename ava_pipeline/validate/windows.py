"""Rows of a file that validation looks at together."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.arrays import BatchIndices, Bools, integers
from ava_pipeline.validate.violations import Breach, Cell, Rule

KEYS = ("batch_idx", "epoch")


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows of one file, with the columns and types of its declaration.

    Attributes:
        file: path below the run directory; the rows of a journal count as its Parquet file's.
        declaration: of the table.
        rows: in file order.
        start: how many rows of the file stand before them.
        before: the keys of the row before them, each where it has one.
    """

    file: str
    declaration: RunTable
    rows: pa.Table
    start: int = 0
    before: tuple[int | None, int | None] = (None, None)

    @property
    def name(self) -> str:
        """The file's own name, as the manifest counts it."""
        return self.file.rpartition("/")[2]

    @property
    def is_of_steps(self) -> bool:
        """Whether its rows are to say which batch and epoch they are of."""
        return set(KEYS) <= set(self.rows.column_names)

    @property
    def has_keys(self) -> bool:
        """Whether every row says which batch and epoch it is of."""
        return self.is_of_steps and not any(self.rows.column(key).null_count for key in KEYS)

    @property
    def batches(self) -> BatchIndices:
        """The `batch_idx` of every row; 0, which no batch has, of a row that does not say."""
        return integers(self.rows, "batch_idx")

    @property
    def last_keys(self) -> tuple[int | None, int | None]:
        """The keys of the last row, each where it has one."""
        batch, epoch = (self.rows.column(key)[-1].as_py() if self.is_of_steps else None for key in KEYS)
        return batch, epoch

    def breaches(self, rule: Rule, broken: Bools, explain: Callable[[int], Cell]) -> Iterator[Breach]:
        """The rows [rows] that break a rule; `explain` is given a position in this window."""
        if broken.any():
            yield rule.at(self.file, np.flatnonzero(broken), explain, start=self.start)


def windows_of(file: str, declaration: RunTable, tables: Iterable[pa.Table]) -> Iterator[Window]:
    """The rows of a file, each window knowing what stands before it."""
    start = 0
    before: tuple[int | None, int | None] = (None, None)
    for rows in tables:
        window = Window(file, declaration, rows, start, before)
        yield window
        start += rows.num_rows
        if rows.num_rows:
            before = window.last_keys


class RowCursor:
    """Rows by their place, quickly where each are asked for behind those before.

    Args:
        read: yields every row, some at a time; each call begins anew.
        schema: of the rows.
    """

    def __init__(self, read: Callable[[], Iterator[pa.Table]], schema: pa.Schema) -> None:
        self._read = read
        self._empty = schema.empty_table()
        self._start = 0
        self._windows = read()
        self._held = self._empty

    def rows(self, start: int, num: int) -> pa.Table:
        """As many rows as there are of `num` behind `start`.

        Raises:
            DamagedFileError: the Parquet file cannot be read.
        """
        if start < self._start:
            self._start, self._windows, self._held = 0, self._read(), self._empty
        while self._start + self._held.num_rows < start + num:
            window = next(self._windows, None)
            if window is None:
                break
            self._drop(start)
            self._held = pa.concat_tables([self._held, window])
        self._drop(start)
        return self._held.slice(0, num)

    def _drop(self, start: int) -> None:
        """Let go of the rows before `start`."""
        num = min(max(0, start - self._start), self._held.num_rows)
        self._held = self._held.slice(num)
        self._start += num
