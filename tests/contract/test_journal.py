"""The journal: what a kill, a torn write or a flipped bit leaves of it."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from ava_pipeline.contract.journal import JournalReader, JournalWriter
from ava_pipeline.contract.tables import VERSION_KEY, same_columns

FIELDS: dict[str, pa.DataType] = {"batch_idx": pa.int64(), "name": pa.string()}
SCHEMA = pa.schema(FIELDS)
# Texts that a reader who searches for the next frame takes for its beginning.
BATCHES = [
    pa.RecordBatch.from_pydict({"batch_idx": [start, start + 1], "name": ["AVAjrnR1", None]}, schema=SCHEMA)
    for start in (0, 2, 4)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three batches of two rows, behind 10 rows of a Parquet file."""
    path = tmp_path / "norms.journal"
    writer = JournalWriter(path, SCHEMA, rows_before=10)
    for batch in BATCHES:
        writer.write(batch)
    writer.sync()
    writer.close()
    return path


def read_all(path: Path, schema: pa.Schema | None = None) -> tuple[JournalReader, list[tuple[int, pa.RecordBatch]]]:
    """A reader at the end of a journal, and every batch it read."""
    reader = JournalReader(path, schema)
    return reader, list(reader.batches())


def starts(path: Path, *, schema: pa.Schema | None = None) -> list[int]:
    """The first batch_idx of every batch that can be read; each comes with the rows before it."""
    _, batches = read_all(path, schema)
    found = [batch.column("batch_idx")[0].as_py() for _, batch in batches]
    assert [before for before, _ in batches] == [10 + start for start in found]
    return found


def test_everything_reads_back(path: Path) -> None:
    """Batches in order, bit for bit, and the number of rows before them."""
    journal, batches = read_all(path)
    assert [batch for _, batch in batches] == BATCHES
    assert (journal.schema, journal.rows_before, journal.damage) == (SCHEMA, 10, [])


def test_a_kill_at_any_byte_leaves_every_whole_batch(path: Path) -> None:
    """Wherever the file ends, the batches before that place are read, and nothing else."""
    data = path.read_bytes()
    frames = [data.find(b"AVAjrnS1"), *(at for at in range(len(data)) if _is_frame(data, at)), len(data)]
    for end in range(len(data)):
        path.write_bytes(data[:end])
        journal, batches = read_all(path)
        num_whole = sum(frame <= end for frame in frames[1:]) - 1
        assert len(batches) == max(0, num_whole)
        assert bool(journal.damage) == (end > 0 and end not in frames)
        assert [finding.severity for finding in journal.damage[-1:]] == ["info"] * bool(journal.damage)


def _is_frame(data: bytes, at: int) -> bool:
    """A frame's header names a row count of 2 behind the magic; the text in the rows does not."""
    return data.startswith(b"AVAjrnR1", at) and data[at + 20 : at + 24] == (2).to_bytes(4, "little")


def test_a_flipped_bit_costs_one_batch_at_most(path: Path) -> None:
    """Its checksum shows that a frame is damaged, and the search continues behind it."""
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        journal, batches = read_all(path, SCHEMA)
        assert journal.damage, at
        assert len(batches) >= 2, at
        assert all(batch in BATCHES for _, batch in batches), at


def test_a_length_beyond_the_file_is_not_a_torn_end(path: Path) -> None:
    """Only the last frame can be torn; rows lost before other rows are an error."""
    data = bytearray(path.read_bytes())
    second = data.index(b"AVAjrnR1")
    data[second + 11] = 0x0F
    path.write_bytes(data)
    journal, _ = read_all(path)
    assert {finding.severity for finding in journal.damage} == {"error"}
    assert "length of the frame is wrong" in journal.damage[0].message
    assert starts(path) == [2, 4]


def test_rows_whose_schema_is_lost_need_one(path: Path) -> None:
    """A damaged first frame costs no row if the table's schema is known, and is reported if it is not."""
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert starts(path, schema=SCHEMA) == [0, 2, 4]
    journal, batches = read_all(path)
    assert batches == []
    assert any("schema of the rows is lost" in finding.message for finding in journal.damage)


def test_damage_says_where_and_how_much(path: Path) -> None:
    """A person can find the bytes."""
    data = path.read_bytes()
    path.write_bytes(data + b"x" * 7)
    journal, _ = read_all(path)
    (finding,) = journal.damage
    assert str(finding) == (
        f"{path.parent.name}/norms.journal: info: 7 bytes at offset {len(data)} cannot be read, and their rows are "
        "lost: the frame is incomplete. [files.journal]"
    )


def test_an_empty_journal_has_no_rows(tmp_path: Path) -> None:
    """A process killed between making the file and writing its first frame."""
    path = tmp_path / "norms.journal"
    path.touch()
    assert read_all(path)[1] == []


def test_a_journal_that_exists_is_not_written_over(path: Path) -> None:
    """No other file holds its rows."""
    with pytest.raises(FileExistsError):
        JournalWriter(path, SCHEMA)
    assert starts(path) == [0, 2, 4]


def test_a_write_that_fails_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk accepts half a frame: the half is cut off again, and the next batch that fits is readable."""
    path = tmp_path / "norms.journal"
    writer = JournalWriter(path, SCHEMA, rows_before=10)
    writer.write(BATCHES[0])
    size = path.stat().st_size
    pwrite = os.pwrite

    def full_disk(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.write(BATCHES[2])
    assert path.stat().st_size == size
    monkeypatch.undo()
    writer.write(BATCHES[1])
    writer.close()
    assert starts(path) == [0, 2]
    assert read_all(path)[0].damage == []


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write fewer bytes than it was given."""
    path = tmp_path / "norms.journal"
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:7], offset))
    writer = JournalWriter(path, SCHEMA, rows_before=10)
    writer.write(BATCHES[0])
    writer.close()
    assert starts(path) == [0]


def test_same_columns_are_of_the_same_version() -> None:
    """Rows of different schema versions are not put together."""
    one, two = (SCHEMA.with_metadata({VERSION_KEY: version}) for version in (b"1", b"2"))
    assert same_columns(one, one)
    assert not same_columns(one, two)
    assert not same_columns(one, SCHEMA)
    assert not same_columns(one, one.remove(1))
