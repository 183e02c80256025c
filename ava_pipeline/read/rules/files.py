"""Files of tables: there, readable, with the declared columns and types."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import check_header, read_csv, whole_lines
from ava_pipeline.read.inspected import Part, TableParts
from ava_pipeline.read.rules.csv_text import LINE, VALUE, csv_breaches
from ava_pipeline.read.tables import lasting_damage
from ava_pipeline.read.violations import Breach, Cell, Rule

UNREADABLE = Rule("files.unreadable", "Every file can be read.")
COLUMNS = Rule("files.columns", "A file's columns are those that the manifest declares, in order.")
DTYPE = Rule("files.dtype", "A Parquet column has its declared type.")
TORN = Rule("files.torn-line", "The CSV file of an ended run ends with a whole line.")
LINE_END = Rule("files.line-end", "A CSV line ends in LF alone.")
JOURNAL = Rule("files.journal", "Every byte of a journal belongs to a whole frame.")

RULES = (UNREADABLE, COLUMNS, DTYPE, TORN, LINE_END, JOURNAL, LINE, VALUE)

Take = Callable[[Breach], None]


def read_parts(layout: RunLayout, declaration: RunTable, *, is_open: bool, take: Take) -> TableParts:
    """Read a table's files; those that cannot be used are told to `take` and left out."""
    name = declaration.table.name
    csv = layout.csv(name)
    rows = read_csv_rows(layout, csv, declaration, is_open=is_open, take=take) if csv.exists() else None
    stored = _read_stored(layout, declaration, take)
    return TableParts(
        declaration,
        csv=None if rows is None else Part(relative(layout, csv), declaration, rows),
        parquet=None if stored is None else Part(relative(layout, layout.parquet(name)), declaration, stored),
    )


def relative(layout: RunLayout, path: Path) -> str:
    """A path below the run directory, as violations name it."""
    return path.relative_to(layout.root).as_posix()


def told(error: object, path: Path) -> str:
    """What is wrong with a file, without its path, which stands in front of a violation already."""
    return str(error).removeprefix(str(path)).removeprefix(":").lstrip().rstrip(".") + "."


def fitted(rows: pa.Table, schema: pa.Schema, file: str, take: Take) -> pa.Table | None:
    """Give rows the declared columns and types; None where they cannot have them."""
    if rows.column_names != schema.names:
        found, expected = ",".join(rows.column_names), ",".join(schema.names)
        take(COLUMNS.found(file, f"the columns are {found}; declared are {expected}."))
        return None
    for field in schema:
        given = rows.schema.field(field.name).type
        if not given.equals(field.type):
            take(DTYPE.found(file, Cell(f"is {given}; declared is {field.type}.", field.name, str(given))))
    try:
        return rows.cast(pa.schema([field.with_nullable(nullable=True) for field in schema]))
    except pa.ArrowException as error:
        take(UNREADABLE.found(file, f"the values have not the declared types: {str(error).rstrip('.')}."))
        return None


def read_csv_rows(
    layout: RunLayout, path: Path, declaration: RunTable, *, is_open: bool, take: Take
) -> pa.Table | None:
    """Read a CSV file; None where it cannot be used, which is told to `take`."""
    file = relative(layout, path)
    try:
        data = whole_lines(path)
    except DamagedFileError as error:
        take(UNREADABLE.found(file, str(error)))
        return None
    torn = path.stat().st_size - len(data)
    if torn and not is_open:
        message = f"the last line has no line feed at its end: {torn} bytes of a row that was never finished."
        take(TORN.found(file, message, row=max(1, data.count(b"\n"))))
    if b"\r\n" in data:
        for breach in _line_ends(data, declaration, file):
            take(breach)
    try:
        return read_csv(path, declaration)
    except DamagedFileError as error:
        for breach in _csv_breaches(path, data, declaration, file) or [UNREADABLE.found(file, told(error, path))]:
            take(breach)
        return None


def _line_ends(data: bytes, declaration: RunTable, file: str) -> Iterator[Breach]:
    """Told at the first such line; text may hold any line end, so of a table with text only the header tells."""
    has_text = any(column.dtype == "string" for column in declaration.columns)
    header = data[: data.find(b"\n") + 1]
    row = (header if has_text else data).partition(b"\r\n")[0].count(b"\n")
    if not has_text or header.endswith(b"\r\n"):
        message = "a line ends in CRLF: another program rewrote the file. Turn CRLF into LF, or restore the file."
        yield LINE_END.found(file, message, row=row or None)


def _csv_breaches(path: Path, data: bytes, declaration: RunTable, file: str) -> list[Breach]:
    try:
        check_header(path, data, declaration)
    except DamagedFileError as error:
        return [COLUMNS.found(file, told(error, path))]
    return csv_breaches(data, file, declaration)


def _read_stored(layout: RunLayout, declaration: RunTable, take: Take) -> pa.Table | None:
    name = declaration.table.name
    file = relative(layout, layout.parquet(name))
    try:
        stored = read_stored(layout.parquet(name), layout.journal(name), declaration.arrow_schema)
    except (DamagedFileError, pa.ArrowException) as error:
        take(UNREADABLE.found(file, told(error, layout.parquet(name))))
        return None
    if stored is None:
        return None
    for damage in lasting_damage(stored.damage):
        message = f"{damage.num_bytes} bytes at {damage.offset}: {damage.reason}; the rows they held are lost."
        take(JOURNAL.found(relative(layout, layout.journal(name)), message))
    return fitted(stored.rows, declaration.arrow_schema, file, take)
