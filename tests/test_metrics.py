"""The metrics are those the field publishes, under names that cannot be confused."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wasserstein_distance

from ava_pipeline.contract.builtin_tables import NUM_SCORES
from ava_pipeline.errors import PredictionsError
from ava_pipeline.metrics import constant_predictor, mean_scores, prediction_metrics

AVA = Path(__file__).parents[1].parent / "shared" / "ava"
needs_ava = pytest.mark.skipif(not AVA.is_dir(), reason=f"real AVA predictions are not at {AVA}")

TRUTH = [0, 0, 0, 0, 0, 0, 0, 0.9, 0.1, 0]
NEAR = [0, 0, 0, 0, 0, 0, 0.9, 0, 0.1, 0]
FAR = [0.9, 0, 0, 0, 0, 0, 0, 0, 0.1, 0]
SPREAD = [0.8, 0, 0, 0, 0, 0, 0, 0, 0.1, 0.1]

votes = arrays(np.int64, (4, NUM_SCORES), elements=st.integers(0, 300)).filter(
    lambda rows: bool(rows.any(axis=1).all())
)


@needs_ava
def test_real_predictions_give_the_published_way_of_figures() -> None:
    """25,548 real predictions reproduce the reference values."""
    frame = pd.read_parquet(AVA / "real_val_predictions.parquet")
    expected = json.loads((AVA / "expected_metrics.json").read_text())["real_val_predictions.parquet"]
    assert len(frame) == expected.pop("rows")
    found = prediction_metrics(
        frame.filter(like="pred_dist_"), frame.filter(like="gt_dist_"), frame["pred_mean"], frame["gt_mean"]
    )
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=1e-6, rel=0)


@pytest.mark.parametrize(("predicted", "emd"), [(NEAR, 0.284605), (FAR, 0.752994), (SPREAD, 0.670820)])
def test_emd_r2_of_one_image(predicted: list[float], emd: float) -> None:
    """The worked example of the NIMA reference code, image by image."""
    found = prediction_metrics([predicted], [TRUTH], mean_scores([predicted]), mean_scores([TRUTH]))
    assert found.emd_r2 == pytest.approx(emd, abs=1e-6)


def test_emd_r2_takes_the_root_image_by_image() -> None:
    """Not the root of the mean over the set, 0.604979, which is a well-known error."""
    predicted, truth = [NEAR, FAR, SPREAD], [TRUTH] * 3
    found = prediction_metrics(predicted, truth, mean_scores(predicted), mean_scores(truth))
    assert found.emd_r2 == pytest.approx(0.569473, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(votes, votes)
def test_emd_r1_is_scipys_distance_a_score(predicted: np.ndarray, truth: np.ndarray) -> None:
    """For ten scores with a distance of 1: SciPy's Wasserstein distance divided by ten."""
    pred, true = (counts / counts.sum(axis=1, keepdims=True) for counts in (predicted, truth))
    found = prediction_metrics(pred, true, mean_scores(pred), mean_scores(true))
    scores = np.arange(1, NUM_SCORES + 1)
    distances = [wasserstein_distance(scores, scores, p, t) for p, t in zip(pred, true, strict=True)]
    assert found.emd_r1 == pytest.approx(np.mean(distances) / NUM_SCORES, abs=1e-12)


def test_accuracy_counts_a_mean_of_exactly_five_as_not_good() -> None:
    """AVA counts "above 5" as good: 178 of its images have a mean of exactly 5."""
    flat = np.full((4, NUM_SCORES), 0.1)
    found = prediction_metrics(flat, flat, [5.0, 5.1, 5.1, 4.9], [5.0, 5.0, 5.2, 4.8])
    assert found.accuracy == 0.75


def test_errors_of_the_means_are_in_score_points() -> None:
    """Mae and rmse of the errors 1 and -3."""
    flat = np.full((2, NUM_SCORES), 0.1)
    found = prediction_metrics(flat, flat, [5.0, 3.0], [4.0, 6.0])
    assert [found.mae, found.rmse] == pytest.approx([2.0, math.sqrt(5)])


def test_float32_predictions_are_summed_in_float64() -> None:
    """Float32 distributions of a file give the same metrics as float64 copies of them."""
    rng = np.random.default_rng(0)
    pred, truth = rng.dirichlet(np.ones(NUM_SCORES), (2, 500)).astype(np.float32)
    means = mean_scores(pred), mean_scores(truth)
    exact = prediction_metrics(pred.astype(np.float64), truth.astype(np.float64), *means)
    assert prediction_metrics(pred, truth, *means) == exact


def test_the_constant_predictor_predicts_the_known_mean_distribution() -> None:
    """It knows only the given images and ranks none: correlations are undefined, without a warning."""
    known, truth = [NEAR, SPREAD], [TRUTH, FAR]
    constant = np.mean(known, axis=0)
    found = constant_predictor(known, truth, mean_scores(truth))
    by_hand = np.abs(np.cumsum(constant - np.array(truth), axis=1)).mean()
    assert found.emd_r1 == pytest.approx(by_hand)
    assert math.isnan(found.srcc)
    assert math.isnan(found.plcc)
    assert found.to_json()["srcc"] is None


def test_predictions_that_are_not_finite_give_figures_that_are_not() -> None:
    """The metrics of a diverged model are nan, and no error is raised."""
    pred = np.full((3, NUM_SCORES), np.nan)
    found = prediction_metrics(pred, [TRUTH] * 3, mean_scores(pred), mean_scores([TRUTH] * 3))
    assert all(math.isnan(value) for value in (found.emd_r1, found.emd_r2, found.srcc, found.plcc, found.mae))


@pytest.mark.parametrize(
    ("pred", "truth", "pred_mean", "named"),
    [
        ([[1.0] * 9], [TRUTH], [5.0], r"pred_dist: expected shape \[images, 10\] .*, got \[1, 9\]"),
        (TRUTH, [TRUTH], [5.0], r"pred_dist: expected shape .*, got \[10\]"),
        (np.empty((0, 10)), np.empty((0, 10)), [], r"at least 1 image, got \[0, 10\]"),
        ([TRUTH, TRUTH], [TRUTH], [5.0, 5.0], "the same images"),
        ([TRUTH], [TRUTH], [[5.0]], r"pred_mean: expected shape \[1\], one score per image, got \[1, 1\]"),
    ],
)
def test_wrong_shapes_are_refused(pred: object, truth: object, pred_mean: object, named: str) -> None:
    """Nothing is broadcast silently."""
    with pytest.raises(PredictionsError, match=named):
        prediction_metrics(pred, truth, pred_mean, np.full(len(np.asarray(pred_mean)), 5.0))  # type: ignore[arg-type]  # wrong on purpose
