"""Events that say which steps are missing, where, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.samples import name_samples
from ava_pipeline.contract.tables import RowProblem
from ava_pipeline.write.channel import Gap
from ava_pipeline.write.rows import PendingRow


def gap_event(gap: Gap) -> Event:
    """Steps that were dropped before they reached the worker."""
    return Event(
        event="gap",
        severity="warning",
        message=f"{gap.num_steps} collected steps were dropped: {gap.reason}.",
        batch_idx=gap.first_batch_idx,
        batch_idx_end=gap.last_batch_idx,
        epoch=gap.epoch,
        value=float(gap.num_steps),
    )


def lost_event(steps: Sequence[PendingRow], reason: object, *, file: str | None = None) -> Event:
    """Steps that were not written: by one file, or by none.

    Args:
        steps: at least one, in order.
        reason: why.
        file: the one that lacks them; None where all do.
    """
    return Event(
        event="failed_write",
        severity="error",
        message=f"{file or 'telemetry'} did not take {len(steps)} collected steps: {reason}",
        batch_idx=steps[0].batch_idx,
        batch_idx_end=steps[-1].batch_idx,
        epoch=steps[0].epoch,
        column=file,
        value=float(len(steps)),
    )


def unsynced_event(steps: Sequence[PendingRow], reason: object, *, file: str) -> Event:
    """Steps that a file took and the disk did not sync.

    Args:
        steps: at least one, in order.
        reason: why.
        file: the one that holds them.
    """
    message = f"{file} took {len(steps)} collected steps that could not be synced, so a power loss may take them:"
    return replace(lost_event(steps, reason, file=file), event="failed_sync", message=f"{message} {reason}")


def refused_row_event(step: PendingRow, table: str, problem: RowProblem) -> Event:
    """A row that broke a rule of its table."""
    what = f"{table}.{problem.column} was {problem.value}: {problem.message}. The row was not written."
    return _failed_row(step, what, problem.column)


def unmade_row_event(step: PendingRow, table: str, error: Exception) -> Event:
    """A row that could not be made of its numbers."""
    return _failed_row(step, f"{table}: no row could be made of the step: {type(error).__name__}: {error}", table)


def unread_step_event(step: PendingRow, error: Exception) -> Event:
    """A step whose numbers did not come from the device."""
    return _failed_row(step, f"The step's numbers could not be read: {type(error).__name__}: {error}", None)


def moved_event(root: Path, last_batch_idx: int) -> Event:
    """A run directory that is no longer where it was, or that another process has begun to write."""
    return Event(
        event="damaged_file",
        severity="error",
        message=f"{root} was moved or removed, or another process took it over, while it was written: "
        f"rows up to batch {last_batch_idx} went with it.",
        batch_idx=1,
        batch_idx_end=last_batch_idx,
        epoch=0,
    )


def with_samples(event: Event, steps: Mapping[int, PendingRow]) -> Event:
    """Name what the event's first batch consisted of, where the user said so.

    Args:
        event: of some batches.
        steps: by batch_idx.
    """
    ids = steps[event.batch_idx].sample_ids if event.batch_idx in steps else None
    if ids is None:
        return event
    return replace(event, message=name_samples(event.message, event.batch_idx, listed(ids)))


def listed(ids: object) -> list[object]:
    """The ids as a list; a tensor or an array knows how to make one of itself."""
    try:
        found = ids.tolist() if hasattr(ids, "tolist") else ids
    except Exception as error:  # noqa: BLE001  # ids on a device that fails must not cost the rows beside them
        return [f"unknown ({type(error).__name__}: {error})"]
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]


def _failed_row(step: PendingRow, message: str, column: str | None) -> Event:
    return Event(
        event="failed_row",
        severity="error",
        message=message,
        batch_idx=step.batch_idx,
        batch_idx_end=step.batch_idx,
        epoch=step.epoch,
        column=column,
    )
