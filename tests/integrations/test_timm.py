"""`TelemetryScaler` in the place of timm's `NativeScaler`, as timm's train.py uses it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, open_run, validate_run
from tests.collect.models import TinyNet
from tests.integrations.references import column, features, norm, same_weights

pytest.importorskip("timm", reason="timm is not installed: pip install 'ava-pipeline[frameworks]'")

from timm.utils import NativeScaler  # type: ignore[attr-defined]  # timm's

from ava_pipeline.integrations.timm import TelemetryScaler

ACCUMULATE = 2
NATIVE: Any = NativeScaler
BATCHES = 4


def train_one_epoch(
    model: nn.Module, optimizer: Any, loss_scaler: Any, *, dtype: torch.dtype
) -> tuple[list[float], list[float]]:
    """The lines of timm's train.py that concern gradients; return each update's true norm in float64, and its loss."""
    norms, losses, scale = [], [], getattr(loss_scaler, "grad_scaler", None)
    inputs, targets = features(4 * BATCHES)
    optimizer.zero_grad()
    for batch in range(BATCHES):
        part = slice(4 * batch, 4 * batch + 4)
        need_update = (batch + 1) % ACCUMULATE == 0
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(model(inputs[part]).float(), targets[part]) / ACCUMULATE
        before = norm_after_backward(model, loss, scale) if need_update else None
        loss_scaler(
            loss, optimizer, clip_grad=0.01, clip_mode="norm", parameters=model.parameters(), need_update=need_update
        )
        losses.append(float(loss.detach()))
        if before is not None:
            norms.append(before)
            optimizer.zero_grad()
    return norms, [sum(losses[first : first + ACCUMULATE]) for first in range(0, BATCHES, ACCUMULATE)]


def norm_after_backward(model: nn.Module, loss: torch.Tensor, scaler: Any) -> float:
    """The norm that the gradients will have after this backward pass: it is made, read and taken back."""
    scale = 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())
    older = [None if one.grad is None else one.grad.clone() for one in model.parameters()]
    (loss * scale).backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch's
    found = norm(model.parameters(), scale=scale)
    for parameter, gradient in zip(model.parameters(), older, strict=True):
        parameter.grad = gradient
    return found


def prepared() -> tuple[TinyNet, torch.optim.SGD]:
    """A seeded model and its optimizer."""
    torch.manual_seed(0)
    model = TinyNet()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_norms_are_those_before_clipping_and_weights_stay_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    """In both branches of train.py, at true scale, with the loss of the whole update."""
    (model, optimizer), run = prepared(), tmp_path / "run"
    loss_scaler = TelemetryScaler(device="cpu", enabled=dtype == torch.float16)
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, grad_scaler=loss_scaler.grad_scaler) as telemetry:
        loss_scaler.attach(telemetry)
        norms, losses = train_one_epoch(model, optimizer, loss_scaler, dtype=dtype)
        loss_scaler.epoch = 1
        more, more_losses = train_one_epoch(model, optimizer, loss_scaler, dtype=dtype)
    assert min(norms) > 0.01
    assert column(run, "gradient_norms", "overall") == pytest.approx([*norms, *more], rel=1e-5)
    assert column(run, "steps", "loss") == pytest.approx([*losses, *more_losses], rel=1e-6)
    assert column(run, "gradient_norms", "batch_idx") == [2, 4, 6, 8]
    assert column(run, "gradient_norms", "epoch") == [0, 0, 1, 1]
    assert validate_run(run) == []
    assert open_run(run).events().empty

    plain, plain_optimizer = prepared()
    native: Any = NATIVE(device="cpu") if dtype == torch.float16 else TelemetryScaler(device="cpu", enabled=False)
    for _ in range(2):
        train_one_epoch(plain, plain_optimizer, native, dtype=dtype)
    assert same_weights(model, plain)


def test_the_state_is_in_timms_checkpoint(tmp_path: Path) -> None:
    """train.py saves and loads the scaler's state; the collector made afterwards goes on behind it."""
    (model, optimizer), run = prepared(), tmp_path / "run"
    loss_scaler = TelemetryScaler(device="cpu")
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, grad_scaler=loss_scaler.grad_scaler) as telemetry:
        loss_scaler.attach(telemetry)
        train_one_epoch(model, optimizer, loss_scaler, dtype=torch.float16)
        saved = {loss_scaler.state_dict_key: loss_scaler.state_dict()}
        train_one_epoch(model, optimizer, loss_scaler, dtype=torch.float16)
    again = TelemetryScaler(device="cpu")
    again.load_state_dict(saved[again.state_dict_key])
    assert again.grad_scaler.state_dict() == {
        name: value for name, value in saved["amp_scaler"].items() if name != "telemetry"
    }
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, grad_scaler=again.grad_scaler) as telemetry:
        again.attach(telemetry)
        train_one_epoch(model, optimizer, again, dtype=torch.float16)
    assert column(run, "gradient_norms", "batch_idx") == [2, 4, 6, 8]
    assert open_run(run).manifest.attempt.resumed_from == 4


def test_a_checkpoint_of_timms_own_scaler_loads() -> None:
    """And without a collector, the scaler trains as timm's does."""
    model, optimizer = prepared()
    native: Any = NATIVE(device="cpu")
    train_one_epoch(model, optimizer, native, dtype=torch.float16)
    loss_scaler = TelemetryScaler(device="cpu")
    loss_scaler.load_state_dict(native.state_dict())
    train_one_epoch(model, optimizer, loss_scaler, dtype=torch.float16)
    assert loss_scaler.state_dict()["telemetry"] == {}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_training_goes_on_in_another_precision(enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """From a checkpoint without a loss scale to one with it, and back, as with timm's own scaler or none."""
    saved = TelemetryScaler(device="cpu", enabled=not enabled).state_dict()
    loss_scaler = TelemetryScaler(device="cpu", enabled=enabled)
    loss_scaler.load_state_dict(saved)
    assert loss_scaler.grad_scaler.get_scale() == (2.0**16 if enabled else 1.0)
