"""Rules of the manifest: attempts, status, groups, and counters against the rows."""

from collections.abc import Iterator
from datetime import datetime

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import STALE_AFTER, Attempt, Manifest, read_manifest
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun
from ava_pipeline.validate.rules_files import Take, without_path
from ava_pipeline.validate.violations import Breach, Cell, Rule

MANIFEST = "telemetry/manifest.json"

SUM = Rule("counters.sum", "collected = written + dropped + failed + pending, in each attempt.")
PENDING = Rule("counters.pending", "An attempt that ended well has nothing pending.")
ROWS = Rule("counters.rows", "A file holds the rows that its attempts wrote, less those set aside.")
WRITTEN = Rule("counters.written", "Every file took a row of each step that counts as written.")

COUNTER_RULES = (SUM, PENDING, ROWS, WRITTEN)


def check_counters(run: CheckedRun) -> Iterator[Breach]:
    """Each attempt by itself, then each file against all of them."""
    if run.manifest is None:
        return
    for index, attempt in enumerate(run.manifest.attempts):
        yield from _of_attempt(attempt, f"attempts.{index}")
    for table in [*run.tables.values(), run.events]:
        for part in table.parts:
            yield from _of_file(run, run.manifest, part)


def _of_attempt(attempt: Attempt, place: str) -> Iterator[Breach]:
    counters = attempt.counters
    settled = counters.written + counters.dropped + counters.failed + counters.pending
    if counters.collected != settled:
        message = f"collected is {counters.collected}; written, dropped, failed and pending add up to {settled}."
        yield SUM.found(MANIFEST, Cell(message, f"{place}.counters.collected", str(counters.collected)))
    if counters.pending and attempt.status == "finished":
        message = "rows still wait, though the attempt is finished."
        yield PENDING.found(MANIFEST, Cell(message, f"{place}.counters.pending", str(counters.pending)))
    for name, count in attempt.rows.items():
        if name != "events.csv" and count < counters.written and attempt.status != "running":
            message = f"{count} rows, though {counters.written} steps count as written."
            yield WRITTEN.found(MANIFEST, Cell(message, f"{place}.rows.{name}", str(count)))


def _of_file(run: CheckedRun, manifest: Manifest, part: CheckedFile) -> Iterator[Breach]:
    """While the run is open, the files are ahead of the counters."""
    attempts = manifest.attempts
    counted = [attempt.rows[part.name] for attempt in attempts if part.name in attempt.rows]
    expected = sum(counted) - sum(attempt.set_aside.get(part.name, 0) for attempt in attempts)
    is_other = part.num_rows < expected if run.is_open else part.num_rows != expected
    if counted and is_other:
        message = f"{part.num_rows} rows; by the manifest's counters there are {expected}."
        yield ROWS.found(part.file, Cell(message, value=str(part.num_rows)))


MANIFEST_MISSING = Rule("manifest.missing", "Tables stand beside a manifest, and what a config says is collected does.")
INVALID = Rule("manifest.invalid", "The manifest is one of this schema version.")
ATTEMPTS = Rule("manifest.attempts", "Attempts are numbered 1, 2, 3, ... and only the last one can be running.")
STATUS = Rule("manifest.status", "The manifest's status is that of its last attempt.")
GROUPS = Rule("manifest.groups", "A column of norms is a group of the manifest, and so is every group's parent.")
KILLED = Rule("run.killed", "A run that counts as running shows a sign of life every few seconds.", "info")

MANIFEST_RULES = (MANIFEST_MISSING, INVALID, ATTEMPTS, STATUS, GROUPS, KILLED)


def load_manifest(layout: RunLayout, take: Take) -> Manifest | None:
    """Read the manifest; what is wrong with it is told to `take`."""
    try:
        return read_manifest(layout.manifest)
    except FileNotFoundError:
        if layout.telemetry.is_dir():
            take(MANIFEST_MISSING.found(MANIFEST, "there is none, so that what the tables should hold is not known."))
    except (DamagedFileError, OSError) as error:
        take(INVALID.found(MANIFEST, without_path(error, layout.manifest)))
    return None


def check_manifest(run: CheckedRun) -> Iterator[Breach]:
    """What can be told of the manifest by itself."""
    if run.manifest is not None:
        yield from _attempts(run.manifest)
        yield from _groups(run.manifest)
        yield from _killed(run.manifest, run.now)


def _attempts(manifest: Manifest) -> Iterator[Breach]:
    last = len(manifest.attempts) - 1
    if last < 0:
        yield ATTEMPTS.found(MANIFEST, Cell("there is no attempt.", "attempts"))
        return
    for index, attempt in enumerate(manifest.attempts):
        if attempt.number != index + 1:
            message = f"{attempt.number} stands where {index + 1} should."
            yield ATTEMPTS.found(MANIFEST, Cell(message, f"attempts.{index}.number", str(attempt.number)))
        if attempt.status == "running" and index < last:
            message = "counts as running, though another attempt follows."
            yield ATTEMPTS.found(MANIFEST, Cell(message, f"attempts.{index}.status", attempt.status))
    if manifest.status != manifest.attempt.status:
        message = f"is {manifest.status!r}; the last attempt's is {manifest.attempt.status!r}."
        yield STATUS.found(MANIFEST, Cell(message, "status", manifest.status))


def _groups(manifest: Manifest) -> Iterator[Breach]:
    for name, entry in manifest.tables.items():
        unknown = set(entry.declaration.run_column_names) - set(manifest.groups)
        for column in sorted(unknown) if entry.declaration.table.l2_of_groups else ():
            yield GROUPS.found(MANIFEST, Cell(f"a column of {name}, but no group.", "groups", column))
    for name, group in manifest.groups.items():
        if group.parent is not None and group.parent not in manifest.groups:
            yield GROUPS.found(MANIFEST, Cell("is no group.", f"groups.{name}.parent", group.parent))


def _killed(manifest: Manifest, now: datetime) -> Iterator[Breach]:
    silence = now - manifest.heartbeat_utc
    if manifest.status == "running" and silence > STALE_AFTER:
        message = (
            f"running, but without a sign of life since {manifest.heartbeat_utc:%Y-%m-%d %H:%M:%S} UTC: it was killed, "
            "or its disk is gone. What is there can be read; the next attempt or `ava-pipeline recover` tidies up."
        )
        yield KILLED.found(MANIFEST, Cell(message, "status", manifest.status))
