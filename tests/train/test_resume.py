"""A run that was ended and resumed equals a run that was never ended, to the last bit."""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest
import torch

from ava_pipeline.collect.predictions import EpochPredictions
from ava_pipeline.errors import CheckpointError, RunExistsError, RunInUseError, SplitError, TrainingError
from ava_pipeline.write import metrics_file
from tests.train.small_runs import BATCHES_PER_EPOCH, at_batch, command, differing_files, run, send_signal
from tests.write.test_lock import held_elsewhere


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was not ended."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run(folder)
    assert outcome.stopped_by is None
    return folder / "run"


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 6, 9, 10])
def test_a_run_ended_after_any_batch_continues_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, batch: int
) -> None:
    """Within and at the end of an accumulation, at an epoch's last batch and after it."""
    with monkeypatch.context() as patch:
        at_batch(patch, batch, send_signal(signal.SIGTERM))
        assert run(tmp_path).stopped_by == signal.SIGTERM
    assert run(tmp_path, resume=True).stopped_by is None
    assert differing_files(whole, tmp_path / "run") == []


def test_weight_deltas_continue_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the row before are in the checkpoint, and the rows are those of a run without an end."""
    switch = ("telemetry.track_weight_delta=true", "telemetry.collect_every_n=2")
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", *switch)
    with monkeypatch.context() as patch:
        at_batch(patch, 6, send_signal(signal.SIGTERM))
        run(tmp_path / "ended", *switch)
    run(tmp_path / "ended", *switch, resume=True)
    assert differing_files(tmp_path / "whole/run", tmp_path / "ended/run") == []
    deltas = pd.read_csv(tmp_path / "ended/run/telemetry/weight_deltas.csv")
    assert deltas["overall"].isna().tolist() == [True] + [False] * (len(deltas) - 1)


def test_a_run_ended_in_validation_validates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """No partial file of predictions is left, and no batch is trained twice."""
    add = EpochPredictions.add

    def asking(self: EpochPredictions, *arguments: object) -> None:
        add(self, *arguments)  # type: ignore[arg-type]  # handed through
        send_signal(signal.SIGUSR1)()

    with monkeypatch.context() as patch:
        patch.setattr(EpochPredictions, "add", asking)
        outcome = run(tmp_path)
    assert (outcome.stopped_by, outcome.results) == (signal.SIGUSR1, [])
    assert not (tmp_path / "run/predictions").exists()
    run(tmp_path, resume=True)
    assert differing_files(whole, tmp_path / "run") == []


def test_a_second_ctrl_c_ends_at_once_and_costs_the_batches_since_the_checkpoint(tmp_path: Path, whole: Path) -> None:
    """The signal kills the process as it kills any program; the lost batches are trained again, to the same rows."""
    ended = command(tmp_path, signum=signal.SIGINT, batch=8, times=2)
    assert ended.returncode == -signal.SIGINT
    outcome = run(tmp_path, resume=True)
    assert outcome.costs.num_batches == BATCHES_PER_EPOCH
    assert differing_files(whole, tmp_path / "run") == []


def test_checkpoints_within_an_epoch_lose_fewer_batches(tmp_path: Path, whole: Path) -> None:
    """SIGKILL; a checkpoint due after 2 batches is saved at the next step, batch 3 of the second epoch."""
    killed = command(tmp_path, "--set", "checkpoint.every_n_batches=2", signum=signal.SIGKILL, batch=10)
    assert killed.returncode == -signal.SIGKILL
    outcome = run(tmp_path, resume=True)
    assert outcome.costs.num_batches == 2
    assert differing_files(whole, tmp_path / "run") == []


def _run_out_of_memory() -> None:
    raise MemoryError


def test_resume_without_a_checkpoint_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    """A scheduler requeues the unchanged command, also after a crash in the first epoch."""
    with monkeypatch.context() as patch:
        at_batch(patch, 2, _run_out_of_memory)
        with pytest.raises(MemoryError):
            run(tmp_path, resume=True)
    assert run(tmp_path, resume=True).stopped_by is None
    assert differing_files(whole, tmp_path / "run") == []


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The command reports this and changes nothing."""
    run(tmp_path, "train.epochs=1")
    before = (tmp_path / "run/telemetry/manifest.json").read_bytes()
    with caplog.at_level(logging.INFO, logger="ava_pipeline"):
        outcome = run(tmp_path, "train.epochs=1", resume=True)
    assert "Nothing left to do: " in caplog.text
    assert "holds all 1 epochs. Raise train.epochs" in caplog.text
    assert (outcome.costs.num_batches, len(outcome.results)) == (0, 1)
    assert (tmp_path / "run/telemetry/manifest.json").read_bytes() == before


def test_more_epochs_and_another_rate_may_be_asked_for_on_the_way(tmp_path: Path) -> None:
    """The rate of the new config is used, and the old config is moved to superseded/."""
    run(tmp_path, "train.epochs=1")
    outcome = run(tmp_path, "train.epochs=2", "optim.base_lr=5e-4", "optim.schedule=constant", resume=True)
    assert [result.epoch for result in outcome.results] == [0, 1]
    saved = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert [group["lr"] for group in saved["optimizer"]["param_groups"]] == [5e-4, 5e-3]
    assert "base_lr: 0.0005" in (tmp_path / "run/config.yaml").read_text()
    assert "base_lr: 0.01" in (tmp_path / "run/superseded/attempt-1/config.yaml").read_text()


def test_rows_past_the_checkpoint_move_to_superseded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """An older checkpoint was restored, so later rows move to superseded/."""
    last, older = tmp_path / "run/checkpoints/last.pt", tmp_path / "older.pt"
    with monkeypatch.context() as patch:
        at_batch(patch, BATCHES_PER_EPOCH + 1, lambda: shutil.copy(last, older))
        run(tmp_path)
    shutil.copy(older, last)
    lost = (tmp_path / "run/metrics.csv").read_bytes()
    run(tmp_path, resume=True)
    assert (tmp_path / "run/superseded/attempt-1/metrics.csv").read_bytes() == lost
    assert differing_files(whole, tmp_path / "run") == []


def full_disk(_: Path) -> NoReturn:
    """Refuse a new file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is written before metrics.csv, which a resume rewrites from the checkpoint."""
    metrics = tmp_path / "run/metrics.csv"
    off = ("telemetry.enabled=false", "save_val_predictions=false")
    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "written_aside", full_disk)
        with pytest.raises(TrainingError, match=r"metrics\.csv cannot be written \(No space left.*--resume"):
            run(tmp_path, *off)
    assert not metrics.exists()
    assert run(tmp_path, *off, resume=True).costs.num_batches == BATCHES_PER_EPOCH
    assert [line.partition(",")[0] for line in metrics.read_text().splitlines()] == ["epoch", "0", "1"]


@pytest.mark.parametrize("name", ["split.csv", "excluded_images.csv", "metrics.csv"])
def test_a_file_that_the_disk_refuses_is_named(tmp_path: Path, name: str) -> None:
    """At the start or during training; a folder in place of the file fails for every user, even root."""
    run(tmp_path, "train.epochs=1")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / f"{name}.partial").mkdir()
    with pytest.raises(TrainingError, match=f"{name} cannot be written .* --resume"):
        run(tmp_path, "train.epochs=1", resume=True)


def test_a_torn_metrics_file_is_repaired_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """The torn file is kept in superseded/."""
    with monkeypatch.context() as patch:
        at_batch(patch, 6, send_signal(signal.SIGTERM))
        run(tmp_path)
    with (tmp_path / "run/metrics.csv").open("a") as file:
        file.write("1,0.0")
    run(tmp_path, resume=True)
    assert (tmp_path / "run/superseded/attempt-1/metrics.csv").read_text().endswith("\n1,0.0")
    assert differing_files(whole, tmp_path / "run") == []


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.batch_size=5", "train.batch_size was 4, is 5"),
        ("model.hidden_sizes=[9]", r"model.hidden_sizes was \[8\], is \[9\]"),
        ("optim.name=adamw", "optim.name was 'sgd', is 'adamw'"),
        ("seed=1", "seed was 0, is 1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, whole: Path, override: str, named: str) -> None:
    """Nothing in the directory changes."""
    metrics = (whole / "metrics.csv").read_bytes()
    with pytest.raises(CheckpointError, match=named):
        run(whole.parent, override, resume=True)
    assert (whole / "metrics.csv").read_bytes() == metrics


def test_a_used_directory_is_refused_with_the_options_to_continue(whole: Path) -> None:
    """Also if the run never saved a checkpoint."""
    with pytest.raises(RunExistsError, match=r"already holds a run .*--resume.*--output-dir DIR.*--restart"):
        run(whole.parent)


@pytest.mark.parametrize("name", ["train.lock", "telemetry/writer.lock"])
def test_a_directory_that_another_process_writes_is_refused_by_its_name(tmp_path: Path, whole: Path, name: str) -> None:
    """Whatever the options are, and whatever the other process is doing; nothing in the directory changes."""
    before = (whole / "config.yaml").stat().st_mtime_ns
    with held_elsewhere(whole / name) as holder:
        for options in ({"resume": True}, {"restart": True}):
            with pytest.raises(RunInUseError, match=f"pid {holder.pid} on host .*, since .*output directory"):
                run(whole.parent, **options)
    assert (whole / "config.yaml").stat().st_mtime_ns == before


def test_restart_moves_everything_to_superseded(tmp_path: Path, whole: Path) -> None:
    """The new attempt is a whole run, which validates clean; all old files are in superseded/."""
    run(tmp_path, "train.epochs=1", "seed=3")
    old = (tmp_path / "run/metrics.csv").read_bytes()
    run(tmp_path, restart=True)
    superseded = tmp_path / "run/superseded/attempt-1"
    assert (superseded / "metrics.csv").read_bytes() == old
    assert {path.name for path in superseded.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "predictions",
        "split.csv",
        "excluded_images.csv",
    }
    assert differing_files(whole, tmp_path / "run") == []


def test_an_image_that_is_gone_is_named_before_anything_is_written(tmp_path: Path) -> None:
    """The saved split still has the image: restoring it allows a resume, and a restart excludes it."""
    options = ("data.max_bad_fraction=0.1", "data.sample=null", "train.epochs=1")
    run(tmp_path, "train.epochs=1")
    split = pd.read_csv(tmp_path / "run/split.csv")
    image_id = int(split.loc[split["set"] == "val", "image_id"].iloc[0])
    image = tmp_path / f"data/images/{image_id}.jpg"
    moved = image.rename(tmp_path / "moved.jpg")
    before = (tmp_path / "run/split.csv").stat().st_mtime_ns
    with pytest.raises(SplitError, match=rf"split\.csv: 1 of .*: {image_id} \(missing\).*--resume.*--restart"):
        run(tmp_path, *options, resume=True)
    assert (tmp_path / "run/split.csv").stat().st_mtime_ns == before
    moved.rename(image)
    assert run(tmp_path, *options, resume=True).costs.num_batches == 0
    image.unlink()
    assert len(run(tmp_path, *options, restart=True).results) == 1
