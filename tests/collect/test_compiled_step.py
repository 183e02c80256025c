"""A training step under `torch.compile` calls the collector, and is compiled once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector, open_run
from tests.collect.models import TinyNet, tiny

# torch's own, of what it reads while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

NUM_BATCHES = 12
MAX_NORM = 0.05

TrainStep = Callable[[Tensor], None]


def train_step_of(
    model: TinyNet, optimizer: torch.optim.Optimizer, telemetry: TelemetryCollector | None, norms: list[Tensor]
) -> TrainStep:
    """A whole training step; without a collector it clips by torch, and keeps every batch's norm in float64."""

    def train_step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss = model(x).logsumexp(dim=1).square().mean()
        loss.backward()
        if telemetry is None:
            gradients = [parameter.grad.double().reshape(-1) for parameter in model.parameters()]  # type: ignore[union-attr]  # each has one
            norms.append(torch.cat(gradients).norm())
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        else:
            telemetry.step(0, values={"loss": loss})
            telemetry.clip_grad_norm_(MAX_NORM)
        optimizer.step()

    return train_step


def batches() -> list[Tensor]:
    """Seeded inputs."""
    return [torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(NUM_BATCHES)]


@pytest.fixture
def compiled_once() -> object:
    """Everything is compiled anew, and compiling anything twice raises."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def test_a_compiled_step_records_and_is_not_compiled_again(
    tmp_path: Path, compiled_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows and weights are those of the step without compiler and collector, and nobody is warned of a wrong order."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
        compiled = torch.compile(train_step_of(model, optimizer, telemetry, []), backend="eager")
        for x in batches():
            compiled(x)
    reference, optimizer = tiny()
    norms: list[Tensor] = []
    plain = train_step_of(reference, optimizer, None, norms)
    for x in batches():
        plain(x)
    assert all(map(torch.equal, model.parameters(), reference.parameters()))
    found = open_run(tmp_path).gradient_norms()
    assert found["batch_idx"].tolist() == list(range(2, NUM_BATCHES + 1, 2))
    assert found["overall"].tolist() == pytest.approx([float(norm) for norm in norms[1::2]], rel=1e-5)
    assert open_run(tmp_path).steps()["loss"].notna().all()
    assert not [record for record in caplog.records if record.name == "ava_pipeline"]


def test_a_compiled_optimizer_counts_nothing_and_is_not_compiled_again(
    tmp_path: Path, compiled_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its step hook is compiled with it and cannot count, so neither order nor skipped steps are judged by it."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    step = torch.compile(optimizer.step, backend="eager")
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for x in batches():
            optimizer.zero_grad()
            scaler.scale(model(x).logsumexp(dim=1).square().mean()).backward()
            telemetry.step()
            scaler.unscale_(optimizer)
            step()
            scaler.update()
    assert len(open_run(tmp_path).gradient_norms()) == NUM_BATCHES
    assert open_run(tmp_path).events().empty
    assert not [record for record in caplog.records if record.name == "ava_pipeline"]
