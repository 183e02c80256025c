"""Frames: the bytes of a journal, each frame whole or known to be damaged.

A frame is a header (magic, payload length, rows before it, rows in it, CRC32 of header and payload) and a payload. The
magic lets a reader find the next frame behind damaged bytes, the checksum tells it that they are damaged.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from ava_pipeline.contract.files import append_whole
from ava_pipeline.contract.untrusted import UNUSABLE, read_rows, read_schema
from ava_pipeline.errors import DamagedFileError

SCHEMA_MAGIC = b"AVAjrnS1"
ROWS_MAGIC = b"AVAjrnR1"
_ANY_MAGIC = b"AVAjrn"
_HEADER = struct.Struct("<8sIQII")  # magic, payload bytes, rows before, rows, CRC32
_SEARCHED_BYTES = 2**20
# Frames do not overlap: however damaged, to look at each is to read the file once. Made-up ones could cost its square.
_TRIES_PER_BYTE = 4

_TORN_HEADER, _TORN_FRAME = "a torn header", "a torn frame"
TORN = frozenset({_TORN_HEADER, _TORN_FRAME})  # what a frame is called that was being written when the file was read

MAX_PAYLOAD_BYTES = 256 * 2**20


class Damage(NamedTuple):
    """Bytes of a journal that are no whole frame."""

    offset: int
    num_bytes: int
    reason: str


class Frame(NamedTuple):
    """One whole frame; what its payload holds is not known yet."""

    magic: bytes
    rows_before: int
    num_rows: int
    payload: bytes
    offset: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + _HEADER.size + len(self.payload)


def frame_bytes(magic: bytes, payload: memoryview, *, rows_before: int, num_rows: int) -> bytes:
    """A frame as it lies in the file.

    Raises:
        OSError: the payload is too large for a frame.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise OSError(f"{num_rows} rows take {len(payload)} bytes; a journal takes {MAX_PAYLOAD_BYTES} at once")
    return _head(magic, len(payload), rows_before, num_rows, payload) + payload


def read_frames(file: BinaryIO, damage: list[Damage]) -> Iterator[Frame]:
    """Every whole frame up to where the file ends now; what is none is added to `damage`.

    Plain reads and no memory map: a writer may cut the file at any time, and a map of what is cut kills its reader.
    """
    offset, size = 0, file.seek(0, os.SEEK_END)
    budget = _TRIES_PER_BYTE * size
    while offset < size:
        found = _frame_at(file, offset, size)
        if isinstance(found, Frame):
            yield found
            offset = found.end
            continue
        budget -= found.num_bytes
        end = _next_magic(file, offset + 1, size) if budget > 0 else size
        damage.append(Damage(offset, end - offset, _reason(found, is_last=end == size, is_searched=budget > 0)))
        offset = end


def _reason(found: "_NoFrame", *, is_last: bool, is_searched: bool) -> str:
    """Only the last frame can be torn; one that others follow has a wrong length."""
    if not is_searched:
        return f"{found.reason}, as were many before it; what follows was not searched"
    return found.reason if is_last or found.reason not in TORN else "a frame whose length is wrong"


def _head(magic: bytes, num_bytes: int, rows_before: int, num_rows: int, payload: bytes | memoryview) -> bytes:
    unsigned = _HEADER.pack(magic, num_bytes, rows_before, num_rows, 0)
    checksum = zlib.crc32(payload, zlib.crc32(unsigned))
    return _HEADER.pack(magic, num_bytes, rows_before, num_rows, checksum)


class _NoFrame(NamedTuple):
    """Why there is none, and how many bytes had to be read to tell."""

    reason: str
    num_bytes: int = 0


def _frame_at(file: BinaryIO, offset: int, size: int) -> Frame | _NoFrame:
    """The frame at `offset`, or why there is none."""
    file.seek(offset)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return _NoFrame(_TORN_HEADER)
    magic, num_bytes, rows_before, num_rows, _ = _HEADER.unpack(head)
    if magic not in {SCHEMA_MAGIC, ROWS_MAGIC}:
        return _NoFrame("no frame begins here")
    if offset + _HEADER.size + num_bytes > size:
        return _NoFrame(_TORN_FRAME)
    if num_bytes > MAX_PAYLOAD_BYTES:
        return _NoFrame("a frame that is larger than any")
    payload = file.read(num_bytes)
    if _head(magic, num_bytes, rows_before, num_rows, payload) != head:
        return _NoFrame("a frame whose checksum is wrong", num_bytes)
    return Frame(magic, rows_before, num_rows, payload, offset)


def _next_magic(file: BinaryIO, start: int, size: int) -> int:
    """Where the next frame may begin, at `start` or behind it; `size` where none does."""
    while start < size:
        file.seek(start)
        found = file.read(_SEARCHED_BYTES)
        at = found.find(_ANY_MAGIC)
        if at >= 0:
            return start + at
        if len(found) < len(_ANY_MAGIC):
            break
        start += len(found) - len(_ANY_MAGIC) + 1
    return size


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
        self._num_rows = rows_before
        self._file = path.open("xb", buffering=0)
        self._end = 0
        try:
            self._append(SCHEMA_MAGIC, schema.serialize(), 0)
        except BaseException:
            self._file.close()
            path.unlink()  # made here and empty: in the way of the next try, and nobody's rows
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch; a write that fails leaves the journal as it was.

        Raises:
            OSError: the system did not take the bytes.
        """
        self._append(ROWS_MAGIC, batch.serialize(), batch.num_rows)
        self._num_rows += batch.num_rows

    def sync(self) -> None:
        """Wait until the bytes written are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the journal stays where it is."""
        self._file.close()

    def _append(self, magic: bytes, payload: pa.Buffer, num_rows: int) -> None:
        frame = frame_bytes(magic, memoryview(payload), rows_before=self._num_rows, num_rows=num_rows)
        self._end = append_whole(self._file.fileno(), frame, self._end)


class JournalReader:
    """Reads every whole frame of a journal, one at a time, also of one that is being written or that is damaged.

    Args:
        path: the journal.
        schema: used where the schema's own frame is damaged.

    Attributes:
        schema: of the rows; None where the schema's frame is damaged and none was given. Known at the first batch.
        rows_before: rows of the Parquet file that the journal goes on behind. Known at the first batch.
        damage: what could not be read so far.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.schema = schema
        self.rows_before = 0
        self.damage: list[Damage] = []
        self._path = path
        self._knows_start = False

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Every whole batch, in order, with the number of rows before it.

        Raises:
            OSError: the file cannot be opened.
        """
        with self._path.open("rb") as file:
            for frame in read_frames(file, self.damage):
                batch = self._taken(frame)
                if batch is not None:
                    yield frame.rows_before, batch

    def _taken(self, frame: Frame) -> pa.RecordBatch | None:
        """The rows that a frame holds; a checksum tells that it is whole, not that it was written by us."""
        payload = pa.py_buffer(frame.payload)
        try:
            if frame.magic == SCHEMA_MAGIC:
                self._take_schema(frame, payload)
                return None
            if self.schema is None:
                raise DamagedFileError("rows whose schema is lost")
            batch = read_rows(payload, self.schema, frame.num_rows)
        except UNUSABLE as error:
            reason = " ".join(str(error).split())
            self.damage.append(Damage(frame.end - len(payload), len(payload), reason))
            return None
        if not self._knows_start:
            self._start_at(frame.rows_before)  # as far as can be told where the schema's frame is lost
        return batch

    def _take_schema(self, frame: Frame, payload: pa.Buffer) -> None:
        if frame.offset:
            raise DamagedFileError("a schema that does not stand at the beginning")
        self.schema = None  # rows of columns that cannot be used are not those of the schema that was given
        self.schema = read_schema(payload)
        self._start_at(frame.rows_before)

    def _start_at(self, rows_before: int) -> None:
        self.rows_before = rows_before
        self._knows_start = True


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
    """Read all of a journal into memory.

    Args:
        path: the journal.
        schema: used where the schema's own frame is damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    reader = JournalReader(path, schema)
    batches = list(reader.batches())
    return Journal(reader.schema, reader.rows_before, batches, reader.damage)
