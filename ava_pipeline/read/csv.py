"""CSV tables read back by their declaration, numbers, nan and null kept apart."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import MAX_TABLE_BYTES
from ava_pipeline.errors import DamagedFileError


def whole_lines(path: Path) -> bytes:
    """The file up to its last line feed: what follows is a line that is being written or was torn by a crash.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: the file is larger than any table.
    """
    check_size(path)
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def num_rows(path: Path) -> int:
    """Whole lines below the header.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: the file is larger than any table.
    """
    check_size(path)
    with path.open("rb") as file:
        return max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b"")) - 1)


def check_size(path: Path) -> None:
    """Look before reading: a sparse file may claim any size."""
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise DamagedFileError(
            f"{path} is {size} bytes; at most {MAX_TABLE_BYTES} are read into memory. "
            "Read it in parts with pyarrow.csv."
        )


def read_csv(path: Path, declaration: RunTable) -> pa.Table:
    """Read every whole line of a table.

    Args:
        path: the file; without a header yet, it has no rows.
        declaration: the columns the file must have, in order, and their types.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: the file has other columns, or a line that is no row of them.
    """
    data = whole_lines(path)
    if not data:
        return declaration.arrow_schema.empty_table()
    check_header(path, data, declaration)
    convert = convert_options({field.name: field.type for field in declaration.arrow_schema})
    try:
        return csv.read_csv(BytesIO(data), ONE_THREAD, parse_options(declaration), convert)
    except pa.ArrowInvalid as error:
        raise DamagedFileError(
            f"{path} cannot be read: {error} (the header is row 1). "
            "`ava-pipeline validate` lists every such line; mend them, or restore the file from a backup."
        ) from error


def check_header(path: Path, data: bytes, declaration: RunTable) -> None:
    """Compare the first line with the declaration.

    Raises:
        DamagedFileError: the columns are other ones.
    """
    if header_names(data) != list(declaration.column_names):
        found, expected = _first_line(data), ",".join(declaration.column_names)
        raise DamagedFileError(
            f"{path} begins with {found!r}; its columns must be {expected!r}. Restore the file from a backup."
        )


def header_names(data: bytes) -> list[str]:
    """The columns that the first line names."""
    names = _first_line(data).split(",")
    return [name[1:-1] if name.startswith('"') and name.endswith('"') else name for name in names]


def _first_line(data: bytes) -> str:
    return data.partition(b"\n")[0].decode(errors="replace").rstrip("\r")


# The row number stands in Arrow's error messages only where one thread reads.
ONE_THREAD = csv.ReadOptions(use_threads=False)


def parse_options(declaration: RunTable) -> csv.ParseOptions:
    """How lines are told apart: only text can hold a line feed."""
    return csv.ParseOptions(newlines_in_values=any(column.dtype == "string" for column in declaration.columns))


def convert_options(types: dict[str, pa.DataType]) -> csv.ConvertOptions:
    """How fields become values: only an empty unquoted field is null, so that nan stays a number."""
    return csv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
