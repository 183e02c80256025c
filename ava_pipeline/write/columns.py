"""Which columns a table goes on with, where a resumed run's are not those of its older rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from ava_pipeline.contract.manifest import Group, Manifest, parameters_by_group
from ava_pipeline.contract.tables import RunTable


@dataclass(frozen=True, slots=True)
class Continued:
    """A table as it goes on.

    Attributes:
        table: older columns first, then those that are new; each row leaves empty what it did not measure.
        change: what differs from the older rows; empty where nothing does.
        is_refused: older rows mean something else, and cannot stand in one table with the new ones.
    """

    table: RunTable
    change: str = ""
    is_refused: bool = False


def continue_table(table: RunTable, older: Manifest, groups: Mapping[str, Group]) -> Continued:
    """Hold a table against what the manifest says of its older rows.

    Args:
        table: as this run fills it.
        older: the manifest of the attempts before.
        groups: the parameters behind this run's columns.
    """
    entry = older.tables.get(table.table.name)
    if entry is None:
        return Continued(table)
    names, before = table.run_column_names, entry.declaration.run_column_names
    added = [name for name in names if name not in before]
    missing = [name for name in before if name not in names]
    reason = _refusal(table, entry.declaration, is_changed=bool(added or missing))
    if not reason and table.table.l2_of_groups:
        reason = _other_parameters([name for name in names if name in before], older.groups, groups)
    if reason:
        return Continued(table, reason, is_refused=True)
    told = {"new": added, "no longer measured": missing}
    change = "; ".join(f"{what}: {', '.join(some)}" for what, some in told.items() if some)
    return Continued(RunTable.of(table.table, [*before, *added]), change)


def continue_groups(older: Mapping[str, Group], groups: Mapping[str, Group]) -> dict[str, Group]:
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
