"""Metrics of predictions on disk, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_file
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import NotARunError
from ava_pipeline.evaluation.bootstrap import Interval, interval, resampled
from ava_pipeline.metrics import Metrics, constant_predictor
from ava_pipeline.read.predictions import read_predicted

_MAGIC = b"PAR1"
_REMEDY = (
    "Give a run directory whose config has save_val_predictions: true and that has finished an epoch, or a Parquet "
    "file with pred_dist_1..10, gt_dist_1..10, pred_mean and gt_mean."
)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One file of predictions.

    Attributes:
        path: the Parquet file.
        num_images: rows in it.
        metrics: of its predictions.
        constant: what predicting its own mean true distribution for every image would reach.
        interval: how far the metrics would vary with other images of the same kind; None where it was not asked for.
        file: which set and epoch of a run these are; None where the file's name does not say.
    """

    path: Path
    num_images: int
    metrics: Metrics
    constant: Metrics
    interval: Interval | None = None
    file: PredictionFile | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a figure is not defined."""
        return {
            "file": str(self.path),
            "set": self.file.name if self.file else None,
            "epoch": self.file.epoch if self.file else None,
            "num_images": self.num_images,
            **self.metrics.to_json(),
            "interval": self.interval.to_json() if self.interval else None,
            "constant_predictor": self.constant.to_json(),
        }


def evaluate(path: Path, *, num_resamples: int = 0) -> Evaluated:
    """Evaluate a file of predictions.

    Args:
        path: a Parquet file.
        num_resamples: of the bootstrap behind each interval; 0: no intervals.

    Raises:
        DamagedFileError: it is no Parquet, or holds no predictions.
    """
    predicted = read_predicted(path)
    return Evaluated(
        path=path,
        num_images=predicted.num_images,
        metrics=predicted.metrics(),
        constant=constant_predictor(predicted.truth, predicted.truth, predicted.gt_mean),
        interval=interval(resampled([predicted], num_resamples)[0]) if num_resamples else None,
        file=prediction_file(path),
    )


def prediction_paths(path: Path) -> Sequence[Path]:
    """The files of predictions that a path means, by set and epoch.

    Args:
        path: a run directory, its predictions folder or a Parquet file.

    Raises:
        NotARunError: there are none, or the file is of another kind.
        DamagedFileError: one lies outside of the run.
    """
    if path.is_file():
        if not _begins_as_parquet(path):
            raise NotARunError(f"{path} is no Parquet file. {_REMEDY}")
        return [path]
    layout = RunLayout(path.parent if path.name == "predictions" else path)
    check_inside(layout)
    files = sorted(layout.predictions.glob("*.parquet"), key=lambda one: prediction_file(one) or (one.stem, -1, one))
    if not files:
        raise NotARunError(f"{path}: no predictions there. {_REMEDY}")
    return files


def _begins_as_parquet(path: Path) -> bool:
    """Whether it does; a torn file does too, and is called damaged where it is read."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
