"""Files as a broken disk, an interrupted copy or another program leaves them: named, bounded, and no code is run."""

import os
import pickle
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ava_pipeline import open_run
from ava_pipeline.contract.journal import JournalReader
from ava_pipeline.contract.parquet import num_parquet_rows, read_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.validate import validate_run
from tests.validate.building import RunBuilder

pytestmark = pytest.mark.timeout(60)

FIELDS: dict[str, pa.DataType] = {"batch_idx": pa.int64(), "name": pa.string()}
SCHEMA = pa.schema(FIELDS)
BATCH = pa.RecordBatch.from_pydict({"batch_idx": [1, 2], "name": ["a", "b"]}, schema=SCHEMA)
ROWS = BATCH.serialize().to_pybytes()
HEADER = struct.Struct("<8sIQII")


@pytest.mark.parametrize("name", ["telemetry/steps.csv", "telemetry/manifest.json"])
def test_sparse_files_are_refused_unread(name: str, tmp_path: Path) -> None:
    """A sparse file, as an interrupted copy leaves it, has any size at no cost."""
    root = RunBuilder(root=tmp_path / "run", formats=("csv",)).write()
    os.truncate(root / name, 10 * 2**30)
    with pytest.raises(DamagedFileError, match=rf"{Path(name).name}.* 10737418240"):
        open_run(root).steps()
    assert {"files.unreadable", "manifest.invalid"} & {finding.id for finding in validate_run(root)}


def frame(magic: bytes, payload: bytes, num_rows: int = 2, *, before: int = 0) -> bytes:
    """A frame with a correct checksum, whatever its payload."""
    head = HEADER.pack(magic, len(payload), before, num_rows, 0)
    return HEADER.pack(magic, len(payload), before, num_rows, zlib.crc32(payload, zlib.crc32(head))) + payload


def schema_frame(schema: pa.Schema = SCHEMA) -> bytes:
    """The first frame of a journal."""
    return frame(b"AVAjrnS1", schema.serialize().to_pybytes(), 0)


def rows_frame(payload: bytes = ROWS, num_rows: int = 2) -> bytes:
    """A later frame."""
    return frame(b"AVAjrnR1", payload, num_rows)


@pytest.mark.parametrize(
    ("payload", "num_rows", "reason"),
    [
        (b"no message at all " * 9, 2, "Expected"),
        (SCHEMA.serialize().to_pybytes(), 2, "record batch"),
        (ROWS, 7, "2 rows, but its header counts 7"),
        (ROWS.replace(struct.pack("<3i", 0, 1, 2), struct.pack("<3i", 0, 2**30, 2**30)), 2, "out of bounds"),
    ],
    ids=["garbage", "schema", "count", "offsets"],
)
def test_a_frame_that_holds_no_rows_of_the_table_costs_itself(
    payload: bytes, num_rows: int, reason: str, tmp_path: Path
) -> None:
    """Its checksum is right, but not its content: it is damage, and the frames around it are read."""
    path = tmp_path / "norms.journal"
    path.write_bytes(schema_frame() + rows_frame() + rows_frame(payload, num_rows) + rows_frame())
    reader = JournalReader(path)
    assert [batch for _, batch in reader.batches()] == [BATCH, BATCH]
    assert [reason in finding.message for finding in reader.damage] == [True]


def test_a_second_schema_is_damage(tmp_path: Path) -> None:
    """Rows of one table have one schema."""
    path = tmp_path / "norms.journal"
    path.write_bytes(schema_frame() + rows_frame() + schema_frame(pa.schema([("x", pa.int64())])) + rows_frame())
    reader = JournalReader(path)
    assert len(list(reader.batches())) == 2
    assert (reader.schema, len(reader.damage)) == (SCHEMA, 1)


def test_a_parquet_file_and_a_journal_with_other_columns_are_named(tmp_path: Path) -> None:
    """Their rows are not put together."""
    pq.write_table(pa.table({"batch_idx": ["text"]}), tmp_path / "norms.parquet")
    (tmp_path / "norms.journal").write_bytes(schema_frame() + rows_frame())
    with pytest.raises(DamagedFileError, match=r"norms\.parquet and the journal"):
        read_stored(tmp_path / "norms.parquet", tmp_path / "norms.journal")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._place,)


def test_a_pickle_in_a_schema_is_not_run(tmp_path: Path) -> None:
    """Old versions of Arrow unpickled the type of such a column, in a journal and in a Parquet file."""
    place = tmp_path / "created"
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(place)),
    }
    schema = pa.schema([pa.field("batch_idx", pa.int64(), metadata=extension)])
    rows = pa.table({"batch_idx": [1]}, schema=schema)
    (tmp_path / "norms.journal").write_bytes(
        schema_frame(schema) + rows_frame(rows.to_batches()[0].serialize().to_pybytes(), 1)
    )
    pq.write_table(rows, tmp_path / "norms.parquet")
    assert list(JournalReader(tmp_path / "norms.journal").batches())
    assert read_parquet(tmp_path / "norms.parquet").num_rows == 1
    assert not place.exists()


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
    for read in (read_parquet, num_parquet_rows):
        with pytest.raises(DamagedFileError, match=r"norms\.parquet.*declare 10737418160 bytes"):
            read(path)


def test_a_footer_whose_counts_contradict_each_other_is_damage(tmp_path: Path) -> None:
    """The number of rows in a Parquet file says which rows of a journal are new, and has no checksum."""
    path = tmp_path / "norms.parquet"
    pq.write_table(pa.table({"batch_idx": pa.nulls(12345, pa.int64())}), path)
    data = path.read_bytes()
    place = data.index(varint(12345), data.index(b"batch_idx"))
    path.write_bytes(data[:place] + varint(12346) + data[place + len(varint(12346)) :])
    with pytest.raises(DamagedFileError, match=r"norms\.parquet.*row groups of"):
        num_parquet_rows(path)


def test_text_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    """Parquet does not check texts; a reader that decodes one would raise another error."""
    path = tmp_path / "norms.parquet"
    pq.write_table(pa.table({"name": ["abcdefgh"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(DamagedFileError, match=r"norms\.parquet.*UTF8"):
        read_parquet(path)


def test_a_column_name_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    """Names in a Parquet file's footer have no checksum."""
    path = tmp_path / "norms.parquet"
    pq.write_table(pa.table({"batch_idx": [1, 2], "overall": [0.5, 1.0]}), path)
    path.write_bytes(path.read_bytes().replace(b"overall", b"over\x80ll"))
    with pytest.raises(DamagedFileError, match=r"norms\.parquet cannot be read as Parquet"):
        read_parquet(path)
