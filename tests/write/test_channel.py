"""The channel: it is bounded, and counts every step."""

import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ava_pipeline.errors import ChannelClosedError, ChannelFullError
from ava_pipeline.write.channel import CLOSED, FULL, Channel, TelemetryStats

pytestmark = pytest.mark.timeout(30)

FOREVER_S = 25.0


def test_a_full_channel_refuses_the_newest_step_and_keeps_the_older_ones() -> None:
    """Training never waits with on_full="drop", and accepted steps stay."""
    channel: Channel[int] = Channel(2)
    channel.offer(1, 10, 0)
    channel.offer(2, 20, 0)
    with pytest.raises(ChannelFullError, match="max_pending_rows"):
        channel.offer(3, 30, 0)
    items, gaps = channel.take(0.0)
    assert items == [1, 2]
    assert [(gap.first_batch_idx, gap.last_batch_idx, gap.num_steps) for gap in gaps] == [(30, 30, 1)]
    assert channel.stats() == TelemetryStats(collected=3, dropped=1, pending=2)


def test_steps_that_were_taken_still_count_against_the_bound() -> None:
    """The bound covers pending steps, not only those waiting to be taken."""
    channel: Channel[int] = Channel(1)
    channel.offer(1, 1, 0)
    channel.take(0.0)
    with pytest.raises(ChannelFullError):
        channel.reserve(2, 0)
    channel.settle(written=1)
    channel.offer(3, 3, 0)


def test_a_closed_channel_says_so_and_what_waits_can_still_be_taken() -> None:
    """After close, the error is not that of a full channel, and no accepted step is lost."""
    channel: Channel[int] = Channel(1)
    channel.offer(1, 1, 0)
    channel.close()
    channel.close()
    with pytest.raises(ChannelClosedError, match="close"):
        channel.offer(2, 2, 0)
    items, gaps = channel.take(FOREVER_S)
    assert items == [1]
    assert [gap.reason for gap in gaps] == [CLOSED]


def test_neighbouring_drops_are_one_gap_per_reason() -> None:
    """However long the disk is stuck, one gap per reason is kept."""
    channel: Channel[int] = Channel(1)
    channel.offer(0, 1, 0)
    for batch in range(2, 1000):
        with pytest.raises(ChannelFullError):
            channel.offer(0, batch, 3)
        channel.drop(batch, 3, reason="they could not be measured")
    _, gaps = channel.take(0.0)
    assert [tuple(gap) for gap in gaps] == [
        (2, 999, 3, 998, FULL),
        (2, 999, 3, 998, "they could not be measured"),
    ]
    assert channel.take(0.0)[1] == []


def test_blocking_waits_for_space() -> None:
    """With on_full="block" a step waits until the worker has settled an older one."""
    channel: Channel[int] = Channel(1, on_full="block", block_timeout_s=FOREVER_S)
    channel.offer(1, 1, 0)
    channel.take(0.0)
    producer = threading.Thread(target=channel.offer, args=(2, 2, 0))
    producer.start()
    channel.settle(written=1)
    producer.join(FOREVER_S)
    assert channel.take(0.0) == ([2], [])


def test_blocking_gives_up_when_the_time_is_over_or_the_channel_closes() -> None:
    """A stuck disk costs steps, but never stops training."""
    channel: Channel[int] = Channel(1, on_full="block", block_timeout_s=0.001)
    channel.offer(1, 1, 0)
    with pytest.raises(ChannelFullError):
        channel.offer(2, 2, 0)
    waiting: Channel[int] = Channel(1, on_full="block", block_timeout_s=FOREVER_S)
    waiting.offer(1, 1, 0)
    refused: list[type[Exception]] = []

    def offer() -> None:
        try:
            waiting.offer(2, 2, 0)
        except ChannelClosedError as error:
            refused.append(type(error))

    producer = threading.Thread(target=offer)
    producer.start()
    waiting.close()
    producer.join(FOREVER_S)
    assert refused == [ChannelClosedError]


@pytest.mark.parametrize("wake", ["threshold", "flush", "close"])
def test_the_worker_is_woken_before_its_interval_is_over(wake: str) -> None:
    """Many rows, a flush or a close do not wait for the flush interval."""
    channel: Channel[int] = Channel(4)
    taken: list[int] = []

    def worker() -> None:
        items, _ = channel.take(FOREVER_S * 10)
        taken.extend(items)
        channel.settle(written=len(items))

    thread = threading.Thread(target=worker)
    thread.start()
    channel.offer(1, 1, 0)
    if wake == "threshold":
        channel.offer(2, 2, 0)
    elif wake == "flush":
        assert channel.flush(FOREVER_S)
    else:
        channel.close()
    thread.join(FOREVER_S)
    assert taken[0] == 1


def test_flush_waits_only_for_steps_accepted_before_it() -> None:
    """A flush returns when earlier rows are settled, although new ones keep arriving."""
    channel: Channel[int] = Channel(8)
    channel.offer(1, 1, 0)
    assert not channel.flush(0.0)
    channel.take(0.0)
    assert not channel.flush(0.0)
    channel.settle(failed=1)
    assert channel.flush(0.0)


def test_giving_up_leaves_no_caller_waiting() -> None:
    """After the worker died, flush returns and the counters add up."""
    channel: Channel[int] = Channel(8)
    channel.offer(1, 1, 0)
    channel.take(0.0)
    channel.offer(2, 2, 0)
    assert channel.give_up() == [2]
    assert channel.flush(FOREVER_S)
    assert channel.stats() == TelemetryStats(collected=2, failed=2)


def test_eight_producers_never_pass_the_bound_and_every_step_is_counted() -> None:
    """The bound and the counters hold with concurrent threads."""
    bound, each = 16, 400
    channel: Channel[tuple[int, int]] = Channel(bound)
    begin = threading.Barrier(9)
    accepted: Counter[int] = Counter()
    most = 0

    def produce(number: int) -> None:
        begin.wait(FOREVER_S)
        for batch in range(each):
            try:
                channel.offer((number, batch), batch, 0)
            except ChannelFullError:
                continue
            accepted[number] += 1

    producers = [threading.Thread(target=produce, args=(number,)) for number in range(8)]
    for producer in producers:
        producer.start()
    begin.wait(FOREVER_S)
    taken: list[tuple[int, int]] = []
    dropped = 0
    while any(producer.is_alive() for producer in producers) or channel.stats().pending:
        items, gaps = channel.take(0.001)
        stats = channel.stats()
        most = max(most, stats.pending)
        assert stats.collected == stats.written + stats.dropped + stats.failed + stats.pending
        taken += items
        dropped += sum(gap.num_steps for gap in gaps)
        channel.settle(written=len(items))
    dropped += sum(gap.num_steps for gap in channel.take(0.0)[1])
    assert most <= bound
    assert channel.stats() == TelemetryStats(collected=8 * each, written=len(taken), dropped=dropped)
    for number in range(8):
        own = [batch for producer, batch in taken if producer == number]
        assert own == sorted(own)
        assert len(own) == accepted[number]


class ChannelAgainstModel(RuleBasedStateMachine):
    """In any order of calls, the channel agrees with a model of plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 3
        self.channel: Channel[int] = Channel(self.bound)
        self.waiting: list[int] = []
        self.taken = self.written = self.failed = self.dropped = self.batch = 0
        self.dropped_since: list[int] = []
        self.closed = False

    def _refused(self) -> type[Exception] | None:
        if self.closed:
            return ChannelClosedError
        return ChannelFullError if len(self.waiting) + self.taken >= self.bound else None

    def _count_drop(self) -> None:
        self.dropped += 1
        self.dropped_since.append(self.batch)

    @rule(reserving=st.booleans())
    def offer(self, *, reserving: bool) -> None:
        """Offer a step, or only reserve space for it."""
        self.batch += 1
        refused = self._refused()
        arguments = (self.batch, 0)
        if refused is not None:
            with pytest.raises(refused):
                self.channel.reserve(*arguments) if reserving else self.channel.offer(self.batch, *arguments)
            self._count_drop()
        elif reserving:
            self.channel.reserve(*arguments)
        else:
            self.channel.offer(self.batch, *arguments)
            self.waiting.append(self.batch)

    @rule()
    def drop(self) -> None:
        """A step that could not be measured."""
        self.batch += 1
        self.channel.drop(self.batch, 0)
        self._count_drop()

    @rule()
    def take(self) -> None:
        """The worker takes all waiting steps."""
        items, gaps = self.channel.take(0.0)
        assert items == self.waiting
        self.taken += len(items)
        self.waiting = []
        assert sum(gap.num_steps for gap in gaps) == len(self.dropped_since)
        if gaps:
            assert min(gap.first_batch_idx for gap in gaps) == self.dropped_since[0]
            assert max(gap.last_batch_idx for gap in gaps) == self.dropped_since[-1]
        self.dropped_since = []

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """The worker reports some taken steps as written or failed."""
        written = data.draw(st.integers(0, self.taken))
        failed = data.draw(st.integers(0, self.taken - written))
        self.channel.settle(written=written, failed=failed)
        self.taken -= written + failed
        self.written += written
        self.failed += failed

    @rule()
    def flush(self) -> None:
        """Without a timeout, flush returns whether every step is settled."""
        assert self.channel.flush(0.0) == (not self.waiting and not self.taken)

    @rule()
    def close(self) -> None:
        """Close, possibly again."""
        self.channel.close()
        self.closed = True

    @invariant()
    def counters_agree(self) -> None:
        """Every step is counted exactly once."""
        pending = len(self.waiting) + self.taken
        collected = self.written + self.failed + self.dropped + pending
        assert self.channel.stats() == TelemetryStats(collected, self.written, self.dropped, self.failed, pending)


TestChannelAgainstModel = ChannelAgainstModel.TestCase
TestChannelAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
