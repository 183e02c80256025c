"""Tables whose columns differ from those of their older rows, after a resume or during a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ava_pipeline.contract.builtin_tables import HOLDOUT
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group, Manifest
from ava_pipeline.contract.parquet import parquet_rows, parquet_schema, write_parquet
from ava_pipeline.contract.tables import RunTable, same_columns
from ava_pipeline.write.older_rows import supersede_table


@dataclass(frozen=True, slots=True)
class ResumedTable:
    """A table and how it continues.

    Its columns are the older ones, then the new ones; a row leaves empty what its attempt did not measure. `change`
    says how they differ from those of the older rows, if they do. If it `is_superseded`, older rows cannot be in
    one table with the new ones, so the table starts over.
    """

    table: RunTable
    change: str = ""
    is_superseded: bool = False


def resume_tables(
    layout: RunLayout, tables: Sequence[RunTable], groups: Mapping[str, Group], older: Manifest | None, *, attempt: int
) -> list[ResumedTable]:
    """Add new columns to older files, which were repaired, and supersede the files that new rows cannot continue.

    The older manifest is None if there are no earlier attempts, or all of their rows are superseded. If the disk
    refuses, calling it again continues where it stopped. Raise DamagedFileError if an older file cannot be read.
    """
    resumed = []
    for table in tables:
        result = _compare(table, older, groups) if older else ResumedTable(table)
        if result.is_superseded or not add_columns(layout, result.table):
            supersede_table(layout, table, attempt=attempt)
            result = ResumedTable(table, result.change or "its files have other columns", is_superseded=True)
        resumed.append(result)
    return resumed


def change_events(layout: RunLayout, resumed: Sequence[ResumedTable], *, up_to: int, attempt: int) -> list[Event]:
    """An event for each table whose columns differ from those of its rows up to a batch."""
    superseded = f"Its rows up to the checkpoint are now in {layout.superseded(attempt)}, and the table starts over."
    return [
        Event(
            event="changed_columns",
            severity="warning" if one.is_superseded else "info",
            message=f"{one.table.table.name}: {one.change}. "
            + (superseded if one.is_superseded else "Columns that an attempt did not measure are empty in its rows."),
            batch_idx=1,
            batch_idx_end=up_to,
            epoch=0,
        )
        for one in resumed
        if up_to and one.change
    ]


def holdout_events(
    before: Sequence[tuple[int | str, ...]], ids: Sequence[tuple[int | str, ...]], up_to: int
) -> list[Event]:
    """An event if the held-out samples are others than those of the rows up to a batch; none if either is unknown."""
    num_new, num_gone = len(set(ids) - set(before)), len(set(before) - set(ids))
    if not (before and ids and (num_new or num_gone)):
        return []
    message = (
        f"the held-out samples are not those of the rows up to batch {up_to}: {num_new} of {len(ids)} are new, and "
        f"{num_gone} of {len(before)} are gone. Compare only predictions for the same samples."
    )
    return [
        Event(
            event="changed_holdout",
            severity="warning",
            message=message,
            batch_idx=1,
            batch_idx_end=up_to,
            epoch=0,
            column=HOLDOUT,
        )
    ]


def _compare(table: RunTable, older: Manifest, groups: Mapping[str, Group]) -> ResumedTable:
    entry = older.tables.get(table.table.name)
    if entry is None:
        return ResumedTable(table)
    names, older_names = table.run_column_names, entry.declaration.run_column_names
    added = [name for name in names if name not in older_names]
    missing = [name for name in older_names if name not in names]
    reason = _misfit(table, entry.declaration, is_changed=bool(added or missing))
    if reason:
        return ResumedTable(table, reason, is_superseded=True)
    others = []
    if table.table.l2_of_groups:
        both = [name for name in names if name in groups and name in older.groups]
        others = [name for name in both if set(groups[name].parameters) != set(older.groups[name].parameters)]
    changes = {"new": added, "no longer measured": missing, "with other parameters than before": others}
    change = "; ".join(f"{label}: {', '.join(columns)}" for label, columns in changes.items() if columns)
    return ResumedTable(RunTable.of(table.table, [*older_names, *added]), change)


def _misfit(table: RunTable, older: RunTable, *, is_changed: bool) -> str:
    if _fields(table) != _fields(older):
        return "the table's own columns have other names or types now"
    run_columns = table.table.run_columns
    if is_changed and run_columns is not None and not run_columns.nullable:
        return "columns were added or removed, but columns of this table cannot be empty"
    return ""


def _fields(table: RunTable) -> list[object]:
    run_columns = table.table.run_columns
    return [column.arrow_field for column in (*table.table.columns, *([run_columns] if run_columns else []))]


def add_columns(layout: RunLayout, table: RunTable) -> bool:
    """Give the table's files all of its columns, if they hold the first of them; if not, touch no file, return False.

    If it is interrupted, each file is the older or the new one, and calling it again continues where it stopped. Raise
    DamagedFileError if a Parquet file cannot be read.
    """
    name = table.table.name
    paths = [path for path in (layout.csv(name), layout.parquet(name)) if path.exists()]
    if not all(_has_first_columns(path, table) for path in paths):
        return False
    for path in paths:
        num_missing = len(table.columns) - len(_file_columns(path))
        if num_missing and path.suffix == ".csv":
            _add_csv_columns(path, table, num_missing)
        elif num_missing:
            write_parquet(path, parquet_rows(path).as_columns(table.arrow_schema))
    return True


def _has_first_columns(path: Path, table: RunTable) -> bool:
    """Whether the file's columns are the first of the table, and include those that every run has."""
    columns = _file_columns(path)
    num_fixed = len(table.table.columns)
    if not num_fixed <= len(columns) <= len(table.columns):
        return False
    if path.suffix == ".csv":
        return tuple(columns) == table.column_names[: len(columns)]
    first = RunTable.of(table.table, table.run_column_names[: len(columns) - num_fixed])
    return same_columns(parquet_schema(path), first.arrow_schema)


def _file_columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return parquet_schema(path).names
    with path.open("rb") as file:
        return file.readline().decode(errors="replace").rstrip("\n").split(",")


def _add_csv_columns(path: Path, table: RunTable, num_missing: int) -> None:
    with path.open("rb") as older, written_aside(path) as file:
        older.readline()
        file.write((",".join(table.column_names) + "\n").encode())
        empty = b"," * num_missing + b"\n"
        file.writelines(line.rstrip(b"\n") + empty for line in older)
