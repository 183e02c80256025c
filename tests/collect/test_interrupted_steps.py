"""A signal handler that raises inside `step` is heard by the loop, and every step is counted."""

import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from ava_pipeline import KEY_COLUMNS, Column, Measure, Reading, StepSnapshot, Table, TelemetryCollector, open_run
from ava_pipeline.validate.validate import validate_run
from tests.collect.interrupting import Interrupted, Stop, of_package, of_package_or_standard_library
from tests.collect.models import backward, tiny
from tests.collect.recorded import batches

pytestmark = pytest.mark.timeout(300)


def step_is_interrupted(
    telemetry: TelemetryCollector, number: int, kind: type[BaseException], files: Callable[[str], bool]
) -> bool:
    """Interrupt a step at its n-th line; False if it has fewer lines. The exception must arrive here."""
    with Interrupted(number, kind, files) as interruption:
        try:
            telemetry.step(values={"loss": 0.5})
        except kind:
            return True
    assert not interruption.came, f"{kind.__name__} at line {number} was swallowed"
    return False


def assert_accounted_for(root: Path, telemetry: TelemetryCollector) -> None:
    """The counters add up, agree with the rows and with the gaps, and the run validates."""
    stats = telemetry.close()
    assert stats.collected == stats.written + stats.dropped
    assert stats.pending == 0
    run = open_run(root)
    assert len(batches(root)) == stats.written
    gaps = run.events().query("event == 'gap'")
    assert gaps["value"].sum() == stats.dropped
    assert (run.manifest.status, run.manifest.attempt.counters.dropped) == ("finished", stats.dropped)
    assert [str(one) for one in validate_run(root)] == []


@pytest.mark.parametrize(("kind", "files"), [(Stop, of_package_or_standard_library), (KeyboardInterrupt, of_package)])
def test_an_interrupt_at_any_line_of_a_step_is_raised_and_the_step_is_counted(
    tmp_path: Path, kind: type[BaseException], files: Callable[[str], bool]
) -> None:
    """At every line, also in the locks of the standard library; the next step is collected as usual."""
    model, optimizer = tiny()
    backward(model)
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, max_pending_rows=10_000)
    assert telemetry.step(values={"loss": 0.5})
    num_interrupted = 0
    for number in count(1):
        if not step_is_interrupted(telemetry, number, kind, files):
            break
        num_interrupted += 1
        assert telemetry.step(values={"loss": 0.5})
    assert num_interrupted > 150
    stats = telemetry.stats()
    assert stats.dropped > num_interrupted // 2  # the others were handed over, or are taken at the next batch
    assert_accounted_for(tmp_path, telemetry)


def of_recorder_and_worker(path: str) -> bool:
    """The files that start the thread."""
    return of_package(path) and Path(path).name in {"collector.py", "recorder.py", "worker.py", "endings.py"}


def test_an_interrupt_at_any_line_of_the_first_step_costs_no_later_one(tmp_path: Path) -> None:
    """While tables are declared and the thread is started, too: the next step does what is left."""
    model, optimizer = tiny()
    backward(model)
    for number in count(1):
        root = tmp_path / str(number)
        telemetry = TelemetryCollector(model, optimizer, root, collect_every_n=1)
        if not step_is_interrupted(telemetry, number, Stop, of_recorder_and_worker):
            telemetry.close()
            break
        assert telemetry.step(values={"loss": 0.5})
        assert telemetry.stats().collected in {1, 2}
        assert_accounted_for(root, telemetry)
    assert number > 30


class InterruptedMeasure(Measure):
    """A measure of the user's own, in which a signal arrives."""

    table = Table(
        name="own",
        description="A number.",
        columns=(*KEY_COLUMNS, Column(name="number", dtype="float64", description="A number.")),
    )

    def read(self, snapshot: StepSnapshot) -> Reading:  # noqa: ARG002  # the number is always the same
        """Read, with an interruption in the middle."""
        with Interrupted(1, Stop, lambda path: path == __file__):
            return self._reading()

    def _reading(self) -> Reading:
        return Reading(torch.ones(1))

    def columns(self, numbers: object, layout: object) -> dict[str, list[float]]:  # noqa: ARG002  # as above
        """The number."""
        return {"number": [1.0]}


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_signal_in_a_measure_is_not_taken_for_its_failure(tmp_path: Path, on_error: str) -> None:
    """It would cost the measure's row, and the loop would go on."""
    model, optimizer = tiny()
    backward(model)
    telemetry = TelemetryCollector(
        model, optimizer, tmp_path, collect_every_n=1, measures=[InterruptedMeasure], on_error=on_error
    )
    with pytest.raises(Stop):
        telemetry.step()
    assert telemetry.stats().dropped == 1
    telemetry.close()


class Signalled:
    """A value whose conversion is interrupted by a handler."""

    def __float__(self) -> float:
        signal.raise_signal(signal.SIGUSR1)
        return 1.0


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets what a handler of SIGUSR1 does."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_handler(call: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: call())

    yield set_handler
    signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_saves_a_checkpoint_counts_no_row_twice(
    tmp_path: Path, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    """The row that it interrupts is written after it."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    on_signal(lambda: (telemetry.state_dict(), telemetry.step()))
    for batch in range(5):
        backward(model, seed=batch)
        telemetry.step(values={"x": Signalled() if batch == 2 else 1.0})  # type: ignore[dict-item]  # a number for Python's purposes
        optimizer.step()
    stats = telemetry.close()
    assert (stats.collected, stats.written) == (5, 5)
    assert batches(tmp_path) == [1, 2, 3, 5, 6]  # the handler's own batch is counted, not collected
    assert open_run(tmp_path).gradient_norms()["overall"].notna().all()


def test_a_handler_that_closes_counts_the_row_that_it_interrupts_once(
    tmp_path: Path, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    """As dropped, in the counters and in the manifest, with its gap."""
    model, optimizer = tiny()
    backward(model)
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    on_signal(lambda: telemetry.close(status="interrupted"))
    telemetry.step(values={"x": 1.0})
    telemetry.step(values={"x": Signalled()})  # type: ignore[dict-item]  # a number for Python's purposes
    stats = telemetry.stats()
    assert (stats.collected, stats.written, stats.dropped) == (2, 1, 1)
    run = open_run(tmp_path)
    counters = run.manifest.attempt.counters
    assert (counters.collected, counters.dropped, run.manifest.attempt.status) == (2, 1, "interrupted")
    assert run.events().query("event == 'gap'")["value"].sum() == 1
