"""Rows: in order, and of the same batches in every table."""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from ava_pipeline.read.arrays import Bools, integers
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.spans import Batches
from ava_pipeline.read.violations import Breach, Cell, Rule

ORDER = Rule("rows.order", "batch_idx rises from row to row.")
EPOCH = Rule("rows.epoch", "epoch never falls from row to row.")
TABLES = Rule("rows.tables", "A batch with a row in one table has one in every table.")

RULES = (ORDER, EPOCH, TABLES)


def check(run: Inspected) -> Iterator[Breach]:
    """Every table that has a row a collected step."""
    for part in run.keyed_parts():
        yield from _order(part)
    yield from _same_batches(run)


def _order(part: Part) -> Iterator[Breach]:
    batches, epochs = part.batches, integers(part.rows, "epoch")
    yield from _told(ORDER, part, "batch_idx", np.diff(batches) <= 0, "must be above the row before, which has")
    yield from _told(EPOCH, part, "epoch", np.diff(epochs) < 0, "must not be below the row before, which has")


def _told(rule: Rule, part: Part, column: str, broken: Bools, what: str) -> Iterator[Breach]:
    values = integers(part.rows, column)

    def explain(row: int) -> Cell:
        return Cell(f"{values[row]} {what} {values[row - 1]}.", column, str(values[row]))

    if broken.any():
        yield rule.at(part.file, np.flatnonzero(broken) + 1, explain)


def _same_batches(run: Inspected) -> Iterator[Breach]:
    parts = list(run.keyed_parts())
    if any(not table.parts for table in run.tables.values()) or _agree(parts):
        return
    every = reduce(np.union1d, [part.batches for part in parts])
    # While rows come, one table is written before the next; a kill leaves them so.
    end = min((part.batches.max(initial=0) for part in parts), default=0) if run.is_open else every.max(initial=0)
    for part in parts:
        lost = every[(every <= end) & ~np.isin(every, part.batches)]
        lost = lost[~run.missing.overlap(lost, lost) & (lost > _set_aside_up_to(run, part))]
        yield from (_lost(part, lost) if len(lost) else ())


def _agree(parts: Sequence[Part]) -> bool:
    """Whether every file has the same batches, as nearly always."""
    return all(np.array_equal(part.batches, parts[0].batches) for part in parts)


def _set_aside_up_to(run: Inspected, part: Part) -> int:
    """A file whose columns changed was set aside whole: it holds only later batches than the other tables."""
    attempts = run.manifest.attempts if run.manifest else []
    was_set_aside = any(part.name in attempt.set_aside for attempt in attempts)
    return int(part.batches.min(initial=np.iinfo(np.int64).max)) if was_set_aside else 0


def _lost(part: Part, lost: Batches) -> Iterator[Breach]:
    """Told at the first row behind each lost one, where it is to be looked for."""
    behind = np.searchsorted(part.batches, lost)
    batch_of = dict(zip(behind.tolist(), lost.tolist(), strict=True))

    def explain(row: int) -> Cell:
        message = f"no row of batch {batch_of[row]}, which other tables have and no event explains."
        return Cell(message, "batch_idx", str(batch_of[row]))

    yield TABLES.at(part.file, np.asarray(behind, dtype=np.intp), explain)
