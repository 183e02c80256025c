"""Older files of a table that got more columns: older rows get nulls, by a new file aside and rename."""

from pathlib import Path

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.journal import same_columns
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet_file import parquet_rows, parquet_schema, write_parquet
from ava_pipeline.contract.tables import RunTable


def widen(layout: RunLayout, table: RunTable) -> bool:
    """Give the table's files all of its columns, where those they have are the first of them.

    Called again after being cut short, it goes on where it was.

    Returns:
        Whether every file has the table's columns now; if not, none was touched.

    Raises:
        OSError: the disk refused; each file is the older one or the new one.
        DamagedFileError: a Parquet file cannot be read.
    """
    name = table.table.name
    paths = [path for path in (layout.csv(name), layout.parquet(name)) if path.exists()]
    if not all(_begins(path, table) for path in paths):
        return False
    for path in paths:
        if len(_columns(path)) < len(table.columns):
            (_widen_csv if path.suffix == ".csv" else _widen_parquet)(path, table)
    return True


def _begins(path: Path, table: RunTable) -> bool:
    """Whether the file's columns are the table's first ones, at least those that every run has."""
    num = len(_columns(path))
    if not len(table.table.columns) <= num <= len(table.columns):
        return False
    if path.suffix == ".csv":
        return tuple(_columns(path)) == table.column_names[:num]
    first = RunTable.of(table.table, table.run_column_names[: num - len(table.table.columns)])
    return same_columns(parquet_schema(path), first.arrow_schema)


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return parquet_schema(path).names
    with path.open("rb") as file:
        return file.readline().decode(errors="replace").rstrip("\n").split(",")


def _widen_csv(path: Path, table: RunTable) -> None:
    num_lacking = len(table.columns) - len(_columns(path))
    with path.open("rb") as older, written_aside(path) as file:
        older.readline()
        file.write((",".join(table.column_names) + "\n").encode())
        empty = b"," * num_lacking + b"\n"
        file.writelines(line.rstrip(b"\n") + empty for line in older)


def _widen_parquet(path: Path, table: RunTable) -> None:
    write_parquet(path, parquet_rows(path).as_columns(table.arrow_schema))
