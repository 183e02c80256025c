"""Two sets of predictions, image by image."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ava_pipeline import cli
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError, PredictionsError
from ava_pipeline.evaluation.against import compare
from ava_pipeline.evaluation.evaluate import _draws
from ava_pipeline.metrics import prediction_metrics
from ava_pipeline.read.predictions import read_predicted
from tests.evaluation.evaluating import predictions_file


def test_differences_are_those_of_the_same_images(tmp_path: Path) -> None:
    """The second file holds them in another order; each resample draws them alike for both."""
    ids = list(range(1, 81))
    one = predictions_file(tmp_path / "one.parquet", ids, noise=0.2)
    two = predictions_file(tmp_path / "two.parquet", ids, noise=0.5, seed=1)
    shuffled = pd.read_parquet(two).sample(frac=1, random_state=0)
    shuffled.to_parquet(two)
    found = compare(one, two, num_resamples=30)
    first, second = pd.read_parquet(one), shuffled.set_index("image_id").loc[ids].reset_index()
    drawn = []
    for counts in np.concatenate(list(_draws(80, 30, 0))).astype(int):
        rows = np.repeat(np.arange(80), counts)
        pair = [figures(frame.iloc[rows]) for frame in (first, second)]
        drawn.append({name: value - pair[1][name] for name, value in pair[0].items()})
    for name in asdict(found.metrics):
        ends = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        assert [getattr(found.difference.low, name), getattr(found.difference.high, name)] == pytest.approx(ends)
    assert found.differences()["srcc"] == pytest.approx(figures(first)["srcc"] - figures(second)["srcc"])
    assert set(found.verdicts().values()) == {"better"}
    assert set(compare(two, one, num_resamples=30).verdicts().values()) == {"worse"}


def figures(frame: pd.DataFrame) -> dict[str, float]:
    """The metrics of some rows."""
    shares = (frame.filter(like="pred_dist_"), frame.filter(like="gt_dist_"))
    return asdict(prediction_metrics(*shares, frame["pred_mean"], frame["gt_mean"]))


def test_a_pair_tells_what_two_intervals_cannot(tmp_path: Path) -> None:
    """A small difference on the same images is sure, though each figure's own interval holds the other."""
    ids = range(1, 201)
    one = predictions_file(tmp_path / "one.parquet", ids, noise=0.30)
    two = predictions_file(tmp_path / "two.parquet", ids, noise=0.33)
    found = compare(one, two, num_resamples=200)
    assert found.verdicts()["mae"] == "better"
    assert found.difference.high.mae - found.difference.low.mae < 0.05
    assert compare(one, one, num_resamples=50).verdicts() == dict.fromkeys(asdict(found.metrics), "unclear")


def test_images_in_one_file_only_are_counted_and_left_out(tmp_path: Path) -> None:
    """Integer ids and the same ids as text are the same images."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 41))
    two = predictions_file(tmp_path / "two.parquet", [str(image) for image in range(11, 61)], seed=1)
    found = compare(one, two, num_resamples=20)
    assert (found.num_images, found.num_only, found.num_only_other, found.num_other_truth) == (30, 10, 20, 0)
    rows = read_predicted(one)
    assert found.metrics.mae == pytest.approx(np.abs(rows.pred_mean - rows.gt_mean)[10:].mean())


def test_the_images_that_differ_most_come_first(tmp_path: Path) -> None:
    """With what both predict; those that do not differ are not listed."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 41))
    frame = pd.read_parquet(one)
    moved, truth = np.zeros((2, len(frame)))
    moved[6], moved[20], truth[3] = 1.0, -2.0, 0.5
    frame = frame.assign(pred_mean=frame["pred_mean"] + moved, gt_mean=frame["gt_mean"] + truth)
    frame.to_parquet(tmp_path / "two.parquet")
    found = compare(one, tmp_path / "two.parquet", num_resamples=20)
    assert [image.image_id for image in found.furthest] == [21, 7]
    assert found.furthest[0].pred_mean - found.furthest[0].other_mean == pytest.approx(2.0)
    assert found.num_other_truth == 1


def test_of_a_run_the_last_epoch_counts(tmp_path: Path) -> None:
    """By number, not by name; a set that is named val before others."""
    for name in ("val_epoch_000", "val_epoch_1000", "val_epoch_999", "zoo_epoch_000"):
        predictions_file(tmp_path / f"run/predictions/{name}.parquet", range(1, 11))
    other = predictions_file(tmp_path / "other.parquet", range(1, 11))
    assert compare(tmp_path / "run", other, num_resamples=5).path.name == "val_epoch_1000.parquet"
    for path in (tmp_path / "run/predictions").glob("val*"):
        path.unlink()
    assert compare(tmp_path / "run", other, num_resamples=5).path.name == "zoo_epoch_000.parquet"
    predictions_file(tmp_path / "run/predictions/ape_epoch_000.parquet", range(1, 11))
    with pytest.raises(MisuseError, match="2 sets of predictions, none of them named val"):
        compare(tmp_path / "run", other, num_resamples=5)


def test_what_cannot_be_paired_is_named(tmp_path: Path) -> None:
    """Other images, no ids, an image twice, no predictions."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 11))
    other = predictions_file(tmp_path / "other.parquet", range(11, 21))
    with pytest.raises(MisuseError, match="no image in common"):
        compare(one, other, num_resamples=5)
    frame = pd.read_parquet(other)
    frame.drop(columns="image_id").to_parquet(other)
    with pytest.raises(PredictionsError, match="no column image_id"):
        compare(one, other, num_resamples=5)
    pd.concat([frame, frame.head(1)]).to_parquet(other)
    with pytest.raises(PredictionsError, match="11 rows of 10 images"):
        compare(one, other, num_resamples=5)
    frame.assign(pred_mean="high").to_parquet(other)
    with pytest.raises(DamagedFileError, match=r"pred_mean is .*string, not numbers"):
        compare(one, other, num_resamples=5)
    with pytest.raises(NotARunError, match="no predictions found"):
        compare(one, tmp_path / "nowhere", num_resamples=5)


def test_the_command_shows_a_comparison_and_gives_it_to_programs(tmp_path: Path) -> None:
    """A line a metric with what it says, the files, and the images."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 41), noise=0.1)
    two = predictions_file(tmp_path / "two.parquet", range(3, 51), noise=0.6, seed=1)
    arguments = ["evaluate", str(one), "--against", str(two), "--resamples", "50"]
    told = CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 0
    assert "Two sets of predictions on 38 images" in told.stdout
    assert "Left out: 2 images in A alone, 10 in B alone." in told.stdout
    assert "50 resamples of the images (percentile bootstrap, seed 0)" in told.stdout
    srcc = next(line for line in told.stdout.splitlines() if line.startswith("SRCC"))
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert srcc.split()[1] == f"{found['metrics']['srcc']:.4f}"
    assert srcc.split()[-1] == found["verdicts"]["srcc"] == "better"
    assert found["difference_interval"] == found["difference_interval"] | {"num_resamples": 50, "confidence": 0.95}
    assert (found["num_images"], found["num_only_in_file"], found["num_only_in_against"]) == (38, 2, 10)
    assert len(found["furthest"]) == 10


def test_intervals_go_to_programs_and_can_be_left_out(tmp_path: Path) -> None:
    """`--resamples 0` is what evaluate was before; a comparison needs them."""
    one = str(predictions_file(tmp_path / "one.parquet", range(1, 41)))
    told = json.loads(CliRunner().invoke(cli.app, ["evaluate", one, "--json"]).stdout)["files"][0]
    assert told["interval"]["low"]["srcc"] < told["srcc"] < told["interval"]["high"]["srcc"]
    assert told["interval"] == told["interval"] | {"num_resamples": 1000, "seed": 0, "confidence": 0.95}
    told = json.loads(CliRunner().invoke(cli.app, ["evaluate", one, "--json", "--resamples", "0"]).stdout)["files"][0]
    assert told["interval"] is None
    assert CliRunner().invoke(cli.app, ["evaluate", one, "--against", one, "--resamples", "0"]).exit_code == 2


def test_names_are_text_on_the_terminal(tmp_path: Path) -> None:
    """Markup and control characters in file names and image ids are shown, not obeyed."""
    name = "[red]\x1b[2J\u202e"
    one = predictions_file(tmp_path / f"{name}.parquet", range(1, 11))
    frame = pd.read_parquet(one)
    frame["image_id"] = [f"[bold]{image}\x1b]0;x\x07" for image in frame["image_id"]]
    frame.to_parquet(one)
    frame.assign(pred_mean=frame["pred_mean"] + 1).to_parquet(tmp_path / "two.parquet")
    for arguments in ([str(one)], [str(one), "--against", str(tmp_path / "two.parquet")]):
        told = CliRunner().invoke(cli.app, ["evaluate", *arguments, "--resamples", "5"]).stdout
        assert "[red]\\x1b[2J\\u202e" in told
        assert not {"\x1b", "\x07", "\u202e"} & set(told)
    assert "[bold]1\\x1b]0;x\\x07" in told
