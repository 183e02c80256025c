"""A run directory, or a single file, against its contract."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from os import PathLike

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, utc_now
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError
from ava_pipeline.read.run import open_run
from ava_pipeline.validate.batches import EventSpans
from ava_pipeline.validate.checked_run import CheckedRun, CheckedTable, is_open
from ava_pipeline.validate.rules_files import DIRECTORY_RULES, FILE_RULES, check_directory
from ava_pipeline.validate.rules_formats import FORMAT_RULES, check_formats
from ava_pipeline.validate.rules_manifest import (
    COUNTER_RULES,
    MANIFEST_RULES,
    check_counters,
    check_manifest,
    load_manifest,
)
from ava_pipeline.validate.rules_predictions import (
    EPOCH_RULES,
    METRIC_RULES,
    PREDICTION_RULES,
    check_epochs,
    check_metrics,
)
from ava_pipeline.validate.rules_rows import ROW_RULES, SPACING_RULES, check_order, check_rows, check_spacing
from ava_pipeline.validate.rules_training import TRAINING_RULES, check_training
from ava_pipeline.validate.rules_values import NORM_RULES, VALUE_RULES, check_norms, check_values
from ava_pipeline.validate.table_reader import Check, TableReader
from ava_pipeline.validate.violations import Breach, Listing, Rule, Violation
from ava_pipeline.validate.windows import Window

# Rules that hold for a run as a whole, in the order in which they are checked.
_RUN_CHECKS: tuple[Callable[[CheckedRun], Iterator[Breach]], ...] = (
    check_manifest,
    check_directory,
    check_counters,
    check_rows,
    check_spacing,
    check_formats,
    check_training,
    check_epochs,
    check_metrics,
)

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *MANIFEST_RULES,
            *DIRECTORY_RULES,
            *COUNTER_RULES,
            *ROW_RULES,
            *SPACING_RULES,
            *FORMAT_RULES,
            *TRAINING_RULES,
            *EPOCH_RULES,
            *METRIC_RULES,
            *FILE_RULES,
            *VALUE_RULES,
            *NORM_RULES,
            *PREDICTION_RULES,
        ),
        key=lambda rule: rule.id,
    )
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
    run = _inspect(layout, load_manifest(layout, listing.add), listing, now or utc_now())
    for check in _RUN_CHECKS:
        listing.take(check(run))
    return listing.violations()


def _inspect(layout: RunLayout, found: Manifest | None, listing: Listing, now: datetime) -> CheckedRun:
    declared = {name: entry.declaration for name, entry in found.tables.items()} if found else {}
    tables = {name: _read(layout, found, table, rules_of_rows(found), listing) for name, table in declared.items()}
    spans = EventSpans()

    def check(window: Window) -> Iterable[Breach]:
        spans.add(window.rows)
        return check_values(window)

    events = _read(layout, found, RunTable.of(EVENTS), check, listing)
    # Of a file that cannot be used nothing counts, however much of it was read.
    missing = (spans if events.parts else EventSpans()).of_missing_rows()
    return CheckedRun(layout, found, tables, events, missing, now)


def _read(layout: RunLayout, found: Manifest | None, table: RunTable, check: Check, listing: Listing) -> CheckedTable:
    return TableReader(layout, table, is_open=is_open(found), check=check, listing=listing).read()


def rules_of_rows(found: Manifest | None) -> Check:
    """What the rows of a measure's table must keep."""

    def check(window: Window) -> Iterator[Breach]:
        yield from check_values(window)
        yield from check_order(window)
        yield from check_norms(window, found) if found is not None else ()

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
