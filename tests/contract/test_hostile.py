"""Journals and Parquet files that somebody made to do harm: named, bounded, and no code run."""

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ava_pipeline.contract.journal import Damage, read_frames, read_journal
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.errors import DamagedFileError

pytestmark = pytest.mark.timeout(60)

FIELDS: dict[str, pa.DataType] = {"batch_idx": pa.int64(), "name": pa.string()}
SCHEMA = pa.schema(FIELDS)
BATCH = pa.RecordBatch.from_pydict({"batch_idx": [1, 2], "name": ["a", "b"]}, schema=SCHEMA)
ROWS = BATCH.serialize().to_pybytes()
HEADER = struct.Struct("<8sIQII")


def frame(magic: bytes, payload: bytes, num_rows: int = 2, *, before: int = 0) -> bytes:
    """A frame whose checksum is right, whatever it holds."""
    head = HEADER.pack(magic, len(payload), before, num_rows, 0)
    return HEADER.pack(magic, len(payload), before, num_rows, zlib.crc32(payload, zlib.crc32(head))) + payload


def schema_frame(schema: pa.Schema = SCHEMA) -> bytes:
    """The first frame of a journal."""
    return frame(b"AVAjrnS1", schema.serialize().to_pybytes(), 0)


def rows_frame(payload: bytes = ROWS, num_rows: int = 2) -> bytes:
    """A later one."""
    return frame(b"AVAjrnR1", payload, num_rows)


def packed() -> bytes:
    """A compressed batch: a million rows in a few hundred bytes."""
    rows = pa.RecordBatch.from_arrays(
        [pa.repeat(0, 10**6).cast(pa.int64()), pa.nulls(10**6, pa.string())], schema=SCHEMA
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write(rows)
    _, batch = pa.ipc.MessageReader.open_stream(sink.getvalue())
    return batch.serialize().to_pybytes()


@pytest.mark.parametrize(
    ("payload", "num_rows", "reason"),
    [
        (b"no message at all " * 9, 2, "Expected"),
        (SCHEMA.serialize().to_pybytes(), 2, "this is another schema"),
        (ROWS, 7, "2 rows; its header counts 7"),
        (ROWS.replace(struct.pack("<3i", 0, 1, 2), struct.pack("<3i", 0, 2**30, 2**30)), 2, "out of bounds"),
        (packed(), 10**6, "plain batches"),
    ],
    ids=["garbage", "schema", "count", "offsets", "compressed"],
)
def test_a_frame_that_was_made_up_costs_itself(payload: bytes, num_rows: int, reason: str, tmp_path: Path) -> None:
    """Its checksum is right, but not what it holds: it is damage, and the frames around it are read."""
    path = tmp_path / "norms.journal"
    path.write_bytes(schema_frame() + rows_frame() + rows_frame(payload, num_rows) + rows_frame())
    journal = read_journal(path)
    assert [batch for _, batch in journal.batches] == [BATCH, BATCH]
    assert [reason in damage.reason for damage in journal.damage] == [True]


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._place,)


def trapped(place: Path) -> pa.Schema:
    """A column of a type that older Arrows unpickle."""
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(place)),
    }
    return pa.schema([pa.field("batch_idx", pa.int64(), metadata=extension)])


def test_a_pickle_in_a_schema_is_not_run(tmp_path: Path) -> None:
    """Neither in a journal's schema nor in a Parquet file's."""
    schema, place = trapped(tmp_path / "sprung"), tmp_path / "sprung"
    rows = pa.table({"batch_idx": [1]}, schema=schema)
    (tmp_path / "norms.journal").write_bytes(
        schema_frame(schema) + rows_frame(rows.to_batches()[0].serialize().to_pybytes(), 1)
    )
    pq.write_table(rows, tmp_path / "norms.parquet")
    read_journal(tmp_path / "norms.journal")
    read_parquet(tmp_path / "norms.parquet")
    assert not place.exists()


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.dictionary(pa.int8(), pa.string()), pa.binary()], ids=str)
def test_columns_that_no_table_has_are_no_journal(kind: pa.DataType, tmp_path: Path) -> None:
    """Only types that a table can declare are decoded."""
    path = tmp_path / "norms.journal"
    path.write_bytes(schema_frame(pa.schema([pa.field("batch_idx", kind)])) + rows_frame())
    journal = read_journal(path)
    assert journal.batches == []
    assert "no table has columns of" in journal.damage[0].reason


def test_a_second_schema_is_damage(tmp_path: Path) -> None:
    """Rows of one table have one schema."""
    path = tmp_path / "norms.journal"
    path.write_bytes(schema_frame() + rows_frame() + schema_frame(pa.schema([("x", pa.int64())])) + rows_frame())
    journal = read_journal(path)
    assert (journal.schema, len(journal.batches), len(journal.damage)) == (SCHEMA, 2, 1)


def test_a_parquet_and_a_journal_of_other_columns_are_named(tmp_path: Path) -> None:
    """They are not glued together."""
    pq.write_table(pa.table({"batch_idx": ["text"]}), tmp_path / "norms.parquet")
    (tmp_path / "norms.journal").write_bytes(schema_frame() + rows_frame())
    with pytest.raises(DamagedFileError, match=r"norms\.parquet and the journal"):
        read_stored(tmp_path / "norms.parquet", tmp_path / "norms.journal")


class Counting(BytesIO):
    """Bytes that count how many of them were read."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        """As of any file."""
        found = super().read(size)
        self.num_read += len(found)
        return found


def test_headers_that_each_claim_all_that_follows_are_not_read_again_and_again() -> None:
    """Within each other they would cost the square of the file; the whole frame before them is read."""
    whole = rows_frame()
    num, size = 2_000, HEADER.size
    made_up = b"".join(HEADER.pack(b"AVAjrnR1", (num - place - 1) * size, 0, 1, 0) for place in range(num))
    file, damage = Counting(whole + made_up), list[Damage]()
    assert [found.payload for found in read_frames(file, damage)] == [ROWS]
    assert file.num_read < 10 * len(made_up)
    assert sum(one.num_bytes for one in damage) == len(made_up)


def test_lists_that_unpack_to_more_than_their_file_can_need_are_refused(tmp_path: Path) -> None:
    """A row may hold any number of values; of one value a few bytes tell."""
    path = tmp_path / "norms.parquet"
    many = pa.ListArray.from_arrays(pa.array([0, 2**24], pa.int32()), pa.repeat(0, 2**24).cast(pa.int8()))
    pq.write_table(pa.table({"norm": many}), path, compression="zstd")
    with pytest.raises(DamagedFileError, match=r"norms\.parquet.*declare 134217728 bytes"):
        read_parquet(path)


def test_text_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """It is read packed and given plain, whatever its type, null and the empty text kept apart."""
    path = tmp_path / "predictions.parquet"
    texts = pa.array(["a", None, "", "a", "long" * 100] * 100)
    rows = pa.table({"plain": texts, "large": texts.cast(pa.large_string()), "packed": texts.dictionary_encode()})
    pq.write_table(rows, path)
    assert read_parquet(path).equals(rows)


def varint(number: int) -> bytes:
    """A number as Parquet's footer (compact Thrift) holds it."""
    number, digits = number << 1, bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def test_a_row_group_that_declares_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    """The footer says 134 million rows of ten columns, 10 GB, in a file of kilobytes."""
    path = tmp_path / "norms.parquet"
    real, declared = 2**20 + 12345, 2**27 - 1
    pq.write_table(
        pa.table({f"c{number}": pa.nulls(real, pa.float64()) for number in range(10)}), path, row_group_size=real
    )
    data = path.read_bytes()
    assert len(varint(real)) == len(varint(declared))
    path.write_bytes(data.replace(varint(real), varint(declared)))
    with pytest.raises(DamagedFileError, match=r"norms\.parquet.*declare 10737418160 bytes"):
        read_parquet(path)


def test_text_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    """Parquet does not check it; a reader's first look at the value would raise something else."""
    path = tmp_path / "norms.parquet"
    pq.write_table(pa.table({"name": ["abcdefgh"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(DamagedFileError, match=r"norms\.parquet.*UTF8"):
        read_parquet(path)


def test_a_column_whose_name_is_no_text_is_refused_by_file(tmp_path: Path) -> None:
    """Names in a Parquet file's footer have no checksum."""
    path = tmp_path / "norms.parquet"
    pq.write_table(pa.table({"batch_idx": [1, 2], "overall": [0.5, 1.0]}), path)
    path.write_bytes(path.read_bytes().replace(b"overall", b"over\x80ll"))
    with pytest.raises(DamagedFileError, match=r"norms\.parquet cannot be read as Parquet"):
        read_parquet(path)
