"""One epoch's predictions in one complete file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.predictions import EpochPredictions
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.errors import MisuseError, NotARunError, PredictionsError
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import tiny, train

VOTES = torch.tensor([[0, 1, 5, 17, 38, 36, 15, 6, 5, 1], [0, 0, 0, 0, 50, 50, 0, 0, 0, 0]])


def collector(folder: Path, **settings: Any) -> TelemetryCollector:
    """A collector that recorded nothing yet."""
    model, optimizer = tiny()
    return TelemetryCollector(model, optimizer, folder, **settings)


def softmaxed(num: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Predicted distributions."""
    return torch.randn(num, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=1).to(dtype)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_file_holds_what_was_added(tmp_path: Path, enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Means in float64, from votes where votes are given; also with telemetry off."""
    pred = softmaxed(4)
    telemetry = collector(tmp_path, enabled=enabled)
    with telemetry.val_predictions(3) as predictions:
        predictions.add(torch.tensor([11, 12]), pred[:2], VOTES)
        predictions.add([13, 14], pred[2:], VOTES / VOTES.sum(dim=1, keepdim=True))
    frame = pd.read_parquet(tmp_path / "predictions" / "val_epoch_003.parquet")
    scores = np.arange(1, 11)
    assert frame["image_id"].tolist() == [11, 12, 13, 14]
    assert frame["gt_mean"].iloc[1] == 5.5
    assert frame["pred_mean"].to_numpy() == pytest.approx(pred.double().numpy() @ scores, rel=1e-6)
    assert frame["gt_mean"].to_numpy() == pytest.approx(np.tile(VOTES.numpy() @ scores / VOTES.sum(1).numpy(), 2))
    assert frame[[f"pred_dist_{k}" for k in scores]].to_numpy() == pytest.approx(pred.numpy(), rel=1e-6)
    telemetry.close()


def test_a_mean_of_exactly_five_stays_five(tmp_path: Path) -> None:
    """From integer votes: normalised floats would flip some images across the "> 5" line."""
    votes = torch.zeros(1, 10, dtype=torch.int64)
    votes[0, [0, 2, 4, 6, 8]] = torch.tensor([7, 7, 7, 7, 7])
    with collector(tmp_path).val_predictions(0) as predictions:
        predictions.add([1], softmaxed(1), votes)
    assert open_run(tmp_path).val_predictions(0)["gt_mean"].tolist() == [5.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_renormalised(tmp_path: Path, dtype: torch.dtype) -> None:
    """Distributions rounded to half precision sum to 1 again in the file."""
    with collector(tmp_path).val_predictions(0) as predictions:
        predictions.add(range(64), softmaxed(64, dtype), VOTES.repeat(32, 1))
    frame = pd.read_parquet(tmp_path / "predictions" / "val_epoch_000.parquet")
    assert frame.filter(like="pred_dist").sum(axis=1).to_numpy() == pytest.approx(np.ones(64), abs=1e-6)


def test_string_ids_and_other_sets(tmp_path: Path) -> None:
    """File names can be ids, and a test set gets its own files."""
    with collector(tmp_path).val_predictions(0, name="test") as predictions:
        predictions.add(["a.jpg", "b.jpg"], softmaxed(2), VOTES)
    frame = pd.read_parquet(tmp_path / "predictions" / "test_epoch_000.parquet")
    assert frame["image_id"].tolist() == ["a.jpg", "b.jpg"]


def test_a_validation_after_a_batch_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Beside that of the epoch; the run validates, and both can be read."""
    telemetry = collector(tmp_path)
    for batch_idx, fill in ((500, 1.0), (12_345_678_901, 2.0), (None, 3.0)):
        with telemetry.val_predictions(0, batch_idx=batch_idx) as predictions:
            predictions.add([1, 2], torch.full((2, 10), 0.1), torch.full((2, 10), fill))
    telemetry.close()
    names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert names == [
        "val_epoch_000.parquet",
        "val_epoch_000_batch_00000500.parquet",
        "val_epoch_000_batch_12345678901.parquet",
    ]
    found = [(file.name, *file.moment) for file in prediction_files(RunLayout(tmp_path))]
    assert found == [("val", 0, 500), ("val", 0, 12_345_678_901), ("val", 0, None)]
    run = open_run(tmp_path)
    assert run.val_predictions(0, batch_idx=500)["image_id"].tolist() == [1, 2]
    with pytest.raises(NotARunError, match="0 after batch 500, 0 after batch 12345678901, 0"):
        run.val_predictions(0, batch_idx=501)
    assert [str(one) for one in validate_run(tmp_path)] == []


@pytest.mark.parametrize("batch_idx", ["5", 1.5, 0, -1, True])
def test_a_batch_that_names_no_file_is_refused(tmp_path: Path, batch_idx: Any) -> None:
    """Before the block begins."""
    with pytest.raises(MisuseError, match="give an int, 1 or more and below"):
        collector(tmp_path).val_predictions(0, batch_idx=batch_idx)


class TestCallbacks:
    """A framework calls one method at the begin, one per batch and one at the end."""

    def test_begin_and_end_write_what_a_block_writes(self, tmp_path: Path) -> None:
        """The same object can begin again, without what it had before."""
        predictions = collector(tmp_path).val_predictions(0)
        for image_id in (1, 2):
            assert predictions.begin() is predictions
            predictions.add([image_id], softmaxed(1), VOTES[:1])
            predictions.end()
        assert open_run(tmp_path).val_predictions(0)["image_id"].tolist() == [2]
        assert (tmp_path / "predictions/superseded/val_epoch_000.1.parquet").exists()

    def test_what_is_dropped_is_not_written(self, tmp_path: Path) -> None:
        """Neither by drop nor by another begin."""
        predictions = collector(tmp_path).val_predictions(0).begin()
        predictions.add([1], softmaxed(1), VOTES[:1])
        predictions.drop()
        assert not (tmp_path / "predictions").exists()
        predictions.begin().add([2], softmaxed(1), VOTES[:1])
        predictions.begin().add([3], softmaxed(1), VOTES[:1])
        predictions.end()
        assert open_run(tmp_path).val_predictions(0)["image_id"].tolist() == [3]

    def test_a_call_without_begin_raises(self, tmp_path: Path) -> None:
        """Before a whole epoch is predicted in vain; also after end and after drop."""
        predictions = collector(tmp_path).val_predictions(0)
        for end in (predictions.drop, lambda: end_one(predictions)):
            end()
            with pytest.raises(
                MisuseError, match=r"add\(\) was called outside a `with` block .* call begin\(\) before"
            ):
                predictions.add([1], softmaxed(1), VOTES[:1])
            with pytest.raises(MisuseError, match=r"end\(\) was called outside"):
                predictions.end()

    def test_an_end_that_raises_has_ended(self, tmp_path: Path) -> None:
        """With on_error='raise'; what could not be written is not held any longer."""
        predictions = collector(tmp_path, on_error="raise").val_predictions(0).begin()
        with pytest.raises(PredictionsError, match="no predictions were added"):
            predictions.end()
        with pytest.raises(MisuseError, match=r"end\(\) was called outside"):
            predictions.end()


def end_one(predictions: EpochPredictions) -> None:
    """Write a file with one image."""
    predictions.begin().add([1], softmaxed(1), VOTES[:1])
    predictions.end()


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    """Half an epoch writes no file."""

    def half_an_epoch() -> None:
        with collector(tmp_path).val_predictions(0) as predictions:
            predictions.add([1, 2], softmaxed(2), VOTES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_an_epoch()
    assert not (tmp_path / "predictions").exists()


def test_added_tensors_may_be_used_again(tmp_path: Path) -> None:
    """A loop that writes every batch into one buffer."""
    buffer, ids = softmaxed(2), torch.tensor([1, 2])
    first = buffer.clone()
    with collector(tmp_path).val_predictions(0) as predictions:
        predictions.add(ids, buffer, VOTES)
        buffer.fill_(0.1)
        ids.fill_(7)
    frame = open_run(tmp_path).val_predictions(0)
    assert frame["image_id"].tolist() == [1, 2]
    assert frame["pred_dist_1"].tolist() == pytest.approx(first[:, 0].tolist())


@pytest.mark.parametrize(("pred", "gt"), [((2, 9), (2, 10)), ((3, 10), (2, 10)), ((2, 10), (2, 5)), ((20,), (2, 10))])
def test_a_wrong_shape_is_refused_at_once(tmp_path: Path, pred: tuple[int, ...], gt: tuple[int, ...]) -> None:
    """With the shape given and the shape needed."""
    with (
        pytest.raises(MisuseError, match=r"2 images need \(2, 10\)"),
        collector(tmp_path).val_predictions(0) as predictions,
    ):
        predictions.add([1, 2], torch.full(pred, 0.1), torch.ones(gt))


@pytest.mark.parametrize(
    "ids",
    [
        *([True, False], [2**70, 1], [[1], [2]], [1.5, 2.5], None, 5, "12", np.int64(5), np.array(5)),
        *(torch.tensor(one) for one in ([True, False], [[1], [2]], [1.5, 2.5])),
    ],
)
def test_ids_that_cannot_be_kept_are_refused_at_once(tmp_path: Path, ids: Any) -> None:
    """Before a whole epoch was predicted."""
    with (
        pytest.raises(MisuseError, match="64-bit integers or strings"),
        collector(tmp_path).val_predictions(0) as predictions,
    ):
        predictions.add(ids, softmaxed(2), VOTES)


@pytest.mark.parametrize("given", [None, "softmax", [[0.1], [0.1, 0.2]], {}])
def test_an_argument_that_is_not_a_tensor_is_refused_at_once(tmp_path: Path, given: Any) -> None:
    """As predictions and as truth."""
    for name, arguments in (("pred_dist", (given, VOTES)), ("gt", (softmaxed(2), given))):
        with (
            pytest.raises(MisuseError, match=f"{name} is a {type(given).__name__} and cannot be made a tensor"),
            collector(tmp_path).val_predictions(0) as predictions,
        ):
            predictions.add([1, 2], *arguments)


@pytest.mark.parametrize("epoch", ["0", None, 1.5, -1, True, 2**63])
def test_an_epoch_that_names_no_file_is_refused(tmp_path: Path, epoch: Any) -> None:
    """Before the block begins."""
    with pytest.raises(MisuseError, match="give an int, 0 or more and below"):
        collector(tmp_path).val_predictions(epoch)


def test_every_failed_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One sentence an epoch, not only for the first, and each time that one name is tried again."""
    telemetry = collector(tmp_path)
    for epoch in (0, 1, 1):
        with telemetry.val_predictions(epoch) as predictions:
            predictions.add(["\ud800", "b"], softmaxed(2), VOTES)
    assert [record.getMessage().count("was not written") for record in caplog.records] == [1, 1, 1]


BAD: dict[str, tuple[Tensor, Tensor, list[Any], str]] = {
    "logits": (torch.randn(2, 10), VOTES, [1, 2], "softmax"),
    "nan": (torch.full((2, 10), float("nan")), VOTES, [1, 2], "softmax"),
    "negative": (torch.tensor([[-0.1, 1.1, *[0.0] * 8]] * 2), VOTES, [1, 2], "softmax"),
    "no votes": (softmaxed(2), torch.zeros(2, 10), [1, 2], "votes"),
    "twice": (softmaxed(2), VOTES, [7, 7], "more than once, such as 7"),
    "twice as text": (softmaxed(2), VOTES, [7, "7"], "more than once, such as 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_predictions_are_reported_and_training_continues(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One sentence with image and remedy, an event, no file; earlier epochs stay."""
    pred, votes, ids, reason = BAD[case]
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 1)
        with telemetry.val_predictions(0) as predictions:
            predictions.add([1, 2], softmaxed(2), VOTES)
        with telemetry.val_predictions(1) as predictions:
            predictions.add(ids, pred, votes)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["val_epoch_000.parquet"]
    assert reason in caplog.text
    assert open_run(tmp_path).events()["event"].tolist() == ["failed_predictions"]


def test_bad_predictions_raise_where_asked_to(tmp_path: Path) -> None:
    """With on_error='raise'."""
    with (
        pytest.raises(PredictionsError, match="softmax"),
        collector(tmp_path, on_error="raise").val_predictions(0) as predictions,
    ):
        predictions.add([1, 2], torch.randn(2, 10), VOTES)


def test_an_epoch_written_again_sets_the_older_file_aside(tmp_path: Path) -> None:
    """As after a resume in the middle of an epoch: no run file is deleted."""
    for fill in (1.0, 2.0):
        with collector(tmp_path).val_predictions(0) as predictions:
            predictions.add([1], torch.full((1, 10), 0.1), torch.full((1, 10), fill))
    assert (tmp_path / "predictions" / "superseded" / "val_epoch_000.1.parquet").exists()
