"""The journal of a table: rows that are not in its Parquet file yet.

A journal is a row of frames: one that holds the Arrow schema, then one for each batch of rows, each an Arrow IPC
message. Every frame goes to the system in one unbuffered write, so that a killed process leaves whole frames and at
most one torn one. The running row count in each tells how many rows damaged ones before it held.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.frames import ROWS_MAGIC, SCHEMA_MAGIC, Damage, Frame, frame_bytes, read_frames
from ava_pipeline.contract.messages import UNUSABLE, read_rows, read_schema
from ava_pipeline.contract.tables import VERSION_KEY
from ava_pipeline.errors import DamagedFileError


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


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas are the same columns of the same schema version."""
    versions = [(schema.metadata or {}).get(VERSION_KEY) for schema in (one, other)]
    return bool(one.equals(other)) and versions[0] == versions[1]
