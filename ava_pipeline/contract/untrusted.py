"""Guards against files that somebody else may have written."""

import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ava_pipeline.contract.columns import STORED_TYPES
from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout
from ava_pipeline.contract.tables import check_batches, check_has_batches
from ava_pipeline.errors import DamagedFileError

# What ends so is a file wherever it lies in a run directory.
_SUFFIXES_OF_FILES = frozenset({".csv", ".parquet", ".journal", ".json", ".lock", ".yaml", ".pt", PARTIAL_SUFFIX})


def check_inside(layout: RunLayout) -> None:
    """Refuse a run in which a name that telemetry reads or writes leads elsewhere, or to what does not belong there.

    The run directory itself may be a link, and so may names that lead to another place inside of it.

    Raises:
        DamagedFileError: a link leads out of the run directory, in a circle or to nothing; or a folder, a pipe or a
            device stands where a file belongs, or a file where a folder does.
    """
    root = layout.root.resolve()
    for folder in _folders(layout):
        _check(folder, root)
        if folder.exists() and not folder.is_dir():
            raise DamagedFileError(f"{folder} is a file where a folder belongs. Move it away.")
    for path in _names(layout):
        _check(path, root)


def check_name(layout: RunLayout, path: Path) -> None:
    """Refuse one name of a run directory, as `check_inside` does those of telemetry.

    Raises:
        DamagedFileError: it leads out of the run directory or in a circle, or to something that is no file.
    """
    _check(path, layout.root.resolve())


def _check(path: Path, root: Path) -> None:
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # which of them a circle raises depends on Python's version
        raise DamagedFileError(f"{path} is a link that leads in a circle. Remove it.") from error
    if not place.is_relative_to(root):
        raise DamagedFileError(
            f"{path} is a link out of the run directory, to {place}; telemetry neither reads nor writes "
            "there. Put the file itself in its place, or make the run directory as a whole a link."
        )
    if path.is_symlink() and path.suffix in _SUFFIXES_OF_FILES and not path.exists():
        raise DamagedFileError(f"{path} is a link that leads to nothing. Remove it.")
    if path.is_dir() and path.suffix in _SUFFIXES_OF_FILES:
        raise DamagedFileError(f"{path} is a folder where a file belongs. Move it away.")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DamagedFileError(f"{path} is neither a file nor a folder. Move it away.")


def _folders(layout: RunLayout) -> Iterator[Path]:
    """An outer one before those in it."""
    yield from (layout.telemetry, layout.damaged, layout.telemetry / "superseded", layout.predictions)


def _names(layout: RunLayout) -> Iterator[Path]:
    """Every name that telemetry may read or write below and beside its folders."""
    yield layout.metrics
    yield from chain.from_iterable(folder.iterdir() for folder in _folders(layout) if folder.is_dir())
    yield from layout.telemetry.glob("superseded/*/*")


MAX_TABLE_BYTES = 8 * 2**30
# A column of one value packs thousandfold; the batches beside it do not.
_MAX_PACKING = 10_000
_ALWAYS_ALLOWED_BYTES = 64 * 2**20
_REFERENCE_BYTES = 8


def check_declared_size(metadata: pq.FileMetaData, file_bytes: int) -> int:
    """Refuse a file that would unpack to more memory than a table of this size can.

    Returns:
        How many bytes such a file may take in memory.

    Raises:
        DamagedFileError: the rows or the bytes that the metadata declares are too many, or do not add up.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
        raise DamagedFileError(f"it declares {metadata.num_rows} rows, and row groups of {sum(rows)}")
    by_type = max(metadata.num_rows * _row_bytes(metadata), sum(_value_bytes(group) for group in groups))
    declared = max(sum(group.total_byte_size for group in groups), by_type)
    allowed = min(MAX_TABLE_BYTES, _ALWAYS_ALLOWED_BYTES + _MAX_PACKING * file_bytes)
    if declared > allowed:
        raise DamagedFileError(f"its {file_bytes} bytes declare {declared} bytes of rows; at most {allowed} are read")
    return allowed


def _value_bytes(group: pq.RowGroupMetaData) -> int:
    """Bytes that the values take, at least: lists hold many a row."""
    return _REFERENCE_BYTES * max((group.column(place).num_values for place in range(group.num_columns)), default=0)


def _row_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes a row in memory, as far as the types tell."""
    return sum(_width_bytes(kind) for kind in metadata.schema.to_arrow_schema().types)


def _width_bytes(kind: pa.DataType) -> int:
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:  # text, lists: at least a reference each
        return _REFERENCE_BYTES


FROM_ARROW = (pa.ArrowException, OSError, UnicodeError)  # what Arrow raises of a damaged file; the last of names in it
UNUSABLE = (*FROM_ARROW, DamagedFileError)

# Places in the tables of Arrow's Message.fbs: Message.header and RecordBatch.compression.
_HEADER_PLACE = 2
_COMPRESSION_PLACE = 3


def read_schema(payload: pa.Buffer) -> pa.Schema:
    """Read the schema of a journal.

    Raises:
        ArrowException: no schema.
        OSError: not all of one.
        DamagedFileError: columns that no table has.
    """
    schema = pa.ipc.read_schema(payload)
    unknown = {str(kind) for kind in schema.types if kind not in STORED_TYPES}
    if unknown:
        raise DamagedFileError(f"no table has columns of {', '.join(sorted(unknown))}")
    check_has_batches(schema)
    return schema


def read_rows(payload: pa.Buffer, schema: pa.Schema, num_rows: int) -> pa.RecordBatch:
    """Read one batch of a journal.

    Raises:
        ArrowException: no batch of these columns.
        OSError: not all of one.
        DamagedFileError: a compressed batch, one of another number of rows, or rows without a batch_idx.
    """
    message = pa.ipc.read_message(payload)
    if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
        raise DamagedFileError(f"a journal holds plain batches of rows; this is another {message.type}")
    batch = pa.ipc.read_record_batch(message, schema)
    if batch.num_rows != num_rows:
        raise DamagedFileError(f"{batch.num_rows} rows; its header counts {num_rows}")
    batch.validate(full=True)
    check_batches(batch)
    return batch


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch names a compression; Arrow has checked that the metadata is well-formed."""
    message: int = struct.unpack_from("<I", metadata)[0]
    place = _flatbuffer_field(metadata, message, _HEADER_PLACE)
    batch: int = place + struct.unpack_from("<I", metadata, place)[0]
    return bool(_flatbuffer_field(metadata, batch, _COMPRESSION_PLACE) != batch)


def _flatbuffer_field(metadata: bytes, table: int, place: int) -> int:
    """Where a field of a flatbuffer's table lies; the table itself where the field is absent.

    Source: https://flatbuffers.dev/internals, "Tables".
    """
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, vtable)
    at = 4 + 2 * place
    return int(table + struct.unpack_from("<H", metadata, vtable + at)[0]) if at < size else table


def text_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns to be read as dictionaries.

    Raises:
        DamagedFileError: there is text inside of lists or the like, which no table has and which cannot be read packed.
    """
    nested = [field.name for field in schema if pa.types.is_nested(field.type) and _holds_text(field.type)]
    if nested:
        raise DamagedFileError(f"its column {nested[0]!r} holds text inside of other values, which no table does")
    return [field.name for field in schema if _is_text(field.type)]


class TextAllowance:
    """How many bytes the text of one file may still take.

    Args:
        num_bytes: in all.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def unpacked(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """The rows with the types of the file's schema.

        Raises:
            DamagedFileError: their text is more than may be read.
        """
        columns = [self._unpacked(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _unpacked(self, column: "pa.Array[Any]", kind: pa.DataType) -> "pa.Array[Any]":
        if not isinstance(column, pa.DictionaryArray) or not _holds_text(column.type.value_type):
            return column
        values: Any = column.dictionary
        lengths: Any = pc.binary_length(values)
        self._left -= pc.sum(lengths.take(column.indices)).as_py() or 0
        if self._left < 0:
            raise DamagedFileError("its text takes more memory than a file of its size can need")
        return column if pa.types.is_dictionary(kind) else column.dictionary_decode().cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    variable = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_one(kind) for is_one in variable)


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return _is_text(kind) or any(map(_holds_text, inner))


MAX_LINE_BYTES = 64 * 2**20


def read_line(file: BinaryIO) -> bytes:
    """The next line, its line feed included where it has one; empty at the end of the file.

    Raises:
        DamagedFileError: it is longer than any line of a table.
    """
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise DamagedFileError(f"it has a line of more than {MAX_LINE_BYTES} bytes, which no table has")
    return line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Every line from here on.

    Raises:
        DamagedFileError: one is longer than any line of a table.
    """
    yield from iter(lambda: read_line(file), b"")


def storable(text: str) -> str:
    r"""The text, what is no UTF-8 of it escaped: Python gives a byte that it cannot decode as `\udce9`, say."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
