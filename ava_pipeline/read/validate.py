"""A run directory against its contract."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from os import PathLike

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, utc_now
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError
from ava_pipeline.read.inspected import Inspected
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
from ava_pipeline.read.spans import spans_of_missing_rows
from ava_pipeline.read.violations import Breach, Listing, Rule, Violation

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            rule
            for family in (
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
            for rule in family.RULES
        ),
        key=lambda rule: rule.id,
    )
)

# How alike a mistyped id must be to the one that it is taken for.
_NEAR = 0.75

_CHECKS: tuple[Callable[[Inspected], Iterator[Breach]], ...] = (
    directory.check,
    counters.check,
    values.check,
    rows.check,
    spacing.check,
    norms.check,
    formats.check,
    training.check,
)


def validate_run(
    path: str | PathLike[str], *, ignore: Sequence[str] = (), now: datetime | None = None
) -> list[Violation]:
    """Check a run directory: its manifest, its tables, its predictions and its metrics.

    What is still being written is no violation; files that cannot be read are.

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
    _check_ignored(ignore)
    layout = open_run(path).layout
    listing = Listing(ignore)
    found = manifest.load(layout, listing.add)
    run = _inspect(layout, found, listing)
    listing.take(manifest.check(run, now or utc_now()))
    for check in _CHECKS:
        listing.take(check(run))
    epochs.check(layout, listing.add)
    metrics.check(layout, listing.add, is_open=run.is_open)
    return listing.violations()


def _inspect(layout: RunLayout, found: Manifest | None, listing: Listing) -> Inspected:
    declared = {name: entry.declaration for name, entry in found.tables.items()} if found else {}
    is_open = found is not None and found.status == "running"
    tables = {
        name: files.read_parts(layout, declaration, is_open=is_open, take=listing.add)
        for name, declaration in {**declared, "events": RunTable.of(EVENTS)}.items()
    }
    events = tables["events"].csv
    return Inspected.of(layout, found, tables, spans_of_missing_rows(events.rows if events else None))


def _check_ignored(ignore: Sequence[str]) -> None:
    known = {rule.id for rule in RULES} | {rule.id.partition(".")[0] for rule in RULES}
    for name in ignore:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_NEAR)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise MisuseError(f"{name!r} is no rule to ignore{hint} `ava-pipeline validate --rules` lists all.")
