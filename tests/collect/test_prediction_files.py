"""Predictions that the disk refuses are reported at once, and close tries again to write them."""

import logging
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.collect.predictions import MAX_WAITING_BYTES, PredictionFiles
from ava_pipeline.contract import parquet
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.errors import PredictionsError
from ava_pipeline.write.event_log import EventLog
from tests.collect.models import tiny, train

pytestmark = pytest.mark.timeout(60)

ROWS = pa.table({"image_id": [1, 2, 3]})


def files_of(root: Path, max_bytes: int = MAX_WAITING_BYTES) -> PredictionFiles:
    """The files of predictions of a run directory."""
    return PredictionFiles(RunLayout(root), EventLog(root), BatchCount(1), max_bytes=max_bytes)


def validate(telemetry: TelemetryCollector, epoch: int, image_id: int) -> None:
    """An epoch's validation with one image."""
    with telemetry.val_predictions(epoch) as predictions:
        predictions.add([image_id], torch.full((1, 10), 0.1), torch.ones(1, 10))


def test_close_writes_what_the_disk_did_not_take(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The event and the one warning name the epoch's file; later epochs and the rows are not held up."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(telemetry, model, optimizer, 1)
    (tmp_path / "predictions").write_text("in the way")
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        validate(telemetry, 0, 7)
    assert [one for one in caplog.messages if "val_epoch_000.parquet was not written" in one and "close()" in one]
    (tmp_path / "predictions").unlink()
    validate(telemetry, 1, 8)
    telemetry.close()
    run = open_run(tmp_path)
    assert [run.val_predictions(epoch)["image_id"].tolist() for epoch in (0, 1)] == [[7], [8]]
    assert run.events()["event"].tolist() == ["failed_predictions"]


def test_an_epoch_that_was_validated_again_is_not_written_over_by_what_was_kept(tmp_path: Path) -> None:
    """The latest predictions of an epoch are the ones that stay."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path) as telemetry:
        (tmp_path / "predictions").write_text("in the way")
        validate(telemetry, 0, 7)
        (tmp_path / "predictions").unlink()
        validate(telemetry, 0, 8)
    assert open_run(tmp_path).val_predictions(0)["image_id"].tolist() == [8]
    assert not (tmp_path / "predictions" / "superseded").exists()


def test_what_cannot_be_written_at_the_end_either_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Close writes the others and does not raise."""
    (tmp_path / "file").write_text("in the way")
    lost, saved = tmp_path / "file" / "val_epoch_000.parquet", tmp_path / "late" / "val_epoch_001.parquet"
    saved.parent.write_text("in the way")
    files = files_of(tmp_path)
    for path in (lost, saved):
        with pytest.raises(PredictionsError, match=r"kept in memory, and close\(\) tries again"):
            files.write(path, ROWS)
    saved.parent.unlink()
    files.write_again()
    assert [one for one in caplog.messages if "val_epoch_000.parquet" in one and "is lost" in one]
    assert read_parquet(saved).equals(ROWS)


def test_no_more_is_kept_than_memory_permits(tmp_path: Path) -> None:
    """A disk that is full for many epochs does not fill the memory."""
    (tmp_path / "file").write_text("in the way")
    files = files_of(tmp_path, max_bytes=ROWS.nbytes)
    with pytest.raises(PredictionsError, match="kept in memory"):
        files.write(tmp_path / "file" / "val_epoch_000.parquet", ROWS)
    with pytest.raises(PredictionsError, match="these rows are lost"):
        files.write(tmp_path / "file" / "val_epoch_001.parquet", ROWS)
    with pytest.raises(PredictionsError, match="kept in memory"):
        files.write(tmp_path / "file" / "val_epoch_000.parquet", ROWS)


def test_an_epoch_whose_new_predictions_the_disk_refuses_keeps_its_old_ones(tmp_path: Path) -> None:
    """Whether the file or the copy of the older one is refused; the new ones are written later."""
    path = tmp_path / "predictions" / "val_epoch_000.parquet"
    files, newer = files_of(tmp_path), pa.table({"image_id": [4]})
    files.write(path, ROWS)
    for in_the_way in (path.with_name(f"{path.name}.partial") / "inside", path.parent / "superseded"):
        in_the_way.parent.mkdir(exist_ok=True)
        in_the_way.touch()
        with pytest.raises(PredictionsError, match="kept in memory"):
            files.write(path, newer)
        assert read_parquet(path).equals(ROWS)
        in_the_way.unlink()
        if in_the_way.name == "inside":
            in_the_way.parent.rmdir()
    files.write_again()
    assert read_parquet(path).equals(newer)
    assert read_parquet(path.parent / "superseded" / "val_epoch_000.1.parquet").equals(ROWS)
    assert sorted(one.name for one in path.parent.iterdir()) == ["superseded", path.name]


def test_predictions_that_read_back_other_than_written_wait_for_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written again."""
    path = tmp_path / "predictions" / "val_epoch_000.parquet"
    files = files_of(tmp_path)
    with monkeypatch.context() as lying:
        lying.setattr(parquet, "same_rows", lambda *_: False)
        with pytest.raises(PredictionsError, match=r"reads back with other values .* kept in memory, and close"):
            files.write(path, ROWS)
    files.write_again()
    assert read_parquet(path).equals(ROWS)


@pytest.mark.parametrize("name", ["predictions", "predictions/superseded", "predictions/val_epoch_000.parquet"])
def test_no_predictions_are_written_outside_the_run(name: str, tmp_path: Path) -> None:
    """A link that leads out costs the epoch's predictions, with an event; training continues."""
    outside, root = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    link = root / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, root, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 1)
        validate(telemetry, 0, 7)
        link.unlink()
        validate(telemetry, 1, 8)
    run = open_run(root)
    assert list(outside.iterdir()) == []
    assert run.val_predictions(1)["image_id"].tolist() == [8]
    (message,) = run.events()["message"]
    assert f"{link} is a link out of the run directory" in message


def test_what_was_kept_is_not_written_outside_the_run_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link made in the meantime; close does not raise."""
    folder = tmp_path / "run" / "predictions"
    (tmp_path / "outside").mkdir()
    folder.parent.mkdir()
    folder.write_text("in the way")
    files = files_of(folder.parent)
    with pytest.raises(PredictionsError, match="kept in memory"):
        files.write(folder / "val_epoch_000.parquet", ROWS)
    folder.unlink()
    folder.symlink_to(tmp_path / "outside")
    files.write_again()
    assert [one for one in caplog.messages if "link out of the run directory" in one]
    assert list((tmp_path / "outside").iterdir()) == []
