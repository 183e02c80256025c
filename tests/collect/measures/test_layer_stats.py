"""Statistics of each parameter tensor, compared with float64."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import TinyNet, ava_resnet18, backward, tiny, train

SWITCH = {"track_per_layer_stats": True, "collect_every_n": 1}
STATISTICS = ["mean", "std", "min", "max", "l2_norm", "grad_norm"]


def recorded(root: Path, model: nn.Module, **options: object) -> pd.DataFrame:
    """The rows of one step with the model's present weights and gradients, by layer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TelemetryCollector(model, optimizer, root, {**SWITCH, "on_error": "raise", **options}) as telemetry:
        telemetry.step()
    assert [str(one) for one in validate_run(root)] == []
    return rows_of(root).set_index("layer_name")


def rows_of(root: Path) -> pd.DataFrame:
    """The table, with None for null."""
    rows = open_run(root).arrow("per_layer_stats").to_pylist()
    return pd.DataFrame(rows, dtype=object)


def expected(weights: Tensor, gradient: Tensor | None) -> dict[str, float | None]:
    """The statistics in float64."""
    numbers = weights.detach().double()
    return {
        "mean": numbers.mean().item(),
        "std": numbers.std().item() if numbers.numel() > 1 else None,
        "min": numbers.min().item(),
        "max": numbers.max().item(),
        "l2_norm": numbers.norm().item(),
        "num_params": numbers.numel(),
        "grad_norm": None if gradient is None else gradient.double().norm().item(),
    }


def assert_as_expected(row: Any, weights: Any, gradient: Any) -> None:
    """Every statistic is that of float64, but for rounding; the mean relative to the size of the numbers."""
    for name, value in expected(weights, gradient).items():
        size = weights.detach().double().abs().mean().item() if name == "mean" else 0.0
        assert row[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-6 * size)), name


def test_a_resnet_with_frozen_shared_and_half_precision_parameters(tmp_path: Path) -> None:
    """BatchNorm's weights are near 1, where their spread is lost if squares are summed around 0."""
    torch.manual_seed(0)
    model = ava_resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 1.6e-4)
            nn.init.normal_(module.bias, 0.0, 1e-4)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for parameter in model.get_submodule("layer1").parameters():
        parameter.requires_grad_(False)  # noqa: FBT003  # as torch has it
        parameter.grad = None
    model.layer2 = model.layer2.half()
    model.layer3 = model.layer3.bfloat16()
    model.get_submodule("layer4.1").double()
    model.shared = model.get_submodule("fc.0")
    model.conv1.to(memory_format=torch.channels_last)
    rows = recorded(tmp_path, model)
    parameters = dict(model.named_parameters())
    assert list(rows.index) == list(parameters)
    for name, parameter in parameters.items():
        assert_as_expected(rows.loc[name], parameter, parameter.grad)


SHAPES = [(1,), (), (2,), (31_999,), (32_000,), (32_001,), (70_001,), (3, 32_000), (5, 7), (7, 5), (35,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1.0, -300.0])
def test_tensors_of_any_length(tmp_path: Path, mean: float, dtype: torch.dtype) -> None:
    """Those that are stacked, those of exactly one piece, and those of several pieces with a rest."""
    torch.manual_seed(1)
    model = nn.ParameterList(nn.Parameter((torch.randn(shape) * 1e-3 + mean).to(dtype)) for shape in SHAPES)
    rows = recorded(tmp_path, model)
    for name, parameter in model.named_parameters():
        assert_as_expected(rows.loc[name], parameter, None)


def test_views_of_every_kind(tmp_path: Path) -> None:
    """The order and the place of the numbers in memory do not matter."""
    torch.manual_seed(2)
    whole = torch.randn(300, 400)
    views = [
        whole.t(),
        whole[::2, 1::3],
        whole[:, :1].expand(300, 200),
        torch.randn(2, 300, 9, 9).mT.permute(1, 0, 3, 2),
    ]
    model = nn.ParameterList(nn.Parameter(view) for view in views)
    rows = recorded(tmp_path, model)
    for name, parameter in model.named_parameters():
        assert_as_expected(rows.loc[name], parameter, None)


@pytest.mark.parametrize("length", [64, 100_000])
def test_numbers_one_rounding_apart_have_their_spread(tmp_path: Path, length: int) -> None:
    """Around a mean that is itself rounded; and equal numbers have none at all."""
    apart = torch.ones(length)
    apart[::4] += torch.finfo(torch.float32).eps
    model = nn.ParameterList([nn.Parameter(apart), nn.Parameter(torch.full((length,), 0.1))])
    rows = recorded(tmp_path, model)
    assert rows["std"].tolist() == [pytest.approx(apart.double().std().item(), rel=1e-5), 0.0]


def test_what_cannot_be_read_is_null(tmp_path: Path) -> None:
    """Sparse and meta tensors, integers and float8, whose scale is elsewhere; an empty tensor has a norm of 0."""
    kinds = {
        "empty": torch.empty(0, 4),
        "meta": torch.empty(3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "integers": torch.ones(3, dtype=torch.int8),
        "scaled": torch.ones(3, dtype=torch.float8_e4m3fn),
        "complex": torch.ones(3, dtype=torch.complex64),
    }
    model = nn.Module()
    for name, numbers in kinds.items():
        model.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
    rows = recorded(tmp_path, model)
    assert rows[STATISTICS[:4]].isna().all(axis=None)
    assert rows["l2_norm"].to_dict() == {name: 0.0 if name == "empty" else None for name in kinds}
    assert rows["num_params"].to_dict() == {name: numbers.numel() for name, numbers in kinds.items()}


def test_a_lazy_parameter_is_unknown_until_it_has_a_shape(tmp_path: Path) -> None:
    """The plan follows: the row after the first forward pass has its numbers."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    with TelemetryCollector(model, torch.optim.SGD(model.parameters()), tmp_path, SWITCH) as telemetry:
        telemetry.step()
        model(torch.randn(5, 3)).sum().backward()
        telemetry.step()
    rows = rows_of(tmp_path)
    lazy = rows[rows["layer_name"] == "1.weight"]
    assert lazy["num_params"].tolist() == [None, 8]
    assert_as_expected(lazy.iloc[1], model[1].weight, model[1].weight.grad)
    assert [str(one) for one in validate_run(tmp_path)] == []


INF, NAN = math.inf, math.nan
NOT_FINITE = [
    ([1.0, INF], (INF, NAN, 1.0, INF, INF)),
    ([INF, -INF], (NAN, NAN, -INF, INF, INF)),
    ([1.0, NAN], (NAN, NAN, NAN, NAN, NAN)),
    ([INF, NAN], (NAN, NAN, NAN, NAN, NAN)),
]


@pytest.mark.parametrize("num_other", [0, 40_000])
@pytest.mark.parametrize(("numbers", "statistics"), NOT_FINITE)
def test_weights_that_are_not_finite_are_measured(
    tmp_path: Path, numbers: list[float], statistics: tuple[float, ...], num_other: int
) -> None:
    """Also in the second of two pieces; and no event says so a second time."""
    model = nn.ParameterList([nn.Parameter(torch.cat((torch.ones(num_other), torch.tensor(numbers))))])
    rows = recorded(tmp_path, model)
    assert rows.iloc[0][STATISTICS[:5]].tolist() == pytest.approx(list(statistics), nan_ok=True)
    assert "per_layer_stats" not in set(open_run(tmp_path).events()["column"].dropna())


def test_a_sharded_model_has_names_and_nothing_else(tmp_path: Path) -> None:
    """What each process holds is a part, whose statistics and length are not those of the tensor."""
    model = type("FullyShardedDataParallel", (TinyNet,), {})()
    backward(model)
    rows = recorded(tmp_path, model)
    assert rows[[*STATISTICS, "num_params"]].isna().all(axis=None)


def test_without_gradients_the_weights_are_there(tmp_path: Path) -> None:
    """`track_gradients` off leaves grad_norm null, and nothing else."""
    model, _ = tiny()
    backward(model)
    rows = recorded(tmp_path, model, track_gradients=False)
    assert rows["grad_norm"].isna().all()
    assert rows[STATISTICS[:5]].notna().all(axis=None)


def test_gradients_under_a_loss_scale_have_their_true_norm(tmp_path: Path) -> None:
    """Each squared norm is a part of the group's."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, SWITCH, grad_scaler=scaler) as telemetry:
        backward(model, scaler=scaler)
        telemetry.step()
        scaler.unscale_(optimizer)
    rows = rows_of(tmp_path).set_index("layer_name")
    for name, parameter in model.named_parameters():
        assert_as_expected(rows.loc[name], parameter, parameter.grad)
    overall = open_run(tmp_path).gradient_norms()["overall"][0]
    assert math.hypot(*rows["grad_norm"]) == pytest.approx(overall, rel=1e-6)


def test_several_optimizers_in_a_batch(tmp_path: Path) -> None:
    """The weights are those at the first call, each gradient that of its own optimizer's call."""
    torch.manual_seed(0)
    parts = nn.ModuleDict({"g": nn.Linear(3, 4), "d": nn.Linear(4, 1)})
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.01) for name, part in parts.items()}
    rows: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    with TelemetryCollector(parts, optimizers, tmp_path, SWITCH) as telemetry:
        for _ in range(3):
            weights = {name: one.detach().clone() for name, one in parts.named_parameters()}
            gradients: dict[str, Tensor] = {}
            for name, optimizer in reversed(optimizers.items()):
                parts.zero_grad()
                parts["d"](parts["g"](torch.randn(5, 3))).square().sum().backward()
                telemetry.step(optimizer=name)
                gradients |= {f"{name}.{key}": one.grad.clone() for key, one in parts[name].named_parameters()}  # type: ignore[union-attr]
                optimizer.step()
            rows.append((weights, gradients))
    found = rows_of(tmp_path)
    for batch, (weights, gradients) in enumerate(rows, start=1):
        of_batch = found[found["batch_idx"] == batch].set_index("layer_name")
        assert list(of_batch.index) == list(weights)
        for name, one in weights.items():
            assert_as_expected(of_batch.loc[name], one, gradients[name])
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_the_weights_are_bit_identical_with_the_switch_on_and_off(tmp_path: Path) -> None:
    """And without a collector."""
    ends = []
    for name, options in {"on": SWITCH, "off": {"collect_every_n": 1}, "absent": None}.items():
        model, optimizer = tiny()
        telemetry = None if options is None else TelemetryCollector(model, optimizer, tmp_path / name, options)
        train(telemetry, model, optimizer, 5)
        if telemetry is not None:
            telemetry.close()
        ends.append(model)
    for one in ends[1:]:
        assert all(map(torch.equal, ends[0].parameters(), one.parameters()))
    assert open_run(tmp_path / "on").arrow("per_layer_stats").num_rows == 5 * len(list(ends[0].parameters()))
    assert "per_layer_stats" not in open_run(tmp_path / "off").manifest.tables


def test_a_resumed_run_has_the_rows_of_one_that_never_stopped(tmp_path: Path) -> None:
    """Bit for bit; rows behind the checkpoint are set aside."""

    def run(root: Path, stops: list[tuple[int, int]]) -> list[dict[str, object]]:
        model, optimizer = tiny()
        saved: tuple[object, ...] = ()
        for start, end in stops:
            with TelemetryCollector(model, optimizer, root, SWITCH) as telemetry:
                if saved:
                    model.load_state_dict(saved[0])  # type: ignore[arg-type]
                    telemetry.load_state_dict(saved[1])  # type: ignore[arg-type]
                for batch in range(start, end + 1):
                    optimizer.zero_grad()
                    backward(model, seed=batch)
                    telemetry.step()
                    optimizer.step()
                    if batch == 3:
                        saved = ({key: one.clone() for key, one in model.state_dict().items()}, telemetry.state_dict())
        assert [str(one) for one in validate_run(root)] == []
        return list(open_run(root).arrow("per_layer_stats").to_pylist())

    assert run(tmp_path / "resumed", [(1, 5), (4, 6)]) == run(tmp_path / "whole", [(1, 6)])


def test_the_columns_and_what_they_mean_are_those_of_older_collectors(tmp_path: Path) -> None:
    """Their columns, then ours; and, as in each of their rows, the norm follows from mean and deviation."""
    torch.manual_seed(0)
    rows = recorded(tmp_path, ava_resnet18())
    theirs = ["batch_idx", "epoch", "layer_name", "mean", "std", "min", "max", "l2_norm", "num_params"]
    assert open_run(tmp_path).arrow("per_layer_stats").column_names == [*theirs, "grad_norm"]
    for _, row in rows.iterrows():
        squares = row["num_params"] * row["mean"] ** 2 + (row["num_params"] - 1) * row["std"] ** 2
        assert squares == pytest.approx(row["l2_norm"] ** 2, rel=1e-5)
