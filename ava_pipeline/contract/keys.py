"""The columns that every measure's table begins with, and rows that have them."""

import pyarrow as pa

from ava_pipeline.contract.tables import Column
from ava_pipeline.errors import DamagedFileError

KEY_COLUMNS = (
    Column(name="batch_idx", dtype="int64", description="1-based; counts every batch of the run.", not_below=1),
    Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0),
)
BATCH = "batch_idx"


def check_has_batches(schema: pa.Schema) -> None:
    """Refuse columns that tell of no row which batch it is of.

    Raises:
        DamagedFileError: there is no column batch_idx of integers, or a name stands twice.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DamagedFileError(f"it has more than one column {', '.join(map(repr, twice))}")
    if BATCH not in schema.names:
        raise DamagedFileError(f"it has no column {BATCH}, which every table has")
    if schema.field(BATCH).type != pa.int64():
        raise DamagedFileError(f"its column {BATCH} is {schema.field(BATCH).type}, not int64")


def check_batches(rows: pa.RecordBatch) -> None:
    """Refuse rows that lack a value which every row has.

    Raises:
        DamagedFileError: batch_idx is null, or a column that the schema says is never null.
    """
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if column.null_count and (field.name == BATCH or not field.nullable):
            raise DamagedFileError(f"{column.null_count} of its rows have no {field.name}")
