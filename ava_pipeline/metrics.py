"""Metrics of predicted score distributions against the true ones, in float64."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.builtin_tables import NUM_SCORES
from ava_pipeline.contract.finding import finite_or_null
from ava_pipeline.errors import PredictionsError

GOOD_ABOVE = 5.0
HIGHER_IS_BETTER = frozenset({"srcc", "plcc", "accuracy"})  # for the other metrics, lower is better


@dataclass(frozen=True, slots=True)
class Metrics:
    """One set of predictions against the truth; the EMDs are those of NIMA (Talebi and Milanfar 2018, eq. 1)."""

    emd_r1: float  # r = 1: mean absolute difference of the cumulative distributions; the figure in NIMA's tables
    emd_r2: float  # r = 2: root of their mean squared difference, image by image, then averaged over images
    srcc: float  # Spearman's rank correlation of the mean scores; nan if one side is constant
    plcc: float  # Pearson's correlation of the mean scores; nan if one side is constant
    accuracy: float  # share of images whose predicted and true mean score are on the same side of 5 (above, or not)
    mae: float  # mean absolute error of the mean scores, in score points
    rmse: float  # root mean squared error of the mean scores, in score points

    def to_json(self) -> dict[str, float | None]:
        """The values by name; None if a value is not finite, because JSON has no nan."""
        return finite_or_null(asdict(self))


def prediction_metrics(
    pred_dist: npt.ArrayLike, gt_dist: npt.ArrayLike, pred_mean: npt.ArrayLike, gt_mean: npt.ArrayLike
) -> Metrics:
    """Compare predictions with the truth; raise PredictionsError if a shape is wrong or there are no images.

    Distributions are [images, 10] shares of the scores 1..10, each row summing to 1; means are [images]. `gt_mean` must
    come from integer votes: means of rounded shares fall on the other side of 5 for some images.
    """
    pred, truth = _distributions("pred_dist", pred_dist), _distributions("gt_dist", gt_dist)
    pred_scores, true_scores = _means("pred_mean", pred_mean, len(pred)), _means("gt_mean", gt_mean, len(pred))
    if len(truth) != len(pred):
        raise PredictionsError(
            f"gt_dist: expected {len(pred)} rows, as in pred_dist, got {len(truth)}; give both for the same images."
        )
    from scipy import stats  # noqa: PLC0415  # takes a second to import, and nothing else here needs it

    cdf_error = np.cumsum(pred - truth, axis=1)
    error = pred_scores - true_scores
    return Metrics(
        emd_r1=float(np.abs(cdf_error).mean()),
        emd_r2=float(np.sqrt(np.square(cdf_error).mean(axis=1)).mean()),
        srcc=_correlation(stats.spearmanr, pred_scores, true_scores),
        plcc=_correlation(stats.pearsonr, pred_scores, true_scores),
        accuracy=float(same_side(pred_scores, true_scores).mean()),
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt(np.square(error).mean())),
    )


def same_side(pred_mean: Floats, gt_mean: Floats) -> Floats:
    """Whether predicted and true mean scores are on the same side of 5: 1, 0, or nan if either is not finite."""
    is_same = (pred_mean > GOOD_ABOVE) == (gt_mean > GOOD_ABOVE)
    return np.where(np.isfinite(pred_mean) & np.isfinite(gt_mean), is_same, np.nan)


def constant_predictor(known_dist: npt.ArrayLike, gt_dist: npt.ArrayLike, gt_mean: npt.ArrayLike) -> Metrics:
    """The metrics of predicting the mean of `known_dist` for every image: the values to beat.

    `known_dist` holds the true shares [known images, 10] of the training set, `gt_dist` [images, 10] and `gt_mean`
    [images] the truth to predict. `srcc` and `plcc` are nan, as for every constant. Raise PredictionsError if a shape
    is wrong or there are no images.
    """
    constant = _distributions("known_dist", known_dist).mean(axis=0)
    num_images = len(np.asarray(gt_dist))
    return prediction_metrics(
        np.tile(constant, (num_images, 1)), gt_dist, np.full(num_images, mean_scores(constant)), gt_mean
    )


def mean_scores(dist: npt.ArrayLike) -> Floats:
    """The mean score of distributions [..., 10]: sum of k times the share of score k, in float64."""
    return np.asarray(dist, dtype=np.float64) @ np.arange(1.0, NUM_SCORES + 1)


def _distributions(name: str, values: npt.ArrayLike) -> Floats:
    dist = np.asarray(values, dtype=np.float64)
    if dist.ndim != 2 or dist.shape[1] != NUM_SCORES or not len(dist):  # noqa: PLR2004  # [images, scores].
        raise PredictionsError(
            f"{name}: expected shape [images, {NUM_SCORES}] with at least 1 image, got {list(dist.shape)}."
        )
    return dist


def _means(name: str, values: npt.ArrayLike, num_images: int) -> Floats:
    means = np.asarray(values, dtype=np.float64)
    if means.shape != (num_images,):
        raise PredictionsError(f"{name}: expected shape [{num_images}], one score per image, got {list(means.shape)}.")
    return means


def _correlation(correlate: Any, pred: Floats, truth: Floats) -> float:
    """SciPy's correlation; nan, without SciPy's warning, if it is not defined."""
    defined = all(np.isfinite(side).all() and np.ptp(side) > 0 for side in (pred, truth))
    return float(correlate(pred, truth).statistic) if defined else math.nan
