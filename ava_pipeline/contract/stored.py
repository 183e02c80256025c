"""A table as Parquet stores it: the Parquet file, and behind it the rows still in the journal."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.files import keep_damaged
from ava_pipeline.contract.journal import Damage, Journal, JournalReader, read_journal
from ava_pipeline.contract.parquet import (
    RowStream,
    check_parquet,
    joined,
    num_parquet_rows,
    num_rows,
    parquet_rows,
    read_parquet,
    write_parquet,
)
from ava_pipeline.errors import DamagedFileError

# What Arrow says of columns or values that cannot become those of another schema.
_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """Every row that could be read of a table.

    Attributes:
        rows: in the order they were written.
        damage: bytes of the journal that could not be read.
    """

    rows: pa.Table
    damage: tuple[Damage, ...] = ()


def read_stored(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> StoredTable | None:
    """Read a table from its Parquet file and its journal into memory, without changing either.

    The journal goes on behind the rows that the Parquet file held when it began; where it was turned into Parquet
    already and only its removal is missing, its rows are not read twice.

    Args:
        parquet: need not exist.
        journal: need not exist.
        schema: the table's, used where the journal's own is damaged.

    Returns:
        None where neither file exists.

    Raises:
        DamagedFileError: the Parquet file cannot be read.
    """
    # The journal first: one that becomes Parquet meanwhile is found there, and its rows are not read twice.
    found = _read_journal(journal, schema)
    parts = [read_parquet(parquet)] if parquet.exists() else []
    if found is not None and found.schema is not None:
        rows = pa.Table.from_batches([batch for _, batch in found.batches], found.schema)
        # Counted in rows that can be read: of a damaged journal no more than those went into the Parquet file.
        num_stored = parts[0].num_rows if parts else 0
        parts.append(rows.slice(max(0, num_stored - found.rows_before)))
    damage = found.damage if found else []
    if not parts:
        return None if not damage else StoredTable(pa.table({}), tuple(damage))
    return StoredTable(_joined(parts, parquet), tuple(damage))


def _joined(parts: list[pa.Table], parquet: Path) -> pa.Table:
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise _other_columns(parquet, error) from error


def _other_columns(parquet: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{parquet} and the journal beside it hold other columns: {error}.")


def store_journal(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> tuple[Damage, ...]:
    """Turn the journal into Parquet: after this the Parquet file holds every row and there is no journal.

    Neither file is in memory as a whole at any time. A damaged journal is kept in the folder `damaged/` beside it, and
    so is one whose rows do not go with those of the Parquet file.

    Args:
        parquet: need not exist.
        journal: need not exist; then nothing is done.
        schema: the table's, used where the journal's own is damaged.

    Returns:
        What of the journal could not be read.

    Raises:
        OSError: the Parquet file cannot be written; the journal still stands.
        DamagedFileError: the older Parquet file cannot be read; the journal still stands.
    """
    if not journal.exists():
        return ()
    num_stored = num_parquet_rows(parquet) if parquet.exists() else 0
    new = JournalRows(journal, schema, num_stored)
    is_more = next(new.read(), None) is not None
    if new.schema is not None and (is_more or not parquet.exists()):
        try:
            write_parquet(parquet, _all_rows(parquet, RowStream(new.schema, new.read)))
        except _MISFIT as error:
            damage = _misfit(parquet, journal, error)
            keep_damaged(journal)
            return (damage,)
    elif parquet.exists():
        check_parquet(parquet)  # the rows are there already, if it can be read
    if new.damage:
        keep_damaged(journal)
    else:
        journal.unlink()
    return new.damage


def find_misfit(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> Damage | None:
    """Look, writing nothing, whether a journal's rows go with those of the Parquet file; the whole journal, if not.

    Raises:
        DamagedFileError: the Parquet file cannot be read.
    """
    new = JournalRows(journal, schema, num_parquet_rows(parquet))
    if next(new.read(), None) is None or new.schema is None:
        return None
    try:
        num_rows(_all_rows(parquet, RowStream(new.schema, new.read)).read())
    except _MISFIT as error:
        return _misfit(parquet, journal, error)
    return None


def _misfit(parquet: Path, journal: Path, error: Exception) -> Damage:
    return Damage(0, journal.stat().st_size, f"its rows do not go with those of {parquet.name}: {error}")


def _all_rows(parquet: Path, new: RowStream) -> RowStream:
    return joined(parquet_rows(parquet), new) if parquet.exists() else new


class JournalRows:
    """The journal's rows that its Parquet file does not hold yet."""

    def __init__(self, journal: Path, schema: pa.Schema | None, num_stored: int) -> None:
        self._journal = journal
        self._given_schema = schema
        self._num_stored = num_stored
        self._reader = JournalReader(journal, schema)

    def read(self) -> Iterator[pa.RecordBatch]:
        """From the first one on, each time."""
        self._reader = JournalReader(self._journal, self._given_schema)
        # Counted in rows that can be read: of a damaged journal no more than those went into the Parquet file.
        num_read = 0
        for _, batch in self._reader.batches():
            start = max(0, self._num_stored - self._reader.rows_before - num_read)
            num_read += batch.num_rows
            if start < batch.num_rows:
                yield batch.slice(start)

    @property
    def schema(self) -> pa.Schema | None:
        """Of the rows, as the latest reading found it."""
        return self._reader.schema

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What the latest reading could not read."""
        return tuple(self._reader.damage)


def _read_journal(path: Path, schema: pa.Schema | None) -> Journal | None:
    try:
        return read_journal(path, schema=schema)
    except FileNotFoundError:
        return None  # there is none, or it became Parquet this moment
