"""weight_norms against float64: of parameters of every kind, and of those that nothing can read."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ava_pipeline import open_run, validate_run
from tests.collect.models import TinyNet, ava_resnet18
from tests.collect.weights import collector, norms, table, train, weights_of


def mixed_resnet18() -> nn.Module:
    """A ResNet-18 with frozen, shared, half-precision, double-precision, permuted and constant parameters."""
    torch.manual_seed(0)
    model = ava_resnet18()
    shared = nn.Linear(32, 32)
    model.fc = nn.Sequential(nn.Linear(512, 32), shared, nn.ReLU(), shared, nn.Linear(32, 10))
    model.get_submodule("layer1").to(torch.bfloat16)
    model.get_submodule("conv1").to(torch.float16)
    model.get_submodule("layer2").to(torch.float64)
    model.get_submodule("layer3").to(memory_format=torch.channels_last)
    model.get_submodule("layer4").requires_grad_(False)  # noqa: FBT003  # torch's own signature
    nn.init.constant_(next(model.get_submodule("layer3").parameters()), 0.1)
    return model


def test_norms_of_every_kind_of_parameter_equal_float64(tmp_path: Path) -> None:
    """Of the weights that the batch was computed with: before its own optimizer step."""
    model = mixed_resnet18()
    with collector(model, tmp_path, collect_every_n=2) as telemetry:
        rows = train(telemetry, model, range(1, 7))
    written = table(tmp_path, "weight_norms")
    assert [row["batch_idx"] for row in written] == [2, 4, 6]
    for row, weights in zip(written, rows, strict=True):
        for column, expected in norms(model, weights).items():
            assert row[column] == pytest.approx(expected, rel=1e-5), column
    assert validate_run(tmp_path) == []


def test_buffers_are_not_weights(tmp_path: Path) -> None:
    """The running statistics of a BatchNorm change at every batch, and without any optimizer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with collector(model, tmp_path) as telemetry:
        for _ in range(3):
            telemetry.step()
            for buffer in model.buffers():
                buffer.fill_(1000)
    expected = norms(model, weights_of(model))["overall"]
    assert [row["overall"] for row in table(tmp_path, "weight_norms")] == pytest.approx([expected] * 3, rel=1e-6)
    assert [row["overall"] for row in table(tmp_path, "weight_deltas")] == [None, 0, 0]


def test_tied_weights_count_once(tmp_path: Path) -> None:
    """As a language model's embedding and its output."""
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "output": nn.Linear(4, 10, bias=False)})
    embedding = model["embedding"]
    assert isinstance(embedding, nn.Embedding)
    model["output"].weight = embedding.weight
    with collector(model, tmp_path) as telemetry:
        telemetry.step()
    expected = norms(model, weights_of(model))["overall"]
    assert expected == pytest.approx(float(embedding.weight.detach().double().norm()))
    assert table(tmp_path, "weight_norms")[0]["overall"] == pytest.approx(expected, rel=1e-6)


class Sharded(nn.Parameter):
    """A parameter of which this process holds a part, as a DTensor has placements."""

    placements = ()


@pytest.mark.parametrize(
    "part",
    [
        lambda: nn.Parameter(torch.empty(3, device="meta")),
        lambda: nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False),
        nn.UninitializedParameter,
        lambda: nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False),
        lambda: Sharded(torch.ones(3)),
    ],
    ids=["meta", "quantized", "lazy", "sparse", "sharded"],
)
def test_a_group_with_an_unreadable_parameter_is_null(tmp_path: Path, part: object) -> None:
    """The norm of the rest is not that of the group; other groups are measured."""
    model = TinyNet()
    model.backbone.other = part()  # type: ignore[operator]  # makes the parameter
    with collector(model, tmp_path, groups={"backbone": "backbone.*", "head": "mlp_head.*"}) as telemetry:
        telemetry.step()
        telemetry.step()
    for name in ("weight_norms", "weight_deltas"):
        last = table(tmp_path, name)[-1]
        assert (last["overall"], last["backbone"]) == (None, None)
        assert last["head"] is not None
    assert "failed_write" not in set(open_run(tmp_path).events()["event"])


def test_long_and_short_double_precision_is_not_rounded_first(tmp_path: Path) -> None:
    """A difference of 1e-12 is nothing in float32."""
    model = nn.ParameterList([torch.ones(7, dtype=torch.float64), torch.ones(70_000, dtype=torch.float64)])
    with collector(model, tmp_path) as telemetry:
        telemetry.step()
        with torch.no_grad():
            for parameter in model:
                parameter.add_(1e-12)
        telemetry.step()
    expected = ((1 + 1e-12) - 1) * 70_007**0.5
    assert table(tmp_path, "weight_deltas")[1]["overall"] == pytest.approx(expected, rel=1e-5)
