"""How much memory a Parquet file asks for, told from its metadata before any of it is read."""

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.errors import DamagedFileError

MAX_BYTES = 8 * 2**30
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
    allowed = min(MAX_BYTES, _ALWAYS_ALLOWED_BYTES + _MAX_PACKING * file_bytes)
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
