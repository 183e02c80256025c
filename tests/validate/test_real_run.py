"""Runs that the collector really recorded: clean, whatever happened to them."""

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
    """What the collector writes keeps every rule, and reads back with every row."""
    root = record(tmp_path / "run", formats=formats)
    assert validate_run(root) == []
    assert open_run(root).gradient_norms()["batch_idx"].tolist() == list(range(2, 25, 2))


def steps(telemetry: TelemetryCollector, model: SmallModel, num: int, *, accumulate: int = 1) -> None:
    """Batches of a foreign loop; the optimizer's part does not matter here."""
    for batch in range(1, num + 1):
        model(torch.ones(2, 6)).square().mean().backward()
        telemetry.step(0, accumulating=batch % accumulate != 0)
        if batch % accumulate == 0:
            model.zero_grad()


def collector(root: Path, model: SmallModel, every: int = 5) -> TelemetryCollector:
    """A collector that flushes at once."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TelemetryCollector(model, optimizer, root, collect_every_n=every, flush_interval_s=0.01)


def test_accumulation_validates_clean(tmp_path: Path) -> None:
    """Rows that were due at a batch that only accumulated come later, and are counted as such."""
    model = SmallModel()
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 40, accumulate=4)
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [8, 12, 16, 20, 28, 32, 36, 40]
    assert validate_run(tmp_path) == []


def test_a_frozen_head_layer_validates_clean(tmp_path: Path) -> None:
    """A layer without gradients is null, and adds nothing to its parent."""
    model = SmallModel()
    model.mlp_head[0].requires_grad_(requires_grad=False)
    with collector(tmp_path, model) as telemetry:
        steps(telemetry, model, 10)
    assert open_run(tmp_path).gradient_norms()["mlp_layer_0"].isna().all()
    assert validate_run(tmp_path) == []


def test_resumed_and_restarted_runs_validate_clean(tmp_path: Path) -> None:
    """Rows past the checkpoint are set aside; another spacing holds from there on; a restart sets all aside."""
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
    """At any moment: before the first row, between rows, after the last."""
    model = SmallModel()
    with collector(tmp_path, model, every=1) as telemetry:
        steps(telemetry, model, 1)
        telemetry.flush()
        for _ in range(5):
            steps(telemetry, model, 10)
            assert validate_run(tmp_path) == []


def be_killed(root: Path) -> None:
    """Record, and end as a process does that the system kills for its memory."""
    model = SmallModel()
    telemetry = collector(root, model, every=1)
    steps(telemetry, model, 20)
    telemetry.flush()
    steps(telemetry, model, 5)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_opens_and_validates_clean(tmp_path: Path) -> None:
    """After a kill every flushed row is there; the next attempt goes on behind it, and that is clean too."""
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
