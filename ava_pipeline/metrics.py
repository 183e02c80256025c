"""How well predicted score distributions fit the true ones, in float64; NumPy and SciPy only."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ava_pipeline.errors import PredictionsError

NUM_SCORES = 10
GOOD_ABOVE = 5.0
HIGHER_IS_BETTER = frozenset({"srcc", "plcc", "accuracy"})  # of the others, lower

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metrics:
    """One set of predictions against the truth.

    Attributes:
        emd_r1: mean absolute difference of the cumulative distributions, averaged over images; the figure in the
            tables of NIMA (Talebi and Milanfar 2018, eq. 1 with r = 1).
        emd_r2: root of their mean squared difference, image by image, then averaged over images (r = 2).
        srcc: Spearman's rank correlation of the mean scores; nan where one side is constant.
        plcc: Pearson's correlation of the mean scores; nan where one side is constant.
        accuracy: share of images whose predicted and true mean score lie on the same side of 5 (above, or not).
        mae: mean absolute error of the mean scores, in score points.
        rmse: root mean squared error of the mean scores, in score points.
    """

    emd_r1: float
    emd_r2: float
    srcc: float
    plcc: float
    accuracy: float
    mae: float
    rmse: float

    def to_json(self) -> dict[str, float | None]:
        """The figures by name, None for those that are not defined: JSON knows no nan."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def prediction_metrics(
    pred_dist: npt.ArrayLike, gt_dist: npt.ArrayLike, pred_mean: npt.ArrayLike, gt_mean: npt.ArrayLike
) -> Metrics:
    """Compare predictions with the truth.

    Args:
        pred_dist: [images, 10] predicted shares of scores 1..10, each row summing to 1.
        gt_dist: [images, 10] true shares.
        pred_mean: [images] predicted mean scores.
        gt_mean: [images] true mean scores, from integer votes: means taken from rounded shares fall on the other
            side of 5 for some images.

    Raises:
        PredictionsError: a shape is another one, or there are no images.
    """
    pred, truth = _distributions("pred_dist", pred_dist), _distributions("gt_dist", gt_dist)
    pred_scores, true_scores = _means("pred_mean", pred_mean, len(pred)), _means("gt_mean", gt_mean, len(pred))
    if len(truth) != len(pred):
        raise PredictionsError(f"pred_dist has {len(pred)} rows, gt_dist {len(truth)}; give both for the same images.")
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


def same_side(pred_mean: _Floats, gt_mean: _Floats) -> _Floats:
    """Whether predicted and true mean scores lie on the same side of 5: 1, 0, or nan where one is not finite."""
    is_same = (pred_mean > GOOD_ABOVE) == (gt_mean > GOOD_ABOVE)
    return np.where(np.isfinite(pred_mean) & np.isfinite(gt_mean), is_same, np.nan)


def constant_predictor(known_dist: npt.ArrayLike, gt_dist: npt.ArrayLike, gt_mean: npt.ArrayLike) -> Metrics:
    """What predicting the mean of `known_dist` for every image reaches: the figures to beat.

    Args:
        known_dist: [known images, 10] true shares to learn the mean distribution from: the training set's.
        gt_dist: [images, 10] true shares to be predicted.
        gt_mean: [images] true mean scores.

    Returns:
        The metrics; `srcc` and `plcc` are nan, as for every constant.

    Raises:
        PredictionsError: a shape is another one, or there are no images.
    """
    constant = _distributions("known_dist", known_dist).mean(axis=0)
    num_images = len(np.asarray(gt_dist))
    return prediction_metrics(
        np.tile(constant, (num_images, 1)), gt_dist, np.full(num_images, mean_scores(constant)), gt_mean
    )


def mean_scores(dist: npt.ArrayLike) -> _Floats:
    """The mean score of distributions [..., 10]: sum of k times the share of score k, in float64."""
    return np.asarray(dist, dtype=np.float64) @ np.arange(1.0, NUM_SCORES + 1)


def _distributions(name: str, values: npt.ArrayLike) -> _Floats:
    dist = np.asarray(values, dtype=np.float64)
    if dist.ndim != 2 or dist.shape[1] != NUM_SCORES or not len(dist):  # noqa: PLR2004  # [images, scores].
        raise PredictionsError(
            f"{name} has shape {list(dist.shape)}; allowed is [images, {NUM_SCORES}], 1 image or more."
        )
    return dist


def _means(name: str, values: npt.ArrayLike, num_images: int) -> _Floats:
    means = np.asarray(values, dtype=np.float64)
    if means.shape != (num_images,):
        raise PredictionsError(f"{name} has shape {list(means.shape)}; allowed is [{num_images}], a score an image.")
    return means


def _correlation(correlate: Any, pred: _Floats, truth: _Floats) -> float:
    """SciPy's correlation; nan without its warning where it is not defined."""
    defined = all(np.isfinite(side).all() and np.ptp(side) > 0 for side in (pred, truth))
    return float(correlate(pred, truth).statistic) if defined else math.nan
