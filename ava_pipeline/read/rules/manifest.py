"""The manifest by itself: attempts, status, groups."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, read_manifest
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.inspected import Inspected
from ava_pipeline.read.rules.counters import MANIFEST
from ava_pipeline.read.rules.files import Take, told
from ava_pipeline.read.violations import Breach, Cell, Rule

STALE_AFTER = timedelta(minutes=2)

MISSING = Rule("manifest.missing", "Tables stand beside a manifest, and what a config says is collected does.")
INVALID = Rule("manifest.invalid", "The manifest is one of this schema version.")
ATTEMPTS = Rule("manifest.attempts", "Attempts are numbered 1, 2, 3, ... and only the last one can be running.")
STATUS = Rule("manifest.status", "The manifest's status is that of its last attempt.")
GROUPS = Rule("manifest.groups", "A column of norms is a group of the manifest, and so is every group's parent.")
KILLED = Rule("run.killed", "A run that counts as running shows a sign of life every few seconds.", "info")

RULES = (MISSING, INVALID, ATTEMPTS, STATUS, GROUPS, KILLED)


def load(layout: RunLayout, take: Take) -> Manifest | None:
    """Read the manifest; what is wrong with it is told to `take`."""
    try:
        return read_manifest(layout.manifest)
    except FileNotFoundError:
        if layout.telemetry.is_dir():
            take(MISSING.found(MANIFEST, "there is none, so that what the tables should hold is not known."))
    except (DamagedFileError, OSError) as error:
        take(INVALID.found(MANIFEST, told(error, layout.manifest)))
    return None


def check(run: Inspected) -> Iterator[Breach]:
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
