"""The names of the files in a run directory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PARTIAL_SUFFIX = ".partial"
PREDICTION_NAME = re.compile(r"(?P<name>.+)_epoch_(?P<epoch>\d{3,})\.parquet")


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
        """Validation metrics, one row per epoch, which `ava-pipeline train` writes."""
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
    def damaged(self) -> Path:
        """The folder for files, or parts of files, that could not be read."""
        return self.telemetry / "damaged"

    def superseded(self, attempt: int) -> Path:
        """The folder for rows of earlier attempts that `attempt` replaced."""
        return self.telemetry / "superseded" / f"attempt-{attempt}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that telemetry reads and writes, an outer one before those inside it."""
        return (self.telemetry, self.damaged, self.telemetry / "superseded", self.predictions)

    def epoch_predictions(self, epoch: int, name: str = "val") -> Path:
        """One epoch's predictions of the set `name`."""
        return self.predictions / f"{name}_epoch_{epoch:03d}.parquet"


class PredictionFile(NamedTuple):
    """One epoch's predictions of the set `name`; epochs are 0-based."""

    name: str
    epoch: int
    path: Path


def prediction_files(layout: RunLayout) -> list[PredictionFile]:
    """List a run's files of predictions by set and epoch; files with other names are left out."""
    files = map(prediction_file, layout.predictions.glob("*.parquet"))
    return sorted(file for file in files if file is not None)


def prediction_file(path: Path) -> PredictionFile | None:
    """Read set and epoch from a file's name; None if the name is not `<set>_epoch_<epoch>.parquet`."""
    match = PREDICTION_NAME.fullmatch(path.name)
    return PredictionFile(match["name"], int(match["epoch"]), path) if match else None
