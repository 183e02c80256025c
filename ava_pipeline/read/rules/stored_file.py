"""A Parquet file of a table and the journal behind it, window by window."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.rules.files import JOURNAL, UNREADABLE, Take, check_columns, nullable, relative, told
from ava_pipeline.read.stored_rows import StoredRows
from ava_pipeline.read.tables import lasting_damage


def open_stored(layout: RunLayout, declaration: RunTable, take: Take) -> "StoredFile | None":
    """Open them; None where there are none, or they cannot be used, which is told to `take`."""
    name = declaration.table.name
    parquet, journal = layout.parquet(name), layout.journal(name)
    if not parquet.exists() and not journal.exists():
        return None
    return open_stored_file(relative(layout, parquet), parquet, journal, declaration, take)


def open_stored_file(file: str, parquet: Path, journal: Path, declaration: RunTable, take: Take) -> "StoredFile | None":
    """Open a Parquet file, which violations name `file`, and the journal beside it; None where they cannot be used."""
    try:
        stored = StoredRows(parquet, journal, declaration.arrow_schema)
    except (DamagedFileError, pa.ArrowException) as error:
        take(UNREADABLE.found(file, told(error, parquet)))
        return None
    for damage in lasting_damage(stored.damage):
        message = f"{damage.num_bytes} bytes at {damage.offset}: {damage.reason}; the rows they held are lost."
        take(JOURNAL.found(file.replace(parquet.name, journal.name), message))
    is_usable = check_columns(stored.schema, declaration.arrow_schema, file, take)
    return StoredFile(file, declaration, stored) if is_usable else None


class StoredFile:
    """The rows, with the declared types.

    Attributes:
        file: as violations name it.
        declaration: of the table.
        schema: of the rows.
    """

    def __init__(self, file: str, declaration: RunTable, stored: StoredRows) -> None:
        self.file = file
        self.declaration = declaration
        self.schema = nullable(declaration.arrow_schema)
        self._stored = stored

    def tables(self) -> Iterator[pa.Table]:
        """Every row, some at a time; each call begins anew.

        Raises:
            DamagedFileError: the file cannot be read.
        """
        for rows in self._stored.windows():
            try:
                yield rows.cast(self.schema)
            except pa.ArrowException as error:
                raise DamagedFileError(f"The values have not the declared types: {error}") from error
