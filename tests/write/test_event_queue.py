"""However long a problem lasts, the events are few and cover every batch."""

from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.write.event_log import MAX_EXACT, MERGED_EVERY_S, EventQueue


def event(batch_idx: int, name: EventName = "non_finite", column: str = "overall", value: float = 1.0) -> Event:
    """An event of one batch."""
    return Event(
        event=name,
        severity="warning",
        message=f"batch {batch_idx}.",
        batch_idx=batch_idx,
        batch_idx_end=batch_idx,
        epoch=0,
        column=column,
        value=value,
    )


def drain(queue: EventQueue, *, is_last: bool = False) -> list[Event]:
    """Write the events that are due."""
    due = queue.due(is_last=is_last)
    queue.discard(due)
    return [waiting.merged_event for waiting in due]


def test_the_first_events_of_a_key_are_written_one_by_one() -> None:
    """The first events keep their own batches and messages."""
    queue = EventQueue(clock=lambda: 0.0)
    events = [event(batch) for batch in (1, 3, 7)]
    for one in events:
        queue.add(one)
    assert drain(queue) == events
    assert drain(queue, is_last=True) == []


def test_missing_steps_that_wait_together_are_one_event() -> None:
    """A disk that is full for hours is one event, which covers all batches and counts their steps."""
    queue = EventQueue()
    for batch in range(10, 5000, 10):
        queue.add(event(batch, "failed_write"))
    assert len(queue) == 1
    (merged,) = drain(queue)
    assert (merged.batch_idx, merged.batch_idx_end, merged.value) == (10, 4990, 499.0)
    assert merged.message == "batch 10. And 498 more of this kind, up to batch 4990."


def test_a_key_that_never_ends_is_written_once_a_minute_and_covers_every_batch() -> None:
    """A nan in every row for days fills neither memory nor the disk, and events cover every batch."""
    now = 0.0
    queue = EventQueue(clock=lambda: now)
    written: list[Event] = []
    num_batches = 20_000
    for batch in range(num_batches):
        now += 0.5
        queue.add(event(batch))
        written += drain(queue)
        assert len(queue) <= 1
    written += drain(queue, is_last=True)
    assert MAX_EXACT < len(written) < MAX_EXACT + num_batches * 0.5 / MERGED_EVERY_S + 3
    assert {batch for one in written for batch in range(one.batch_idx, one.batch_idx_end + 1)} == set(
        range(num_batches)
    )


def test_while_nothing_can_be_written_memory_is_bounded_per_key() -> None:
    """Events that the disk does not take are merged."""
    queue = EventQueue()
    for batch in range(10_000):
        queue.add(event(batch, column="overall"))
        queue.add(event(batch, column="head"))
    assert len(queue) == 2 * MAX_EXACT


def test_one_key_does_not_delay_another() -> None:
    """A rare event is written at once, beside one that recurs all the time."""
    queue = EventQueue(clock=lambda: 0.0)
    for batch in range(MAX_EXACT + 1):
        queue.add(event(batch))
        drain(queue)
    queue.add(event(1000))
    queue.add(event(1000, column="head"))
    assert [one.column for one in drain(queue)] == ["head"]
    assert [one.column for one in drain(queue, is_last=True)] == ["overall"]
