"""Clipping through the collector has torch's bits and shares the step's pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from ava_pipeline import TelemetryCollector, open_run
from tests.collect.models import TinyNet, backward, tiny
from tests.collect.torch_clipping import INFINITE, MAX_NORM, NOT_A_NUMBER, assert_clips_to_torchs_bits
from tests.scripts import run_script


def frozen(model: nn.Module) -> None:
    """A layer without gradients."""
    next(model.parameters()).grad = None


def halved_by_hand(model: nn.Module) -> None:
    """Gradients changed in place between step and clip."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)


def replaced(model: nn.Module) -> None:
    """Gradients replaced between step and clip."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad = parameter.grad * 3


def unchanged(model: nn.Module) -> None:
    """The loop as it should be."""


def one_parameter() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose only gradient is freed and allocated again at the same address."""
    torch.manual_seed(0)
    model = nn.Linear(6, 10, bias=False)
    return model, torch.optim.SGD(model.parameters())


def clipped_by_torch(
    dtype: torch.dtype, before: Callable[[nn.Module], None], batches: int
) -> tuple[list[Tensor], TinyNet]:
    """The reference: totals and the model after clipping with torch alone."""
    model = tiny()[0].to(dtype)
    totals = []
    for seed in range(batches):
        model.zero_grad()
        backward(model, seed, dtype=dtype)
        before(model)
        totals.append(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))
    return totals, model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("between", [unchanged, frozen, halved_by_hand, replaced])
@pytest.mark.parametrize("state", ["every step", "every second", "disabled", "closed"])
def test_it_clips_to_torchs_bits(
    tmp_path: Path, dtype: torch.dtype, between: Callable[[nn.Module], None], state: str
) -> None:
    """Total and gradients equal torch's, whether the pass is shared or not and whatever state telemetry is in."""
    totals, reference = clipped_by_torch(dtype, between, 5)
    model = tiny()[0].to(dtype)
    telemetry = TelemetryCollector(
        model,
        torch.optim.SGD(model.parameters()),
        tmp_path,
        collect_every_n=2 if state == "every second" else 1,
        enabled=state != "disabled",
    )
    if state == "closed":
        telemetry.close()
    for seed in range(5):
        model.zero_grad()
        backward(model, seed, dtype=dtype)
        if state != "closed":
            telemetry.step()
        between(model)
        assert torch.equal(telemetry.clip_grad_norm_(MAX_NORM), totals[seed])
    telemetry.close()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)  # type: ignore[arg-type]  # as the line above says


@pytest.mark.parametrize("number", [INFINITE, -INFINITE, NOT_A_NUMBER])
def test_gradients_that_are_not_finite_are_clipped_to_torchs_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    """What one such number makes of all the others is torch's too, from the shared pass."""
    assert_clips_to_torchs_bits(tmp_path, monkeypatch, tiny()[0], number)


def test_the_pass_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a collected step torch's own pass is not made again."""
    model, optimizer = tiny()
    calls = []

    def counted(*_: object) -> Tensor:
        calls.append(1)
        return torch.zeros(())

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", counted)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for seed in range(4):
            model.zero_grad()
            backward(model, seed)
            telemetry.step()
            telemetry.clip_grad_norm_(MAX_NORM)
    assert len(calls) == 1  # the first clip: before it the collector does not know that the loop clips


def test_a_step_that_was_not_clipped_leaves_no_norm_for_another_batch(tmp_path: Path) -> None:
    """In a loop that clips only now and then new gradients may have the old ones' address."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
        backward(model)
        telemetry.step()
        telemetry.clip_grad_norm_(1e9)
        telemetry.step()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.data.mul_(3)  # a change that torch does not count
        expected = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        telemetry.step()
        assert torch.equal(telemetry.clip_grad_norm_(1e9), expected)


RANKS = """
import os, sys, torch
from torch import distributed, nn
from ava_pipeline import TelemetryCollector

torch.set_num_threads(1)
other = os.fork()
rank = 1 if other == 0 else 0
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
telemetry = TelemetryCollector(model, torch.optim.SGD(model.parameters(), 0.1), sys.argv[1] + "/run", collect_every_n=1)
for batch in range(3):
    model.zero_grad()
    (model(torch.ones(2, 8)) * (rank + 1)).square().mean().backward()
    telemetry.step()
    for parameter in model.parameters():
        distributed.all_reduce(parameter.grad)
    total = telemetry.clip_grad_norm_(1.0)
    of_both = [torch.zeros(()), torch.zeros(())]
    distributed.all_gather(of_both, total)
    assert torch.equal(*of_both), of_both
telemetry.close()
distributed.destroy_process_group()
if rank == 0:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_gradients_that_processes_bring_together_are_clipped_by_what_they_are_then(tmp_path: Path) -> None:
    """Reducing changes gradients without being counted as a change, and replicas must not part."""
    run_script(RANKS, tmp_path)
    assert len(open_run(tmp_path / "run").gradient_norms()) == 3


@pytest.mark.parametrize("build", [tiny, one_parameter])
def test_gradients_of_a_second_backward_pass_are_clipped_by_their_own_norm(
    tmp_path: Path, build: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
) -> None:
    """The gradients that `step` measured are gone, and new ones may have the same address."""
    model, optimizer = build()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for seed in range(40):
            optimizer.zero_grad()
            backward(model, seed)
            telemetry.step()
            optimizer.zero_grad()
            backward(model, seed + 1000)
            present = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            expected = nn.utils.get_total_norm(present)
            assert torch.equal(telemetry.clip_grad_norm_(MAX_NORM), expected)


SHARDED = """
import os, sys, torch
from torch import distributed, nn
from ava_pipeline import TelemetryCollector

def by_fully_shard(model):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))

def by_wrapper(model):
    from torch.distributed.fsdp import FullyShardedDataParallel
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))

torch.set_num_threads(1)
other = os.fork()
rank = 1 if other == 0 else 0
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = globals()[sys.argv[2]](nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 2)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
telemetry = TelemetryCollector(
    model, optimizer, sys.argv[1] + "/run", collect_every_n=1, groups={"all": list(model.parameters())}
)
for batch in range(3):
    optimizer.zero_grad()
    model(torch.ones(2, 300)).square().mean().backward()
    telemetry.step()
    telemetry.clip_grad_norm_(1.0)
    optimizer.step()
stats = telemetry.close()
distributed.destroy_process_group()
if rank == 0:
    assert stats.written == 3, stats
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.mark.parametrize("shards", ["by_fully_shard", "by_wrapper"])
def test_sharded_gradients_are_not_measured_and_block_no_process(tmp_path: Path, shards: str) -> None:
    """All processes would have to compute them, and only rank 0 records: norms are null, with one event."""
    run_script(SHARDED, tmp_path, shards)
    run = open_run(tmp_path / "run")
    assert run.gradient_norms()[["overall", "all"]].isna().all(axis=None)
    assert run.learning_rates()["lr_group_0"].tolist() == [0.1] * 3
    assert run.steps()["clip_coefficient"].isna().all()
    assert run.events()["event"].tolist() == ["left_out"]


def test_rows_hold_norms_before_clipping_and_its_coefficient(tmp_path: Path) -> None:
    """Norms stay those of the gradients; coefficient and rate stand in steps."""
    model, optimizer = tiny()
    expected = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
        for seed in range(6):
            model.zero_grad()
            backward(model, seed)
            expected.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
            telemetry.step()
            telemetry.clip_grad_norm_(MAX_NORM if seed != 2 else 1e9)
    run = open_run(tmp_path)
    assert run.gradient_norms()["overall"].tolist() == pytest.approx(expected[1::2], rel=1e-5)
    steps = run.steps()
    coefficients = [min(1.0, limit / (expected[b] + 1e-6)) for b, limit in ((1, MAX_NORM), (3, 1e9), (5, MAX_NORM))]
    assert steps["clip_coefficient"].tolist() == pytest.approx(coefficients, rel=1e-5)
    assert steps["clip_rate"].tolist() == [1.0, 0.5, 1.0]


def test_a_resumed_run_writes_the_rows_of_one_that_was_not_ended(tmp_path: Path) -> None:
    """The state of clipping is in state_dict, so norms, coefficients and rates continue with the same bits."""

    def clipped(telemetry: TelemetryCollector, seeds: range) -> None:
        for seed in seeds:
            model.zero_grad()
            backward(model, seed)
            telemetry.step()
            telemetry.clip_grad_norm_(MAX_NORM)

    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path / "whole", collect_every_n=2) as telemetry:
        clipped(telemetry, range(8))
    with TelemetryCollector(model, optimizer, tmp_path / "parts", collect_every_n=2) as telemetry:
        clipped(telemetry, range(3))
        state = telemetry.state_dict()
    with TelemetryCollector(model, optimizer, tmp_path / "parts", collect_every_n=2) as telemetry:
        telemetry.load_state_dict(state)
        clipped(telemetry, range(3, 8))
    whole, parts = open_run(tmp_path / "whole"), open_run(tmp_path / "parts")
    assert parts.gradient_norms().equals(whole.gradient_norms())
    assert parts.steps().drop(columns="time_utc").equals(whole.steps().drop(columns="time_utc"))


def test_clips_are_counted_on_after_a_resume_with_other_frozen_layers(tmp_path: Path) -> None:
    """The count of a checkpoint is a number, on no device."""
    model, optimizer = tiny()
    model.backbone.to("meta")  # as an embedding that is elsewhere, and has no gradients
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=4) as telemetry:
        telemetry.load_state_dict(
            {"batch_idx": 2, "epoch": 0, "clip_max_norm": 1.0, "clip_num_shortened": 2.0, "clip_num_clips": 2}
        )
        for limit in (1e9, 0.05):
            for parameter in model.mlp_head.parameters():
                parameter.grad = torch.ones_like(parameter)
            telemetry.clip_grad_norm_(limit)
            telemetry.step()
    assert open_run(tmp_path).steps()["clip_rate"].tolist() == [0.75]


def test_rows_of_a_clipping_loop_are_within_1e4_of_float64(tmp_path: Path) -> None:
    """Torch's own norms serve the rows on a CPU: this is their accuracy on ResNet-50, and the docs say so."""
    model = resnet50()
    generator = torch.Generator().manual_seed(0)
    with TelemetryCollector(model, torch.optim.SGD(model.parameters()), tmp_path, collect_every_n=1) as telemetry:
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
            telemetry.step()
            layer4 = torch.cat([p.grad.double().reshape(-1) for p in model.layer4.parameters()]).norm()
            telemetry.clip_grad_norm_(MAX_NORM)
    assert open_run(tmp_path).gradient_norms()["backbone_layer4"].iloc[1] == pytest.approx(float(layer4), rel=1e-4)


def test_without_clipping_the_columns_are_null(tmp_path: Path) -> None:
    """Not measured, rather than 0 or 1."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        backward(model)
        telemetry.step()
    assert open_run(tmp_path).steps()[["clip_coefficient", "clip_rate"]].isna().all(axis=None)


@pytest.mark.parametrize("unscales_first", [False, True])
def test_under_amp_it_clips_what_unscale_left(tmp_path: Path, unscales_first: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Norms taken of scaled gradients never decide a clip of unscaled ones."""
    weights = []
    for through in (True, False):
        model, optimizer = tiny()
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        telemetry = TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1, grad_scaler=scaler)
        for seed in range(4):
            optimizer.zero_grad()
            backward(model, seed, scaler=scaler)
            if through and not unscales_first:
                telemetry.step()
            scaler.unscale_(optimizer)
            if through and unscales_first:
                telemetry.step()
            if through:
                telemetry.clip_grad_norm_(MAX_NORM)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            scaler.step(optimizer)
            scaler.update()
        telemetry.close()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)
    coefficients = open_run(tmp_path / "run").steps()["clip_coefficient"].tolist()[1:]
    assert all(0 < one < 1 for one in coefficients)
