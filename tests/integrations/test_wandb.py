"""What Weights & Biases stores of a run, and of what the user logs beside it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ava_pipeline import MisuseError, TelemetryCollector, open_run
from ava_pipeline.integrations.points import Note, Point
from ava_pipeline.integrations.wandb import MAX_WAITING_POINTS, WandbTracker, WandbWriter
from tests.collect.models import backward, tiny
from tests.integrations.wandb_files import history, records

wandb: Any = pytest.importorskip("wandb", reason="W&B is not installed: pip install 'ava-pipeline[trackers]'")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An offline run of W&B."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    started = wandb.init(mode="offline", dir=tmp_path, project="test", settings=wandb.Settings(silent=True))
    yield started
    started.finish()


def record(run: Any, folder: Path, num_batches: int, *, log: Any = None, **options: Any) -> list[float]:
    """Train with a WandbWriter and with the user's own logging after each step; return the norms."""
    model, optimizer = tiny()
    writers = [WandbWriter(run, **options)]
    with TelemetryCollector(model, optimizer, folder, collect_every_n=1, writers=writers) as telemetry:
        for step in range(num_batches):
            loss = backward(model, seed=step)
            telemetry.step(0, values={"loss": loss}, global_step=step)
            optimizer.step()
            if log is not None:
                log(step)
        assert telemetry.flush()
    assert telemetry.stats().written == num_batches
    norms: list[float] = open_run(folder).gradient_norms()["overall"].tolist()
    return norms


@pytest.mark.parametrize("options", [{}, {"commit": True}])
def test_every_point_and_every_value_of_the_user_is_stored(run: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Points are over the global step; what the user logs, before and afterwards, is complete."""
    norms = record(run, tmp_path / "run", 5, log=lambda step: run.log({"mine": step}), **options)
    run.log({"mine": 5})
    run.finish()
    rows = history(tmp_path)
    assert [row["mine"] for row in rows if "mine" in row] == [0, 1, 2, 3, 4, 5]
    ours = {row["telemetry/global_step"]: row["telemetry/gradient_norms/overall"] for row in rows if len(row) > 3}
    assert ours == dict(enumerate(norms))
    metrics = {one.metric.name: one.metric.step_metric for one in records(tmp_path) if one.HasField("metric")}
    assert metrics["telemetry/steps/loss"] == "telemetry/global_step"


def test_steps_that_the_user_counts_are_never_overtaken(run: Any, tmp_path: Path) -> None:
    """With `step=`, W&B drops what is below its counter: telemetry does not move it before it closes."""
    record(run, tmp_path / "run", 5, log=lambda step: run.log({"mine": step}, step=step))
    run.finish()
    rows = history(tmp_path)
    assert [(row["_step"], row["mine"]) for row in rows if "mine" in row] == [(step, step) for step in range(5)]
    assert sorted(row["telemetry/global_step"] for row in rows if "telemetry/global_step" in row) == [0, 1, 2, 3, 4]


def test_steps_that_the_user_counts_after_telemetry_closed(run: Any, tmp_path: Path) -> None:
    """With commit=False telemetry makes no step of its own at all, and shows what fits."""
    norms = record(run, tmp_path / "run", 5, log=lambda step: run.log({"mine": step}, step=step), commit=False)
    run.log({"test": 1.0}, step=5)
    run.finish()
    rows = history(tmp_path)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[-1]["test"] == 1.0
    shown = {row["telemetry/global_step"]: row["telemetry/gradient_norms/overall"] for row in rows if len(row) > 3}
    assert shown
    assert all(norms[step] == norm for step, norm in shown.items())


def test_a_warning_is_an_alert(run: Any, tmp_path: Path) -> None:
    """With its step and its message."""
    tracker = WandbTracker(run)
    tracker.note([Note(7, 0.0, "spike", "warning", "A spike."), Note(8, 0.0, "spike", "info", "It ended.")])
    run.finish()
    (alert,) = [one.alert for one in records(tmp_path) if one.HasField("alert")]
    assert (alert.title, alert.text, alert.level) == ("telemetry: spike", "Global step 7: A spike.", "WARN")


class FakeRun:
    """A run that is not connected to anything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.current = 0

    @property
    def step(self) -> int:
        """W&B's counter."""
        return self.current

    def define_metric(self, name: str, **_: object) -> None:
        """Do nothing."""

    def alert(self, **_: object) -> None:
        """Do nothing."""

    def log(self, row: dict[str, Any], commit: bool | None = None) -> None:  # noqa: FBT001  # as W&B's
        """Keep the row; count the steps that are ended."""
        self.rows.append(row)
        self.current += commit is not False


def points(first: int, last: int) -> list[Point]:
    """Points of single numbers."""
    return [Point(step, 0.0, {"x": float(step)}) for step in range(first, last)]


def test_one_point_is_shown_with_each_step_of_the_user() -> None:
    """Oldest first; it looks again soon, as long as points wait."""
    run = FakeRun()
    tracker = WandbTracker(run, commit=False)
    tracker.start(is_resumed=False)
    tracker.log(points(0, 3))
    tracker.log([])
    assert [row["telemetry/x"] for row in run.rows] == [0.0]
    assert tracker.pause_s is not None
    run.current = 40
    tracker.log([])
    run.current = 41
    tracker.log([])
    assert [row["telemetry/x"] for row in run.rows] == [0.0, 1.0, 2.0]
    assert tracker.pause_s is None


def test_points_that_wait_are_bounded() -> None:
    """Of a user who never logs anything: the curve keeps its shape, and memory its bound."""
    run = FakeRun()
    tracker = WandbTracker(run)
    tracker.log(points(0, 10 * MAX_WAITING_POINTS))
    tracker.log(points(10 * MAX_WAITING_POINTS, 10 * MAX_WAITING_POINTS + 1))
    tracker.finish()
    shown = [row["telemetry/x"] for row in run.rows if row]
    assert MAX_WAITING_POINTS / 2 < len(shown) <= MAX_WAITING_POINTS + 1
    assert shown == sorted(shown)
    assert shown[-1] == 10 * MAX_WAITING_POINTS


def test_what_is_not_finite_is_stored(run: Any, tmp_path: Path) -> None:
    """As W&B writes it."""
    tracker = WandbTracker(run, commit=True)
    tracker.log([Point(0, 0.0, {"steps/loss": math.nan})])
    run.finish()
    assert math.isnan(history(tmp_path)[0]["telemetry/steps/loss"])


@pytest.mark.parametrize("given", [None, wandb, "my-run"])
def test_what_is_no_run_is_refused(given: object) -> None:
    """With what to give instead."""
    with pytest.raises(MisuseError, match=r"give the run that wandb.init\(\) returned"):
        WandbWriter(given)
