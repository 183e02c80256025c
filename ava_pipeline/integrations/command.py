"""The command `ava-pipeline export`."""

import os
import shlex
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_pipeline.errors import require_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ava_pipeline.integrations.tracker import Tracker
    from ava_pipeline.read.run import Run


class TrackerName(StrEnum):
    """The trackers that a run can be exported to."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    *,
    to: Annotated[TrackerName, typer.Option("--to", help="The tracker.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new rows until the run has ended.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the tracker's files go; by default, into the run.", show_default=False),
    ] = None,
) -> None:
    """Show a run, live or old, in TensorBoard, Weights & Biases or MLflow.

    Example: ava-pipeline export outputs/ava/demo --to tensorboard --follow

    Norms, rates and values are shown over the global step, and events as texts.
    W&B and MLflow get a new run with the directory's name each time. Their own
    settings choose the place: WANDB_PROJECT and WANDB_MODE, or
    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. Without a tracking URI, MLflow
    writes into --out.

    Exit status: 0 success, 1 a file could not be read, 2 no run or wrong usage.
    """
    from ava_pipeline.integrations.export import export_run
    from ava_pipeline.read.run import open_run

    opened = open_run(run)
    openers = {TrackerName.TENSORBOARD: _tensorboard, TrackerName.WANDB: _wandb, TrackerName.MLFLOW: _mlflow}
    with openers[to](opened, out) as (tracker, place):
        try:
            export_run(opened, tracker, follow=follow)
        except KeyboardInterrupt:
            if not follow:
                raise
        typer.echo(f"{run} is in {place}")


@contextmanager
def _tensorboard(run: "Run", out: Path | None) -> "Iterator[tuple[Tracker, str]]":
    from ava_pipeline.integrations.tensorboard import TensorBoardTracker

    folder = out or run.layout.root / TrackerName.TENSORBOARD
    yield TensorBoardTracker(folder), f"{folder}: tensorboard --logdir {shlex.quote(str(folder))}"


@contextmanager
def _wandb(run: "Run", out: Path | None) -> "Iterator[tuple[Tracker, str]]":
    require_extra("Export to W&B", "trackers", "wandb")
    import wandb

    from ava_pipeline.integrations.wandb import WandbTracker

    folder = out or run.layout.root
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"name": run.layout.root.resolve().name, "dir": folder, "job_type": "telemetry"}
    with wandb.init(**settings, config=dict(run.manifest.run_info)) as wandb_run:
        yield WandbTracker(wandb_run, commit=True, table=wandb.Table), str(wandb_run.url or wandb_run.dir)


@contextmanager
def _mlflow(run: "Run", out: Path | None) -> "Iterator[tuple[Tracker, str]]":
    from ava_pipeline.integrations.mlflow import MlflowTracker  # checks that MLflow is there

    import mlflow  # isort: skip

    if not mlflow.is_tracking_uri_set():
        folder = out or run.layout.root / TrackerName.MLFLOW
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs no database, and MLflow reads it
        mlflow.set_tracking_uri(folder.resolve().as_uri())
    with mlflow.start_run(run_name=run.layout.root.resolve().name) as active:
        tracker = MlflowTracker(mlflow.MlflowClient(), active.info.run_id)
        tracker.tag(run.manifest.run_info)
        yield tracker, mlflow.get_tracking_uri()
