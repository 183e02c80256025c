"""Gradient norms against float64 references."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.norms import ROW_LENGTH, NormPlan
from ava_pipeline.collect.targets import named_parameters
from tests.collect.models import ava_resnet18, tiny


def random_gradients(model: nn.Module, scale: float = 1e-3) -> None:
    """Give every parameter a gradient of random numbers."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)


def reference(model: nn.Module) -> dict[str, float | None]:
    """Every group's norm over `p.grad`, in float64."""
    gradients = {name: parameter.grad for name, parameter in named_parameters(model).items()}
    norms: dict[str, float | None] = {}
    for column, group in find_groups(model).items():
        held = [grad.double().reshape(-1) for name in group.parameters if (grad := gradients[name]) is not None]
        norms[column] = float(torch.cat(held).norm()) if held else None
    return norms


def recorded(model: nn.Module, folder: Path) -> dict[str, Any]:
    """The row that the collector writes of the gradients as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TelemetryCollector(model, optimizer, folder, collect_every_n=1) as telemetry:
        telemetry.step()
    return pq.read_table(folder / "telemetry" / "gradient_norms.parquet").to_pylist()[0]


def assert_norms(model: nn.Module, folder: Path, rel: float = 1e-5) -> None:
    """Recorded norms equal the reference; a group without gradients is null."""
    row = recorded(model, folder)
    for column, expected in reference(model).items():
        if expected is None:
            assert row[column] is None, column
        else:
            assert row[column] == pytest.approx(expected, rel=rel), column


def freeze_layer4(model: nn.Module) -> None:
    """As a user freezes a stage."""
    for name, parameter in model.named_parameters():
        if name.startswith("layer4"):
            parameter.requires_grad_(False)  # noqa: FBT003  # torch's own signature
            parameter.grad = None


def share_a_layer(model: nn.Module) -> None:
    """One parameter under two names."""
    fc = model.get_submodule("fc")
    assert isinstance(fc, nn.Sequential)
    second = nn.Linear(32, 32)
    model.fc = nn.Sequential(nn.Linear(512, 32), second, nn.ReLU(), second, nn.Linear(32, 10))
    random_gradients(model)


def channels_last(model: nn.Module) -> None:
    """Gradients that are not contiguous, and slices that have gaps."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.dim() == 4:
            parameter.grad = parameter.grad.to(memory_format=torch.channels_last)
    first = next(model.parameters())
    wide = torch.randn(*first.shape[:-1], 2 * first.shape[-1])
    first.grad = wide[..., ::2]


def constant(model: nn.Module) -> None:
    """Gradients whose long sums lose most in float32."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)


CASES: dict[str, Callable[[nn.Module], None]] = {
    "plain": random_gradients,
    "frozen": freeze_layer4,
    "shared": share_a_layer,
    "channels_last": channels_last,
    "huge": lambda model: random_gradients(model, 1e15),
    "minute": lambda model: random_gradients(model, 1e-15),
}


@pytest.mark.parametrize("case", CASES)
def test_every_group_is_within_1e5_of_float64(case: str, tmp_path: Path) -> None:
    """A norm can be trusted to 1e-5, whatever the gradients are; a frozen group is null, not 0."""
    model = ava_resnet18()
    random_gradients(model)
    CASES[case](model)
    assert_norms(model, tmp_path)


def test_resnet50_is_within_1e5_of_float64(tmp_path: Path) -> None:
    """Also with 25 million gradients."""
    model = resnet50()
    random_gradients(model)
    assert_norms(model, tmp_path)


@pytest.mark.parametrize("build", [ava_resnet18, resnet50])
def test_constant_gradients_are_within_2e5(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    """The worst case for sums in float32."""
    model = build()
    constant(model)
    assert_norms(model, tmp_path, rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_summed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """Half-precision gradients neither overflow nor lose digits in their sum."""
    model = ava_resnet18().to(dtype)
    random_gradients(model, 1.0)
    assert_norms(model, tmp_path)


def test_squares_beyond_float32_do_not_overflow(tmp_path: Path) -> None:
    """Norms past 1e19 have squares that float32 cannot hold; groups are combined in float64."""
    model, _ = tiny()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = 1.5e19
    row = recorded(model, tmp_path)
    assert row["overall"] == pytest.approx(1.5e19 * np.sqrt(8), rel=1e-5)


def test_a_model_that_changes_its_precision_is_measured_on(tmp_path: Path) -> None:
    """Half way through training, rows continue."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model.to(dtype)
            random_gradients(model)
            telemetry.step()
        assert telemetry.close().failed == 0
    norms = pq.read_table(tmp_path / "telemetry" / "gradient_norms.parquet")["overall"].to_pylist()
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("clips", [False, True])
def test_a_part_of_the_model_may_change_its_precision(tmp_path: Path, dtype: torch.dtype, clips: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Rows continue, and clipping keeps torch's bits."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for kind in (torch.float32, torch.float32, dtype):
            model.mlp_head.to(kind)
            random_gradients(model)
            telemetry.step()
            if clips:
                total = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                assert torch.equal(telemetry.clip_grad_norm_(1e9), total)
        assert telemetry.close().failed == 0
    norms = pq.read_table(tmp_path / "telemetry" / "gradient_norms.parquet")["overall"].to_pylist()
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-2)


def test_gradients_that_are_conjugated_lazily_are_measured(tmp_path: Path) -> None:
    """As complex weights get them from a loss that holds their conjugate."""
    model = nn.Module()
    model.waves = nn.Parameter(torch.ones(5, dtype=torch.complex64))
    loss: Tensor = (model.waves.conj() * torch.full((5,), 3 + 4j)).real.sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    assert model.waves.grad is not None
    row = recorded(model, tmp_path)
    assert row["overall"] == pytest.approx(np.linalg.norm(model.waves.grad.resolve_conj().numpy()), rel=1e-5)


def test_nan_in_one_group_leaves_the_others(tmp_path: Path) -> None:
    """A nan is recorded for its group and the groups that contain it, and for no other."""
    model, _ = tiny()
    random_gradients(model)
    head = next(model.mlp_head.parameters())
    assert head.grad is not None
    head.grad[0, 0] = float("nan")
    row = recorded(model, tmp_path)
    assert np.isnan(row["overall"])
    assert np.isnan(row["mlp_layer_0"])
    assert row["backbone_2"] == pytest.approx(reference(model)["backbone_2"], rel=1e-5)
    assert row["mlp_layer_3"] == pytest.approx(reference(model)["mlp_layer_3"], rel=1e-5)


class Mixed(nn.Module):
    """Parameters of three dtypes, one of them complex, and an embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3, dtype=torch.float64)
        self.waves = nn.Parameter(torch.ones(5, dtype=torch.complex64))
        self.words = nn.Embedding(20, 4, sparse=True)
        self.head = nn.Linear(3, 3, dtype=torch.bfloat16)


def test_each_call_of_torchs_kernel_has_one_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise torch starts one kernel for each tensor: a float32 norm in a bfloat16 model would cost all of them."""
    torchs, dtypes = torch._foreach_norm, []

    def noted(tensors: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        dtypes.append({tensor.dtype for tensor in tensors})
        return torchs(tensors, *args, **kwargs)

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).to(torch.bfloat16)
    model[1].to(torch.float32)
    random_gradients(model, 1.0)
    monkeypatch.setattr(torch, "_foreach_norm", noted)
    assert_norms(model, tmp_path)
    assert dtypes == [{torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize("clips", [False, True])
def test_gradients_of_every_kind_are_measured(tmp_path: Path, clips: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Mixed dtypes, complex and sparse gradients have their norm as any other."""
    model = Mixed()
    (model.words(torch.tensor([1, 1, 3])).sum() * 2).backward()
    for name, parameter in model.named_parameters():
        if name != "words.weight":
            parameter.grad = torch.full_like(parameter, 0.5 + 0.5j if parameter.is_complex() else 0.5)
    telemetry = TelemetryCollector(model, torch.optim.SGD(model.parameters()), tmp_path, collect_every_n=1)
    telemetry._clipping._max_norm = 1.0 if clips else None
    telemetry.step()
    telemetry.close()
    row = pq.read_table(tmp_path / "telemetry" / "gradient_norms.parquet").to_pylist()[0]
    dense = 3 * 12 * 0.25 + 5 * 0.5
    sparse = 4 * (4.0**2 + 2.0**2)
    assert row["overall"] == pytest.approx((dense + sparse) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("numel", [1, ROW_LENGTH, ROW_LENGTH + 1, 2 * ROW_LENGTH, 5 * ROW_LENGTH - 1])
def test_pieces_cover_every_number_once(numel: int) -> None:
    """Whatever its length, no number of a gradient is left out or counted twice."""
    gradients: list[Tensor] = [torch.ones(numel), torch.ones(3)]
    plan = NormPlan.of(gradients)
    squares = np.bincount(plan.owners, weights=plan.measure(gradients).double().square().numpy())
    assert squares == pytest.approx([numel, 3], rel=1e-6)


def test_numbers_come_together_on_the_accelerator() -> None:
    """Also where a long tensor lies on the CPU, as an embedding that does not fit."""
    gradients: list[Tensor] = [torch.ones(3 * ROW_LENGTH), torch.empty(5, device="meta")]
    plan = NormPlan.of(gradients)
    vector = plan.measure(gradients)
    assert vector.device.type == "meta"
    assert plan.owners.tolist() == [1, 0, 0, 0]
    assert vector.shape == (4,)


def test_gradients_are_not_kept(tmp_path: Path) -> None:
    """After zero_grad a gradient's memory is free: the collector holds none of them."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    random_gradients(model)
    kept = [ref(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    telemetry.step()
    optimizer.zero_grad()
    assert [one() for one in kept] == [None] * len(kept)
    telemetry.close()


def test_the_manifest_names_each_device_that_held_gradients(tmp_path: Path) -> None:
    """Also one that the model was moved to after its first row."""
    model, optimizer = tiny()
    random_gradients(model)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        telemetry.step()
        telemetry.flush()
        first = open_run(tmp_path).manifest.attempt.device
        gradients = [torch.empty(3, device="meta"), *[None] * 7]
        telemetry._recorder._gradient_pass._plan(gradients)
    assert first is not None
    assert first.startswith("cpu (")
    assert open_run(tmp_path).manifest.attempt.device == f"{first}, {first.replace('cpu', 'meta')}"
