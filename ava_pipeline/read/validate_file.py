"""A single CSV or Parquet file against the contract of its table."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import pyarrow.parquet as pq

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.messages import FROM_ARROW
from ava_pipeline.contract.predictions import PREDICTIONS
from ava_pipeline.contract.tables import TABLE_KEY, RunTable
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.read.csv import header_names
from ava_pipeline.read.inspected import is_open
from ava_pipeline.read.known_tables import KNOWN, declaration_of, table_name
from ava_pipeline.read.prediction_files import PREDICTION_NAME, PredictionFile
from ava_pipeline.read.prediction_rows import read_predictions
from ava_pipeline.read.rules import manifest, predictions, values
from ava_pipeline.read.rules.csv_file import csv_windows
from ava_pipeline.read.rules.files import UNREADABLE, told
from ava_pipeline.read.rules.stored_file import open_stored_file
from ava_pipeline.read.table_parts import Check, read_through
from ava_pipeline.read.validate import check_ignored, rules_of_rows
from ava_pipeline.read.violations import Listing, Violation
from ava_pipeline.read.window import Window, windows_of


def validate_file(
    path: str | PathLike[str], *, table: str | None = None, ignore: Sequence[str] = ()
) -> list[Violation]:
    """Check one file by itself: its columns, its types, its values, and the order of its rows.

    Its table is told by Parquet metadata, its name or its columns. Where it lies in a run, the run's manifest says
    what is declared of the table, and which norms add up; what other files hold is not looked at.

    Args:
        path: a `.csv` or `.parquet` file.
        table: of which table it is, where that cannot be told.
        ignore: ids of rules, or their families such as `norms`, that may be broken.

    Returns:
        As of `validate_run`.

    Raises:
        NotARunError: there is no such file.
        MisuseError: the file's table cannot be told, or `ignore` names no rule.
    """
    check_ignored(ignore)
    listing = Listing(ignore)
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in {"csv", "parquet"}:
        raise MisuseError(f"{path} is no .csv and no .parquet file; to check a journal, validate its run.")
    if not path.is_file():
        raise NotARunError(f"{path} is no file: check the path.")
    try:
        columns, named = _csv_columns(path) if kind == "csv" else _parquet_columns(path)
    except FROM_ARROW as error:
        listing.add(UNREADABLE.found(path.name, told(str(error).partition("\n")[0], path)))
        return listing.violations()
    found = _manifest_beside(path)
    name = _table(path, [table, named], columns, found)
    if name == PREDICTIONS.name and kind == "parquet":
        _check_predictions(path, listing)
    else:
        _check_rows(path, declaration_of(name, columns, found), found, listing)
    return listing.violations()


def _csv_columns(path: Path) -> tuple[Sequence[str], None]:
    with path.open("rb") as file:
        return header_names(file.readline(2**20)), None


def _parquet_columns(path: Path) -> tuple[Sequence[str], str | None]:
    schema = pq.read_schema(path)
    named = (schema.metadata or {}).get(TABLE_KEY)
    return schema.names, None if named is None else named.decode(errors="replace")


def _manifest_beside(path: Path) -> Manifest | None:
    """That of the run, for a file that lies where telemetry writes; what is wrong with it is not this file's."""
    folder = path.resolve().parent
    return manifest.load(RunLayout(folder.parent), lambda _: None) if folder.name == "telemetry" else None


def _table(path: Path, told_names: Sequence[str | None], columns: Sequence[str], found: Manifest | None) -> str:
    names = sorted({*KNOWN, *(found.tables if found else ())})
    given = told_names[0]
    if given is not None and given not in names:
        raise MisuseError(f"{given!r} is no table; tables: {', '.join(names)}.")
    of_predictions = PREDICTIONS.name if PREDICTION_NAME.fullmatch(path.name) else None
    name = table_name([*told_names, path.stem, of_predictions], columns, names)
    if name is None:
        raise MisuseError(
            f"{path}: neither its name nor its columns tell which table it is; say --table NAME, one of "
            f"{', '.join(names)}."
        )
    return name


def _check_predictions(path: Path, listing: Listing) -> None:
    window = read_predictions(RunLayout(path.parent), PredictionFile(path.stem, 0, path), listing.add)
    listing.take(predictions.check(window) if window is not None else ())


def _check_rows(path: Path, declaration: RunTable, found: Manifest | None, listing: Listing) -> None:
    is_of_steps = {"batch_idx", "epoch"} <= set(declaration.column_names) and declaration.table.name != "events"
    check: Check = rules_of_rows(found) if is_of_steps else values.check_window
    windows = _windows(path, declaration, found, listing)
    read_through(path.name, path, windows, check, listing)


def _windows(path: Path, declaration: RunTable, found: Manifest | None, listing: Listing) -> Iterator[Window]:
    if path.suffix == ".csv":
        return csv_windows(path.name, path, declaration, is_open=is_open(found), take=listing.add)
    stored = open_stored_file(path.name, path, path.with_suffix(".journal"), declaration, listing.add)
    return windows_of(path.name, declaration, stored.tables() if stored else iter(()))
