"""Rules of the manifest: attempts, status, groups, and counters against the rows."""

from collections.abc import Iterator
from datetime import datetime

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import KILLED_AFTER, Attempt, Manifest, read_manifest
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun
from ava_pipeline.validate.listing import AddBreach, Breach, Rule, without_path

# A run of training without any telemetry, though its config has it on, breaks this rule too: rules_training.
MISSING = Rule("manifest.missing", "A run with tables, or whose config has telemetry on, has a manifest.")
INVALID = Rule("manifest.invalid", "The manifest is one of this schema version.")
ATTEMPTS = Rule("manifest.attempts", "Attempts are numbered 1, 2, 3, ... and only the last one can be running.")
STATUS = Rule("manifest.status", "The manifest's status is that of its last attempt.")
GROUPS = Rule("manifest.groups", "A column of norms is a group of the manifest, and so is every group's parent.")
KILLED = Rule("run.killed", "A run with the status running shows a sign of life every few seconds.", "info")
SUM = Rule("counters.sum", "collected = written + dropped + failed + pending, in each attempt.")
PENDING = Rule("counters.pending", "A finished attempt has no pending rows.")
ROWS = Rule("counters.rows", "A file holds the rows that its attempts wrote, minus those moved to superseded/.")
WRITTEN = Rule("counters.written", "Each step that counts as written has a row in every file.")

MANIFEST = "telemetry/manifest.json"


def load_manifest(layout: RunLayout, add: AddBreach) -> Manifest | None:
    """Read the manifest; None if it is missing or invalid, which is reported."""
    try:
        return read_manifest(layout.manifest)
    except FileNotFoundError:
        if layout.telemetry.is_dir():
            add(MISSING.broken(MANIFEST, "the file is missing, so the tables' columns and counters are unknown."))
    except (DamagedFileError, OSError) as error:
        add(INVALID.broken(MANIFEST, without_path(error, layout.manifest)))
    return None


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """The manifest itself, and its counters against the rows of the files."""
    manifest = run.manifest
    if manifest is None:
        return
    yield from _attempts(manifest)
    yield from _groups(manifest)
    yield from _killed(manifest, run.now)
    for index, attempt in enumerate(manifest.attempts):
        yield from _counters(attempt, f"attempts.{index}")
    for table in [*run.tables.values(), run.events]:
        for file in (table.csv, table.parquet):
            if file is not None:
                yield from _counted_rows(run, manifest, file)


def _attempts(manifest: Manifest) -> Iterator[Breach]:
    last = len(manifest.attempts) - 1
    if last < 0:
        yield ATTEMPTS.broken(MANIFEST, "expected at least one attempt, got none.", column="attempts")
        return
    for index, attempt in enumerate(manifest.attempts):
        if attempt.number != index + 1:
            message = f"expected {index + 1}, got {attempt.number}."
            column = f"attempts.{index}.number"
            yield ATTEMPTS.broken(MANIFEST, message, column=column, value=str(attempt.number))
        if attempt.status == "running" and index < last:
            message = "expected an ended attempt, since another one follows, got 'running'."
            yield ATTEMPTS.broken(MANIFEST, message, column=f"attempts.{index}.status", value=attempt.status)
    status = manifest.attempts[-1].status
    if manifest.status != status:
        message = f"expected {status!r}, the status of the last attempt, got {manifest.status!r}."
        yield STATUS.broken(MANIFEST, message, column="status", value=manifest.status)


def _groups(manifest: Manifest) -> Iterator[Breach]:
    for name, entry in manifest.tables.items():
        unknown = set(entry.declaration.run_column_names) - set(manifest.groups)
        for column in sorted(unknown) if entry.declaration.table.l2_of_groups else ():
            message = f"expected a group for the column {column} of {name}; the manifest has none of that name."
            yield GROUPS.broken(MANIFEST, message, column="groups", value=column)
    for name, group in manifest.groups.items():
        if group.parent is not None and group.parent not in manifest.groups:
            message = f"expected the name of a group, got {group.parent!r}."
            yield GROUPS.broken(MANIFEST, message, column=f"groups.{name}.parent", value=group.parent)


def _killed(manifest: Manifest, now: datetime) -> Iterator[Breach]:
    if manifest.status == "running" and now - manifest.heartbeat_utc > KILLED_AFTER:
        message = (
            f"the status is running, but the last sign of life was at {manifest.heartbeat_utc:%Y-%m-%d %H:%M:%S} UTC: "
            "the process was killed, or its disk is gone. The files can be read; the next attempt, or "
            "`ava-pipeline recover`, repairs them."
        )
        yield KILLED.broken(MANIFEST, message, column="status", value=manifest.status)


def _counters(attempt: Attempt, place: str) -> Iterator[Breach]:
    counters = attempt.counters
    total = counters.written + counters.dropped + counters.failed + counters.pending
    if counters.collected != total:
        message = f"expected {total}, the sum of written, dropped, failed and pending, got {counters.collected}."
        yield SUM.broken(MANIFEST, message, column=f"{place}.counters.collected", value=str(counters.collected))
    if counters.pending and attempt.status == "finished":
        message = f"expected no pending rows in a finished attempt, got {counters.pending}."
        yield PENDING.broken(MANIFEST, message, column=f"{place}.counters.pending", value=str(counters.pending))
    for name, count in attempt.rows.items():
        is_whole = name != "events.csv" and name.partition(".")[0] not in attempt.first_batches
        if is_whole and count < counters.written and attempt.status != "running":
            message = f"expected a row for each of {counters.written} written steps, got {count} rows."
            yield WRITTEN.broken(MANIFEST, message, column=f"{place}.rows.{name}", value=str(count))


def _counted_rows(run: CheckedRun, manifest: Manifest, file: CheckedFile) -> Iterator[Breach]:
    """While the run is open, the files are ahead of the counters."""
    counted = [attempt.rows[file.name] for attempt in manifest.attempts if file.name in attempt.rows]
    expected = sum(counted) - sum(attempt.set_aside.get(file.name, 0) for attempt in manifest.attempts)
    is_broken = file.num_rows < expected if run.is_open else file.num_rows != expected
    if counted and is_broken:
        message = f"expected {expected} rows, as the manifest counts, got {file.num_rows}."
        yield ROWS.broken(file.file, message, value=str(file.num_rows))
