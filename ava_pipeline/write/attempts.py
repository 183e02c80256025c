"""Beginning an attempt in a run directory, new or used."""

import logging
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.files import keep_damaged
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, Group, Manifest, TableEntry, read_manifest, utc_now
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import storable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.provenance import ask_git, versions
from ava_pipeline.write.older_rows import Mended, count_rows, make_whole, own_tables, set_aside
from ava_pipeline.write.resumed_tables import change_events, groups_of, resume_tables

_log = logging.getLogger("ava_pipeline")

_TOLD_VERSIONS = ("ava-pipeline", "torch", "torchvision", "pyarrow", "pandas", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the training thread knows of the run.

    Attributes:
        groups: column -> the parameters behind it.
        collect_every_n: spacing of the rows, in batches.
        resumed_from: the last batch of the checkpoint; 0 for a fresh start.
        run_info: the user's own facts.
        device: that the gradients lie on.
        thresholds: what signs are judged by, where it is not the usual.
    """

    groups: Mapping[str, Group]
    collect_every_n: int
    resumed_from: int = 0
    run_info: Mapping[str, JsonValue] = field(default_factory=dict)
    device: str | None = None
    thresholds: Mapping[str, int | float | bool | None] = field(default_factory=dict)


def begin_attempt(
    layout: RunLayout,
    tables: Sequence[RunTable],
    facts: RunFacts,
    formats: Sequence[Literal["csv", "parquet"]],
) -> tuple[Manifest, list[Event]]:
    """Make older rows whole, set aside what this attempt supersedes, and draw up the manifest.

    Whenever it is cut short, it can be called again: nothing is written over, and what the files hold decides what
    the manifest says.

    Returns:
        The manifest, its last attempt being this one, and what there is to tell.

    Raises:
        OSError: the disk refused.
        DamagedFileError: an older file cannot be read.
    """
    names = own_tables(layout, tables)
    mended = make_whole(layout, names)
    before, unreadable = _manifest_before(layout, names)
    mended += unreadable
    older = (before.attempts if before else []) or _unknown_attempt(layout, facts, names)
    number = len(older) + 1
    lacking = missing_rows(older, count_rows(layout, names))
    is_moved = set_aside(layout, names, after_batch=facts.resumed_from, attempt=number)
    behind = before if facts.resumed_from else None
    continued = resume_tables(layout, tables, facts.groups, behind, attempt=number)
    attempt = _attempt(number, facts, missing_rows(older, count_rows(layout, names)))
    attempt.columns = {table.table.name: table.run_column_names for table in tables}
    manifest = Manifest(
        heartbeat_utc=attempt.started_utc,
        tables={one.table.table.name: TableEntry(declaration=one.table, formats=tuple(formats)) for one in continued},
        groups=groups_of(continued, facts.groups, behind),
        run_info=dict(facts.run_info),
        attempts=[*older, attempt],
    )
    if is_moved and not facts.resumed_from:
        _log.warning(
            "%s held rows of an earlier attempt: they are in %s now, and this attempt begins at batch 1. "
            "To go on behind them, call load_state_dict() before the first step.",
            layout.root,
            layout.superseded(number),
        )
    changes = change_events(layout, continued, up_to=facts.resumed_from, attempt=number)
    return manifest, [*_events(mended, lacking, older, facts), *changes]


def _manifest_before(layout: RunLayout, names: Collection[str]) -> tuple[Manifest | None, list[Mended]]:
    """The manifest of earlier attempts; one that was killed outran its counts, which are taken from its files.

    One that cannot be read is kept in `damaged/`: it costs what it said of the rows, and not the rows.
    """
    try:
        manifest = read_manifest(layout.manifest)
    except FileNotFoundError:
        return None, []
    except DamagedFileError as error:
        place = keep_damaged(layout.manifest)
        return None, [Mended(layout.manifest.name, f"{error} It is kept as {place}", is_tail=False)]
    attempts = manifest.attempts
    if attempts and attempts[-1].status == "running":
        attempts[-1].status = "killed"
        attempts[-1].rows = rows_of_last(attempts, count_rows(layout, names))
    return manifest, []


def _unknown_attempt(layout: RunLayout, facts: RunFacts, names: Collection[str]) -> list[Attempt]:
    """Whoever wrote rows whose manifest is lost: nothing is known of it but how many there are."""
    rows = {name: num_rows for name, num_rows in count_rows(layout, names).items() if num_rows}
    if not rows.keys() - {layout.csv("events").name}:
        return []
    return [Attempt(number=1, status="killed", started_utc=utc_now(), collect_every_n=facts.collect_every_n, rows=rows)]


def _events(
    mended: Sequence[Mended], lacking: Mapping[str, int], older: Sequence[Attempt], facts: RunFacts
) -> list[Event]:
    """What was lost: behind the checkpoint, or somewhere in what the last attempt left."""
    end = facts.resumed_from
    begin = min(older[-1].resumed_from + 1, end) if older else end
    told = [_damage_event(f"{one.file}: {one.message}.", end if one.is_tail else begin, end) for one in mended]
    for name, num_rows in lacking.items():
        message = f"{name} holds {num_rows} rows fewer than its attempts wrote: look in superseded/ and damaged/."
        told.append(_damage_event(message, min(1, end), end))
    return told


def _attempt(number: int, facts: RunFacts, moved: dict[str, int]) -> Attempt:
    return Attempt(
        number=number,
        started_utc=utc_now(),
        resumed_from=facts.resumed_from,
        collect_every_n=facts.collect_every_n,
        set_aside=moved,
        thresholds=dict(facts.thresholds),
        argv=tuple(map(storable, sys.argv)),
        pid=os.getpid(),
        host=platform.node(),
        git_commit=_git_commit(),
        device=facts.device,
        versions=versions(_TOLD_VERSIONS),
    )


def _git_commit() -> str | None:
    """The commit of the code that trains, where it lies in a git checkout."""
    folder = Path(sys.argv[0]).resolve().parent if sys.argv and sys.argv[0] else Path.cwd()
    return ask_git(folder, "rev-parse", "HEAD")


def _damage_event(message: str, first_batch_idx: int, last_batch_idx: int) -> Event:
    return Event(
        event="damaged_file",
        severity="warning",
        message=message,
        batch_idx=first_batch_idx,
        batch_idx_end=last_batch_idx,
        epoch=0,
    )


def rows_of_last(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that the last attempt wrote, where it was killed before it could count them all.

    Args:
        attempts: every attempt so far.
        counts: rows in each file now.

    Returns:
        By file name; never fewer than it counted itself.
    """
    *before, last = attempts
    aside = {name: sum(one.set_aside.get(name, 0) for one in attempts) for name in counts}
    others = {name: sum(one.rows.get(name, 0) for one in before) for name in counts}
    found = {name: count + aside[name] - others[name] for name, count in counts.items()}
    return {name: max(found.get(name, 0), last.rows.get(name, 0)) for name in {**last.rows, **found}}


def missing_rows(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that attempts wrote and the files no longer hold.

    Args:
        attempts: every attempt so far.
        counts: rows in each file now.

    Returns:
        By file name, where it is not 0.
    """
    expected: dict[str, int] = {}
    for one in attempts:
        for name in {**one.rows, **one.set_aside}:
            expected[name] = expected.get(name, 0) + one.rows.get(name, 0) - one.set_aside.get(name, 0)
    missing = {name: num_rows - counts.get(name, 0) for name, num_rows in expected.items()}
    return {name: num_rows for name, num_rows in missing.items() if num_rows > 0}
