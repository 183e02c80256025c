"""The journal of a table: rows that are not in its Parquet file yet.

A journal is a row of frames: one that holds the Arrow schema, then one for each batch of rows. A frame is a header
(magic, payload length, rows before it, rows in it, CRC32 of header and payload) and an Arrow IPC message. Every frame
goes to the system in one unbuffered write, so that a killed process leaves whole frames and at most one torn one; the
magic lets a reader find the next frame behind damaged bytes, the checksum tells it that they are damaged, and the
running row count tells it how many rows they held.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ava_pipeline.contract.files import sync_folder
from ava_pipeline.contract.messages import UNUSABLE, read_rows, read_schema
from ava_pipeline.contract.tables import VERSION_KEY
from ava_pipeline.errors import DamagedFileError

_SCHEMA_MAGIC = b"AVAjrnS1"
_ROWS_MAGIC = b"AVAjrnR1"
_ANY_MAGIC = b"AVAjrn"
_HEADER = struct.Struct("<8sIQII")  # magic, payload bytes, rows before, rows, CRC32


class Damage(NamedTuple):
    """Bytes of a journal that are no whole frame."""

    offset: int
    num_bytes: int
    reason: str


class _Frame(NamedTuple):
    magic: bytes
    rows_before: int
    num_rows: int
    payload: memoryview
    end: int


class JournalWriter:
    """Appends batches to a journal, one unbuffered write each.

    Args:
        path: the journal; must not exist.
        schema: the rows' Arrow schema.
        rows_before: rows that the table's Parquet file holds already.

    Raises:
        OSError: the journal cannot be made.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, rows_before: int = 0) -> None:
        self._path = path
        self._num_rows = rows_before
        self._file = path.open("xb", buffering=0)
        self._end = 0
        try:
            self._append(_SCHEMA_MAGIC, schema.serialize(), 0)
        except BaseException:
            self._file.close()
            path.unlink()  # made here and empty: in the way of the next try, and nobody's rows
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch; a write that fails leaves the journal as it was.

        Raises:
            OSError: the system did not take the bytes.
        """
        self._append(_ROWS_MAGIC, batch.serialize(), batch.num_rows)
        self._num_rows += batch.num_rows

    def sync(self) -> None:
        """Wait until the bytes written are on the disk."""
        os.fsync(self._file.fileno())
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file; the journal stays where it is."""
        self._file.close()

    def _append(self, magic: bytes, payload: pa.Buffer, num_rows: int) -> None:
        head = _HEADER.pack(magic, payload.size, self._num_rows, num_rows, 0)
        checksum = zlib.crc32(payload, zlib.crc32(head))
        frame = _HEADER.pack(magic, payload.size, self._num_rows, num_rows, checksum) + payload.to_pybytes()
        self._end = append_whole(self._file.fileno(), frame, self._end)


def append_whole(descriptor: int, data: bytes, end: int) -> int:
    """Write `data` at `end`, the end of the file, in full or not at all.

    Returns:
        The new end of the file, in bytes.

    Raises:
        OSError: the system did not take the bytes; the file ends at `end` again.
    """
    try:
        if os.lseek(descriptor, 0, os.SEEK_END) > end:  # half a write, by a disk that refused to cut it too
            os.ftruncate(descriptor, end)
        left = memoryview(data)
        while left:
            left = left[os.pwrite(descriptor, left, end + len(data) - len(left)) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    return end + len(data)


@dataclass(slots=True)
class Journal:
    """What can be read of a journal.

    Attributes:
        schema: of the rows; None where the schema's frame is damaged and none was given.
        rows_before: rows of the Parquet file that the journal goes on behind.
        batches: every whole batch, in order, with the number of rows before it.
        damage: what could not be read.
    """

    schema: pa.Schema | None
    rows_before: int
    batches: list[tuple[int, pa.RecordBatch]]
    damage: list[Damage]


def read_journal(path: Path, *, schema: pa.Schema | None = None) -> Journal:
    """Read every whole frame of a journal, also one that is being written or that is damaged.

    Args:
        path: the journal.
        schema: used where the schema's own frame is damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    journal = Journal(schema, 0, [], [])
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return journal
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for frame in _frames(data, journal.damage):
                payload = pa.py_buffer(bytes(frame.payload))
                frame.payload.release()
                _take(frame, payload, journal)
    return journal


def _take(frame: _Frame, payload: pa.Buffer, journal: Journal) -> None:
    """Add what a frame holds; a checksum tells that it is whole, not that it was written by us."""
    try:
        if frame.magic == _SCHEMA_MAGIC:
            _take_schema(frame, payload, journal)
        elif journal.schema is None:
            raise DamagedFileError("rows whose schema is lost")
        else:
            _take_rows(frame, payload, journal, journal.schema)
    except UNUSABLE as error:
        reason = " ".join(str(error).split())
        journal.damage.append(Damage(frame.end - len(payload), len(payload), reason))


def _take_schema(frame: _Frame, payload: pa.Buffer, journal: Journal) -> None:
    if journal.batches or frame.end != _HEADER.size + len(payload):
        raise DamagedFileError("a schema that does not stand at the beginning")
    journal.schema = read_schema(payload)
    journal.rows_before = frame.rows_before


def _take_rows(frame: _Frame, payload: pa.Buffer, journal: Journal, schema: pa.Schema) -> None:
    batch = read_rows(payload, schema, frame.num_rows)
    if not journal.batches and journal.rows_before == 0:
        journal.rows_before = frame.rows_before  # as far as can be told where the schema's frame is lost
    journal.batches.append((frame.rows_before, batch))


def _frames(data: mmap.mmap, damage: list[Damage]) -> Iterator[_Frame]:
    offset = 0
    while offset < len(data):
        frame = _frame_at(data, offset)
        if isinstance(frame, _Frame):
            yield frame
            offset = frame.end
            continue
        following = data.find(_ANY_MAGIC, offset + 1)
        end = following if following >= 0 else len(data)
        damage.append(Damage(offset, end - offset, frame))
        offset = end


def _frame_at(data: mmap.mmap, offset: int) -> _Frame | str:
    """The frame at `offset`, or why there is none."""
    if offset + _HEADER.size > len(data):
        return "a torn header"
    magic, num_bytes, rows_before, num_rows, checksum = _HEADER.unpack_from(data, offset)
    start, end = offset + _HEADER.size, offset + _HEADER.size + num_bytes
    if magic not in {_SCHEMA_MAGIC, _ROWS_MAGIC}:
        return "no frame begins here"
    if end > len(data):
        return "a torn frame"
    head = _HEADER.pack(magic, num_bytes, rows_before, num_rows, 0)
    payload = memoryview(data)[start:end]
    if zlib.crc32(payload, zlib.crc32(head)) != checksum:
        payload.release()
        return "a frame whose checksum is wrong"
    return _Frame(magic, rows_before, num_rows, payload, end)


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas are the same columns of the same schema version."""
    versions = [(schema.metadata or {}).get(VERSION_KEY) for schema in (one, other)]
    return bool(one.equals(other)) and versions[0] == versions[1]
