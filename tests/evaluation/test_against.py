"""Two sets of predictions, image by image."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def test_differences_are_paired_by_image(tmp_path: Path) -> None:
    """Although the second file has another order; each resample draws the same images for both."""
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
    """The metrics of these rows."""
    shares = (frame.filter(like="pred_dist_"), frame.filter(like="gt_dist_"))
    return asdict(prediction_metrics(*shares, frame["pred_mean"], frame["gt_mean"]))


def test_a_paired_interval_is_narrower_than_two_separate_intervals(tmp_path: Path) -> None:
    """A small difference on the same images is certain, although each separate interval contains the other metric."""
    ids = range(1, 201)
    one = predictions_file(tmp_path / "one.parquet", ids, noise=0.30)
    two = predictions_file(tmp_path / "two.parquet", ids, noise=0.33)
    found = compare(one, two, num_resamples=200)
    assert found.verdicts()["mae"] == "better"
    assert found.difference.high.mae - found.difference.low.mae < 0.05
    assert compare(one, one, num_resamples=50).verdicts() == dict.fromkeys(asdict(found.metrics), "unclear")


def test_images_in_one_file_only_are_counted_and_skipped(tmp_path: Path) -> None:
    """Integer ids and the same ids as text are the same images."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 41))
    two = predictions_file(tmp_path / "two.parquet", [str(image) for image in range(11, 61)], seed=1)
    found = compare(one, two, num_resamples=20)
    assert (found.num_images, found.num_only, found.num_only_other, found.num_other_truth) == (30, 10, 20, 0)
    rows = read_predicted(one)
    assert found.metrics.mae == pytest.approx(np.abs(rows.pred_mean - rows.gt_mean)[10:].mean())


def test_the_images_that_differ_most_come_first(tmp_path: Path) -> None:
    """With both predictions; images that do not differ are not listed."""
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


def test_of_a_run_the_last_epoch_is_compared(tmp_path: Path) -> None:
    """By number, not by name; the set val is preferred."""
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


def test_files_that_cannot_be_paired(tmp_path: Path) -> None:
    """Have other images, no ids, an image twice, or no predictions; the message names the reason."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 11))
    other = predictions_file(tmp_path / "other.parquet", range(11, 21))
    with pytest.raises(MisuseError, match="no image in common"):
        compare(one, other, num_resamples=5)
    frame = pd.read_parquet(other)
    frame.drop(columns="image_id").to_parquet(other)
    with pytest.raises(PredictionsError, match="no column image_id"):
        compare(one, other, num_resamples=5)
    pd.concat([frame, frame.head(1)]).to_parquet(other)
    with pytest.raises(PredictionsError, match="got 11 rows of 10 images"):
        compare(one, other, num_resamples=5)
    frame.assign(pred_mean="high").to_parquet(other)
    with pytest.raises(DamagedFileError, match=r"pred_mean: expected numbers, got .*string"):
        compare(one, other, num_resamples=5)
    with pytest.raises(NotARunError, match="no predictions found"):
        compare(one, tmp_path / "nowhere", num_resamples=5)


def test_the_command_prints_a_comparison_as_a_table_and_as_json(tmp_path: Path) -> None:
    """With a line for each metric and its verdict, the files, and the images."""
    one = predictions_file(tmp_path / "one.parquet", range(1, 41), noise=0.1)
    two = predictions_file(tmp_path / "two.parquet", range(3, 51), noise=0.6, seed=1)
    arguments = ["evaluate", str(one), "--against", str(two), "--resamples", "50"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "Two sets of predictions on 38 images" in result.stdout
    assert "Left out: 2 images in A alone, 10 in B alone." in result.stdout
    assert "50 resamples of the images (percentile bootstrap, seed 0)" in result.stdout
    srcc = next(line for line in result.stdout.splitlines() if line.startswith("SRCC"))
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert srcc.split()[1] == f"{found['metrics']['srcc']:.4f}"
    assert srcc.split()[-1] == found["verdicts"]["srcc"] == "better"
    assert found["difference_interval"] == found["difference_interval"] | {"num_resamples": 50, "confidence": 0.95}
    assert (found["num_images"], found["num_only_in_file"], found["num_only_in_against"]) == (38, 2, 10)
    assert len(found["furthest"]) == 10


def test_intervals_in_json_can_be_omitted(tmp_path: Path) -> None:
    """With `--resamples 0`; a comparison needs intervals."""
    one = str(predictions_file(tmp_path / "one.parquet", range(1, 41)))

    def evaluated(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(cli.app, ["evaluate", one, "--json", *options])
        (file,) = json.loads(result.stdout)["files"]
        return dict(file)

    file = evaluated()
    assert file["interval"]["low"]["srcc"] < file["srcc"] < file["interval"]["high"]["srcc"]
    assert file["interval"] == file["interval"] | {"num_resamples": 1000, "seed": 0, "confidence": 0.95}
    assert evaluated("--resamples", "0")["interval"] is None
    assert CliRunner().invoke(cli.app, ["evaluate", one, "--against", one, "--resamples", "0"]).exit_code == 2


def test_names_are_text_on_the_terminal(tmp_path: Path) -> None:
    """Markup and control characters in file names and image ids are escaped."""
    name = "[red]\x1b[2J\u202e"
    one = predictions_file(tmp_path / f"{name}.parquet", range(1, 11))
    frame = pd.read_parquet(one)
    frame["image_id"] = [f"[bold]{image}\x1b]0;x\x07" for image in frame["image_id"]]
    frame.to_parquet(one)
    frame.assign(pred_mean=frame["pred_mean"] + 1).to_parquet(tmp_path / "two.parquet")
    for arguments in ([str(one)], [str(one), "--against", str(tmp_path / "two.parquet")]):
        printed = CliRunner().invoke(cli.app, ["evaluate", *arguments, "--resamples", "5"]).stdout
        assert "[red]\\x1b[2J\\u202e" in printed
        assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    assert "[bold]1\\x1b]0;x\\x07" in printed
