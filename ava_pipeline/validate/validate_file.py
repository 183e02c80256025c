"""Which table a single file is of, and what is declared of it."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import pyarrow.parquet as pq

from ava_pipeline.contract.builtin_tables import EPOCH_METRICS, GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import PREDICTION_NAME, PredictionFile, RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.predictions import PREDICTIONS
from ava_pipeline.contract.tables import TABLE_KEY, RunTable, Table
from ava_pipeline.contract.untrusted import FROM_ARROW
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.read.csv import header_names
from ava_pipeline.validate import rules_manifest, rules_predictions, rules_values
from ava_pipeline.validate.checked_run import is_open
from ava_pipeline.validate.csv_windows import csv_windows
from ava_pipeline.validate.rules_files import UNREADABLE, without_path
from ava_pipeline.validate.rules_predictions import read_predictions
from ava_pipeline.validate.stored_windows import open_stored_file
from ava_pipeline.validate.table_reader import Check, read_through
from ava_pipeline.validate.validate import check_ignored, rules_of_rows
from ava_pipeline.validate.violations import Listing, Violation
from ava_pipeline.validate.windows import Window, windows_of

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
    if table.run_columns is None or not _begins_with(columns, table):
        return RunTable.of(table)
    try:
        return RunTable.of(table, columns[len(table.columns) :])
    except MisuseError:
        return RunTable.of(table)  # the columns are told to be others


def _begins_with(columns: Sequence[str], table: Table) -> bool:
    return tuple(columns[: len(table.columns)]) == tuple(column.name for column in table.columns)


def _by_columns(columns: Sequence[str]) -> str | None:
    has_place = [table for table in KNOWN.values() if table.run_columns or len(table.columns) == len(columns)]
    alike = [table for table in has_place if _begins_with(columns, table)]
    most = max((len(table.columns) for table in alike), default=0)
    names = {table.name for table in alike if len(table.columns) == most}
    if names == {GRADIENT_NORMS.name, LEARNING_RATES.name}:  # which begin alike
        are_rates = all(name.startswith("lr_group_") for name in columns[most:])
        names = {LEARNING_RATES.name} if are_rates else {GRADIENT_NORMS.name} if "overall" in columns else set()
    return names.pop() if len(names) == 1 else None


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
        listing.add(UNREADABLE.found(path.name, without_path(str(error).partition("\n")[0], path)))
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
    return (
        rules_manifest.load_manifest(RunLayout(folder.parent), lambda _: None) if folder.name == "telemetry" else None
    )


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
    listing.take(rules_predictions.check_predictions(window) if window is not None else ())


def _check_rows(path: Path, declaration: RunTable, found: Manifest | None, listing: Listing) -> None:
    is_of_steps = {"batch_idx", "epoch"} <= set(declaration.column_names) and declaration.table.name != "events"
    check: Check = rules_of_rows(found) if is_of_steps else rules_values.check_values
    windows = _windows(path, declaration, found, listing)
    read_through(path.name, path, windows, check, listing)


def _windows(path: Path, declaration: RunTable, found: Manifest | None, listing: Listing) -> Iterator[Window]:
    if path.suffix == ".csv":
        return csv_windows(path.name, path, declaration, is_open=is_open(found), take=listing.add)
    stored = open_stored_file(path.name, path, path.with_suffix(".journal"), declaration, listing.add)
    return windows_of(path.name, declaration, stored.tables() if stored else iter(()))
