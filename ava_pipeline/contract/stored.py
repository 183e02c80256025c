"""A table as Parquet stores it: the rows of the Parquet file, followed by those that are still in the journal."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.files import keep_damaged
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.journal import JournalReader
from ava_pipeline.contract.parquet import (
    ROWS_PER_GROUP,
    RowStream,
    check_parquet,
    concat_rows,
    num_parquet_rows,
    parquet_rows,
    read_parquet,
    write_parquet,
)
from ava_pipeline.errors import DamagedFileError

# What Arrow raises for columns or values that cannot become those of another schema.
_SCHEMA_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """Every row of a table that can be read, in the order written, and the `JournalReader.damage` of its journal."""

    rows: pa.Table
    damage: tuple[Finding, ...] = ()


def read_stored(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> StoredTable | None:
    """Read a table from its Parquet file and its journal into memory, without changing either.

    A row is never read twice, also if a kill left a journal whose rows are already in the Parquet file. Either file may
    be missing; None if both are. `schema` is used if the journal's own is damaged. Raise DamagedFileError if the
    Parquet file cannot be read, or its columns contradict the journal's.
    """
    # The journal first: one that becomes Parquet meanwhile is then found there as well, and its rows are skipped.
    reader = JournalReader(journal, schema)
    batches = _all_batches(reader)
    tables = [read_parquet(parquet)] if parquet.exists() else []
    if batches is not None and reader.schema is not None:
        rows = pa.Table.from_batches(batches, reader.schema)
        # Counted in rows that can be read: only those of a damaged journal went into the Parquet file.
        num_stored = tables[0].num_rows if tables else 0
        tables.append(rows.slice(max(0, num_stored - reader.rows_before)))
    if not tables:
        return StoredTable(pa.table({}), tuple(reader.damage)) if reader.damage else None
    try:
        return StoredTable(pa.concat_tables(tables, promote_options="permissive"), tuple(reader.damage))
    except pa.ArrowException as error:
        raise DamagedFileError(f"{parquet} and the journal beside it have different columns: {error}.") from error


def stored_rows(parquet: Path, journal: Path, schema: pa.Schema) -> RowStream | None:
    """The rows that `read_stored` finds, a part at a time, with the columns of `schema`; None if there is no file.

    A journal that becomes Parquet meanwhile is no error: the next reading finds its rows. Raise DamagedFileError while
    being read if the Parquet file cannot be read, or its columns are not those of `schema`.
    """
    if not (parquet.exists() or journal.exists()):
        return None
    return RowStream(schema, lambda: _stored_batches(parquet, journal, schema))


def _stored_batches(parquet: Path, journal: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    num_stored = 0
    try:
        if parquet.exists():
            num_stored = num_parquet_rows(parquet)
            yield from parquet_rows(parquet, ROWS_PER_GROUP).as_columns(schema).read()
        with suppress(FileNotFoundError):
            reader = JournalReader(journal, schema)
            yield from RowStream(schema, partial(reader.new_batches, num_stored)).as_columns(schema).read()
    except pa.ArrowException as error:
        raise DamagedFileError(
            f"{parquet} or the journal beside it has other columns than declared: {error}."
        ) from error


def _all_batches(reader: JournalReader) -> list[pa.RecordBatch] | None:
    try:
        return [batch for _, batch in reader.batches()]
    except FileNotFoundError:
        return None


def store_journal(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> tuple[Finding, ...]:
    """Move the journal's rows into the Parquet file: afterwards it holds every row, and the journal is gone.

    Only a row group is in memory at a time. A damaged journal is kept in the folder `damaged/` beside it, and so is a
    journal whose rows do not fit those of the Parquet file. Either file may be missing. `schema` is used if the
    journal's own is damaged.

    Returns:
        A finding for each range of the journal's bytes whose rows are lost.

    Raises:
        OSError: the Parquet file cannot be written; the journal is unchanged.
        DamagedFileError: the older Parquet file cannot be read; the journal is unchanged.
    """
    if not journal.exists():
        return ()
    reader = JournalReader(journal, schema)
    new, is_more = _new_rows(reader, parquet)
    if new is not None and (is_more or not parquet.exists()):
        try:
            write_parquet(parquet, _all_rows(parquet, new))
        except _SCHEMA_ERRORS as error:
            misfit = _misfit(parquet, journal, error)
            keep_damaged(journal)
            return (misfit,)
    elif parquet.exists():
        check_parquet(parquet)  # before the journal, whose rows it holds already, is removed
    if reader.damage:
        keep_damaged(journal)
    else:
        journal.unlink()
    return tuple(reader.damage)


def find_misfit(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> Finding | None:
    """A finding about the whole journal if `store_journal` could not append its rows to those of the Parquet file.

    Nothing is written. Raise DamagedFileError if the Parquet file cannot be read.
    """
    new, is_more = _new_rows(JournalReader(journal, schema), parquet)
    if new is None or not is_more:
        return None
    try:
        for _ in _all_rows(parquet, new).read():
            pass
    except _SCHEMA_ERRORS as error:
        return _misfit(parquet, journal, error)
    return None


def _new_rows(reader: JournalReader, parquet: Path) -> tuple[RowStream | None, bool]:
    """The rows that only the journal holds, None if their schema is lost; and whether it holds any."""
    new = partial(reader.new_batches, num_parquet_rows(parquet) if parquet.exists() else 0)
    is_more = next(new(), None) is not None
    return None if reader.schema is None else RowStream(reader.schema, new), is_more


def _all_rows(parquet: Path, new: RowStream) -> RowStream:
    return concat_rows(parquet_rows(parquet), new) if parquet.exists() else new


def _misfit(parquet: Path, journal: Path, error: Exception) -> Finding:
    size, reason = journal.stat().st_size, str(error).removesuffix(".")
    return Finding(
        id="files.journal",
        severity="error",
        message=f"{size} bytes at offset 0 hold rows that do not fit those of {parquet.name}: {reason}.",
        file=f"{journal.parent.name}/{journal.name}",
    )
