"""The names of the files in a run directory."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PARTIAL_SUFFIX = ".partial"
PREDICTION_NAME = re.compile(r"(?P<name>.+)_epoch_(?P<epoch>\d{3,})(?:_batch_(?P<batch_idx>\d{8,}))?\.parquet")


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The paths of one run's files.

    Example:
        >>> RunLayout(Path("outputs/ava/my_run")).csv("steps").as_posix()
        'outputs/ava/my_run/telemetry/steps.csv'
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, which `ava-pipeline train` writes."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Metrics by epoch, which `TelemetryCollector.log_metrics` and `ava-pipeline train` write."""
        return self.root / "metrics.csv"

    @property
    def split(self) -> Path:
        """The images of each set, which `ava-pipeline train` writes."""
        return self.root / "split.csv"

    @property
    def excluded_images(self) -> Path:
        """The images that `ava-pipeline train` leaves out, with the reason."""
        return self.root / "excluded_images.csv"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.root / "checkpoints" / "last.pt"

    @property
    def report(self) -> Path:
        """The page that `ava-pipeline report` writes."""
        return self.root / "report.html"

    @property
    def telemetry(self) -> Path:
        """The folder that the collector writes into."""
        return self.root / "telemetry"

    @property
    def manifest(self) -> Path:
        """Declares the tables, lists the attempts that wrote them, and counts their rows."""
        return self.telemetry / "manifest.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that writes the run."""
        return self.telemetry / "writer.lock"

    @property
    def predictions(self) -> Path:
        """The folder with one Parquet file per epoch and set of predictions."""
        return self.root / "predictions"

    def csv(self, table: str) -> Path:
        """A table as CSV: whole lines are appended, so that it can be read at any time."""
        return self.telemetry / f"{table}.csv"

    def parquet(self, table: str) -> Path:
        """A table as Parquet: a file of this name is complete."""
        return self.telemetry / f"{table}.parquet"

    def journal(self, table: str) -> Path:
        """The rows of a table that are not in its Parquet file yet."""
        return self.telemetry / f"{table}.journal"

    @property
    def weight_snapshots(self) -> Path:
        """The folder with the weights of single batches."""
        return self.telemetry / "weight_snapshots"

    @property
    def unfinished_snapshots(self) -> Path:
        """The folder in which a snapshot is written before it gets its name; a killed process may leave a part there."""
        return self.weight_snapshots / "unfinished"

    def weight_snapshot(self, epoch: int, batch_idx: int) -> Path:
        """The weights that a batch was computed with: a file of this name is complete."""
        return self.weight_snapshots / f"weights_epoch{epoch}_batch{batch_idx}.safetensors"

    @property
    def damaged(self) -> Path:
        """The folder for files, or parts of files, that could not be read."""
        return self.telemetry / "damaged"

    def superseded(self, attempt: int) -> Path:
        """The folder for rows of earlier attempts that `attempt` replaced."""
        return self.telemetry / "superseded" / f"attempt-{attempt}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that telemetry reads and writes, an outer one before those inside it."""
        return (
            self.telemetry,
            self.damaged,
            self.telemetry / "superseded",
            self.weight_snapshots,
            self.unfinished_snapshots,
            self.predictions,
        )

    def epoch_predictions(self, epoch: int, name: str = "val", batch_idx: int | None = None) -> Path:
        """The predictions of the set `name` at the end of an epoch, or after one of its batches."""
        batch = "" if batch_idx is None else f"_batch_{batch_idx:08d}"
        return self.predictions / f"{name}_epoch_{epoch:03d}{batch}.parquet"


class Moment(NamedTuple):
    """When a model was validated: after a batch of a 0-based epoch, or at the epoch's end if `batch_idx` is None."""

    epoch: int
    batch_idx: int | None = None

    @property
    def order(self) -> tuple[int, float]:
        """Sorts moments by time; the end of an epoch comes after all of its batches."""
        return self.epoch, math.inf if self.batch_idx is None else self.batch_idx

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + ("" if self.batch_idx is None else f", batch {self.batch_idx}")


class PredictionFile(NamedTuple):
    """The predictions of the set `name` at one moment."""

    name: str
    moment: Moment
    path: Path

    @property
    def epoch(self) -> int:
        """The 0-based epoch."""
        return self.moment.epoch

    @property
    def is_of_epoch(self) -> bool:
        """Whether the model was validated at the end of the epoch, and not after one of its batches."""
        return self.moment.batch_idx is None


def prediction_files(layout: RunLayout) -> list[PredictionFile]:
    """List a run's files of predictions by set and moment; files with other names are left out."""
    files = map(prediction_file, layout.predictions.glob("*.parquet"))
    return sorted((file for file in files if file is not None), key=lambda file: (file.name, file.moment.order))


def prediction_file(path: Path) -> PredictionFile | None:
    """Read set and moment from a file's name; None if it is not `<set>_epoch_<epoch>[_batch_<batch>].parquet`."""
    match = PREDICTION_NAME.fullmatch(path.name)
    if match is None:
        return None
    batch_idx = None if match["batch_idx"] is None else int(match["batch_idx"])
    return PredictionFile(match["name"], Moment(int(match["epoch"]), batch_idx), path)
