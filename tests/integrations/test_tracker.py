"""What a tracker is given of a run, and what its trouble costs."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from ava_pipeline import TelemetryCollector, open_run, validate_run
from ava_pipeline.contract.builtin_tables import HOLDOUT_SCORES, PER_LAYER_STATS, WEIGHT_DELTAS
from ava_pipeline.contract.events import EVENTS, Event, event_columns
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.integrations import tracker as module
from ava_pipeline.integrations.points import MAX_WAITING_STEPS, Note, Point, Points, has_points
from ava_pipeline.integrations.tracker import Tracker, TrackerWriter
from tests.collect.models import tiny, train

COLUMNS: dict[str, pa.DataType] = {"batch_idx": pa.int64(), "epoch": pa.int64(), "overall": pa.float32()}
SCHEMA = pa.schema(COLUMNS)
TIME = pa.timestamp("us", tz="UTC")
STEPS = SCHEMA.remove(2).append(pa.field("time_utc", TIME))
STEPS = STEPS.append(pa.field("global_step", pa.int64())).append(pa.field("loss", pa.float64()))


def norms(*rows: tuple[int, float | None]) -> pa.RecordBatch:
    """Rows of gradient norms: batch and norm."""
    return pa.RecordBatch.from_pylist([{"batch_idx": batch, "epoch": 0, "overall": one} for batch, one in rows], SCHEMA)


def steps(*rows: tuple[int, int | None, float | None]) -> pa.RecordBatch:
    """Rows of steps: batch, global step and loss; the time is the batch in seconds."""
    return pa.RecordBatch.from_pylist(
        [
            {"batch_idx": batch, "epoch": 0, "time_utc": batch * 10**6, "global_step": step, "loss": loss}
            for batch, step, loss in rows
        ],
        STEPS,
    )


def test_rows_of_a_step_are_one_point() -> None:
    """Over its global step, at its time, without what was not measured; a value that is not finite stays."""
    points = Points()
    points.add("gradient_norms", norms((10, 0.5), (20, None), (30, math.inf)))
    assert points.take() == []
    points.add("steps", steps((10, 4, 0.25), (20, 9, None), (30, 14, 0.125)))
    assert points.take() == [
        Point(4, 10.0, {"gradient_norms/overall": 0.5, "steps/loss": 0.25}),
        Point(14, 30.0, {"gradient_norms/overall": math.inf, "steps/loss": 0.125}),
    ]


def test_a_step_without_a_global_step_goes_on_from_the_last_known_one() -> None:
    """By the batches since then, so that the curve is not one point, until a global step is known again."""
    points = Points()
    points.add("steps", steps((10, 4, 0.5), (20, None, 0.25)))
    assert [point.global_step for point in points.take()] == [4, 14]
    points.add("steps", steps((21, None, 0.5), (30, 14, 0.25), (31, None, 0.25)))
    assert [point.global_step for point in points.take()] == [15, 14, 15]


def test_rows_whose_step_was_refused_go_on_too() -> None:
    """As after a value that the table `steps` cannot hold."""
    points = Points()
    points.add("steps", steps((10, 4, 0.5)))
    points.add("gradient_norms", norms((20, 0.5), (30, 0.5)))
    assert [point.global_step for point in points.take(is_last=True)] == [4, 14, 24]


def test_a_run_without_global_steps_is_shown_over_its_batches() -> None:
    """As runs of older versions are."""
    points = Points()
    points.add("steps", steps((10, None, 0.5)).drop_columns(["global_step"]))
    assert [point.global_step for point in points.take()] == [10]


def test_points_whose_step_never_comes_are_shown_in_the_end() -> None:
    """Rows of `steps` may be refused: the others do not wait for ever, nor fill the memory."""
    points = Points()
    points.add("steps", steps((1, 0, 0.5)))
    points.add("gradient_norms", norms(*((batch, 1.0) for batch in range(2, MAX_WAITING_STEPS + 1))))
    assert [point.global_step for point in points.take()] == [0]
    points.add("gradient_norms", norms((3000, 1.0), (4000, 1.0)))
    assert len(points.take()) == MAX_WAITING_STEPS + 1
    points.add("gradient_norms", norms((5000, 1.0)))
    assert len(points.take(is_last=True)) == 1


def test_an_event_is_shown_at_its_first_batch() -> None:
    """Or, if that had no row, at the last one before it."""
    points = Points()
    points.add("steps", steps((10, 4, 0.5), (20, 9, 0.5)))
    event = Event(event="spike", severity="warning", message="A spike.", batch_idx=15, batch_idx_end=20, epoch=0)
    table = RunTable.of(EVENTS)
    rows = table.check(event_columns([event]), 1).kept
    assert points.notes(rows) == [Note(4, event.time_utc.timestamp(), "spike", "warning", "A spike.")]


def test_tables_with_several_rows_of_a_step_have_no_points() -> None:
    """A row per layer, sample or process is no curve."""
    assert has_points(SCHEMA)
    assert not has_points(SCHEMA.append(pa.field("layer_name", pa.string())))
    assert not has_points(SCHEMA.append(pa.field("rank", pa.int64())))
    assert not has_points(RunTable.of(HOLDOUT_SCORES).arrow_schema)  # its ids are integers
    assert not has_points(RunTable.of(PER_LAYER_STATS).arrow_schema)
    assert has_points(RunTable.of(WEIGHT_DELTAS, ("overall",)).arrow_schema)


class Recorded(Tracker):
    """Keeps what it is given; `log` and `start` may raise or hang."""

    def __init__(self, error: Exception | None = None, *, starts: bool = True) -> None:
        self.error = error
        self.starts = starts
        self.logged = threading.Semaphore(0)
        self.is_free = threading.Event()
        self.is_free.set()
        self.calls: list[str] = []
        self.points: list[Point] = []
        self.notes: list[Note] = []
        self.threads: set[str] = set()

    def start(self, *, is_resumed: bool) -> None:
        """Remember the kind of attempt."""
        self.calls.append("resumed" if is_resumed else "begun")
        if not self.starts:
            raise ConnectionError("no network")

    def log(self, points: Sequence[Point]) -> None:
        """Keep the points."""
        self.is_free.wait()
        self.threads.add(threading.current_thread().name)
        if points:
            self.logged.release()
        if points and self.error is not None:
            raise self.error
        self.points += points

    def note(self, notes: Sequence[Note]) -> None:
        """Keep the events."""
        self.notes += notes

    def finish(self) -> None:
        """Remember the end."""
        self.calls.append("finished")


def test_a_run_is_shown_while_it_trains(tmp_path: Path) -> None:
    """Every table's numbers at the framework's global step, events too, in a thread of the tracker's own."""
    tracker, (model, optimizer), run = Recorded(), tiny(), tmp_path / "run"
    writers = [TrackerWriter("recorded", tracker)]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        train(telemetry, model, optimizer, 3)
        telemetry.step(0, values={"loss": math.nan})
    norms, rates = open_run(run).gradient_norms(), open_run(run).learning_rates()
    assert [point.global_step for point in tracker.points] == [0, 1, 2, 3]
    assert [point.values["gradient_norms/overall"] for point in tracker.points] == norms["overall"].tolist()
    assert [point.values["learning_rates/lr_group_1"] for point in tracker.points] == rates["lr_group_1"].tolist()
    assert math.isnan(tracker.points[-1].values["steps/loss"])
    assert "steps/global_step" not in tracker.points[0].values
    assert [note.message for note in tracker.notes] == open_run(run).events()["message"].tolist()
    assert tracker.calls == ["begun", "finished"]
    assert tracker.threads == {"ava-telemetry-recorded"}
    assert validate_run(run) == []


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """The tracker knows that the attempt is resumed; one object serves several attempts."""
    tracker, (model, optimizer), run = Recorded(), tiny(), tmp_path / "run"
    writers = [TrackerWriter("recorded", tracker)]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        train(telemetry, model, optimizer, 3)
        state = telemetry.state_dict()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        telemetry.load_state_dict(state)
        train(telemetry, model, optimizer, 2)
    assert tracker.calls == ["begun", "finished", "resumed", "finished"]
    assert len(tracker.points) == 5
    assert validate_run(run) == []


def test_a_tracker_that_fails_costs_only_itself(tmp_path: Path) -> None:
    """The files have every row; the steps count as failed, and an event names the tracker and why."""
    tracker, (model, optimizer), run = Recorded(ConnectionError("no network")), tiny(), tmp_path / "run"
    writers = [TrackerWriter("recorded", tracker)]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        for _ in range(3):
            train(telemetry, model, optimizer, 1)
            assert telemetry.flush()
            assert tracker.logged.acquire(timeout=60.0)  # so that the error before this one is known
    assert open_run(run).steps()["batch_idx"].tolist() == [1, 2, 3]
    assert telemetry.stats().written + telemetry.stats().failed == 3
    assert telemetry.stats().failed > 0
    events = open_run(run).events()
    lost = events[events["event"] == "failed_write"]
    assert lost["column"].str.endswith(".recorded").all()
    assert lost["message"].str.contains("ConnectionError: no network").all()


def test_a_tracker_that_cannot_start_is_said_for_each_row(tmp_path: Path) -> None:
    """Nothing is lost silently, and training goes on."""
    tracker, (model, optimizer), run = Recorded(starts=False), tiny(), tmp_path / "run"
    writers = [TrackerWriter("recorded", tracker)]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        train(telemetry, model, optimizer, 1)
        assert telemetry.flush()
        sender = writers[0]._sender
        assert sender is not None
        sender._thread.join(60.0)
        train(telemetry, model, optimizer, 2)
    assert open_run(run).steps()["batch_idx"].tolist() == [1, 2, 3]
    assert telemetry.stats().failed >= 2
    assert "ConnectionError: no network" in (run / "telemetry" / "events.csv").read_text()
    assert tracker.calls == ["begun"]


def test_a_tracker_that_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows wait up to a limit, then they fail; files and closing do not wait for it."""
    monkeypatch.setattr(module, "MAX_WAITING_BATCHES", 4)
    monkeypatch.setattr(module, "FINISH_TIMEOUT_S", 0.01)
    tracker, (model, optimizer), run = Recorded(), tiny(), tmp_path / "run"
    tracker.is_free.clear()
    writers = [TrackerWriter("recorded", tracker)]
    try:
        with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
            for _ in range(5):
                train(telemetry, model, optimizer, 1)
                assert telemetry.flush(timeout_s=60.0)
            assert open_run(run).steps()["batch_idx"].tolist() == [1, 2, 3, 4, 5]
        assert telemetry.stats().pending == 0
        assert telemetry.stats().failed >= 3
    finally:
        tracker.is_free.set()
    assert "recorded does not answer" in (run / "telemetry" / "events.csv").read_text()
    assert any("recorded did not take its last rows within 0.01 s" in message for message in caplog.messages)
    assert open_run(run).manifest.status == "finished"
