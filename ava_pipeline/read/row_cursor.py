"""Rows of a file by their place, of a file that can only be read from its beginning."""

from collections.abc import Callable, Iterator

import pyarrow as pa


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
