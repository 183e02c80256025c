"""Tables that a resumed run goes on with, where its columns are not those of its older rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group, Manifest, parameters_by_group
from ava_pipeline.contract.parquet import parquet_rows, parquet_schema, write_parquet
from ava_pipeline.contract.tables import RunTable, same_columns
from ava_pipeline.write.older_rows import set_table_aside


@dataclass(frozen=True, slots=True)
class ResumedTable:
    """A table as it goes on.

    Attributes:
        table: older columns first, then those that are new; each row leaves empty what it did not measure.
        change: what differs from the older rows; empty where nothing does.
        is_refused: older rows mean something else, and cannot stand in one table with the new ones.
    """

    table: RunTable
    change: str = ""
    is_refused: bool = False


def resume_table(table: RunTable, older: Manifest, groups: Mapping[str, Group]) -> ResumedTable:
    """Hold a table against what the manifest says of its older rows.

    Args:
        table: as this run fills it.
        older: the manifest of the attempts before.
        groups: the parameters behind this run's columns.
    """
    entry = older.tables.get(table.table.name)
    if entry is None:
        return ResumedTable(table)
    names, before = table.run_column_names, entry.declaration.run_column_names
    added = [name for name in names if name not in before]
    missing = [name for name in before if name not in names]
    reason = _refusal(table, entry.declaration, is_changed=bool(added or missing))
    if not reason and table.table.l2_of_groups:
        reason = _other_parameters([name for name in names if name in before], older.groups, groups)
    if reason:
        return ResumedTable(table, reason, is_refused=True)
    told = {"new": added, "no longer measured": missing}
    change = "; ".join(f"{what}: {', '.join(some)}" for what, some in told.items() if some)
    return ResumedTable(RunTable.of(table.table, [*before, *added]), change)


def resume_groups(older: Mapping[str, Group], groups: Mapping[str, Group]) -> dict[str, Group]:
    """The groups behind the columns of older and new rows, each with every parameter it ever had."""
    found = {**older, **groups}
    for name in older.keys() & groups.keys():
        parameters = dict.fromkeys((*groups[name].parameters, *older[name].parameters))
        found[name] = groups[name].model_copy(update={"parameters": tuple(parameters)})
    return found


def other_meaning(older: Mapping[str, Group], groups: Mapping[str, Group]) -> list[str]:
    """Groups whose name stands for other parameters than before.

    A model that grew or shrank changes its groups as well. So a group is the same where it holds the same of those
    parameters that the model has now and had before, and at least one of them.
    """
    then, now = parameters_by_group(older), parameters_by_group(groups)
    both = frozenset().union(*then.values()) & frozenset().union(*now.values())
    return [name for name in now if name in then and not (then[name] & both == now[name] & both != frozenset())]


def _refusal(table: RunTable, older: RunTable, *, is_changed: bool) -> str:
    if _fields(table) != _fields(older):
        return "the table's own columns have other names or types now"
    kind = table.table.run_columns
    if is_changed and kind is not None and not kind.nullable:
        return "columns came or went, and this table's cannot be empty"
    return ""


def _fields(table: RunTable) -> list[object]:
    kind = table.table.run_columns
    return [column.arrow_field for column in (*table.table.columns, *([kind] if kind else []))]


def _other_parameters(names: list[str], older: Mapping[str, Group], groups: Mapping[str, Group]) -> str:
    changed = [name for name in other_meaning(older, groups) if name in names]
    return f"{', '.join(changed)} stands for other parameters than before: give it another name" if changed else ""


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
        if len(_file_columns(path)) < len(table.columns):
            (_widen_csv if path.suffix == ".csv" else _widen_parquet)(path, table)
    return True


def _begins(path: Path, table: RunTable) -> bool:
    """Whether the file's columns are the table's first ones, at least those that every run has."""
    num = len(_file_columns(path))
    if not len(table.table.columns) <= num <= len(table.columns):
        return False
    if path.suffix == ".csv":
        return tuple(_file_columns(path)) == table.column_names[:num]
    first = RunTable.of(table.table, table.run_column_names[: num - len(table.table.columns)])
    return same_columns(parquet_schema(path), first.arrow_schema)


def _file_columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return parquet_schema(path).names
    with path.open("rb") as file:
        return file.readline().decode(errors="replace").rstrip("\n").split(",")


def _widen_csv(path: Path, table: RunTable) -> None:
    num_lacking = len(table.columns) - len(_file_columns(path))
    with path.open("rb") as older, written_aside(path) as file:
        older.readline()
        file.write((",".join(table.column_names) + "\n").encode())
        empty = b"," * num_lacking + b"\n"
        file.writelines(line.rstrip(b"\n") + empty for line in older)


def _widen_parquet(path: Path, table: RunTable) -> None:
    write_parquet(path, parquet_rows(path).as_columns(table.arrow_schema))


def resume_tables(
    layout: RunLayout,
    tables: Sequence[RunTable],
    groups: Mapping[str, Group],
    older: Manifest | None,
    *,
    attempt: int,
) -> list[ResumedTable]:
    """Give older files the columns that are new; set aside those that the new rows cannot go on behind.

    Args:
        layout: of the run, its files whole.
        tables: as this attempt fills them.
        groups: the parameters behind this attempt's columns.
        older: the manifest of the attempts before; None where there are none, or their rows are all set aside.
        attempt: number of this one.

    Returns:
        Each table as it goes on.

    Raises:
        OSError: the disk refused; called again, this goes on where it was.
        DamagedFileError: an older file cannot be read.
    """
    found = []
    for table in tables:
        one = resume_table(table, older, groups) if older else ResumedTable(table)
        if one.is_refused or not widen(layout, one.table):
            set_table_aside(layout, table, attempt=attempt)
            one = ResumedTable(table, one.change or "its files hold other columns", is_refused=True)
        found.append(one)
    return found


def groups_of(
    continued: Sequence[ResumedTable], groups: Mapping[str, Group], older: Manifest | None
) -> dict[str, Group]:
    """This attempt's groups, and those of older rows where they are in the tables still."""
    is_refused = any(one.is_refused and one.table.table.l2_of_groups for one in continued)
    return dict(groups) if older is None or is_refused else resume_groups(older.groups, groups)


def change_events(layout: RunLayout, continued: Sequence[ResumedTable], *, up_to: int, attempt: int) -> list[Event]:
    """Tell of tables whose columns are not those of their rows up to a batch."""
    return [
        Event(
            event="changed_columns",
            severity="warning" if one.is_refused else "info",
            message=f"{one.table.table.name}: {one.change}. {_outcome(one, layout, attempt)}",
            batch_idx=1,
            batch_idx_end=up_to,
            epoch=0,
        )
        for one in continued
        if up_to and one.change
    ]


def _outcome(one: ResumedTable, layout: RunLayout, attempt: int) -> str:
    if one.is_refused:
        return f"Its rows up to the checkpoint are in {layout.superseded(attempt)} now, and the table begins anew."
    return "What an attempt did not measure is empty in its rows."
