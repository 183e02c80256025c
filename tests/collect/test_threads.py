"""Threads that call `step` at once are counted each, and wait for each other where a row is due."""

import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ava_pipeline import KEY_COLUMNS, Column, Measure, Reading, StepSnapshot, Table, TelemetryCollector
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import backward, tiny
from tests.collect.recorded import batches

pytestmark = pytest.mark.timeout(120)

SOON_S = 25.0


class Held(Measure):
    """A measure that takes until it is let go."""

    table = Table(
        name="held",
        description="A number.",
        columns=(*KEY_COLUMNS, Column(name="number", dtype="float64", description="A number.")),
    )
    begun = threading.Event()
    let_go = threading.Event()

    def read(self, snapshot: StepSnapshot) -> Reading:  # noqa: ARG002  # the number is always the same
        """Wait, then read."""
        self.begun.set()
        assert self.let_go.wait(SOON_S)
        return Reading([1.0])

    def columns(self, numbers: Sequence[object], layout: object) -> Mapping[str, list[float]]:  # noqa: ARG002  # as above
        """The number."""
        return {"number": [1.0] * len(numbers)}


def test_a_row_that_another_thread_collects_is_not_collected_twice(tmp_path: Path) -> None:
    """While one thread measures batch 5, another one counts batch 6; the row is that of batch 5."""
    model, optimizer = tiny()
    backward(model)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=5, measures=[Held]) as telemetry:
        telemetry.step(batch_idx=4)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(telemetry.step)
            assert Held.begun.wait(SOON_S)
            assert threads.submit(telemetry.step).result(SOON_S) is False
            Held.let_go.set()
            assert first.result(SOON_S) is True
        assert telemetry.state_dict()["batch_idx"] == 6
    assert batches(tmp_path) == [5]


def test_every_call_is_counted_and_rows_are_in_order(tmp_path: Path) -> None:
    """Four threads that change places as often as they can."""
    model, optimizer = tiny()
    backward(model)
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=7)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            rows = list(threads.map(lambda _: sum(telemetry.step() for _ in range(300)), range(4)))
    finally:
        sys.setswitchinterval(before)
    stats = telemetry.close()
    assert telemetry.state_dict()["batch_idx"] == 1200
    found = batches(tmp_path)
    assert found == sorted(set(found))
    assert len(found) == stats.written == stats.collected == sum(rows)
    assert [str(one) for one in validate_run(tmp_path)] == []
