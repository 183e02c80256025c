"""A table as Parquet stores it, some rows at a time: the Parquet file, and behind it the rows still in the journal."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.parquet_file import num_parquet_rows, parquet_rows
from ava_pipeline.contract.row_stream import RowStream, joined, num_rows
from ava_pipeline.contract.stored import NewRows
from ava_pipeline.errors import DamagedFileError

WINDOW_ROWS = 2**16


class StoredRows:
    """The rows of a Parquet file and of the journal beside it; either may be missing.

    Args:
        parquet: the file.
        journal: the rows that are not in it yet.
        schema: the table's, used where the journal's own is damaged.

    Attributes:
        schema: of the rows.
        damage: bytes of the journal that could not be read.

    Raises:
        DamagedFileError: the Parquet file cannot be read, or its columns do not go with the journal's.
    """

    def __init__(self, parquet: Path, journal: Path, schema: pa.Schema | None = None) -> None:
        # The journal first: one that becomes Parquet meanwhile is found there, and its rows are not read twice.
        new = NewRows(journal, schema, 0)
        has_journal = _read_through(new)
        self.damage = new.damage
        streams = [parquet_rows(parquet, WINDOW_ROWS)] if parquet.exists() else []
        if has_journal and new.schema is not None:
            behind = NewRows(journal, schema, num_parquet_rows(parquet) if parquet.exists() else 0)
            streams.append(RowStream(new.schema, lambda: _unless_gone(behind)))
        try:
            self._rows = joined(*streams) if len(streams) > 1 else (streams or [RowStream.of(pa.table({}))])[0]
        except pa.ArrowException as error:
            raise DamagedFileError(f"{parquet} and the journal beside it hold other columns: {error}.") from error
        self.schema = self._rows.schema

    def windows(self) -> Iterator[pa.Table]:
        """Every row, in the order of writing, so many at a time; each call begins anew.

        Raises:
            DamagedFileError: the Parquet file cannot be read.
        """
        waiting: list[pa.RecordBatch] = []
        num_waiting = 0
        for batch in self._rows.read():
            waiting.append(batch)
            num_waiting += batch.num_rows
            if num_waiting >= WINDOW_ROWS:
                yield self._window(waiting)
                waiting, num_waiting = [], 0
        if waiting:
            yield self._window(waiting)

    def _window(self, batches: list[pa.RecordBatch]) -> pa.Table:
        return pa.Table.from_batches(batches, self.schema).combine_chunks()


def _read_through(new: NewRows) -> bool:
    """Whether there is a journal; its damage is known then."""
    try:
        num_rows(new.read())
    except FileNotFoundError:
        return False
    return True


def _unless_gone(new: NewRows) -> Iterator[pa.RecordBatch]:
    """The journal of a run that ends meanwhile becomes Parquet."""
    with suppress(FileNotFoundError):
        yield from new.read()
