"""The same path on a real CUDA device; skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.measures.measure import Reading
from ava_pipeline.collect.staging import Staging
from ava_pipeline.write.channel import StagedNumbers
from tests.collect.models import ava_resnet18
from tests.collect.torch_clipping import INFINITE, NOT_A_NUMBER, assert_clips_to_torchs_bits

CUDA = torch.device("cuda:0")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trained(folder: Path, num_batches: int, stream: torch.cuda.Stream | None = None) -> list[float]:
    """Train on the device with `step` under the sync debug mode; returns every batch's norm in float64."""
    torch.manual_seed(0)
    model = ava_resnet18().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    with (
        torch.cuda.stream(stream or torch.cuda.current_stream()),
        TelemetryCollector(model, optimizer, folder, collect_every_n=1) as telemetry,
    ):
        for _ in range(num_batches):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 3, 64, 64, device="cuda")).logsumexp(dim=1).mean()
            loss.backward()
            torch.cuda.set_sync_debug_mode("error")
            telemetry.step(values={"loss": loss})
            telemetry.clip_grad_norm_(1e9)
            torch.cuda.set_sync_debug_mode("default")
            flat = [p.grad.double().reshape(-1) for p in model.parameters() if p.grad is not None]
            expected.append(float(torch.cat(flat).norm()))
            optimizer.step()
    return expected


@pytest.mark.parametrize("on_side_stream", [False, True])
def test_no_sync_and_norms_equal_float64(tmp_path: Path, on_side_stream: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """No synchronizing call in step or clip; norms within 1e-5, in order, on whatever stream the loop runs."""
    expected = trained(tmp_path, 20, torch.cuda.Stream() if on_side_stream else None)  # type: ignore[no-untyped-call]  # torch's
    norms = open_run(tmp_path).gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(1, 21))
    assert norms["overall"].tolist() == pytest.approx(expected, rel=1e-5)


def assert_read(staging: Staging, staged: StagedNumbers, step: int) -> None:
    """The step's numbers come; free memory holds poison afterwards, for whoever does not wait for the next copy."""
    assert np.asarray(staged.read()[0]).tolist() == [float(step)] * 100
    for slot in staging._free[CUDA]:
        slot.buffer.fill_(float("nan"))


def test_a_slot_is_not_used_again_before_it_is_read() -> None:
    """Numbers staged behind long kernels arrive whole, in four slots that go round with three copies in flight."""
    staging = Staging()
    long = torch.randn(4096, 4096, device="cuda")
    staged = []
    for step in range(50):
        long = long @ long / 64  # keeps the copy waiting
        staged.append(staging.stage([Reading(torch.full((100,), float(step), device="cuda"))]))
        if step >= 3:
            assert_read(staging, staged[step - 3], step - 3)
    for step in range(47, 50):
        assert_read(staging, staged[step], step)
    assert len(staging._free[CUDA]) == 4


def test_slots_are_used_again() -> None:
    """Pinned memory does not grow with the length of a run."""
    staging = Staging()
    for step in range(100):
        staging.stage([Reading([torch.tensor(float(step), device="cuda")])]).read()
    assert len(staging._free[CUDA]) == 1


@pytest.mark.parametrize("number", [1.0, INFINITE, -INFINITE, NOT_A_NUMBER])
def test_it_clips_to_torchs_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    """From the shared pass, gradients that are not finite included."""
    assert_clips_to_torchs_bits(tmp_path, monkeypatch, ava_resnet18().cuda(), number)


def test_amp_skips_and_true_scale(tmp_path: Path) -> None:
    """float16 with a GradScaler: norms are unscaled, and a skipped step is an event."""
    model = ava_resnet18().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for _ in range(30):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(torch.randn(8, 3, 64, 64, device="cuda")).float().logsumexp(dim=1).mean()
            scaler.scale(loss).backward()
            telemetry.step(values={"loss": loss})
            scaler.step(optimizer)
            scaler.update()
    run = open_run(tmp_path)
    finite = np.isfinite(run.gradient_norms()["overall"].to_numpy(dtype=float))
    assert finite[-1]
    assert run.gradient_norms()["overall"].to_numpy(dtype=float)[-1] < 1e4
    assert "skipped_step" in set(run.events()["event"])


def test_the_same_weights_with_and_without(tmp_path: Path) -> None:
    """Telemetry changes nothing, on the device too."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    weights = []
    for enabled in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with TelemetryCollector(
            model, optimizer, tmp_path / str(enabled), collect_every_n=1, enabled=enabled
        ) as telemetry:
            for _ in range(20):
                optimizer.zero_grad()
                model(torch.randn(16, 64, device="cuda")).logsumexp(dim=1).mean().backward()
                telemetry.step()
                optimizer.step()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.use_deterministic_algorithms(mode=False)
    assert torch.equal(*weights)
