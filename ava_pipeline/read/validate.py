"""A run directory against its contract."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from os import PathLike
from typing import Protocol

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, utc_now
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError
from ava_pipeline.read.inspected import Inspected, TableParts, is_open
from ava_pipeline.read.rules import (
    counters,
    directory,
    epochs,
    files,
    formats,
    manifest,
    metrics,
    norms,
    predictions,
    rows,
    spacing,
    training,
    values,
)
from ava_pipeline.read.run import open_run
from ava_pipeline.read.spans import EventSpans
from ava_pipeline.read.table_parts import Check, TableReader
from ava_pipeline.read.violations import Breach, Listing, Rule, Violation
from ava_pipeline.read.window import Window


class _Family(Protocol):
    """A module of rules."""

    @property
    def RULES(self) -> Sequence[Rule]: ...  # noqa: N802  # a module's constant


class _OfRuns(_Family, Protocol):
    """Rules that hold for a run as a whole."""

    def check(self, run: Inspected) -> Iterator[Breach]: ...


_OF_RUNS: Sequence[_OfRuns] = (manifest, directory, counters, rows, spacing, formats, training, epochs, metrics)
_OF_ROWS_AND_FILES: Sequence[_Family] = (files, values, norms, predictions)

RULES: tuple[Rule, ...] = tuple(
    sorted((rule for family in (*_OF_RUNS, *_OF_ROWS_AND_FILES) for rule in family.RULES), key=lambda rule: rule.id)
)

# How alike a mistyped id must be to the one that it is taken for.
_NEAR = 0.75


def validate_run(
    path: str | PathLike[str], *, ignore: Sequence[str] = (), now: datetime | None = None
) -> list[Violation]:
    """Check a run directory: its manifest, its tables, its predictions and its metrics.

    What is still being written is no violation; files that cannot be read are. Tables are read some rows at a time, so
    that memory hardly grows with their length.

    Args:
        path: the run directory.
        ignore: ids of rules, or their families such as `norms`, that may be broken.
        now: the time that heartbeats are compared with; left out, the time of day.

    Returns:
        At most 20 violations a rule and file, and one that counts the others; empty where all is well.

    Raises:
        NotARunError: there is no run.
        MisuseError: `ignore` names no rule.
    """
    check_ignored(ignore)
    layout = open_run(path).layout
    listing = Listing(ignore)
    run = _inspect(layout, manifest.load(layout, listing.add), listing, now or utc_now())
    for family in _OF_RUNS:
        listing.take(family.check(run))
    return listing.violations()


def _inspect(layout: RunLayout, found: Manifest | None, listing: Listing, now: datetime) -> Inspected:
    declared = {name: entry.declaration for name, entry in found.tables.items()} if found else {}
    tables = {name: _read(layout, found, table, rules_of_rows(found), listing) for name, table in declared.items()}
    spans = EventSpans()

    def check(window: Window) -> Iterable[Breach]:
        spans.add(window.rows)
        return values.check_window(window)

    events = _read(layout, found, RunTable.of(EVENTS), check, listing)
    # Of a file that cannot be used nothing counts, however much of it was read.
    missing = (spans if events.parts else EventSpans()).of_missing_rows()
    return Inspected(layout, found, tables, events, missing, now)


def _read(layout: RunLayout, found: Manifest | None, table: RunTable, check: Check, listing: Listing) -> TableParts:
    return TableReader(layout, table, is_open=is_open(found), check=check, listing=listing).read()


def rules_of_rows(found: Manifest | None) -> Check:
    """What the rows of a measure's table must keep."""

    def check(window: Window) -> Iterator[Breach]:
        yield from values.check_window(window)
        yield from rows.check_window(window)
        yield from norms.check_window(window, found) if found is not None else ()

    return check


def check_ignored(ignore: Sequence[str]) -> None:
    """Refuse an id that names no rule and no family.

    Raises:
        MisuseError: with the nearest id there is.
    """
    known = {rule.id for rule in RULES} | {rule.id.partition(".")[0] for rule in RULES}
    for name in ignore:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_NEAR)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise MisuseError(f"{name!r} is no rule to ignore{hint} `ava-pipeline validate --rules` lists all.")
