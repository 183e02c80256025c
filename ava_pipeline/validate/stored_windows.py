"""A Parquet file and the journal behind it, window by window."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import RowStream, joined, num_parquet_rows, num_rows, parquet_rows
from ava_pipeline.contract.stored import JournalRows
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.table import lasting_damage
from ava_pipeline.validate.rules_files import JOURNAL, UNREADABLE, Take, check_columns, nullable, relative, without_path

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
        new = JournalRows(journal, schema, 0)
        has_journal = _read_through(new)
        self.damage = new.damage
        streams = [parquet_rows(parquet, WINDOW_ROWS)] if parquet.exists() else []
        if has_journal and new.schema is not None:
            behind = JournalRows(journal, schema, num_parquet_rows(parquet) if parquet.exists() else 0)
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


def _read_through(new: JournalRows) -> bool:
    """Whether there is a journal; its damage is known then."""
    try:
        num_rows(new.read())
    except FileNotFoundError:
        return False
    return True


def _unless_gone(new: JournalRows) -> Iterator[pa.RecordBatch]:
    """The journal of a run that ends meanwhile becomes Parquet."""
    with suppress(FileNotFoundError):
        yield from new.read()


def open_stored(layout: RunLayout, declaration: RunTable, take: Take) -> "StoredFile | None":
    """Open them; None where there are none, or they cannot be used, which is told to `take`."""
    name = declaration.table.name
    parquet, journal = layout.parquet(name), layout.journal(name)
    if not parquet.exists() and not journal.exists():
        return None
    return open_stored_file(relative(layout, parquet), parquet, journal, declaration, take)


def open_stored_file(file: str, parquet: Path, journal: Path, declaration: RunTable, take: Take) -> "StoredFile | None":
    """Open a Parquet file, which violations name `file`, and the journal beside it; None where they cannot be used."""
    try:
        stored = StoredRows(parquet, journal, declaration.arrow_schema)
    except (DamagedFileError, pa.ArrowException) as error:
        take(UNREADABLE.found(file, without_path(error, parquet)))
        return None
    for damage in lasting_damage(stored.damage):
        message = f"{damage.num_bytes} bytes at {damage.offset}: {damage.reason}; the rows they held are lost."
        take(JOURNAL.found(file.replace(parquet.name, journal.name), message))
    is_usable = check_columns(stored.schema, declaration.arrow_schema, file, take)
    return StoredFile(file, declaration, stored) if is_usable else None


class StoredFile:
    """The rows, with the declared types.

    Attributes:
        file: as violations name it.
        declaration: of the table.
        schema: of the rows.
    """

    def __init__(self, file: str, declaration: RunTable, stored: StoredRows) -> None:
        self.file = file
        self.declaration = declaration
        self.schema = nullable(declaration.arrow_schema)
        self._stored = stored

    def tables(self) -> Iterator[pa.Table]:
        """Every row, some at a time; each call begins anew.

        Raises:
            DamagedFileError: the file cannot be read.
        """
        for rows in self._stored.windows():
            try:
                yield rows.cast(self.schema)
            except pa.ArrowException as error:
                raise DamagedFileError(f"The values have not the declared types: {error}") from error
