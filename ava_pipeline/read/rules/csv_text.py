"""Lines and fields of a CSV file that are no rows of its table."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.csv import ONE_THREAD, convert_options, parse_options
from ava_pipeline.read.violations import Breach, Cell, Rule

LINE = Rule("files.line", "A CSV line has a field for each column.")
VALUE = Rule("values.dtype", "A CSV field reads as its column's type.")

Strings: TypeAlias = "pa.Array[Any]"


def csv_breaches(data: bytes, file: str, declaration: RunTable, *, start: int = 0) -> tuple[list[Breach], int]:
    """Every line of a CSV file with too many or too few fields, and every field that is not of its type.

    Args:
        data: the header, which is right, and whole lines.
        file: path below the run directory.
        declaration: the columns.
        start: how many rows of the file stand between the header and the lines.

    Returns:
        Also how many rows the lines are, which text with line feeds in it makes fewer.
    """
    torn: list[csv.InvalidRow] = []
    options = parse_options(declaration)
    options.invalid_row_handler = lambda row: torn.append(row) or "skip"  # type: ignore[func-returns-value]  # append, then say skip
    types: dict[str, pa.DataType] = dict.fromkeys(declaration.column_names, pa.string())
    try:
        # Arrow cannot hand over a line that is no UTF-8; with marks in place of such bytes it is listed like any other.
        readable = BytesIO(data.decode(errors="replace").encode())
        text = csv.read_csv(readable, ONE_THREAD, options, convert_options(types))
    except pa.ArrowInvalid:
        return [], 0  # no text at all; the caller tells what Arrow said
    breaches = [_line_breach(file, row, start) for row in torn]
    rows = _row_numbers(text.num_rows, [row.number - 1 for row in torn if row.number is not None])
    return breaches + list(_value_breaches(text, file, declaration, rows, start)), text.num_rows + len(torn)


def _line_breach(file: str, row: csv.InvalidRow, start: int) -> Breach:
    message = f"the line has {row.actual_columns} fields; the table has {row.expected_columns} columns."
    return LINE.found(file, Cell(message, value=row.text), row=None if row.number is None else start + row.number - 1)


def _row_numbers(num_rows: int, left_out: list[int]) -> NDArray[np.intp]:
    """The 0-based position in the file of each row that was not left out."""
    every = np.arange(num_rows + len(left_out))
    return np.delete(every, np.asarray(left_out, dtype=np.intp) - 1)


def _value_breaches(
    text: pa.Table, file: str, declaration: RunTable, rows: NDArray[np.intp], start: int
) -> Iterator[Breach]:
    for field in declaration.arrow_schema:
        column = text.column(field.name).combine_chunks()
        # Each text is tried once: what is wrong is often the same in many rows.
        texts = column.dictionary_encode()
        bad = np.asarray(list(_not_of(texts.dictionary, field.type, 0)), dtype=np.intp)
        broken = np.flatnonzero(np.isin(texts.indices.fill_null(-1).to_numpy(), bad))
        if len(broken):
            yield VALUE.at(file, rows[broken], _Explain(field.name, field.type, column, rows), start=start)


@dataclass(frozen=True, slots=True)
class _Explain:
    """What is wrong with a field of a row."""

    name: str
    dtype: pa.DataType
    values: Strings
    rows: NDArray[np.intp]

    def __call__(self, row: int) -> Cell:
        value = self.values[int(np.searchsorted(self.rows, row))].as_py()
        return Cell(f"{value!r} is no {self.dtype}.", self.name, value)


def _not_of(column: Strings, dtype: pa.DataType, start: int) -> Iterator[int]:
    """Positions whose text is not of a type, by halving: a million good fields take one cast."""
    try:
        column.cast(dtype)
    except pa.ArrowInvalid:
        if len(column) == 1:
            yield start
            return
        half = len(column) // 2
        yield from _not_of(column[:half], dtype, start)
        yield from _not_of(column[half:], dtype, start + half)
