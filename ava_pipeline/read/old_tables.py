"""Tables that hand-written collectors wrote as CSV or Parquet: which of ours they are, and their rows as ours.

A table whose columns are those of a built-in table is declared as that one, and any other by the types of its values.
Zeros that a collector wrote for what it did not measure become null here; see `_measured_norms`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pydantic import BaseModel

from ava_pipeline.contract.arrays import Bools, Integers, bool_array, float_columns, integers, null_mask, numpy_values
from ava_pipeline.contract.builtin_tables import BUILT_IN_TABLES, HOLDOUT, STEPS, holdout_table
from ava_pipeline.contract.columns import Column, Dtype
from ava_pipeline.contract.parquet import parquet_schema, read_parquet
from ava_pipeline.contract.tables import BATCH, KEY_COLUMNS, RunTable, Table, check_column_name
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.batch_count import BatchCount, TableBatches, batches_by_epoch
from ava_pipeline.read.csv import first_columns, whole_lines

EPOCH = "epoch"
KEYS = (BATCH, EPOCH)
NORMS, DELTAS = "gradient_norms", "weight_deltas"
_NUM_BATCHES = "num_batches"
_BUILT_IN = {table.name: table for table in BUILT_IN_TABLES if table.name not in {HOLDOUT, STEPS.name}}
_DTYPES: tuple[tuple[Callable[[pa.DataType], bool], Dtype], ...] = (
    (pa.types.is_boolean, "bool"),
    (pa.types.is_integer, "int64"),
    (pa.types.is_floating, "float64"),
    (pa.types.is_null, "float64"),
)
_MAX_KEY_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class OldTable:
    """What a file's rows are.

    Attributes:
        begin: its first row of the latest training; rows before it are of trainings that wrote into the same file.
        left_out: columns whose names cannot name a column.
    """

    path: Path
    declaration: RunTable
    batches: TableBatches
    begin: int
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.declaration.table.name


def is_table(path: Path) -> bool:
    """Whether a CSV or Parquet file has the columns `batch_idx` and `epoch`; not if it cannot be read."""
    try:
        names = first_columns(path) if path.suffix == ".csv" else parquet_schema(path).names
    except (OSError, DamagedFileError):
        return False
    return set(KEYS) <= set(names)


def describe(path: Path) -> OldTable:
    """Read a file and say what its rows are; it is read again only after it changed.

    Raise DamagedFileError if it cannot be read, or a row has no batch and epoch.
    """
    stat = path.stat()
    return _described(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=512)
def _described(path: Path, _size: int, _mtime_ns: int) -> OldTable:
    rows = read_raw(path)
    epochs = integers(rows, EPOCH)
    falls = np.flatnonzero(epochs[1:] < epochs[:-1]) + 1
    begin = int(falls[-1]) if len(falls) else 0
    latest = rows.slice(begin)
    usable = [name for name in rows.column_names if _is_usable(name)]
    try:
        declaration = _declaration(path.stem, latest.select(usable))
    except (DamagedFileError, ValueError) as error:  # pydantic's ValidationError: its name cannot name a table
        raise DamagedFileError(f"{path}: {str(error).partition(chr(10))[0]}") from error
    return OldTable(
        path=path,
        declaration=declaration,
        batches=batches_by_epoch(path.name, integers(latest, BATCH), integers(latest, EPOCH)),
        begin=begin,
        left_out=tuple(name for name in rows.column_names if name not in usable),
    )


def read_raw(path: Path) -> pa.Table:
    """Every row of a file as it is, with the types of its values; empty fields and `None` are null.

    Raise DamagedFileError if the file cannot be read, has a column twice, or a row has no whole batch and epoch.
    """
    rows = read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if len(set(rows.column_names)) < len(rows.column_names):
        raise DamagedFileError(f"{path}: two of its columns have the same name. Rename one of them.")
    for name in KEYS:
        column = rows.column(name)
        if rows.num_rows and (not pa.types.is_integer(column.type) or column.null_count):
            raise DamagedFileError(f"{path}: column {name}: expected a whole number in every row. Repair the file.")
        rows = rows.set_column(rows.schema.get_field_index(name), name, column.cast(pa.int64()))
    return rows


def _read_csv(path: Path) -> pa.Table:
    data = whole_lines(path)
    if not data:
        raise DamagedFileError(f"{path} has no whole line. Remove it, or wait for its first row.")
    options = csv.ConvertOptions(
        null_values=["", "None"], strings_can_be_null=True, quoted_strings_can_be_null=False, timestamp_parsers=[]
    )
    reading = csv.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 2**30))  # types are those of all rows
    try:
        return csv.read_csv(BytesIO(data), reading, csv.ParseOptions(newlines_in_values=True), options)
    except pa.ArrowInvalid as error:
        raise DamagedFileError(f"{path} cannot be read: {error} (the header is row 1). Repair the line.") from error


def read_rows(table: OldTable, count: BatchCount, *, in_order: bool) -> pa.Table:
    """The rows of the latest training, with the columns and types of the declaration.

    `batch_idx` counts over the run if that is known. If it is not, it is the file's own number, which starts again in
    each epoch; `in_order` replaces it by its place, see `BatchCount`.
    """
    rows = read_raw(table.path).slice(table.begin)
    batches, epochs = integers(rows, BATCH), integers(rows, EPOCH)
    counted = count.over_the_run(batches, epochs) if count.is_known or in_order else batches
    rows = rows.set_column(rows.schema.get_field_index(BATCH), BATCH, pa.array(counted, pa.int64()))
    if table.name == DELTAS and _NUM_BATCHES not in rows.column_names:
        rows = rows.append_column(_NUM_BATCHES, _distances(counted, epochs, is_known=count.is_known))
    rows = _typed(table, rows)
    if table.name == NORMS and table.declaration.table.l2_of_groups:
        return _measured_norms(rows, table.declaration.run_column_names)
    if table.name == DELTAS and table.declaration.table.l2_of_groups:
        return _without_first(rows, table.declaration.run_column_names)
    return rows


def _typed(table: OldTable, rows: pa.Table) -> pa.Table:
    schema = table.declaration.arrow_schema
    nullable = pa.schema([field.with_nullable(True) for field in schema])  # noqa: FBT003  # Arrow's own order
    try:
        columns = [
            rows.column(field.name).cast(field.type, safe=False)
            if field.name in rows.column_names
            else pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
            for field in nullable
        ]
    except pa.ArrowException as error:
        raise DamagedFileError(f"{table.path}: {error}. Repair the file.") from error
    return pa.Table.from_arrays(columns, schema=nullable)


def _distances(counted: Integers, epochs: Integers, *, is_known: bool) -> "pa.Array[Any]":
    """Batches since the row before; null in the first row, and between epochs whose batches are not known."""
    distances = np.diff(counted, prepend=0)
    is_null = np.zeros(len(counted), dtype=np.bool_)
    is_null[:1] = True
    if not is_known:
        is_null |= np.diff(epochs, prepend=-1) != 0
    return pa.array(distances, pa.int64(), mask=is_null)


def _measured_norms(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Null for zeros that no gradient has, as a norm of exactly 0 means that a collector found nothing to measure.

    Such are a column that is 0 in every row while others are not (the group's name is not in the model), and a row
    that is 0 in every column while others are not (the gradients were set to zero before).
    """
    values = float_columns(rows, names)
    if not names or not rows.num_rows:
        return rows
    is_zero = np.column_stack([(values[name] == 0) | null_mask(rows.column(name)) for name in names])
    columns, lines = (np.asarray(is_zero.all(axis=axis), dtype=np.bool_) for axis in (0, 1))
    if columns.all():
        return rows
    for index, name in enumerate(names):
        rows = _with_nulls(rows, name, lines | columns[index])
    return rows


def _without_first(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Null in the first row if it is 0 in every column: there were no weights to compare with."""
    first = np.zeros(rows.num_rows, dtype=np.bool_)
    first[:1] = True
    if not rows.num_rows or any(rows.column(name)[0].as_py() != 0 for name in names):
        return rows
    for name in names:
        rows = _with_nulls(rows, name, first)
    return rows


def _with_nulls(rows: pa.Table, name: str, is_null: Bools) -> pa.Table:
    column = rows.column(name)
    replaced = pc.if_else(bool_array(is_null), pa.scalar(None, column.type), column)
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), replaced)


def _is_usable(name: str) -> bool:
    try:
        check_column_name(name)
    except MisuseError:
        return False
    return not hasattr(BaseModel, name)


def _declaration(name: str, rows: pa.Table) -> RunTable:
    """A built-in table of this name if the columns are its own, or else a table of the columns that the file has."""
    table = _holdout(rows) if name == HOLDOUT else _BUILT_IN.get(name)
    if table is not None and table.run_columns is not None:
        _check_numbers(rows)
    if table is not None and _fits(table, rows):
        fixed = {column.name for column in table.columns}
        return RunTable.of(table, [column for column in rows.column_names if column not in fixed])
    columns = tuple(
        Column(name=column, dtype=_dtype(rows.schema.field(column).type), description="As in the file.", nullable=True)
        for column in rows.column_names
        if column not in KEYS
    )
    description = f"{name}, written by another program."
    return RunTable.of(
        Table(name=name, description=description, columns=(*KEY_COLUMNS, *columns), row_key=_row_key(rows))
    )


def _check_numbers(rows: pa.Table) -> None:
    """Raise DamagedFileError if some values of a column are numbers and some are not: a damaged line, and no text."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        if not pa.types.is_string(column.type):
            continue
        texts = [(row, text) for row, text in enumerate(column.to_pylist(), start=1) if text is not None]
        wrong = [(row, text) for row, text in texts if not _is_number_text(text)]
        if 0 < len(wrong) < len(texts):
            row, text = wrong[0]
            raise DamagedFileError(f"column {name}, row {row}: expected a number, got {text!r}. Repair the line.")


def _is_number_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _holdout(rows: pa.Table) -> Table | None:
    names = rows.column_names
    num_classes = sum(name.startswith("logit_") for name in names)
    num_ids = 1 if "image_id" in names else 2
    ids = ["image_id"] if num_ids == 1 else ["image1", "image2"]
    if num_classes < 2 or not set(ids) <= set(names):  # noqa: PLR2004  # two classes
        return None
    are_integers = all(pa.types.is_integer(rows.schema.field(name).type) for name in ids)
    return holdout_table("classes", num_ids=num_ids, num_classes=num_classes, integer_ids=are_integers)


def _fits(table: Table, rows: pa.Table) -> bool:
    """Whether the rows have every column that the table needs, of its kind, and no other than its own."""
    fixed = {column.name: column for column in table.columns}
    others = [name for name in rows.column_names if name not in fixed]
    has_needed = all(column.nullable or name in rows.column_names for name, column in fixed.items())
    are_of_kind = all(
        _kind(rows.schema.field(name).type) in {_kind(column.arrow_field.type), "nothing"}
        for name, column in fixed.items()
        if name in rows.column_names
    )
    are_run_columns = (
        not others
        if table.run_columns is None
        else all(_kind(rows.schema.field(name).type) in {"number", "nothing"} for name in others)
    )
    return has_needed and are_of_kind and are_run_columns


def _kind(dtype: pa.DataType) -> str:
    if pa.types.is_null(dtype):
        return "nothing"
    return "number" if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) else str(dtype)


def _dtype(dtype: pa.DataType) -> Dtype:
    return next((ours for is_one, ours in _DTYPES if is_one(dtype)), "string")


def _row_key(rows: pa.Table) -> tuple[str, ...]:
    """The fewest columns that tell the rows of a batch apart; none if a batch has one row."""
    keys = [_codes(rows, name) for name in KEYS]
    if not _has_duplicates(keys):
        return ()
    candidates = [field.name for field in rows.schema if _may_be_key(field.type) and field.name not in KEYS]
    for num in range(1, _MAX_KEY_COLUMNS + 1):
        for names in combinations(candidates, num):
            if not _has_duplicates([*keys, *(_codes(rows, name) for name in names)]):
                return names
    return tuple(candidates)


def _may_be_key(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_integer(dtype))


def _codes(rows: pa.Table, name: str) -> Any:
    return numpy_values(rows.column(name).combine_chunks().dictionary_encode("encode").indices)


def _has_duplicates(columns: Sequence[Any]) -> bool:
    order = np.lexsort(columns)
    same = np.ones(max(0, len(order) - 1), dtype=np.bool_)
    for codes in columns:
        same &= codes[order][1:] == codes[order][:-1]
    return bool(same.any())
