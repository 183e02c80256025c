"""`torch.set_default_device` moves the user's tensors and none of the collector's."""

from pathlib import Path

import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from tests.collect.models import backward, tiny


def trained(folder: Path, default_device: str) -> None:
    """Six batches with AMP, clipping, values, a resume and predictions; only the collector's calls see the default."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    state = None
    for seeds in (range(3), range(3, 6)):
        telemetry = TelemetryCollector(model, optimizer, folder, collect_every_n=1, grad_scaler=scaler)
        with torch.device(default_device):
            if state is not None:
                telemetry.load_state_dict(state)
        for seed in seeds:
            optimizer.zero_grad()
            loss = backward(model, seed, scaler=scaler)
            scaler.unscale_(optimizer)
            with torch.device(default_device):
                assert telemetry.step(values={"loss": loss, "number": 0.5})
                telemetry.clip_grad_norm_(0.05)
            scaler.step(optimizer)
            scaler.update()
        with torch.device(default_device):
            with telemetry.val_predictions(0) as predictions:
                predictions.add([7, 8], torch.full((2, 10), 0.1, device="cpu"), torch.ones(2, 10, device="cpu"))
            state = telemetry.state_dict()
            assert telemetry.close().written == 3


@pytest.mark.parametrize("table", ["gradient_norms", "learning_rates", "steps", "val_predictions"])
def test_rows_are_the_same_whatever_the_default_device(tmp_path: Path, table: str) -> None:
    """On `meta` a tensor has no numbers, so any that the collector made there would be missing or raise."""
    frames = []
    for default_device in ("cpu", "meta"):
        trained(tmp_path / default_device, default_device)
        run = open_run(tmp_path / default_device)
        frame = run.val_predictions(0) if table == "val_predictions" else getattr(run, table)()
        frames.append(frame.drop(columns="time_utc", errors="ignore"))
    assert len(frames[0]) == (2 if table == "val_predictions" else 6)
    assert frames[0].equals(frames[1])
