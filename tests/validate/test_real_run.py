"""Runs that the collector recorded validate clean, whatever happened to them."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.validate.validate import validate_run
from tests.validate.real_run import SmallModel, record


@pytest.mark.parametrize("formats", [("csv", "parquet"), ("csv",), ("parquet",)], ids=str)
def test_three_epochs_validate_clean(formats: tuple[str, ...], tmp_path: Path) -> None:
    """The files of the collector keep every rule, and every row can be read back."""
    root = record(tmp_path / "run", formats=formats)
    assert validate_run(root) == []
    assert open_run(root).gradient_norms()["batch_idx"].tolist() == list(range(2, 25, 2))


def steps(telemetry: TelemetryCollector, model: SmallModel, num: int, *, accumulate: int = 1) -> None:
    """Batches of the user's own loop; the optimizer does not matter here."""
    for batch in range(1, num + 1):
        model(torch.ones(2, 6)).square().mean().backward()
        telemetry.step(0, accumulating=batch % accumulate != 0)
        if batch % accumulate == 0:
            model.zero_grad()


def collector(root: Path, model: SmallModel, every: int = 5) -> TelemetryCollector:
    """A collector that flushes after every row."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TelemetryCollector(model, optimizer, root, collect_every_n=every, flush_interval_s=0.01)


def test_accumulation_validates_clean(tmp_path: Path) -> None:
    """A row due at a batch that only accumulates is deferred to a later batch, and counted as deferred."""
    model = SmallModel()
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 40, accumulate=4)
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [8, 12, 16, 20, 28, 32, 36, 40]
    assert validate_run(tmp_path) == []


def test_a_frozen_head_layer_validates_clean(tmp_path: Path) -> None:
    """A layer without gradients is null, and adds nothing to its parent's norm."""
    model = SmallModel()
    model.mlp_head[0].requires_grad_(requires_grad=False)
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 10)
    assert open_run(tmp_path).gradient_norms()["mlp_layer_0"].isna().all()
    assert validate_run(tmp_path) == []


def test_resumed_and_restarted_runs_validate_clean(tmp_path: Path) -> None:
    """A resume moves rows past the checkpoint to superseded/ and may change the spacing; a restart moves all."""
    model = SmallModel()
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 12)
        state = telemetry.state_dict()
        steps(telemetry, model, 13)
    with collector(tmp_path, model, every=3) as telemetry:
        telemetry.load_state_dict(state)
        steps(telemetry, model, 8)
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [5, 10, 15, 18]
    assert validate_run(tmp_path) == []
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 10)
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [5, 10]
    assert validate_run(tmp_path) == []


def test_a_run_that_is_being_written_validates_clean(tmp_path: Path) -> None:
    """Before the first row, between rows, and after the last row."""
    model = SmallModel()
    with collector(tmp_path, model, every=1) as telemetry:
        steps(telemetry, model, 1)
        telemetry.flush()
        for _ in range(5):
            steps(telemetry, model, 10)
            assert validate_run(tmp_path) == []


def be_killed(root: Path) -> None:
    """Record, then end without any clean-up, as a process killed for its memory does."""
    model = SmallModel()
    telemetry = collector(root, model, every=1)
    steps(telemetry, model, 20)
    telemetry.flush()
    steps(telemetry, model, 5)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_opens_and_validates_clean(tmp_path: Path) -> None:
    """After a kill every flushed row is there; the next attempt appends to them, and the run stays clean."""
    process = multiprocessing.get_context("spawn").Process(target=be_killed, args=[tmp_path])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert open_run(tmp_path).gradient_norms()["batch_idx"].tolist()[:20] == list(range(1, 21))
    assert validate_run(tmp_path, now=utc_now()) == []
    model = SmallModel()
    with collector(tmp_path, model, every=1) as telemetry:
        telemetry.load_state_dict({"batch_idx": 15, "epoch": 0})
        steps(telemetry, model, 5)
    assert open_run(tmp_path).gradient_norms()["batch_idx"].tolist() == list(range(1, 21))
    assert validate_run(tmp_path) == []
