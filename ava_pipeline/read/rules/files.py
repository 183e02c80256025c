"""Files of tables: there, readable, with the declared columns and types."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.read.rules.csv_text import LINE, VALUE
from ava_pipeline.read.violations import Breach, Cell, Rule

UNREADABLE = Rule("files.unreadable", "Every file can be read.")
COLUMNS = Rule("files.columns", "A file's columns are those that the manifest declares, in order.")
DTYPE = Rule("files.dtype", "A Parquet column has its declared type.")
TORN = Rule("files.torn-line", "The CSV file of an ended run ends with a whole line.")
LINE_END = Rule("files.line-end", "A CSV line ends in LF alone.")
JOURNAL = Rule("files.journal", "Every byte of a journal belongs to a whole frame.")

RULES = (UNREADABLE, COLUMNS, DTYPE, TORN, LINE_END, JOURNAL, LINE, VALUE)

Take = Callable[[Breach], None]


class UnusableFileError(Exception):
    """A file that cannot be used; why not was told already."""


def relative(layout: RunLayout, path: Path) -> str:
    """A path below the run directory, as violations name it."""
    return path.relative_to(layout.root).as_posix()


def told(error: object, path: Path) -> str:
    """What is wrong with a file, without its path, which stands in front of a violation already."""
    return str(error).removeprefix(str(path)).removeprefix(":").lstrip().rstrip(".") + "."


def check_columns(found: pa.Schema, declared: pa.Schema, file: str, take: Take) -> bool:
    """Compare columns and types; whether rows of the one can become rows of the other."""
    if found.names != declared.names:
        columns, expected = ",".join(found.names), ",".join(declared.names)
        take(COLUMNS.found(file, f"the columns are {columns}; declared are {expected}."))
        return False
    for field in declared:
        given = found.field(field.name).type
        if not given.equals(field.type):
            take(DTYPE.found(file, Cell(f"is {given}; declared is {field.type}.", field.name, str(given))))
    return True


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that may break a rule: any value may be missing."""
    return pa.schema([field.with_nullable(nullable=True) for field in schema])


def fitted(rows: pa.Table, schema: pa.Schema, file: str, take: Take) -> pa.Table | None:
    """Give rows the declared columns and types; None where they cannot have them."""
    if not check_columns(rows.schema, schema, file, take):
        return None
    try:
        return rows.cast(nullable(schema))
    except pa.ArrowException as error:
        take(UNREADABLE.found(file, f"the values have not the declared types: {str(error).rstrip('.')}."))
        return None
