"""Rows lie `collect_every_n` batches apart, but for deferrals and what events explain."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.contract.manifest import Attempt
from ava_pipeline.read.arrays import Bools
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.spans import Batches
from ava_pipeline.read.stretches import Stretch, stretches
from ava_pipeline.read.violations import Breach, Cell, Rule

SPACING = Rule(
    "rows.spacing",
    "A row follows at the next multiple of collect_every_n, unless it was deferred or an event says what is missing.",
)

RULES = (SPACING,)


def check(run: Inspected) -> Iterator[Breach]:
    """Every table that has a row a collected step."""
    found = stretches(run.manifest) if run.manifest else []
    for part in run.keyed_parts():
        if np.all(np.diff(part.batches) > 0):
            for stretch in found:
                yield from _irregular(run, part, stretch)


def _irregular(run: Inspected, part: Part, stretch: Stretch) -> Iterator[Breach]:
    positions = np.flatnonzero((part.batches > stretch.begin) & (part.batches <= stretch.end))
    batches = part.batches[positions]
    due = _due(batches, stretch)
    broken = positions[(batches < due) | _not_explained(run, batches, due, stretch.attempt)]
    due_at = dict(zip(positions.tolist(), due.tolist(), strict=True)) if len(broken) else {}

    def explain(row: int) -> Cell:
        every = stretch.attempt.collect_every_n
        message = f"batch {due_at[row]} was due: every {every} in attempt {stretch.attempt.number}."
        return Cell(message, "batch_idx", str(part.batches[row]))

    if len(broken):
        yield SPACING.at(part.file, broken, explain)


def _due(batches: Batches, stretch: Stretch) -> Batches:
    """The batch due after each row's predecessor: the next multiple of n."""
    every = stretch.attempt.collect_every_n
    before = np.concatenate([np.asarray([stretch.begin], np.int64), batches[:-1]])[: len(batches)]
    return (before // every + 1) * every


def _not_explained(run: Inspected, batches: Batches, due: Batches, attempt: Attempt) -> Bools:
    """Late rows beyond those deferred; which ones were, nothing says, so the latest are told.

    A running attempt counts its deferrals late, a killed one lost some of its counts and events.
    """
    late = np.flatnonzero((batches > due) & ~run.missing.overlap(due, batches))
    allowed = len(late) if attempt.status in {"running", "killed"} else attempt.deferred
    on_grid = batches[late] % attempt.collect_every_n == 0
    likeliest_lost = np.lexsort((-(batches - due)[late], ~on_grid))
    told = np.zeros(len(batches), dtype=np.bool_)
    told[late[likeliest_lost[: max(0, len(late) - allowed)]]] = True
    return told
