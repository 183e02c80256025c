"""Read one table of a run as Arrow, from the file that holds most of its rows."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.columns import bool_array
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.parquet import num_parquet_rows, parquet_schema, read_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import BATCH, KEY_COLUMNS, RunTable
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.arrays import integers
from ava_pipeline.read.csv import num_rows, read_csv

_KEYS = {column.name for column in KEY_COLUMNS}


def read_table(layout: RunLayout, declaration: RunTable) -> pa.Table:
    """Read a table, also while it is being written and after a crash: every row that can be read, in order of writing.

    The rows are those of the Parquet file and its journal, or of the CSV file if that holds more. Raise
    DamagedFileError if a file cannot be read; warn if rows of the journal are lost.
    """
    name = declaration.table.name
    stored = read_stored(layout.parquet(name), layout.journal(name), declaration.arrow_schema)
    path = layout.csv(name)
    if path.exists() and num_rows(path) > (stored.rows.num_rows if stored else 0):
        return read_csv(path, declaration)
    if stored is None:
        return pa.Table.from_batches([], declaration.arrow_schema)
    for finding in stored.damage:
        if finding.severity == "error":
            warnings.warn(f"{layout.root}: {finding}", stacklevel=2)
    _check_types(stored.rows.schema, declaration, layout.parquet(name))
    return stored.rows


def _check_types(schema: pa.Schema, declaration: RunTable, path: Path) -> None:
    """Refuse columns that another program saved as another type than the declared numbers, texts or times."""
    for column in declaration.columns if schema.names else ():
        found = [schema.field(index).type for index in schema.get_all_field_indices(column.name)]
        if not found and column.name not in _KEYS:
            continue
        if [_family(dtype) for dtype in found] != [_family(column.arrow_field.type)]:
            given = " and ".join(map(str, found)) or "no such column"
            raise DamagedFileError(
                f"{path}: column {column.name}: expected {column.dtype}, got {given}. Restore the file from a backup."
            )


def _family(dtype: pa.DataType) -> str:
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    return "time" if pa.types.is_timestamp(dtype) else str(dtype)


def select_rows(
    layout: RunLayout,
    manifest: Manifest,
    name: str,
    columns: Sequence[str] | None = None,
    batches: tuple[int, int | None] | None = None,
) -> pa.Table:
    """Read some columns of some batches of a table; of a complete Parquet file, only what they need.

    The arguments are those of `Run.arrow`. Raise MisuseError if the table has no such column, and DamagedFileError if a
    file cannot be read.
    """
    declaration, path = manifest.tables[name].declaration, layout.parquet(name)
    if has_complete_parquet(layout, manifest, name):
        schema = parquet_schema(path)
        _check_types(schema, declaration, path)
        wanted = _known(columns, schema, name)
        rows = read_parquet(path, None if wanted is None else list(dict.fromkeys([*wanted, BATCH])), batches)
    else:
        rows = read_table(layout, declaration)
        wanted = _known(columns, rows.schema, name)
    if batches is not None:
        first, last = batches
        batch_idx = integers(rows, BATCH)
        rows = rows.filter(bool_array((batch_idx >= first) & (batch_idx <= (batch_idx if last is None else last))))
    return rows if wanted is None else rows.select(wanted)


def _known(columns: Sequence[str] | None, schema: pa.Schema, name: str) -> list[str] | None:
    unknown = [column for column in columns or () if column not in schema.names]
    if unknown:
        known = ", ".join(schema.names)
        raise MisuseError(f"Table {name!r} has no column {', '.join(unknown)}; its columns: {known}.")
    return None if columns is None else list(columns)


def has_complete_parquet(layout: RunLayout, manifest: Manifest, name: str) -> bool:
    """Whether the Parquet file alone holds every row that can be read. Raise DamagedFileError if a file is damaged."""
    path, csv = layout.parquet(name), layout.csv(name)
    if not path.exists() or layout.journal(name).exists():
        return False
    written = [[attempt.rows.get(file.name, 0) for file in (csv, path)] for attempt in manifest.attempts]
    if manifest.status != "running" and all(in_csv <= in_parquet for in_csv, in_parquet in written):
        return True  # without counting the lines of the CSV file
    return not (csv.exists() and num_rows(csv) > num_parquet_rows(path))
