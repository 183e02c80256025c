"""Metrics of predictions on disk, and how sure each metric is.

The intervals are those of the percentile bootstrap (Efron and Tibshirani 1993, chapter 13): the metrics of images drawn
with replacement from those that were predicted. A resample is stored as the number of times it holds each image. Means
over resamples are then one matrix product, and ranks follow from a running sum over images that were sorted once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_file
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import NotARunError
from ava_pipeline.metrics import Metrics, constant_predictor, same_side
from ava_pipeline.read.predictions import Predicted, read_predicted

CONFIDENCE = 0.95
SEED = 0
METHOD = "percentile bootstrap over images"

_MAGIC = b"PAR1"
_REMEDY = (
    "Give a run directory whose config has save_val_predictions: true and that has finished an epoch, or a Parquet "
    "file with pred_dist_1..10, gt_dist_1..10, pred_mean and gt_mean."
)
_ROUNDING = 1e-12
_BLOCK = 2**17  # counts in a block of resamples: 1 MiB for each float64 array, which stays in a core's cache

Resampled: TypeAlias = Mapping[str, Floats]  # metric -> [resamples]


@dataclass(frozen=True, slots=True)
class Interval:
    """The range that holds 95 % of the resamples, for each metric; nan where a metric is not defined."""

    low: Metrics  # 2.5 % of the resamples are below
    high: Metrics
    num_resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the method, the confidence level and the seed."""
        method = {"method": METHOD, "confidence": CONFIDENCE, "num_resamples": self.num_resamples, "seed": SEED}
        return {**method, "low": self.low.to_json(), "high": self.high.to_json()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one file of predictions."""

    path: Path
    num_images: int
    metrics: Metrics
    constant: Metrics  # of predicting the file's mean true distribution for every image
    interval: Interval | None = None  # None without resamples
    file: PredictionFile | None = None  # set, epoch and batch; None if the file's name does not contain them

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a metric is not defined."""
        return {
            "file": str(self.path),
            "set": self.file.name if self.file else None,
            "epoch": self.file.epoch if self.file else None,
            "batch_idx": self.file.moment.batch_idx if self.file else None,
            "num_images": self.num_images,
            **self.metrics.to_json(),
            "interval": self.interval.to_json() if self.interval else None,
            "constant_predictor": self.constant.to_json(),
        }


def evaluate(path: str | PathLike[str], *, num_resamples: int = 0) -> Evaluation:
    """Evaluate one file of predictions.

        from ava_pipeline import evaluate
        found = evaluate("outputs/ava/my_run/predictions/val_epoch_004.parquet", num_resamples=1000)
        print(found.metrics.srcc, found.interval.low.srcc, found.interval.high.srcc)

    Args:
        path: a Parquet file with the columns pred_dist_1..10, gt_dist_1..10, pred_mean and gt_mean.
        num_resamples: bootstrap resamples for each interval; 0 computes no intervals.

    Raises:
        DamagedFileError: the file is not Parquet, or lacks these columns.
    """
    predicted = read_predicted(Path(path))
    return Evaluation(
        path=predicted.path,
        num_images=predicted.num_images,
        metrics=predicted.metrics(),
        constant=constant_predictor(predicted.truth, predicted.truth, predicted.gt_mean),
        interval=interval(resampled([predicted], num_resamples)[0]) if num_resamples else None,
        file=prediction_file(predicted.path),
    )


def prediction_paths(path: Path) -> Sequence[Path]:
    """List the files of predictions of a run directory, a predictions folder or a Parquet file, by set and epoch.

    Raise NotARunError if there are no predictions, or if the file is not Parquet, and DamagedFileError if a file is
    outside the run.
    """
    if path.is_file():
        if not _begins_as_parquet(path):
            raise NotARunError(f"{path} is not a Parquet file. {_REMEDY}")
        return [path]
    layout = RunLayout(path.parent if path.name == "predictions" else path)
    check_inside(layout)
    files = sorted(layout.predictions.glob("*.parquet"), key=_set_and_moment)
    if not files:
        raise NotARunError(f"{path}: no predictions found. {_REMEDY}")
    return files


def _set_and_moment(path: Path) -> tuple[str, float, float]:
    file = prediction_file(path)
    return (file.name, *file.moment.order) if file else (path.stem, -1, 0)


def _begins_as_parquet(path: Path) -> bool:
    """Whether the file has Parquet's first bytes. A torn file has them too; reading it reports the damage."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def interval(resamples: Resampled) -> Interval:
    """The interval of each metric over the resamples on which it is defined."""
    ends = {name: _ends(values) for name, values in resamples.items()}
    low, high = (Metrics(**{name: float(pair[end]) for name, pair in ends.items()}) for end in (0, 1))
    return Interval(low, high, len(next(iter(resamples.values()))))


def method_text(found: Interval) -> str:
    """How an interval was computed, in words."""
    return f"{CONFIDENCE:.0%} of {found.num_resamples} resamples of the images (percentile bootstrap, seed {SEED})"


def _ends(values: Floats) -> Floats:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return np.full(2, np.nan)
    return np.asarray(np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]), dtype=np.float64)


def resampled(sets: Sequence[Predicted], num_resamples: int, *, seed: int = SEED) -> list[Resampled]:
    """Compute each metric on resamples of the images: metric -> [num_resamples] float64, for each set.

    The sets are predictions for the same images in the same order. They are resampled alike, so that the differences
    between two sets are paired.
    """
    images = [_Images(predicted) for predicted in sets]
    num_images = sets[0].num_images
    blocks = [[one_set.metrics(counts) for one_set in images] for counts in _draws(num_images, num_resamples, seed)]
    names = [field.name for field in fields(Metrics)]
    return [
        {name: np.concatenate([block[index][name] for block in blocks]) for name in names} for index in range(len(sets))
    ]


def _draws(num_images: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """The number of times each resample holds each image, block by block: [resamples, images]."""
    random = np.random.default_rng(seed)
    size = max(1, _BLOCK // num_images)
    for begin in range(0, num_resamples, size):
        num = min(size, num_resamples - begin)
        drawn = random.integers(0, num_images, (num, num_images))
        drawn += num_images * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_images)
        yield counts.reshape(num, num_images).astype(np.float64)


class _Images:
    """The contribution of each image to the metrics."""

    def __init__(self, predicted: Predicted) -> None:
        pred, truth = predicted.pred_mean, predicted.gt_mean
        with np.errstate(all="ignore"):  # predictions that are not finite give metrics that are not
            cdf_error = np.cumsum(predicted.pred - predicted.truth, axis=1)
            # Centred, so that a variance is not the difference of two large numbers.
            x, y = (side - side.mean() for side in (pred, truth))
            self._added = np.column_stack(
                [
                    np.abs(cdf_error).mean(axis=1),
                    np.sqrt(np.square(cdf_error).mean(axis=1)),
                    same_side(pred, truth),
                    np.abs(pred - truth),
                    np.square(pred - truth),
                    *(x, y, x * x, y * y, x * y),
                ]
            )
        self._pred, self._truth = _RankedScores(pred), _RankedScores(truth)
        self._are_finite = bool(np.isfinite(pred).all() and np.isfinite(truth).all())

    def metrics(self, counts: Floats) -> dict[str, Floats]:
        """Each metric of each resample: counts [resamples, images] -> [resamples]."""
        with np.errstate(all="ignore"):
            return self._metrics(counts, (counts @ self._added).T / counts.shape[1])

    def _metrics(self, counts: Floats, means: Floats) -> dict[str, Floats]:
        emd_r1, emd_r2, accuracy, mae, square, x, y, xx, yy, xy = means
        return {
            "emd_r1": emd_r1,
            "emd_r2": emd_r2,
            "srcc": self._srcc(counts),
            "plcc": _correlation(xy - x * y, _variance(x, xx), _variance(y, yy)),
            "accuracy": accuracy,
            "mae": mae,
            "rmse": np.sqrt(square),
        }

    def _srcc(self, counts: Floats) -> Floats:
        """Pearson's correlation of the ranks, whose mean is (images + 1) / 2 in every resample."""
        if not self._are_finite:
            return np.full(len(counts), np.nan)
        middle = (counts.shape[1] + 1) / 2
        pred, truth = (side.ranks(counts) - middle for side in (self._pred, self._truth))
        weighted = counts * pred
        covariance = np.einsum("ri,ri->r", weighted, truth)
        return _correlation(
            covariance, np.einsum("ri,ri->r", weighted, pred), np.einsum("ri,ri,ri->r", counts, truth, truth)
        )


class _RankedScores:
    """Scores sorted once; equal scores share a place."""

    def __init__(self, scores: Floats) -> None:
        self._order = np.argsort(scores, kind="stable")
        sorted_scores = scores[self._order]
        self._begins = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
        self._place: npt.NDArray[np.intp] = np.empty(len(scores), dtype=np.intp)
        self._place[self._order] = np.cumsum(np.r_[0, sorted_scores[1:] != sorted_scores[:-1]])

    def ranks(self, counts: Floats) -> Floats:
        """Each image's rank in each resample; images with equal scores share the mean of their ranks."""
        held = np.take(counts, self._order, axis=1)
        if len(self._begins) < counts.shape[1]:
            held = np.add.reduceat(held, self._begins, axis=1)
        middle = np.cumsum(held, axis=1)
        middle -= (held - 1) / 2
        return np.take(middle, self._place, axis=1)


def _variance(mean: Floats, mean_square: Floats) -> Floats:
    """The variance from the means of scores and of their squares; a rounding error counts as 0."""
    variance = mean_square - mean * mean
    return np.where(variance > _ROUNDING * mean_square, variance, 0.0)


def _correlation(covariance: Floats, variance: Floats, other_variance: Floats) -> Floats:
    """Pearson's correlation; nan if one side is constant."""
    correlation = covariance / np.sqrt(variance * other_variance)
    return np.where((variance > 0) & (other_variance > 0), np.clip(correlation, -1, 1), np.nan)
