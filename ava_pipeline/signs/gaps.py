"""Collected steps that never reached the files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Attempt
from ava_pipeline.signs.evidence import collected_steps

TELEMETRY_GAP = "telemetry-gap"
EVENTS = ("gap", "failed_row", "failed_write", "damaged_file")
_ADVICE = (
    "Look at the disk. Where it is merely slower than training, raise collect_every_n or max_pending_rows, or wait for "
    "room with on_full: block."
)
# Of these the manifest counts deferred steps late, or not to the end.
_COUNTS_LATE = {"running", "killed"}

BatchIndices = NDArray[np.int64]


def gap_findings(
    events: Iterable[Mapping[str, Any]], attempts: Iterable[tuple[Attempt, int, float]], batches: BatchIndices
) -> Iterator[Finding]:
    """A finding an event that says which steps are missing, and one an attempt for those that no event tells of.

    Args:
        events: rows of `events.csv`.
        attempts: each with the batches whose rows it left: behind the first, up to the second.
        batches: of the rows, rising.
    """
    told = [event for event in events if event["event"] in EVENTS]
    for event in told:
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
        holes = list(_holes(attempt, begin, rows, told))
        if holes:
            yield from holes
        elif end == float("inf") and not any(event["batch_idx_end"] > begin for event in told):
            yield from _counted(attempt, begin, rows)


def _holes(attempt: Attempt, begin: int, rows: BatchIndices, told: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Rows that came later than due, the widest holes, but for as many as were deferred."""
    every = attempt.collect_every_n
    due = (np.concatenate(([begin], rows[:-1]))[: len(rows)] // every + 1) * every
    is_late = rows > due
    for event in told:
        is_late &= (rows < event["batch_idx"]) | (due > event["batch_idx_end"])
    num = 0 if attempt.status in _COUNTS_LATE else int(is_late.sum()) - attempt.deferred
    if num <= 0:
        return
    late = np.flatnonzero(is_late)
    widest = np.sort(late[np.argsort(due[late] - rows[late], kind="stable")[:num]])
    missing = int(np.ceil((rows[widest] - due[widest]) / every).sum())
    places = f" in {num} places" if num > 1 else ""
    yield _finding(
        int(due[widest[0]]),
        int(rows[widest[-1]]) - 1,
        f"{collected_steps(missing)} left no row when they were due{places}, and no event tells why.",
        value=float(missing),
    )


def _counted(attempt: Attempt, begin: int, rows: BatchIndices) -> Iterator[Finding]:
    """Steps that only the manifest's counters tell of."""
    counters = attempt.counters
    lost = max(counters.dropped + counters.failed, counters.written - len(rows))
    if lost > 0:
        last = int(rows[-1]) if len(rows) else begin
        message = f"{lost} of {collected_steps(counters.collected)}, as the manifest counts."
        yield _finding(min(begin + 1, last), last, message, value=float(lost))


def _finding(
    first: int, last: int, message: str, *, value: float | None, column: str | None = None, epoch: int = 0
) -> Finding:
    return Finding(
        id=TELEMETRY_GAP,
        severity="warning",
        column=column,
        batch_idx=first,
        batch_idx_end=last,
        epoch=epoch,
        value=value,
        message=f"rows are missing: {message}",
        advice=_ADVICE,
    )
