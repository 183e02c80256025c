"""How sure a metric is: its values on images drawn anew, with replacement, from those that were predicted.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13). A resample is told by how often it holds each image,
so that means are one matrix product, and ranks come of a running sum over images that were sorted once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ava_pipeline.metrics import Metrics, same_side
from ava_pipeline.read.predictions import Floats, Predicted

CONFIDENCE = 0.95
SEED = 0
METHOD = "percentile bootstrap over images"
_ROUNDING = 1e-12
_BLOCK = 2**17  # numbers of a block of resamples: 1 MiB a float64 array, which stays in a core's cache

Resampled: TypeAlias = Mapping[str, Floats]  # metric -> [resamples]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where 95 % of the resamples lie; nan where a metric is not defined.

    Attributes:
        low: 2.5 % lie below.
        high: 2.5 % lie above.
        num_resamples: that it was taken from.
    """

    low: Metrics
    high: Metrics
    num_resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, and how they were found."""
        told = {"method": METHOD, "confidence": CONFIDENCE, "num_resamples": self.num_resamples, "seed": SEED}
        return {**told, "low": self.low.to_json(), "high": self.high.to_json()}


def interval(resamples: Resampled) -> Interval:
    """The interval of each metric over the resamples on which it is defined."""
    ends = {name: _ends(values) for name, values in resamples.items()}
    low, high = (Metrics(**{name: float(pair[end]) for name, pair in ends.items()}) for end in (0, 1))
    return Interval(low, high, len(next(iter(resamples.values()))))


def resampled(sets: Sequence[Predicted], num_resamples: int, *, seed: int = SEED) -> list[Resampled]:
    """Each metric on resamples of the images; the same ones for every set, so that their differences are paired.

    Args:
        sets: of predictions, image by image the same ones.
        num_resamples: how often to draw, 1 or more.
        seed: of the draws.

    Returns:
        For each set, metric -> [num_resamples] float64.
    """
    images = [_Images(one) for one in sets]
    num_images = sets[0].num_images
    blocks = [[one.metrics(counts) for one in images] for counts in _draws(num_images, num_resamples, seed)]
    names = [field.name for field in fields(Metrics)]
    return [
        {name: np.concatenate([block[index][name] for block in blocks]) for name in names} for index in range(len(sets))
    ]


def _draws(num_images: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample holds each image: [resamples, images], block by block."""
    random = np.random.default_rng(seed)
    size = max(1, _BLOCK // num_images)
    for begin in range(0, num_resamples, size):
        num = min(size, num_resamples - begin)
        drawn = random.integers(0, num_images, (num, num_images))
        drawn += num_images * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_images)
        yield counts.reshape(num, num_images).astype(np.float64)


class _Images:
    """What each image adds to the metrics."""

    def __init__(self, predicted: Predicted) -> None:
        pred, truth = predicted.pred_mean, predicted.gt_mean
        with np.errstate(all="ignore"):  # predictions that are not finite give metrics that are not
            cdf_error = np.cumsum(predicted.pred - predicted.truth, axis=1)
            # Around the middle, so that variances are no differences of large numbers.
            one, other = (side - side.mean() for side in (pred, truth))
            self._added = np.column_stack(
                [
                    np.abs(cdf_error).mean(axis=1),
                    np.sqrt(np.square(cdf_error).mean(axis=1)),
                    same_side(pred, truth),
                    np.abs(pred - truth),
                    np.square(pred - truth),
                    *(one, other, one * one, other * other, one * other),
                ]
            )
        self._pred, self._truth = _Ranked(pred), _Ranked(truth)
        self._are_finite = bool(np.isfinite(pred).all() and np.isfinite(truth).all())

    def metrics(self, counts: Floats) -> dict[str, Floats]:
        """Each metric of each resample: counts [resamples, images] -> [resamples]."""
        with np.errstate(all="ignore"):
            return self._metrics(counts, (counts @ self._added).T / counts.shape[1])

    def _metrics(self, counts: Floats, means: Floats) -> dict[str, Floats]:
        emd_r1, emd_r2, accuracy, mae, square, one, other, ones, others, both = means
        return {
            "emd_r1": emd_r1,
            "emd_r2": emd_r2,
            "srcc": self._srcc(counts),
            "plcc": _correlation(both - one * other, _variance(one, ones), _variance(other, others)),
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


class _Ranked:
    """Scores sorted once; equal ones share a place."""

    def __init__(self, scores: Floats) -> None:
        self._order = np.argsort(scores, kind="stable")
        sorted_scores = scores[self._order]
        self._begins = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
        self._place: npt.NDArray[np.intp] = np.empty(len(scores), dtype=np.intp)
        self._place[self._order] = np.cumsum(np.r_[0, sorted_scores[1:] != sorted_scores[:-1]])

    def ranks(self, counts: Floats) -> Floats:
        """Each image's rank in each resample: the middle of the ranks that its equals have there."""
        held = np.take(counts, self._order, axis=1)
        if len(self._begins) < counts.shape[1]:
            held = np.add.reduceat(held, self._begins, axis=1)
        middle = np.cumsum(held, axis=1)
        middle -= (held - 1) / 2
        return np.take(middle, self._place, axis=1)


def _variance(mean: Floats, square: Floats) -> Floats:
    """Variance from the means of scores and their squares; what is only rounding is 0."""
    found = square - mean * mean
    return np.where(found > _ROUNDING * square, found, 0.0)


def _correlation(covariance: Floats, one: Floats, other: Floats) -> Floats:
    """Covariance over the root of both variances; nan where a side is constant."""
    found = covariance / np.sqrt(one * other)
    return np.where((one > 0) & (other > 0), np.clip(found, -1, 1), np.nan)


def _ends(values: Floats) -> Floats:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return np.full(2, np.nan)
    return np.asarray(np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]), dtype=np.float64)
