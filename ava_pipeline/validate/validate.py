"""Validate a run directory, or a single file of one, against its contract."""

import difflib
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from os import PathLike
from pathlib import Path

import pyarrow.parquet as pq

from ava_pipeline.contract.builtin_tables import BUILT_IN_TABLES, GRADIENT_NORMS, LEARNING_RATES, METRICS, PREDICTIONS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import PREDICTION_NAME, Moment, PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest, utc_now
from ava_pipeline.contract.tables import TABLE_KEY, RunTable, Table
from ava_pipeline.contract.untrusted import ARROW_ERRORS, MAX_LINE_BYTES
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.read.csv import first_columns
from ava_pipeline.read.metrics import is_foreign
from ava_pipeline.read.old_run import OldRun, find_old_run
from ava_pipeline.read.run import open_run
from ava_pipeline.validate import (
    rules_files,
    rules_manifest,
    rules_metrics,
    rules_old_run,
    rules_predictions,
    rules_rows,
    rules_snapshots,
    rules_training,
    rules_values,
)
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun, ExplainedBatches, Window, is_of_train
from ava_pipeline.validate.listing import Breach, Listing, Rule, without_path
from ava_pipeline.validate.table_reader import Check, CsvFile, StoredFile, read_files, read_through

# Each module defines its rules as constants, and the functions that find what breaks them: `check_run` is called once
# per run, `check_rows` for each window of rows while a file is read.
_RULE_MODULES = (
    rules_manifest,
    rules_files,
    rules_rows,
    rules_values,
    rules_metrics,
    rules_old_run,
    rules_predictions,
    rules_snapshots,
    rules_training,
)
_CHECKS_OF_RUNS = (
    rules_manifest.check_run,
    rules_files.check_run,
    rules_rows.check_run,
    rules_metrics.check_run,
    rules_predictions.check_run,
    rules_snapshots.check_run,
    rules_training.check_run,
)

_RULES_BY_ID = {rule.id: rule for module in _RULE_MODULES for rule in vars(module).values() if isinstance(rule, Rule)}
RULES: tuple[Rule, ...] = tuple(sorted(_RULES_BY_ID.values(), key=lambda rule: rule.id))

_KNOWN_TABLES = {table.name: table for table in (*BUILT_IN_TABLES, EVENTS, METRICS, PREDICTIONS)}
# How similar a mistyped id must be to the rule that an error suggests.
_LEAST_SIMILARITY = 0.75


def validate_run(
    path: str | PathLike[str], *, ignore: Sequence[str] = (), now: datetime | None = None
) -> list[Finding]:
    """Check a run directory: its manifest, its tables, its predictions and its metrics.

    A run that another program wrote gives one warning, `run.no-manifest`, and is checked without a manifest.

    Rows that a running job has yet to finish are not findings; files that cannot be read are. Tables are read in
    windows of rows, so that memory hardly grows with their length.

    Args:
        path: the run directory.
        ignore: ids of rules to skip, or of families such as `norms`.
        now: the time that heartbeats are compared with; the current time if left out.

    Returns:
        At most 20 findings per rule and file, and one that counts the others; empty for a valid run.

    Raises:
        NotARunError: there is no run at `path`.
        MisuseError: `ignore` names a rule that does not exist.

    Example:
        >>> for finding in validate_run("outputs/ava/my_run"):  # doctest: +SKIP
        ...     print(finding)
    """
    listing = Listing(_checked_ids(ignore))
    opened = open_run(path)
    layout = opened.layout
    if (old := opened.old) is not None:
        rules_old_run.check_old_run(old, listing)
        return listing.findings()
    run = _read_run(layout, listing, now or utc_now())
    for check in _CHECKS_OF_RUNS:
        for breach in check(run):
            listing.add(breach)
    return listing.findings()


def _read_run(layout: RunLayout, listing: Listing, now: datetime) -> CheckedRun:
    manifest = rules_manifest.load_manifest(layout, listing.add)
    is_open = manifest is not None and manifest.status == "running"
    check_values = partial(rules_values.check_rows, manifest=manifest)
    tables = {
        name: read_files(layout, entry.declaration, [check_values, rules_rows.check_rows], listing, is_open=is_open)
        for name, entry in (manifest.tables if manifest else {}).items()
    }
    explained = ExplainedBatches()

    def explain(window: Window) -> Iterable[Breach]:
        explained.add(window.rows)
        return ()

    events = read_files(layout, RunTable.of(EVENTS), [check_values, explain], listing, is_open=is_open)
    if not events.files:  # nothing counts of a file that cannot be used, however much of it was read
        explained = ExplainedBatches()
    of_train, metrics = is_of_train(layout, manifest), None
    if layout.metrics.exists() and not (manifest is not None and is_foreign(layout, manifest)):
        metrics = rules_metrics.read_metrics(layout.metrics, listing, is_open=is_open, is_of_train=of_train)
    return CheckedRun(layout, manifest, is_open, of_train, tables, events, metrics, explained, now)


def validate_file(path: str | PathLike[str], *, table: str | None = None, ignore: Sequence[str] = ()) -> list[Finding]:
    """Check a single file: its columns, its types, its values, and the order of its rows.

    Its table follows from Parquet metadata, its name or its columns. If it is in a run, the run's manifest declares
    the columns of the table and the norms that add up. Other files are not read.

    Args:
        path: a `.csv` or `.parquet` file.
        table: the name of its table, if it does not follow from the file.
        ignore: ids of rules to skip, or of families such as `norms`.

    Returns:
        The same as `validate_run`.

    Raises:
        NotARunError: the file does not exist.
        MisuseError: the file's table is unknown, or `ignore` names a rule that does not exist.
    """
    listing = Listing(_checked_ids(ignore))
    path = Path(path)
    if path.suffix not in {".csv", ".parquet"}:
        raise MisuseError(f"expected a .csv or .parquet file, got {path}; to check a journal, validate its run.")
    if not path.is_file():
        raise NotARunError(f"{path} does not exist, or is not a file: check the path.")
    old = _old_run_around(path) if table is None else None
    if old is not None and _check_old_file(old, path, listing):
        return listing.findings()
    try:
        columns, stored_name = (first_columns(path), None) if path.suffix == ".csv" else _parquet_columns(path)
    except ARROW_ERRORS as error:
        reason = without_path(str(error).partition("\n")[0], path)
        listing.add(rules_files.UNREADABLE.broken(path.name, reason))
        return listing.findings()
    manifest = _manifest_beside(path)
    name = _table_name(path, table, stored_name, columns, manifest)
    if name == PREDICTIONS.name and path.suffix == ".parquet":
        file = PredictionFile(path.stem, Moment(0), path)
        window = rules_predictions.read_predictions(RunLayout(path.parent), file, listing.add)
        for breach in rules_predictions.check_rows(window) if window is not None else ():
            listing.add(breach)
    elif name == METRICS.name and path.suffix == ".csv":
        layout = RunLayout(path.parent)
        of_train = is_of_train(layout, rules_manifest.load_manifest(layout, lambda _: None))
        rules_metrics.read_metrics(path, listing, is_open=False, is_of_train=of_train)
    else:
        _read_file(path, _declaration(name, columns, manifest), manifest, listing)
    return listing.findings()


def _old_run_around(path: Path) -> OldRun | None:
    """The run of another program that a file is in; None if it is in none, or in one of ours.

    A file elsewhere is another program's if its lines end in CRLF, which ours never do.
    """
    folder = path.resolve().parent
    if folder.name in {"telemetry", "predictions"}:
        return find_old_run(RunLayout(folder.parent))
    with path.open("rb") as file:
        has_crlf = path.suffix == ".csv" and file.readline(MAX_LINE_BYTES).endswith(b"\r\n")
    return find_old_run(RunLayout(folder)) if has_crlf else None


def _check_old_file(old: OldRun, path: Path, listing: Listing) -> bool:
    """Check a file of a run that another program wrote; False if it is no table and no predictions of it."""
    place = path.resolve()
    table = next((table for table in old.tables.values() if table.path.resolve() == place), None)
    file = next((file for file in prediction_files(old.layout) if file.path.resolve() == place), None)
    if table is not None:
        rules_old_run.check_old_table(old, table, path.name, listing)
    elif file is not None:
        rules_old_run.check_old_predictions(old.layout, file, listing)
    return table is not None or file is not None


def _parquet_columns(path: Path) -> tuple[Sequence[str], str | None]:
    schema = pq.read_schema(path)
    name = (schema.metadata or {}).get(TABLE_KEY)
    return schema.names, None if name is None else name.decode(errors="replace")


def _manifest_beside(path: Path) -> Manifest | None:
    """The run's manifest, if the file is in the folder of one; what is wrong with it is not this file's fault."""
    folder = path.resolve().parent
    if folder.name != "telemetry":
        return None
    return rules_manifest.load_manifest(RunLayout(folder.parent), lambda _: None)


def _table_name(
    path: Path, given: str | None, stored: str | None, columns: Sequence[str], manifest: Manifest | None
) -> str:
    """The first of the given name, the stored one and the file's that is a table; else the one with such columns."""
    names = sorted({*_KNOWN_TABLES, *(manifest.tables if manifest else ())})
    if given is not None and given not in names:
        raise MisuseError(f"expected the name of a table, one of {', '.join(names)}; got {given!r}.")
    by_pattern = PREDICTIONS.name if PREDICTION_NAME.fullmatch(path.name) else None
    name = next((name for name in (given, stored, path.stem, by_pattern) if name in names), None)
    name = name or _name_by_columns(columns)
    if name is None:
        raise MisuseError(
            f"{path}: neither its name nor its columns say which table it is. Give --table NAME, one of "
            f"{', '.join(names)}."
        )
    return name


def _name_by_columns(columns: Sequence[str]) -> str | None:
    """The only table whose declared columns these are, or begin with."""
    candidates = [
        table
        for table in _KNOWN_TABLES.values()
        if (table.run_columns or len(table.columns) == len(columns)) and _begins_with(columns, table)
    ]
    most = max((len(table.columns) for table in candidates), default=0)
    names = {table.name for table in candidates if len(table.columns) == most}
    if GRADIENT_NORMS.name in names:  # learning rates and weight norms begin with the same columns
        are_rates = all(name.startswith("lr_group_") for name in columns[most:])
        names = {LEARNING_RATES.name} if are_rates else {GRADIENT_NORMS.name} if "overall" in columns else set()
    return names.pop() if len(names) == 1 else None


def _begins_with(columns: Sequence[str], table: Table) -> bool:
    return tuple(columns[: len(table.columns)]) == tuple(column.name for column in table.columns)


def _declaration(name: str, columns: Sequence[str], manifest: Manifest | None) -> RunTable:
    """A table as the run's manifest declares it; without one, the built-in table with the file's own run columns."""
    if manifest is not None and name in manifest.tables:
        return manifest.tables[name].declaration
    table = _KNOWN_TABLES[name]
    if table.run_columns is None or not _begins_with(columns, table):
        return RunTable.of(table)
    try:
        return RunTable.of(table, columns[len(table.columns) :])
    except MisuseError:
        return RunTable.of(table)  # the rule files.columns reports the names


def _read_file(path: Path, declaration: RunTable, manifest: Manifest | None, listing: Listing) -> None:
    checks: list[Check] = [partial(rules_values.check_rows, manifest=manifest)]
    if {"batch_idx", "epoch"} <= set(declaration.column_names) and declaration.table.name != EVENTS.name:
        checks.append(rules_rows.check_rows)
    if path.suffix == ".csv":
        is_open = manifest is not None and manifest.status == "running"
        tables = CsvFile(path.name, path, declaration, listing, is_open=is_open).tables()
        read_through(CheckedFile(path.name, declaration), path, tables, checks, listing)
    else:
        stored = StoredFile.open(path.name, path, path.with_suffix(".journal"), declaration, listing)
        if stored is not None:
            stored.checked(checks, listing)


def _checked_ids(ignore: Sequence[str]) -> Sequence[str]:
    """Refuse an id that names no rule and no family, and suggest the most similar one."""
    known = {*_RULES_BY_ID, *(rule.partition(".")[0] for rule in _RULES_BY_ID)}
    for name in ignore:
        if name not in known:
            similar = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_LEAST_SIMILARITY)
            hint = f"; did you mean {similar[0]!r}?" if similar else "."
            raise MisuseError(
                f"expected the id of a rule or of a family, got {name!r}{hint} "
                "`ava-pipeline validate --rules` lists all of them."
            )
    return ignore
