"""A table as Parquet stores it: the file, and the journal behind it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from ava_pipeline.contract.arrays import integers
from ava_pipeline.contract.journal import JournalReader, JournalWriter
from ava_pipeline.contract.parquet import same_bits, write_parquet
from ava_pipeline.contract.stored import read_stored, store_journal
from ava_pipeline.errors import DamagedFileError

FIELDS: dict[str, pa.DataType] = {"batch_idx": pa.int64(), "norm": pa.float32()}
SCHEMA = pa.schema(FIELDS)


def batch(*batches: int) -> pa.RecordBatch:
    """A row a batch, its norm not finite."""
    return pa.RecordBatch.from_pydict(
        {"batch_idx": list(batches), "norm": [float("nan")] * len(batches)}, schema=SCHEMA
    )


class Files:
    """One table's Parquet file and journal."""

    def __init__(self, folder: Path) -> None:
        self.parquet = folder / "norms.parquet"
        self.journal = folder / "norms.journal"

    def journaled(self, *batches: pa.RecordBatch, rows_before: int = 0) -> None:
        """Write a journal."""
        writer = JournalWriter(self.journal, SCHEMA, rows_before=rows_before)
        for one in batches:
            writer.write(one)
        writer.close()

    def read(self) -> list[int]:
        """The batches that can be read."""
        found = read_stored(self.parquet, self.journal)
        return [] if found is None else integers(found.rows, "batch_idx").tolist()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A table without files."""
    return Files(tmp_path)


def test_no_file_is_no_table(files: Files) -> None:
    """It is None and not an empty table: the caller decides what that means."""
    assert read_stored(files.parquet, files.journal) is None
    assert store_journal(files.parquet, files.journal) == ()
    assert not files.parquet.exists()


def test_journal_rows_follow_those_in_parquet(files: Files) -> None:
    """A reader gets one table."""
    write_parquet(files.parquet, pa.Table.from_batches([batch(1, 2)]))
    files.journaled(batch(3), batch(4, 5), rows_before=2)
    assert files.read() == [1, 2, 3, 4, 5]


def test_a_stored_journal_becomes_parquet(files: Files) -> None:
    """After closing, one file holds the same rows bit for bit."""
    files.journaled(batch(1), batch(2))
    before = read_stored(files.parquet, files.journal)
    store_journal(files.parquet, files.journal)
    after = read_stored(files.parquet, files.journal)
    assert not files.journal.exists()
    assert before is not None
    assert after is not None
    assert same_bits(before.rows, after.rows)


def test_a_kill_before_the_journal_is_removed_doubles_no_row(files: Files) -> None:
    """The Parquet file already holds the journal's rows, as the row count in each frame shows."""
    files.journaled(batch(1), batch(2, 3))
    data = files.journal.read_bytes()
    store_journal(files.parquet, files.journal)
    files.journal.write_bytes(data)
    assert files.read() == [1, 2, 3]
    store_journal(files.parquet, files.journal)
    assert files.read() == [1, 2, 3]


def test_a_journal_that_becomes_parquet_while_it_is_read_loses_no_row(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader beside a writer that closes gets each row once, whichever is first."""
    files.journaled(batch(1), batch(2))

    read = JournalReader.batches

    def close_meanwhile(reader: JournalReader) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from read(reader)
        monkeypatch.undo()
        store_journal(files.parquet, files.journal)

    monkeypatch.setattr(JournalReader, "batches", close_meanwhile)
    assert files.read() == [1, 2]


@pytest.mark.parametrize(("damaged", "left"), [(0, [2, 3, 4]), (1, [1, 3, 4])])
def test_a_kill_before_a_damaged_journal_is_put_away_doubles_no_row(
    damaged: int, left: list[int], files: Files
) -> None:
    """Its readable rows are in the Parquet file, fewer than its frames count."""
    files.journaled(batch(1), batch(2), batch(3), batch(4))
    data = bytearray(files.journal.read_bytes())
    starts = [at for at in range(len(data)) if data.startswith(b"AVAjrnR1", at)]
    data[starts[damaged] + 40] ^= 1
    files.journal.write_bytes(data)
    store_journal(files.parquet, files.journal)
    files.journal.write_bytes(data)  # as the kill left it
    assert files.read() == left
    store_journal(files.parquet, files.journal)
    assert (files.read(), files.journal.exists()) == (left, False)


def test_a_journal_is_not_given_up_for_a_parquet_file_that_cannot_be_read(files: Files) -> None:
    """All of its rows were stored, and the Parquet file was damaged before the journal was removed."""
    files.journaled(batch(*range(1000)))
    journal = files.journal.read_bytes()
    store_journal(files.parquet, files.journal)
    files.journal.write_bytes(journal)
    data = bytearray(files.parquet.read_bytes())
    data[len(data) // 3] ^= 1
    files.parquet.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"norms\.parquet"):
        store_journal(files.parquet, files.journal)
    assert files.journal.read_bytes() == journal


def test_columns_that_older_rows_lack_are_null_in_them(files: Files) -> None:
    """A Parquet file from a backup, saved before a column was added."""
    write_parquet(files.parquet, pa.table({"batch_idx": [1, 2]}))
    files.journaled(batch(3), rows_before=2)
    before = read_stored(files.parquet, files.journal)
    store_journal(files.parquet, files.journal)
    after = read_stored(files.parquet, files.journal)
    assert before is not None
    assert after is not None
    assert same_bits(before.rows, after.rows)
    assert after.rows.column("norm").null_count == 2


def test_a_damaged_journal_is_kept_when_its_rows_are_stored(files: Files) -> None:
    """The readable rows are in Parquet; the damaged file is kept for a closer examination."""
    files.journaled(batch(1), batch(2))
    data = bytearray(files.journal.read_bytes())
    data[-1] ^= 1
    files.journal.write_bytes(data)
    assert len(store_journal(files.parquet, files.journal)) == 1
    assert files.read() == [1]
    assert (files.journal.parent / "damaged" / "norms.journal").read_bytes() == data


def test_a_damaged_parquet_file_is_named_and_costs_no_journal(files: Files) -> None:
    """The journal is not removed because another file is broken."""
    files.journaled(batch(1))
    files.parquet.write_bytes(b"PAR1 no more")
    with pytest.raises(DamagedFileError, match=r"norms\.parquet"):
        store_journal(files.parquet, files.journal)
    assert files.journal.exists()


def test_a_flipped_bit_in_parquet_is_noticed(files: Files) -> None:
    """Pages have checksums: a changed value is never returned as a measured one."""
    rows = pa.Table.from_batches([batch(*range(1000))])
    write_parquet(files.parquet, rows)
    data = bytearray(files.parquet.read_bytes())
    data[len(data) // 3] ^= 1
    files.parquet.write_bytes(data)
    with pytest.raises(DamagedFileError):
        files.read()


def test_same_bits_differ_from_equality() -> None:
    """Two nans are the same; 0.0 and -0.0 are not; null equals neither."""
    zero, minus, nan, null = (
        pa.table({"x": pa.array([value], pa.float32())}) for value in (0.0, -0.0, float("nan"), None)
    )
    assert same_bits(nan, nan)
    assert not same_bits(zero, minus)
    assert not same_bits(nan, null)
    assert not same_bits(zero, zero.cast(pa.schema([("x", pa.float64())])))
