"""One table of a run as Arrow, from whichever of its files holds most."""

import warnings
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.journal import TORN, Damage
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import KEY_COLUMNS, RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.csv import num_rows, read_csv

_KEYS = {column.name for column in KEY_COLUMNS}


def read_table(layout: RunLayout, declaration: RunTable) -> pa.Table:
    """Read a table that may be growing, or that a crash left behind.

    Parquet and its journal are read where they are; the CSV file where there are none, or where it holds more rows.

    Returns:
        Every row that could be read, in the order of writing; none where there is no file yet.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    name = declaration.table.name
    stored = read_stored(layout.parquet(name), layout.journal(name), declaration.arrow_schema)
    path = layout.csv(name)
    if path.exists() and num_rows(path) > (stored.rows.num_rows if stored else 0):
        return read_csv(path, declaration)
    if stored is None:
        return declaration.arrow_schema.empty_table()
    for damage in lasting_damage(stored.damage):
        _warn(layout.journal(name), damage)
    _check_kinds(stored.rows, declaration, layout.parquet(name))
    return stored.rows


def _check_kinds(rows: pa.Table, declaration: RunTable, path: Path) -> None:
    """Refuse columns that are not of the declared kind, as after another program saved the file anew."""
    for field in declaration.arrow_schema if rows.num_columns else ():
        found = [rows.schema.field(index).type for index in rows.schema.get_all_field_indices(field.name)]
        if not found and field.name not in _KEYS:
            continue
        if [_kind(one) for one in found] != [_kind(field.type)]:
            given = " and ".join(map(str, found)) or "not there"
            needed = f"it has to be {field.type}. Restore the file from a backup."
            raise DamagedFileError(f"{path}: its column {field.name} is {given}; {needed}")


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "time" if pa.types.is_timestamp(kind) else str(kind)


def lasting_damage(damage: tuple[Damage, ...]) -> tuple[Damage, ...]:
    """Damage beside a torn last frame, which is being written or was when the process was killed."""
    return damage[:-1] if damage and damage[-1].reason in TORN else damage


def _warn(journal: Path, damage: Damage) -> None:
    warnings.warn(
        f"{journal}: {damage.num_bytes} bytes at {damage.offset} cannot be read ({damage.reason}); "
        "the rows they held are missing.",
        stacklevel=2,
    )
