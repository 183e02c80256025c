"""What TensorBoard itself reads of a run."""

import math
from pathlib import Path
from typing import Any

import pytest

from ava_pipeline import TelemetryCollector, open_run
from tests.collect.models import backward, tiny

pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'ava-pipeline[trackers]'")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from ava_pipeline.integrations.points import Point
from ava_pipeline.integrations.tensorboard import TensorBoardTracker, TensorBoardWriter


def shown(log_dir: Path) -> Any:
    """The directory as TensorBoard reads it."""
    accumulator = EventAccumulator(str(log_dir))
    accumulator.Reload()
    return accumulator


def steps_of(log_dir: Path, tag: str) -> list[int]:
    """The steps of one curve."""
    return [event.step for event in shown(log_dir).Scalars(tag)]


def record(run: Path, num_batches: int, *, state: dict[str, float] | None = None, every: int = 1) -> dict[str, float]:
    """Train with a TensorBoardWriter, a step per batch; return the state for a checkpoint."""
    model, optimizer = tiny()
    writers = [TensorBoardWriter(run / "tensorboard")]
    with TelemetryCollector(model, optimizer, run, collect_every_n=every, writers=writers) as telemetry:
        if state is not None:
            telemetry.load_state_dict(state)
        first = int(state["batch_idx"]) if state else 0
        for step in range(first, first + num_batches):
            loss = backward(model, seed=step)
            telemetry.step(0, values={"loss": loss}, global_step=step)
            optimizer.step()
        return telemetry.state_dict()


def test_norms_rates_and_values_over_the_global_step(tmp_path: Path) -> None:
    """The same numbers as in the run's tables, at the same times."""
    run = tmp_path / "run"
    record(run, 3)
    board, opened = shown(run / "tensorboard"), open_run(run)
    norms = board.Scalars("gradient_norms/overall")
    assert [event.step for event in norms] == [0, 1, 2]
    assert [event.value for event in norms] == opened.gradient_norms()["overall"].tolist()
    assert [event.wall_time for event in norms] == [time.timestamp() for time in opened.steps()["time_utc"]]
    assert [event.value for event in board.Scalars("learning_rates/lr_group_1")] == pytest.approx([0.1] * 3)
    assert [event.value for event in board.Scalars("steps/loss")] == pytest.approx(opened.steps()["loss"].tolist())


def test_events_are_texts(tmp_path: Path) -> None:
    """With their severity; values that are not finite are points too."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    writers = [TensorBoardWriter(run / "tensorboard")]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=writers) as telemetry:
        telemetry.step(0, values={"loss": math.nan})
    board = shown(run / "tensorboard")
    (text,) = board.Tensors("events/non_finite")
    message = open_run(run).events().set_index("event")["message"]["non_finite"]
    assert text.tensor_proto.string_val[0].decode().endswith(f"**: {message}")
    assert math.isnan(board.Scalars("steps/loss")[0].value)


def test_a_resumed_run_hides_the_points_that_it_replaces(tmp_path: Path) -> None:
    """Of an attempt that went on to batch 6, what came after the checkpoint at batch 4."""
    run = tmp_path / "run"
    state = record(run, 4)
    record(run, 2, state=state)
    record(run, 1, state=state)
    assert steps_of(run / "tensorboard", "gradient_norms/overall") == [0, 1, 2, 3, 4]


def test_a_run_that_starts_again_hides_every_older_point(tmp_path: Path) -> None:
    """Also those of batches that it does not collect."""
    run = tmp_path / "run"
    record(run, 6)
    record(run, 4, every=2)
    assert steps_of(run / "tensorboard", "gradient_norms/overall") == [1, 3]


def test_points_of_others_in_the_directory_stay(tmp_path: Path) -> None:
    """As long as nothing is resumed."""
    with SummaryWriter(tmp_path) as others:
        others.add_scalar("theirs", 1.0, 7)
    tracker = TensorBoardTracker(tmp_path)
    tracker.start(is_resumed=False)
    tracker.log([Point(0, 0.0, {"ours": 1.0})])
    tracker.finish()
    assert steps_of(tmp_path, "theirs") == [7]
    assert steps_of(tmp_path, "ours") == [0]
