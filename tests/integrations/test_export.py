"""`ava-pipeline export`: a run directory, old or live, in each tracker."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ava_pipeline import TelemetryCollector, cli, open_run
from ava_pipeline.integrations import export as module
from ava_pipeline.integrations.export import export_run
from tests.collect.models import backward, tiny
from tests.integrations.test_tracker import Recorded
from tests.integrations.wandb_files import history


class Training:
    """A training whose steps are taken one by one; step N has the value N."""

    def __init__(self, run: Path, *, resumed_from: int = 0) -> None:
        self.model, self.optimizer = tiny()
        self.telemetry = TelemetryCollector(self.model, self.optimizer, run, collect_every_n=1)
        self.step = resumed_from
        if resumed_from:
            self.telemetry.load_state_dict({"batch_idx": resumed_from, "epoch": 0})

    def train(self, num_batches: int, *, loss: float | None = None) -> None:
        """Some batches, whose rows are then on the disk."""
        for _ in range(num_batches):
            backward(self.model, seed=self.step)
            self.telemetry.step(0, values={"loss": self.step if loss is None else loss}, global_step=self.step)
            self.optimizer.step()
            self.step += 1
        assert self.telemetry.flush()


def finished(run: Path, num_batches: int) -> Path:
    """A run that has ended, whose last loss is not a number."""
    training = Training(run)
    training.train(num_batches - 1)
    training.train(1, loss=math.nan)
    training.telemetry.close()
    return run


def losses(tracker: Recorded) -> dict[int, float]:
    """Global step -> value of the points that a tracker was given; the later of two counts."""
    return {point.global_step: point.values["steps/loss"] for point in tracker.points if "steps/loss" in point.values}


def test_an_old_run_is_given_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of every table once, joined by step, some steps at a time, and each event at its step."""
    monkeypatch.setattr(module, "STEPS_PER_CALL", 3)
    run, tracker = finished(tmp_path / "run", 8), Recorded()
    assert export_run(open_run(run), tracker) == 8
    assert [point.global_step for point in tracker.points] == list(range(8))
    norms = open_run(run).gradient_norms()["overall"].tolist()
    assert [point.values["gradient_norms/overall"] for point in tracker.points] == norms
    times = [time.timestamp() for time in open_run(run).steps()["time_utc"]]
    assert [point.time_s for point in tracker.points] == times
    (note,) = [note for note in tracker.notes if note.event == "non_finite"]
    assert note.global_step == 7
    assert tracker.calls == ["begun", "finished"]


def followed(run: Path, *actions: Callable[[], object]) -> Recorded:
    """Follow a run; each time that the exporter sleeps, something happens to it."""
    tracker, waiting = Recorded(), iter(actions)
    export_run(open_run(run), tracker, follow=True, sleep=lambda _: next(waiting)())
    assert next(waiting, None) is None
    return tracker


def test_a_live_run_is_followed_to_its_end(tmp_path: Path) -> None:
    """New rows are given once each, also those of the last moment."""
    training = Training(tmp_path / "run")
    training.train(2)

    def end() -> None:
        training.train(1)
        training.telemetry.close()

    tracker = followed(tmp_path / "run", lambda: training.train(3), end)
    assert [point.global_step for point in tracker.points] == [0, 1, 2, 3, 4, 5]
    assert tracker.calls == ["begun", "finished"]


def test_a_run_that_is_resumed_while_it_is_followed(tmp_path: Path) -> None:
    """The tracker begins anew behind the checkpoint, and gets the rows that replaced the older ones."""
    training = Training(tmp_path / "run")
    training.train(5)

    def resume() -> None:
        training.telemetry.close()
        again = Training(tmp_path / "run", resumed_from=3)
        again.train(3, loss=0.5)
        again.telemetry.close()

    tracker = followed(tmp_path / "run", resume)
    assert tracker.calls == ["begun", "finished", "resumed", "finished"]
    assert losses(tracker) == {0: 0, 1: 1, 2: 2, 3: 0.5, 4: 0.5, 5: 0.5}


def exported(*arguments: object) -> str:
    """Run the command and return what it prints."""
    found = CliRunner().invoke(cli.app, ["export", *map(str, arguments)])
    assert found.exit_code == 0, found.output
    return found.output


def test_to_tensorboard(tmp_path: Path) -> None:
    """Into the run or another directory; a second export replaces the first."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'ava-pipeline[trackers]'")
    from tests.integrations.test_tensorboard import steps_of  # noqa: PLC0415  # after the check

    run = finished(tmp_path / "run", 4)
    assert "tensorboard --logdir" in exported(run, "--to", "tensorboard")
    exported(run, "--to", "tensorboard", "--follow")
    assert steps_of(run / "tensorboard", "gradient_norms/overall") == [0, 1, 2, 3]
    exported(run, "--to", "tensorboard", "--out", tmp_path / "board")
    assert steps_of(tmp_path / "board", "steps/loss") == [0, 1, 2, 3]


def test_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new run with every point, and a table of events instead of alerts."""
    wandb: Any = pytest.importorskip("wandb", reason="W&B is not installed: pip install 'ava-pipeline[trackers]'")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # so that it reads these settings
    run = finished(tmp_path / "run", 4)
    exported(run, "--to", "wandb", "--out", tmp_path / "out")
    rows = history(tmp_path / "out")
    assert [row["telemetry/global_step"] for row in rows if "telemetry/global_step" in row] == [0, 1, 2, 3]
    assert any(any(name.startswith("telemetry/events") for name in row) for row in rows)


def test_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics over the global step, and one text of the events."""
    mlflow: Any = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'ava-pipeline[trackers]'")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)  # that of other tests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = finished(tmp_path / "run", 4)
    exported(run, "--to", "mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    metrics = client.get_metric_history(found.info.run_id, "steps/loss")
    assert {metric.step: metric.value for metric in metrics if metric.step < 3} == {0: 0.0, 1: 1.0, 2: 2.0}
    assert math.isnan(next(metric.value for metric in metrics if metric.step == 3))
    path = mlflow.artifacts.download_artifacts(run_id=found.info.run_id, artifact_path="telemetry_events.txt")
    assert "[non_finite]" in Path(path).read_text()


def test_mlflow_takes_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of values and facts that MLflow refuses are changed, texts are cut, and however many there are, all go."""
    mlflow: Any = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'ava-pipeline[trackers]'")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)  # that of other tests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    facts = {"lr (initial)": 0.1, "notes": "x" * 9000, "..": 1, "a//b/": 2, "n" * 300: 3, "": 4, "größe": 5}
    facts |= {f"fact_{index}": index for index in range(150)}
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1, run_info=facts) as telemetry:
        telemetry.step(values={"acc//top": 0.5, "loss/": 0.25, "v" * 300: 1.0})
    exported(tmp_path / "run", "--to", "mlflow")
    (found,) = mlflow.MlflowClient().search_runs(["0"])
    tags = found.data.tags
    assert tags["lr _initial_"] == "0.1"
    assert tags["notes"] == "x" * 5000
    assert (tags["_"], tags["a/_/b/_"], tags["n" * 250], tags["größe"]) == ("4", "2", "3", "5")
    assert tags["fact_149"] == "149"
    assert found.data.metrics["steps/acc/_/top"] == 0.5
    assert found.data.metrics["steps/loss/_"] == 0.25
    assert found.data.metrics["steps/" + "v" * 244] == 1.0


def test_mlflow_gets_as_many_metrics_as_it_takes(tmp_path: Path) -> None:
    """A thousand a call."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'ava-pipeline[trackers]'")
    from ava_pipeline.integrations.mlflow import MlflowTracker  # noqa: PLC0415  # after the check

    sizes: list[int] = []

    class Client:
        def log_batch(self, run_id: str, metrics: list[Any]) -> None:  # noqa: ARG002
            sizes.append(len(metrics))

        def log_text(self, *_: object) -> None:
            pass

    run = finished(tmp_path / "run", 150)
    export_run(open_run(run), MlflowTracker(Client(), "id"))
    assert sum(sizes) == 150 * 8  # five norms, two rates, the loss
    assert max(sizes) == 1000


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """With the exit status of wrong usage, through the program's own main."""
    assert isinstance(
        CliRunner().invoke(cli.app, ["export", str(tmp_path), "--to", "tensorboard"]).exception, Exception
    )
    assert CliRunner().invoke(cli.app, ["export", str(tmp_path), "--to", "paper"]).exit_code == 2
