"""Collected steps whose rows are missing from the files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ava_pipeline.contract.arrays import BatchIndices
from ava_pipeline.contract.events import EXPLAIN_MISSING_ROWS
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Attempt
from ava_pipeline.signs.evidence import collected_steps

_ADVICE = (
    "Check the disk. If it is merely slower than training, raise collect_every_n or max_pending_rows, or let training "
    "wait for it with on_full: block."
)
# While an attempt has one of these states, the manifest's count of deferred steps may be too low.
_UNFINISHED = {"running", "killed"}


def gap_findings(
    events: Iterable[Mapping[str, Any]], attempts: Iterable[tuple[Attempt, int, float]], batches: BatchIndices
) -> Iterator[Finding]:
    """A finding for each event that names missing steps, and one for each attempt that lacks rows without an event.

    Each attempt comes with the batches whose rows it left: after the first number, up to the second. `batches` rise.
    """
    gap_events = [event for event in events if event["event"] in EXPLAIN_MISSING_ROWS]
    for event in gap_events:
        yield _finding(
            event["batch_idx"],
            event["batch_idx_end"],
            event["message"],
            column=event["column"],
            epoch=event["epoch"],
            value=event["value"],
        )
    for attempt, begin, end in attempts:
        rows = batches[(batches > begin) & (batches <= end)]
        late_rows = list(_late_rows(attempt, begin, rows, gap_events))
        if late_rows:
            yield from late_rows
        elif end == float("inf") and not any(event["batch_idx_end"] > begin for event in gap_events):
            yield from _uncounted_rows(attempt, begin, rows)


def _late_rows(
    attempt: Attempt, begin: int, rows: BatchIndices, gap_events: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Rows that came later than due: the widest gaps, less as many as the attempt deferred."""
    every = attempt.collect_every_n
    due = (np.concatenate(([begin], rows[:-1]))[: len(rows)] // every + 1) * every
    is_late = rows > due
    for event in gap_events:
        is_late &= (rows < event["batch_idx"]) | (due > event["batch_idx_end"])
    num = 0 if attempt.status in _UNFINISHED else int(is_late.sum()) - attempt.deferred
    if num <= 0:
        return
    late = np.flatnonzero(is_late)
    widest = np.sort(late[np.argsort(due[late] - rows[late], kind="stable")[:num]])
    num_missing = int(np.ceil((rows[widest] - due[widest]) / every).sum())
    places = f" in {num} places" if num > 1 else ""
    yield _finding(
        int(due[widest[0]]),
        int(rows[widest[-1]]) - 1,
        f"{collected_steps(num_missing)} left no row when they were due{places}, and no event gives the reason.",
        value=float(num_missing),
    )


def _uncounted_rows(attempt: Attempt, begin: int, rows: BatchIndices) -> Iterator[Finding]:
    """Steps that only the manifest's counters report as missing."""
    counters = attempt.counters
    num_missing = max(counters.dropped + counters.failed, counters.written - len(rows))
    if num_missing > 0:
        last = int(rows[-1]) if len(rows) else begin
        message = f"{num_missing} of {collected_steps(counters.collected)}, according to the manifest's counters."
        yield _finding(min(begin + 1, last), last, message, value=float(num_missing))


def _finding(
    first: int, last: int, message: str, *, value: float | None, column: str | None = None, epoch: int = 0
) -> Finding:
    return Finding(
        id="telemetry-gap",
        severity="warning",
        column=column,
        batch_idx=first,
        batch_idx_end=last,
        epoch=epoch,
        value=value,
        message=f"rows are missing: {message}",
        advice=_ADVICE,
    )
