"""Begin an attempt in a run directory, new or used."""

import os
import platform
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from ava_pipeline.contract.events import Event, as_utf8
from ava_pipeline.contract.files import free_place, keep_damaged
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, Group, Manifest, TableEntry, changed_groups, read_manifest, utc_now
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.logs import logger
from ava_pipeline.provenance import ask_git, versions
from ava_pipeline.write.channel import PendingStep
from ava_pipeline.write.event_log import damage_event, snapshot_event
from ava_pipeline.write.older_rows import count_rows, repair_files, supersede_rows, table_names, with_place
from ava_pipeline.write.older_snapshots import (
    count_of_last,
    num_expected,
    num_snapshots,
    repair_snapshots,
    set_aside_snapshots,
)
from ava_pipeline.write.resumed_tables import change_events, holdout_events, resume_tables
from ava_pipeline.write.writers import Formats

_RECORDED_VERSIONS = ("ava-pipeline", "torch", "torchvision", "pyarrow", "pandas", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Facts about the run that the training thread gives.

    `groups`, `rate_names` and `holdout_ids` are those of a `Setup`; `resumed_from` is the last batch of the checkpoint,
    0 for a fresh start; `thresholds` are the limits of signs that differ from the defaults. `devices` returns the names
    of the devices that held gradients so far, `weight_reference_bytes` the size of the copy that weights are compared
    with.
    """

    groups: Mapping[str, Group]
    collect_every_n: int
    rate_names: Mapping[str, str] = field(default_factory=dict)
    holdout_ids: Sequence[tuple[int | str, ...]] = ()
    resumed_from: int = 0
    run_info: Mapping[str, JsonValue] = field(default_factory=dict)
    devices: Callable[[], Collection[str]] = tuple
    weight_reference_bytes: Callable[[], int] = int
    thresholds: Mapping[str, int | float | bool | None] = field(default_factory=dict)


def begin_attempt(
    layout: RunLayout, tables: Sequence[RunTable], facts: RunFacts, formats: Formats
) -> tuple[Manifest, list[Event]]:
    """Repair older files, move the rows that this attempt supersedes to `superseded/`, and draft the manifest.

    If it is interrupted, it can be called again: nothing is overwritten, and the manifest follows from the files. Its
    last attempt is this one; the events report what was lost or changed. Raise DamagedFileError if an older file
    cannot be read.
    """
    names = table_names(layout, tables)
    damage, damaged_snapshots = repair_files(layout, names), repair_snapshots(layout)
    before, unreadable = _manifest_before(layout, names)
    attempts = (before.attempts if before else []) or _unknown_attempt(layout, facts, names)
    number = len(attempts) + 1
    missing = missing_rows(attempts, count_rows(layout, names))
    # Rows in files of the user's own writers are not counted: each attempt starts these files over.
    missing = {name: num_rows for name, num_rows in missing.items() if Path(name).suffix in {".csv", ".parquet"}}
    is_moved = supersede_rows(layout, names, after_batch=facts.resumed_from, attempt=number)
    is_moved |= set_aside_snapshots(layout, after_batch=facts.resumed_from, attempt=number)
    older = before if facts.resumed_from else None
    resumed = resume_tables(layout, tables, facts.groups, older, attempt=number)
    attempt = _attempt(number, facts, missing_rows(attempts, count_rows(layout, names)))
    attempt.weight_snapshots.set_aside = max(0, num_expected(attempts) - num_snapshots(layout))
    attempt.columns = {table.table.name: table.run_column_names for table in tables}
    manifest = Manifest(
        heartbeat_utc=attempt.started_utc,
        tables={
            **(older.tables if older else {}),  # one that is no longer measured keeps its rows
            **{one.table.table.name: table_entry(one.table, formats) for one in resumed},
        },
        groups=changed_groups(older.groups, facts.groups, facts.resumed_from + 1) if older else dict(facts.groups),
        rate_names={**(older.rate_names if older else {}), **facts.rate_names},
        holdout_ids=tuple(facts.holdout_ids or (older.holdout_ids if older else ())),
        run_info=dict(facts.run_info),
        attempts=[*attempts, attempt],
    )
    if is_moved and not facts.resumed_from:
        logger.warning(
            "%s held rows of an earlier attempt: they are in %s now, and this attempt starts at batch 1. "
            "To continue after them, call load_state_dict() before the first step.",
            layout.root,
            layout.superseded(number),
        )
    lost = _loss_events([*damage, *unreadable], missing, attempts, facts)
    lost += [snapshot_event(facts.resumed_from, 0, str(finding)) for finding in damaged_snapshots]
    others = holdout_events(older.holdout_ids if older else (), facts.holdout_ids, facts.resumed_from)
    return manifest, [*lost, *change_events(layout, resumed, up_to=facts.resumed_from, attempt=number), *others]


def begin_table(
    layout: RunLayout, table: RunTable, manifest: Manifest, formats: Formats, step: PendingStep
) -> list[Event]:
    """Declare a table that the running attempt has from a step on, and prepare the files of earlier attempts for it.

    The events report what changed. Raise OSError if the disk refuses, and DamagedFileError if an older file cannot be
    read.
    """
    attempt, name = manifest.attempt, table.table.name
    before = count_rows(layout, [name])
    resumed = resume_tables(layout, [table], manifest.groups, manifest, attempt=attempt.number)
    left = count_rows(layout, [name])
    for file, num_rows in before.items():
        if num_moved := num_rows - left.get(file, 0):
            attempt.set_aside[file] = attempt.set_aside.get(file, 0) + num_moved
    manifest.tables |= {one.table.table.name: table_entry(one.table, formats) for one in resumed}
    attempt.first_batches[name] = step.batch_idx
    return change_events(layout, resumed, up_to=step.batch_idx - 1, attempt=attempt.number)


def table_entry(table: RunTable, formats: Formats) -> TableEntry:
    """The entry of a table in the manifest."""
    return TableEntry(declaration=table, formats=formats.of(table.table))


def rows_of_last(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that the last attempt wrote, if it was killed before it could count them all, by file name.

    `counts` are the rows in each file now. The result is never less than the attempt counted itself.
    """
    *before, last = attempts
    superseded = {name: sum(one.set_aside.get(name, 0) for one in attempts) for name in counts}
    others = {name: sum(one.rows.get(name, 0) for one in before) for name in counts}
    found = {name: count + superseded[name] - others[name] for name, count in counts.items()}
    return {name: max(found.get(name, 0), last.rows.get(name, 0)) for name in {**last.rows, **found}}


def missing_rows(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that the attempts wrote and that the files, which hold `counts` now, lack; by name of the file."""
    expected: dict[str, int] = {}
    for attempt in attempts:
        for name in {**attempt.rows, **attempt.set_aside}:
            num_left = attempt.rows.get(name, 0) - attempt.set_aside.get(name, 0)
            expected[name] = expected.get(name, 0) + num_left
    missing = {name: num_rows - counts.get(name, 0) for name, num_rows in expected.items()}
    return {name: num_rows for name, num_rows in missing.items() if num_rows > 0}


def _manifest_before(layout: RunLayout, names: Collection[str]) -> tuple[Manifest | None, list[Finding]]:
    """The manifest of earlier attempts; the rows of one that was killed are counted in its files.

    A manifest that cannot be read is kept in `damaged/`. Its content is lost, the rows are not.
    """
    try:
        manifest = read_manifest(layout.manifest)
    except FileNotFoundError:
        return None, []
    except DamagedFileError as error:
        file = layout.manifest.relative_to(layout.root).as_posix()
        invalid = Finding(id="manifest.invalid", severity="error", message=str(error), file=file)
        invalid = with_place(invalid, free_place(layout.manifest))
        keep_damaged(layout.manifest)
        return None, [invalid]
    attempts = manifest.attempts
    if attempts and attempts[-1].status == "running":
        attempts[-1].status = "killed"
        attempts[-1].rows = rows_of_last(attempts, count_rows(layout, names))
        count_of_last(attempts, num_snapshots(layout))
    return manifest, []


def _unknown_attempt(layout: RunLayout, facts: RunFacts, names: Collection[str]) -> list[Attempt]:
    """The attempt that wrote rows whose manifest is lost: only their number is known."""
    rows = {name: num_rows for name, num_rows in count_rows(layout, names).items() if num_rows}
    if not rows.keys() - {layout.csv("events").name}:
        return []
    return [Attempt(number=1, status="killed", started_utc=utc_now(), collect_every_n=facts.collect_every_n, rows=rows)]


def _attempt(number: int, facts: RunFacts, superseded: dict[str, int]) -> Attempt:
    return Attempt(
        number=number,
        started_utc=utc_now(),
        resumed_from=facts.resumed_from,
        collect_every_n=facts.collect_every_n,
        set_aside=superseded,
        thresholds=dict(facts.thresholds),
        argv=tuple(map(as_utf8, sys.argv)),
        pid=os.getpid(),
        host=platform.node(),
        git_commit=_git_commit(),
        versions=versions(_RECORDED_VERSIONS),
    )


def _git_commit() -> str | None:
    """The commit of the training code, if it is in a git checkout."""
    folder = Path(sys.argv[0]).resolve().parent if sys.argv and sys.argv[0] else Path.cwd()
    return ask_git(folder, "rev-parse", "HEAD")


def _loss_events(
    damage: Sequence[Finding], missing: Mapping[str, int], attempts: Sequence[Attempt], facts: RunFacts
) -> list[Event]:
    """An event for each loss: over the last attempt's batches, or only the last batch for the end of a file."""
    last = facts.resumed_from
    first = min(attempts[-1].resumed_from + 1, last) if attempts else last
    events = [damage_event(finding, last if finding.severity == "info" else first, last) for finding in damage]
    for name, num_rows in missing.items():
        message = f"it holds {num_rows} fewer rows than its attempts wrote: look in superseded/ and damaged/."
        lost = Finding(id="rows.missing", severity="error", message=message, file=f"telemetry/{name}")
        events.append(damage_event(lost, min(1, last), last))
    return events
