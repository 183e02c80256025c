"""Read CSV tables by their declaration, with numbers, nan and null kept apart."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import check_csv_size, num_csv_rows
from ava_pipeline.errors import DamagedFileError

ONE_THREAD = csv.ReadOptions(use_threads=False)  # Arrow's errors name the row only if one thread reads

_MAX_HEADER_BYTES = 2**20


def read_csv(path: Path, declaration: RunTable) -> pa.Table:
    """Read every whole line of a table. What follows the last line feed is being written, or was torn by a crash.

    A file without a header has no rows yet. Raise DamagedFileError if the file is too large, has other columns than
    those declared, or has a line that is not a row of them.
    """
    return parse_csv(path, whole_lines(path), declaration)


def whole_lines(path: Path) -> bytes:
    """The bytes of a CSV file up to its last line feed. Raise DamagedFileError if the file is too large."""
    check_csv_size(path)
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def parse_csv(path: Path, data: bytes, declaration: RunTable) -> pa.Table:
    """Parse the whole lines of a table's file. Raise DamagedFileError as `read_csv` does."""
    if not data:
        return pa.Table.from_batches([], declaration.arrow_schema)
    check_header(path, data, declaration)
    try:
        return csv.read_csv(BytesIO(data), ONE_THREAD, *csv_options(declaration.arrow_schema))
    except pa.ArrowInvalid as error:
        raise DamagedFileError(
            f"{path} cannot be read: {error} (the header is row 1). "
            "`ava-pipeline validate` lists every such line; repair them, or restore the file from a backup."
        ) from error


def num_rows(path: Path) -> int:
    """The number of whole lines below the header. Raise DamagedFileError if the file is too large."""
    check_csv_size(path)
    return num_csv_rows(path)


def check_header(path: Path, data: bytes, declaration: RunTable) -> None:
    """Raise DamagedFileError if the first line of a file's bytes names other columns than declared."""
    if header_names(data) != list(declaration.column_names):
        found, expected = _first_line(data), ",".join(declaration.column_names)
        raise DamagedFileError(f"{path}: expected columns {expected!r}, got {found!r}. Restore the file from a backup.")


def first_columns(path: Path) -> list[str]:
    """The columns that the first line of a CSV file names, of which at most 1 MiB is read."""
    with path.open("rb") as file:
        return header_names(file.readline(_MAX_HEADER_BYTES))


def header_names(data: bytes) -> list[str]:
    """The columns that the first line names."""
    names = _first_line(data).split(",")
    return [name[1:-1] if name.startswith('"') and name.endswith('"') else name for name in names]


def _first_line(data: bytes) -> str:
    return data.partition(b"\n")[0].decode(errors="replace").rstrip("\r")


def csv_options(schema: pa.Schema) -> tuple[csv.ParseOptions, csv.ConvertOptions]:
    """How Arrow reads a table's lines into the types of its schema."""
    return parse_options(schema), convert_options(dict(zip(schema.names, schema.types, strict=True)))


def parse_options(schema: pa.Schema) -> csv.ParseOptions:
    """How Arrow splits lines: only a text may hold a line feed."""
    return csv.ParseOptions(newlines_in_values=any(map(pa.types.is_string, schema.types)))


def convert_options(types: dict[str, pa.DataType]) -> csv.ConvertOptions:
    """How Arrow converts fields: only an empty unquoted field is null, so that nan stays a number."""
    return csv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
