"""Text columns of Parquet, read packed: a value that many rows name stands in the file, and in memory, once.

A few kilobytes can name one long text in every row. So text is read as dictionaries, whose values are no more than the
file declares, and unpacked only where that stays within what may be read.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.errors import DamagedFileError


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
