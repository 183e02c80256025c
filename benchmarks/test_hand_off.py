"""The cost of a batch that is not collected, and of handing over a step."""

from collections import deque
from pathlib import Path

import pytest

from ava_pipeline.bench.steps import NUM_CALLS, OF_EMPTY_CALL, uncollected_works
from ava_pipeline.bench.workload import Workload
from ava_pipeline.write.channel import Channel
from benchmarks.judging import Bench


@pytest.mark.gate
def test_a_step_not_collected_over_an_empty_call(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """A step that is not collected is a counter and a comparison."""
    works = uncollected_works(workload, tmp_path)
    bench.judge(bench.ratio(works["step"], works["empty"]), OF_EMPTY_CALL)


@pytest.mark.informational
def test_an_offer_over_appending_to_a_deque(bench: Bench) -> None:
    """The channel's lock and counters."""

    def offer() -> None:
        channel: Channel[int] = Channel(NUM_CALLS + 1)
        for batch in range(NUM_CALLS):
            channel.offer(batch, batch, 0)

    def append() -> None:
        queue: deque[int] = deque()
        for batch in range(NUM_CALLS):
            queue.append(batch)

    bench.judge(bench.ratio(offer, append))
