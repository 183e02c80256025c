"""The Parquet writer: rows go to a journal, and become a complete Parquet file on close."""

import contextlib
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.parquet_file import num_parquet_rows
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.write.writer import Writer


class ParquetWriter(Writer):
    """Journals a table's rows beside its Parquet file and turns both into one file on close.

    A Parquet file that was not finished cannot be read, so rows wait in the journal, of which every whole batch can.

    Args:
        parquet: the file; one that exists goes on.
        journal: must not exist; `store_journal` empties an older one.
        schema: the table's Arrow schema.

    Raises:
        OSError: the journal cannot be made.
        DamagedFileError: the Parquet file cannot be read.
    """

    def __init__(self, parquet: Path, journal: Path, schema: pa.Schema) -> None:
        self._parquet = parquet
        self._journal_path = journal
        self._schema = schema
        rows_before = num_parquet_rows(parquet) if parquet.exists() else 0
        self._journal = JournalWriter(journal, schema, rows_before=rows_before)

    @property
    def file_name(self) -> str:
        """The Parquet file that the journal becomes."""
        return self._parquet.name

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch to the journal, all of it or none."""
        self._journal.write(batch)

    def sync(self) -> None:
        """Wait until the journal is on the disk."""
        self._journal.sync()

    def close(self) -> None:
        """Write the Parquet file aside, read it back, rename it, and remove the journal."""
        self._journal.close()
        store_journal(self._parquet, self._journal_path, self._schema)

    def abandon(self) -> None:
        """Close the journal and leave it: every batch of it can be read."""
        with contextlib.suppress(OSError):  # nothing is buffered here, so nothing is lost
            self._journal.close()
