"""Intervals: each resample has the metrics of its images, and the ends agree with SciPy's."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ava_pipeline.evaluation.evaluate import _draws, _variance, interval, resampled
from ava_pipeline.metrics import mean_scores, prediction_metrics
from ava_pipeline.read.predictions import Predicted, read_predicted
from tests.evaluation.evaluating import predictions_file

AVA = Path(__file__).parents[2].parent / "shared" / "ava"
needs_ava = pytest.mark.skipif(not AVA.is_dir(), reason=f"real AVA predictions are not at {AVA}")


def predicted(folder: Path, *, num_images: int = 60, ties: bool = False, seed: int = 0) -> Predicted:
    """Predictions that are close to the truth."""
    return read_predicted(predictions_file(folder / "val.parquet", range(1, num_images + 1), ties=ties, seed=seed))


@pytest.mark.parametrize("ties", [False, True], ids=["all differ", "ties"])
def test_each_resample_has_the_metrics_of_its_images(ties: bool, tmp_path: Path) -> None:  # noqa: FBT001  # from a parameter
    """The fast computation gives the same metrics as evaluating the drawn images of each resample."""
    one = predicted(tmp_path, ties=ties)
    found = resampled([one], 40)[0]
    counts = np.concatenate(list(_draws(one.num_images, 40, 0)))
    assert counts.shape == (40, 60)
    for index, drawn in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(60), drawn)
        assert len(rows) == 60
        expected = prediction_metrics(one.pred[rows], one.truth[rows], one.pred_mean[rows], one.gt_mean[rows])
        assert {name: values[index] for name, values in found.items()} == pytest.approx(asdict(expected), abs=1e-12)


def test_the_ends_agree_with_scipy(tmp_path: Path) -> None:
    """SciPy's percentile bootstrap of the same metrics, within the error of this number of resamples."""
    one = predicted(tmp_path, num_images=200)
    found = interval(resampled([one], 9999)[0])
    for name, metric in {
        "srcc": lambda pred, true: stats.spearmanr(pred, true).statistic,
        "mae": lambda pred, true: np.abs(pred - true).mean(),
    }.items():
        reference = stats.bootstrap(
            (one.pred_mean, one.gt_mean),
            metric,
            paired=True,
            vectorized=False,
            n_resamples=999,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        error = reference.high - reference.low
        assert getattr(found.low, name) == pytest.approx(reference.low, abs=0.1 * error)
        assert getattr(found.high, name) == pytest.approx(reference.high, abs=0.1 * error)


def test_95_percent_of_intervals_contain_the_true_value() -> None:
    """For errors of a known distribution: the mean absolute value of a standard normal is the root of 2/pi."""
    random = np.random.default_rng(0)
    flat = np.full((100, 10), 0.1)
    held = 0
    for seed in range(400):
        truth = np.full(100, 5.0)
        one = Predicted(Path("made"), None, flat, flat, truth + random.normal(size=100), truth)
        found = interval(resampled([one], 400, seed=seed)[0])
        held += found.low.mae <= np.sqrt(2 / np.pi) <= found.high.mae
    assert 0.91 < held / 400 < 0.98


@needs_ava
def test_real_predictions_have_narrow_intervals() -> None:
    """On 25,548 real images they agree with Fisher's formula for a correlation."""
    one = read_predicted(AVA / "real_val_predictions.parquet")
    found, metrics = interval(resampled([one], 200)[0]), one.metrics()
    fisher = np.tanh(np.arctanh(metrics.plcc) + np.array([-1.96, 1.96]) / np.sqrt(one.num_images - 3))
    assert [found.low.plcc, found.high.plcc] == pytest.approx(fisher, abs=0.003)
    assert found.low.srcc < metrics.srcc < found.high.srcc


def test_the_same_seed_gives_the_same_interval(tmp_path: Path) -> None:
    """Reported intervals can be reproduced; another seed draws other images."""
    one = predicted(tmp_path)
    assert interval(resampled([one], 50)[0]) == interval(resampled([one], 50)[0])
    assert interval(resampled([one], 50)[0]) != interval(resampled([one], 50, seed=1)[0])


def test_the_size_of_blocks_does_not_change_a_resample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks only bound the memory."""
    one = predicted(tmp_path)
    whole = resampled([one], 50)[0]
    monkeypatch.setattr("ava_pipeline.evaluation.evaluate._BLOCK", 7 * one.num_images)
    assert {name: values.tolist() for name, values in resampled([one], 50)[0].items()} == {
        name: pytest.approx(values.tolist(), abs=1e-12) for name, values in whole.items()
    }


def test_an_undefined_metric_has_no_interval(tmp_path: Path) -> None:
    """Correlations with a constant, and every metric of predictions that are not finite; without a warning."""
    one = predicted(tmp_path)
    constant = np.tile(one.truth.mean(axis=0), (one.num_images, 1))
    found = interval(resampled([replace(one, pred=constant, pred_mean=mean_scores(constant))], 50)[0])
    assert np.isnan([found.low.srcc, found.high.srcc, found.low.plcc, found.high.plcc]).all()
    assert found.low.mae < found.high.mae
    found = interval(resampled([replace(one, pred=one.pred * np.nan, pred_mean=one.pred_mean * np.inf)], 50)[0])
    assert set(found.to_json()["low"].values()) == {None}


def test_a_resample_of_one_image_has_no_correlation(tmp_path: Path) -> None:
    """Nor has a constant prediction."""
    whole = predicted(tmp_path)
    for score in np.linspace(4, 6, 30):
        constant = replace(whole, pred_mean=np.full(whole.num_images, score))
        assert np.isnan(resampled([constant], 20)[0]["plcc"]).all()
    one = predicted(tmp_path, num_images=3)
    found = resampled([one], 300)[0]
    is_one_image = (np.concatenate(list(_draws(3, 300, 0))) == 3).any(axis=1)
    assert 10 < is_one_image.sum() < 60
    for name in ("srcc", "plcc"):
        assert (np.isnan(found[name]) == is_one_image).all()


def test_a_rounding_error_is_not_a_variance() -> None:
    """Rounding of sums depends on the machine; but predictions that hardly differ have a variance."""
    mean, square = np.array([0.3, 1e-9]), np.array([0.3 * 0.3 * (1 + 4e-16), 1e-14])
    assert _variance(mean, square).tolist() == pytest.approx([0, 1e-14 - 1e-18], rel=1e-9)
    assert _variance(mean, square)[0] == 0


def test_a_single_image_has_an_interval_of_width_0(tmp_path: Path) -> None:
    """Every resample holds only this image."""
    one = predicted(tmp_path, num_images=1)
    found = interval(resampled([one], 20)[0])
    assert found.low.mae == found.high.mae == pytest.approx(one.metrics().mae)
    assert np.isnan(found.low.srcc)
