"""The journal: rows of a table that are not in its Parquet file yet, safe from a kill after each write.

A journal is a sequence of frames, the schema's first. A frame is a header (magic, payload length, rows before the
frame, rows in it, CRC32 of header and payload) and a payload, one Arrow IPC message. The checksum shows that a frame is
damaged, the magic lets a reader find the next frame after damaged bytes, and the rows before a frame show which of its
rows a Parquet file already holds.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from ava_pipeline.contract.files import append_whole
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.tables import check_batches, check_has_batches
from ava_pipeline.contract.untrusted import UNREADABLE, check_values
from ava_pipeline.errors import DamagedFileError

MAX_PAYLOAD_BYTES = 256 * 2**20

_SCHEMA_MAGIC = b"AVAjrnS1"
_ROWS_MAGIC = b"AVAjrnR1"
_ANY_MAGIC = b"AVAjrn"
_HEADER = struct.Struct("<8sIQII")  # magic, payload bytes, rows before, rows, CRC32
_BLOCK_BYTES = 2**20


class JournalWriter:
    """Appends batches to a new journal, each in one unbuffered write.

    `rows_before` counts the rows that the table's Parquet file already holds. Raise OSError if `path` exists.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, rows_before: int = 0) -> None:
        self._num_rows = rows_before
        self._file = path.open("xb", buffering=0)
        self._end = 0
        try:
            self._append(_SCHEMA_MAGIC, schema.serialize(), 0)
        except BaseException:
            self._file.close()
            path.unlink()  # empty, and in the way of the next try
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch.

        Raise OSError, and leave the journal as it was, if the disk refuses the bytes or they are too many for a frame.
        """
        self._append(_ROWS_MAGIC, batch.serialize(), batch.num_rows)
        self._num_rows += batch.num_rows

    def sync(self) -> None:
        """Wait until the bytes written are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the journal stays."""
        self._file.close()

    def _append(self, magic: bytes, message: pa.Buffer, num_rows: int) -> None:
        payload = memoryview(message)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise OSError(f"{num_rows} rows are {len(payload)} bytes; a journal accepts {MAX_PAYLOAD_BYTES} at once")
        header = _header(magic, payload, rows_before=self._num_rows, num_rows=num_rows)
        self._end = append_whole(self._file.fileno(), header + payload, self._end)


class JournalReader:
    """Reads every whole frame of a journal, also while it is written and after it was damaged.

    `schema` is used if the journal's own is damaged.

    Attributes:
        schema: of the rows; None if it is damaged and none was given. Known from the first batch on.
        rows_before: rows that the Parquet file held when the journal began. Known from the first batch on.
        damage: a finding for each range of bytes that could not be read, in order. A last frame that is incomplete,
            because it is still being written or a kill cut it off, is an info; all others are errors.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self._path = path
        self._given_schema = schema
        self._start_over()

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Every batch that can be read, in order, with the number of rows before it; each call starts over."""
        self._start_over()
        with self._path.open("rb") as file:
            for frame in self._frames(file):
                batch = self._batch(frame)
                if batch is not None:
                    yield frame.rows_before, batch

    def new_batches(self, num_stored: int) -> Iterator[pa.RecordBatch]:
        """The rows that a Parquet file of `num_stored` rows does not hold yet; each call starts over."""
        # Counted in rows that can be read: only those of a damaged journal went into the Parquet file.
        num_read = 0
        for _, batch in self.batches():
            start = max(0, num_stored - self.rows_before - num_read)
            num_read += batch.num_rows
            if start < batch.num_rows:
                yield batch.slice(start)

    def _start_over(self) -> None:
        self.schema = self._given_schema
        self.rows_before = 0
        self.damage: list[Finding] = []
        self._is_start_known = False

    def _frames(self, file: BinaryIO) -> "Iterator[_Frame]":
        """Every whole frame up to the present end of the file.

        Plain reads and no memory map: a writer may cut the file at any time, which kills a process that maps it.
        """
        offset, size = 0, file.seek(0, os.SEEK_END)
        while offset < size:
            frame = _read_frame(file, offset, size)
            if isinstance(frame, _Frame):
                yield frame
                offset = frame.end
                continue
            end = _next_magic(file, offset + 1, size)
            self._add_damage(offset, end - offset, frame, is_last=end == size)
            offset = end

    def _batch(self, frame: "_Frame") -> pa.RecordBatch | None:
        """The rows in a frame; None if it holds the schema or cannot be decoded."""
        payload = pa.py_buffer(frame.payload)
        try:
            if frame.magic == _SCHEMA_MAGIC:
                self._take_schema(frame, payload)
                return None
            if self.schema is None:
                raise DamagedFileError("the schema of the rows is lost")
            batch = _decoded(payload, self.schema, frame.num_rows)
        except UNREADABLE as error:
            self._add_damage(frame.end - len(payload), len(payload), " ".join(str(error).split()))
            return None
        if not self._is_start_known:  # the schema's frame is lost: at the latest here
            self._start_at(frame.rows_before)
        return batch

    def _take_schema(self, frame: "_Frame", payload: pa.Buffer) -> None:
        if frame.offset:
            raise DamagedFileError("it is a second schema")
        self.schema = None  # rows under a schema that cannot be used are not rows of the schema that was given
        schema = pa.ipc.read_schema(payload)
        check_has_batches(schema)
        self.schema = schema
        self._start_at(frame.rows_before)

    def _start_at(self, rows_before: int) -> None:
        self.rows_before = rows_before
        self._is_start_known = True

    def _add_damage(self, offset: int, num_bytes: int, reason: str, *, is_last: bool = False) -> None:
        is_torn = reason == _INCOMPLETE and is_last
        if reason == _INCOMPLETE and not is_last:
            reason = "the length of the frame is wrong"  # frames follow
        self.damage.append(
            Finding(
                id="files.journal",
                severity="info" if is_torn else "error",
                message=f"{num_bytes} bytes at offset {offset} cannot be read, and their rows are lost: {reason}.",
                file=f"{self._path.parent.name}/{self._path.name}",
            )
        )


class _Frame(NamedTuple):
    """A whole frame, its payload not decoded yet."""

    magic: bytes
    rows_before: int
    num_rows: int
    payload: bytes
    offset: int

    @property
    def end(self) -> int:
        return self.offset + _HEADER.size + len(self.payload)


_INCOMPLETE = "the frame is incomplete"


def _read_frame(file: BinaryIO, offset: int, size: int) -> _Frame | str:
    """The frame at `offset`, or why it cannot be read."""
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return _INCOMPLETE
    magic, num_bytes, rows_before, num_rows, _ = _HEADER.unpack(header)
    if magic not in {_SCHEMA_MAGIC, _ROWS_MAGIC}:
        return "they do not begin with a frame"
    if offset + _HEADER.size + num_bytes > size:
        return _INCOMPLETE
    if num_bytes > MAX_PAYLOAD_BYTES:
        return "the length of the frame is wrong"
    payload = file.read(num_bytes)
    if _header(magic, payload, rows_before=rows_before, num_rows=num_rows) != header:
        return "the checksum of the frame is wrong"
    return _Frame(magic, rows_before, num_rows, payload, offset)


def _header(magic: bytes, payload: bytes | memoryview, *, rows_before: int, num_rows: int) -> bytes:
    unsigned = _HEADER.pack(magic, len(payload), rows_before, num_rows, 0)
    checksum = zlib.crc32(payload, zlib.crc32(unsigned))
    return _HEADER.pack(magic, len(payload), rows_before, num_rows, checksum)


def _next_magic(file: BinaryIO, start: int, size: int) -> int:
    """Where the next frame may begin, at `start` or after it; `size` if none follows."""
    while start < size:
        file.seek(start)
        block = file.read(_BLOCK_BYTES)
        found = block.find(_ANY_MAGIC)
        if found >= 0:
            return start + found
        if len(block) < len(_ANY_MAGIC):
            break
        start += len(block) - len(_ANY_MAGIC) + 1
    return size


def _decoded(payload: pa.Buffer, schema: pa.Schema, num_rows: int) -> pa.RecordBatch:
    batch = pa.ipc.read_record_batch(payload, schema)
    if batch.num_rows != num_rows:
        raise DamagedFileError(f"the frame has {batch.num_rows} rows, but its header counts {num_rows}")
    check_values(batch)
    check_batches(batch)
    return batch
