"""Arrow IPC messages of a journal, read as what they are: bytes that anyone may have written.

Arrow follows offsets and unpacks buffers as a message tells it to. So a message must be of columns that tables have,
must not be compressed (ours never are, and a few bytes could unpack to gigabytes), and every offset in it is checked
before anything looks at a value.
"""

import struct

import pyarrow as pa

from ava_pipeline.contract.keys import check_batches, check_has_batches
from ava_pipeline.contract.tables import STORED_TYPES
from ava_pipeline.errors import DamagedFileError

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
    place = _field(metadata, message, _HEADER_PLACE)
    batch: int = place + struct.unpack_from("<I", metadata, place)[0]
    return bool(_field(metadata, batch, _COMPRESSION_PLACE) != batch)


def _field(metadata: bytes, table: int, place: int) -> int:
    """Where a field of a flatbuffer's table lies; the table itself where the field is absent.

    Source: https://flatbuffers.dev/internals, "Tables".
    """
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, vtable)
    at = 4 + 2 * place
    return int(table + struct.unpack_from("<H", metadata, vtable + at)[0]) if at < size else table
