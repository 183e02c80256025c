"""True-scale norms under a GradScaler, whose private parts are read in one place."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.amp import Scaling, scaler_state
from tests.collect.models import backward, tiny


def scaled_backward(scaler: torch.amp.GradScaler, model: torch.nn.Module, seed: int) -> None:
    """A backward pass of the scaled loss."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    scaler.scale(model(x).logsumexp(dim=1).square().mean()).backward()


@pytest.mark.parametrize("unscales", [False, True])
def test_norms_are_true_scale_before_and_after_unscale(
    tmp_path: Path,
    unscales: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """Whether or not scaler.unscale_ has run, the row is that of the unscaled gradients."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for seed in range(3):
            optimizer.zero_grad()
            scaled_backward(scaler, model, seed)
            if unscales:
                scaler.unscale_(optimizer)
            telemetry.step()
            scaler.step(optimizer)
            scaler.update()
    reference, optimizer = tiny()
    expected = []
    for seed in range(3):
        optimizer.zero_grad()
        backward(reference, seed)
        expected.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None]))
        )
        optimizer.step()
    run = open_run(tmp_path)
    assert run.gradient_norms()["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    assert run.steps()["loss_scale"].tolist() == [1024.0] * 3


def test_the_state_follows_the_scaler() -> None:
    """Scaled after scale(), unscaled after unscale_(), scaled again after update()."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    states = []

    def look() -> None:
        states.append(scaler_state(scaler, (optimizer,)).of_optimizer[id(optimizer)])

    scaled_backward(scaler, model, 0)
    look()
    scaler.unscale_(optimizer)
    look()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaled_backward(scaler, model, 1)
    look()
    assert states == [Scaling.SCALED, Scaling.NONE, Scaling.SCALED]


def test_no_scaler_or_a_disabled_one_scales_nothing() -> None:
    """A loop that keeps a disabled GradScaler for one code path."""
    _, optimizer = tiny()
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False)):
        assert scaler_state(scaler, (optimizer,)).of_optimizer == {id(optimizer): Scaling.NONE}


def test_a_scaler_that_does_not_tell_costs_the_norms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A foreign scaler: the rows' norms are null, an event and one warning say why, rates are recorded."""
    model, optimizer = tiny()
    foreign = SimpleNamespace(is_enabled=lambda: True)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=foreign) as telemetry:
        for seed in range(2):
            backward(model, seed)
            telemetry.step()
    run = open_run(tmp_path)
    assert run.gradient_norms()["overall"].isna().all()
    assert run.learning_rates()["lr_group_1"].tolist() == [0.1, 0.1]
    assert run.events()["event"].tolist() == ["unknown_scale"]
    assert len([record for record in caplog.records if "does not tell its scale" in record.getMessage()]) == 1
