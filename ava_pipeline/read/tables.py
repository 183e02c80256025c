"""One table of a run as Arrow, from whichever of its files holds most."""

import warnings
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.frames import Damage
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.csv import num_rows, read_csv

_TORN = {"a torn header", "a torn frame"}


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
    return stored.rows


def lasting_damage(damage: tuple[Damage, ...]) -> tuple[Damage, ...]:
    """Damage beside a torn last frame, which is being written or was when the process was killed."""
    return damage[:-1] if damage and damage[-1].reason in _TORN else damage


def _warn(journal: Path, damage: Damage) -> None:
    warnings.warn(
        f"{journal}: {damage.num_bytes} bytes at {damage.offset} cannot be read ({damage.reason}); "
        "the rows they held are missing.",
        stacklevel=2,
    )
