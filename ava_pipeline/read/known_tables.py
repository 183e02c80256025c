"""Which table a single file is of, and what is declared of it."""

from collections.abc import Sequence

from ava_pipeline.contract.epoch_metrics import EPOCH_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.measured_tables import GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.predictions import PREDICTIONS
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.errors import MisuseError

KNOWN = {table.name: table for table in (GRADIENT_NORMS, LEARNING_RATES, STEPS, EVENTS, EPOCH_METRICS, PREDICTIONS)}


def table_name(told: Sequence[str | None], columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the names told that is one of a table; else the table that has such columns, if only one has."""
    named = next((name for name in told if name in names), None)
    return named or _by_columns(columns)


def declaration_of(name: str, columns: Sequence[str], manifest: Manifest | None) -> RunTable:
    """What the run's manifest declares of a table; without it, the table as it is, with a file's own run columns."""
    if manifest is not None and name in manifest.tables:
        return manifest.tables[name].declaration
    table = KNOWN[name]
    if table.run_columns is None or not _begins(columns, table):
        return RunTable.of(table)
    try:
        return RunTable.of(table, columns[len(table.columns) :])
    except MisuseError:
        return RunTable.of(table)  # the columns are told to be others


def _begins(columns: Sequence[str], table: Table) -> bool:
    return tuple(columns[: len(table.columns)]) == tuple(column.name for column in table.columns)


def _by_columns(columns: Sequence[str]) -> str | None:
    has_place = [table for table in KNOWN.values() if table.run_columns or len(table.columns) == len(columns)]
    alike = [table for table in has_place if _begins(columns, table)]
    most = max((len(table.columns) for table in alike), default=0)
    names = {table.name for table in alike if len(table.columns) == most}
    if names == {GRADIENT_NORMS.name, LEARNING_RATES.name}:  # which begin alike
        are_rates = all(name.startswith("lr_group_") for name in columns[most:])
        names = {LEARNING_RATES.name} if are_rates else {GRADIENT_NORMS.name} if "overall" in columns else set()
    return names.pop() if len(names) == 1 else None
