"""Rules of files: present, readable, with the declared columns and types, and nothing left over."""

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from ava_pipeline.contract.arrays import null_mask, numpy_values
from ava_pipeline.contract.columns import Column, dtype_name, shown
from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.csv import ONE_THREAD, convert_options, parse_options
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.listing import AddBreach, Breach, Cell, Rule, relative

MISSING = Rule("files.missing", "Every file of a table in which the manifest counts rows exists.")
LEFTOVER = Rule("files.leftover", "No half-written or unfinished file is left over.", "warning")
NAME = Rule("files.name", "Every file in telemetry/ and predictions/ belongs to the run.", "warning")
# The reader of a table finds these.
UNREADABLE = Rule("files.unreadable", "Every file can be read.")
COLUMNS = Rule("files.columns", "A file has the columns that the manifest declares, in order.")
DTYPE = Rule("files.dtype", "A Parquet column has its declared type.")
TORN = Rule("files.torn-line", "The CSV file of an ended run ends with a whole line.")
LINE_END = Rule("files.line-end", "A CSV line ends in LF, without CR.")
LINE = Rule("files.line", "A CSV line has one field for each column.")
VALUE = Rule("values.dtype", "A CSV field can be read as its column's type.")
JOURNAL = Rule("files.journal", "Every byte of a journal belongs to a whole frame.")


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """Files that are missing, left over or unknown."""
    if run.manifest is not None:
        yield from _missing(run.layout, run.manifest)
        yield from _unknown_tables(run.layout, run.manifest)
    if not run.is_open:
        yield from _leftovers(run.layout)
    yield from _unknown_predictions(run.layout)


def _missing(layout: RunLayout, manifest: Manifest) -> Iterator[Breach]:
    folder = layout.telemetry
    present = {path.name for path in folder.iterdir()}
    for name, entry in manifest.tables.items():
        for suffix in entry.formats:
            file = f"{name}.{suffix}"
            num_counted = sum(
                attempt.rows.get(file, 0) - attempt.set_aside.get(file, 0) for attempt in manifest.attempts
            )
            is_present = file in present or (suffix == "parquet" and f"{name}.journal" in present)
            if num_counted > 0 and not is_present:
                message = f"expected {num_counted} rows of {name}, as the manifest counts, but the file is missing."
                yield MISSING.broken(relative(layout, folder / file), message)


def _leftovers(layout: RunLayout) -> Iterator[Breach]:
    for path in sorted(layout.root.rglob(f"*{PARTIAL_SUFFIX}")):
        yield LEFTOVER.broken(relative(layout, path), "this file was never finished. Delete it.")
    for path in sorted(layout.telemetry.glob("*.journal")):
        message = "the run ended, but these rows are not in Parquet yet. Run `ava-pipeline recover` to store them."
        yield LEFTOVER.broken(relative(layout, path), message)


def _unknown_tables(layout: RunLayout, manifest: Manifest) -> Iterator[Breach]:
    known = {*manifest.tables, "events"}
    for path in sorted(layout.telemetry.iterdir()):
        if path.suffix in {".csv", ".parquet", ".journal"} and path.stem not in known:
            yield NAME.broken(relative(layout, path), f"the manifest declares no table {path.stem!r}.")


def _unknown_predictions(layout: RunLayout) -> Iterator[Breach]:
    known = {file.path for file in prediction_files(layout)}
    for path in sorted(layout.predictions.glob("*")):
        if path not in known and path.suffix != PARTIAL_SUFFIX:
            yield NAME.broken(relative(layout, path), "expected a name such as val_epoch_000.parquet.")


def check_schema(found: pa.Schema, declared: pa.Schema, file: str, add: AddBreach) -> bool:
    """Compare the columns of a Parquet file with its declaration; if the names are right, rows may be cast to it."""
    if found.names != declared.names:
        message = f"expected the columns {','.join(declared.names)}, got {','.join(found.names)}."
        add(COLUMNS.broken(file, message))
        return False
    for field, given in zip(declared, found.types, strict=True):
        if not given.equals(field.type):
            message = f"expected {dtype_name(field.type)}, got {dtype_name(given)}."
            add(DTYPE.broken(file, message, column=field.name, value=dtype_name(given)))
    return True


def cast_rows(rows: pa.Table, declaration: RunTable, file: str, add: AddBreach) -> pa.Table | None:
    """Give rows the declared types; None if they have other columns, or values of other types."""
    declared = declaration.arrow_schema
    if not check_schema(rows.schema, declared, file, add):
        return None
    try:
        return rows.cast(nullable(declared))
    except pa.ArrowException as error:
        add(UNREADABLE.broken(file, f"its values cannot be cast to the declared types: {str(error).rstrip('.')}."))
        return None


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that may break a rule: any value may be null."""
    return pa.schema([field.with_nullable(nullable=True) for field in schema])


def check_lines(data: bytes, file: str, declaration: RunTable, *, start: int = 0) -> tuple[list[Breach], int]:
    """Find the lines of a CSV file with too many or too few fields, and the fields that are not of their type.

    `data` is the header, which is right, and whole lines, with `start` rows of the file between them. Return the
    breaches and how many rows the lines are; none and 0 if the lines are not text.
    """
    wrong_lines: list[csv.InvalidRow] = []
    options = parse_options(declaration.arrow_schema)
    options.invalid_row_handler = lambda row: wrong_lines.append(row) or "skip"  # type: ignore[func-returns-value]  # append, then say skip
    types: dict[str, pa.DataType] = dict.fromkeys(declaration.column_names, pa.string())
    try:
        # Arrow rejects bytes that are not UTF-8; with replacement characters such a field is reported like any other.
        readable = BytesIO(data.decode(errors="replace").encode())
        text = csv.read_csv(readable, ONE_THREAD, options, convert_options(types))
    except pa.ArrowInvalid:
        return [], 0
    breaches = [_line_breach(file, line, start) for line in wrong_lines]
    num_rows = text.num_rows + len(wrong_lines)
    skipped = [line.number - 2 for line in wrong_lines if line.number is not None]  # number 1 is the header
    rows = np.delete(np.arange(num_rows), np.asarray(skipped, dtype=np.intp)) + start + 1
    return [*breaches, *_value_breaches(text, file, declaration, rows)], num_rows


def _line_breach(file: str, line: csv.InvalidRow, start: int) -> Breach:
    message = f"expected {line.expected_columns} fields, one for each column, got {line.actual_columns}."
    return LINE.broken(file, message, row=None if line.number is None else start + line.number - 1, value=line.text)


def _value_breaches(text: pa.Table, file: str, declaration: RunTable, rows: NDArray[np.intp]) -> Iterator[Breach]:
    for column, arrow_type in zip(declaration.columns, declaration.arrow_schema.types, strict=True):
        values = text.column(column.name).combine_chunks()
        # Each distinct text is cast once: the same mistake is often in many rows.
        distinct = values.dictionary_encode()
        bad = list(_uncastable(distinct.dictionary, arrow_type, 0))
        if bad:
            broken = np.flatnonzero(np.isin(numpy_values(distinct.indices), bad) & ~null_mask(values))
            yield VALUE.broken_rows(file, rows[broken], partial(_explain_value, column, values, broken))


def _explain_value(column: Column, values: "pa.Array[Any]", broken: NDArray[np.intp], index: int) -> Cell:
    value = values[int(broken[index])].as_py()
    return Cell(f"expected {column.dtype}, got {shown(value)}.", column.name, value)


def _uncastable(values: "pa.Array[Any]", arrow_type: pa.DataType, start: int) -> Iterator[int]:
    """Positions of the texts that are not of a type, by halving: a million good fields take one cast."""
    try:
        values.cast(arrow_type)
    except pa.ArrowInvalid:
        if len(values) == 1:
            yield start
            return
        half = len(values) // 2
        yield from _uncastable(values[:half], arrow_type, start)
        yield from _uncastable(values[half:], arrow_type, start + half)
