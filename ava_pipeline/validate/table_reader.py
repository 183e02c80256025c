"""A table's files, read through side by side."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.lockless_cached_property import lockless_cached_property
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.checked_run import CheckedFile, CheckedTable
from ava_pipeline.validate.csv_windows import csv_windows
from ava_pipeline.validate.rules_files import UNREADABLE, UnusableFileError, relative, without_path
from ava_pipeline.validate.rules_formats import Twin
from ava_pipeline.validate.stored_windows import open_stored
from ava_pipeline.validate.violations import Breach, Listing
from ava_pipeline.validate.windows import RowCursor, Window, windows_of

Check = Callable[[Window], Iterable[Breach]]


class TableReader:
    """Reads the files of one table through, each once where both hold the same.

    Args:
        layout: of the run.
        declaration: of the table.
        is_open: rows may still come.
        check: the rules of rows.
        listing: takes what is found; of a file that cannot be used, only why.
    """

    def __init__(
        self, layout: RunLayout, declaration: RunTable, *, is_open: bool, check: Check, listing: Listing
    ) -> None:
        self._layout = layout
        self._declaration = declaration
        self._is_open = is_open
        self._check = check
        self._listing = listing
        self._stored = open_stored(layout, declaration, listing.add)

    def read(self) -> CheckedTable:
        """What is known of the table then."""
        csv, is_same = self._read_csv()
        if csv is not None and is_same:
            name = self._layout.parquet(self._declaration.table.name)
            same = CheckedFile(relative(self._layout, name), csv.num_rows, csv.has_keys, csv.batches)
            return CheckedTable(self._declaration, csv, same, is_same=True)
        return CheckedTable(self._declaration, csv, self._parquet)

    def _read_csv(self) -> tuple[CheckedFile | None, bool]:
        """Also whether the Parquet file holds the same rows."""
        path = self._layout.csv(self._declaration.table.name)
        if not path.exists():
            return None, False
        file = relative(self._layout, path)
        windows = csv_windows(file, path, self._declaration, is_open=self._is_open, take=self._listing.add)
        if self._stored is None:
            return read_through(file, path, windows, self._check, self._listing), False
        twin = Twin(lambda: self._parquet, RowCursor(self._stored.tables, self._stored.schema))
        check = lambda window: (*self._check(window), *twin.check(window))  # noqa: E731  # used once
        part = read_through(file, path, windows, check, self._listing)
        return part, part is not None and twin.is_same and not twin.has_more(part.num_rows)

    @lockless_cached_property
    def _parquet(self) -> CheckedFile | None:
        if self._stored is None:
            return None
        windows = windows_of(self._stored.file, self._declaration, self._stored.tables())
        path = self._layout.parquet(self._declaration.table.name)
        return read_through(self._stored.file, path, windows, self._check, self._listing)


def read_through(
    file: str, path: Path, windows: Iterable[Window], check: Check, listing: Listing
) -> CheckedFile | None:
    """Look at every row of a file; None where it cannot be used, of which only the reason is told.

    Args:
        file: the file, as violations name it.
        path: the file.
        windows: of its rows, in order.
        check: the rules of rows.
        listing: takes what is found.
    """
    part, found = CheckedFile(file), listing.aside()
    try:
        for window in windows:
            found.take(check(window))
            part.append(window)
    except UnusableFileError:
        return None
    except DamagedFileError as error:
        listing.add(UNREADABLE.found(file, without_path(error, path)))
        return None
    listing.take(found.breaches())
    return part
