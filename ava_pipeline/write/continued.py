"""Tables going on behind the older rows of a run directory, or beginning anew where they cannot."""

from collections.abc import Mapping, Sequence

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group, Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.columns import Continued, continue_groups, continue_table
from ava_pipeline.write.older_rows import set_table_aside
from ava_pipeline.write.widened import widen


def continue_tables(
    layout: RunLayout,
    tables: Sequence[RunTable],
    groups: Mapping[str, Group],
    older: Manifest | None,
    *,
    attempt: int,
) -> list[Continued]:
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
        one = continue_table(table, older, groups) if older else Continued(table)
        if one.is_refused or not widen(layout, one.table):
            set_table_aside(layout, table, attempt=attempt)
            one = Continued(table, one.change or "its files hold other columns", is_refused=True)
        found.append(one)
    return found


def groups_of(continued: Sequence[Continued], groups: Mapping[str, Group], older: Manifest | None) -> dict[str, Group]:
    """This attempt's groups, and those of older rows where they are in the tables still."""
    is_refused = any(one.is_refused and one.table.table.l2_of_groups for one in continued)
    return dict(groups) if older is None or is_refused else continue_groups(older.groups, groups)


def change_events(layout: RunLayout, continued: Sequence[Continued], *, up_to: int, attempt: int) -> list[Event]:
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


def _outcome(one: Continued, layout: RunLayout, attempt: int) -> str:
    if one.is_refused:
        return f"Its rows up to the checkpoint are in {layout.superseded(attempt)} now, and the table begins anew."
    return "What an attempt did not measure is empty in its rows."
