"""A gradient that an earlier batch left over is null, and not measured as if it were new."""

from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pandas as pd
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, open_run, validate_run
from ava_pipeline.collect.stale_gradients import StaleGradients
from ava_pipeline.collect.targets import TrainingTargets
from tests.collect.models import TinyNet, backward, tiny


def norm(*modules: nn.Module) -> float:
    """Their gradients as one vector, in float64."""
    gradients = [one.grad for module in modules for one in module.parameters() if one.grad is not None]
    return float(torch.cat([one.double().reshape(-1) for one in gradients]).norm())


def warnings(root: Path) -> list[str]:
    """The messages of misuse."""
    events = open_run(root).events()
    return [str(message) for message in events[events["event"] == "misuse"]["message"]]


def nulls(root: Path, column: str) -> list[bool]:
    """Which rows of a column of norms are null."""
    return [bool(one) for one in open_run(root).gradient_norms()[column].isna()]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("is_frozen", [True, False], ids=["the head alone", "the whole model"])
def test_the_last_gradient_of_a_replaced_head_is_not_recorded_for_ever(
    tmp_path: Path,
    every: int,
    is_frozen: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """A new optimizer does not reset it. One warning names the head."""
    model, _ = tiny()
    model.backbone.requires_grad_(requires_grad=not is_frozen)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    expected = []
    change = 4 * every + 1 + every // 2
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=every) as telemetry:
        for batch in range(1, 8 * every + 1):
            if batch == change:
                model.mlp_head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 10))
                optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            if batch % every == 0:
                expected.append(norm(model.backbone if batch >= change else model) if not is_frozen else 0.0)
            optimizer.step()
    # In a sparse run, the first row after the change has the gradient of a batch between: it is not known to be old.
    first = 4 if every == 1 else 5
    assert nulls(tmp_path, "mlp_head")[first:] == [True] * (8 - first)
    assert not any(nulls(tmp_path, "mlp_head")[:4])
    (warning,) = warnings(tmp_path)
    assert "the model no longer has mlp_head.0.weight" in warning
    if not is_frozen:
        norms = open_run(tmp_path).gradient_norms()["overall"].tolist()
        assert norms[first:] == pytest.approx(expected[first:], rel=1e-5)


def test_freezing_with_a_new_optimizer_and_rebind_leaves_no_old_gradient(tmp_path: Path) -> None:
    """Every row from the change on has the head alone."""
    model, optimizer = tiny()
    expected = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
        for batch in range(1, 13):
            if batch == 6:
                model.backbone.requires_grad_(requires_grad=False)
                optimizer = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
                telemetry.rebind(optimizer=optimizer)
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            if batch % 2 == 0:
                expected.append(norm(model.mlp_head) if batch >= 6 else norm(model))
            optimizer.step()
    assert open_run(tmp_path).gradient_norms()["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    assert nulls(tmp_path, "backbone_2") == [False] * 2 + [True] * 4
    assert validate_run(tmp_path) == []


def test_a_stale_gradient_stays_one_after_rebind(tmp_path: Path) -> None:
    """Also if the parameters have other positions in the model now."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        backward(model)
        telemetry.step()
        other = nn.ModuleDict({"mlp_head": model.mlp_head, "backbone": model.backbone})
        telemetry.rebind(model=other)
        optimizer.zero_grad()
        model.mlp_head(torch.randn(4, 8)).mean().backward()  # the backbone keeps what it had
        telemetry.step()
        expected = norm(model.mlp_head)
    assert open_run(tmp_path).gradient_norms()["overall"].tolist()[1] == pytest.approx(expected, rel=1e-5)


def loop(root: Path, model: nn.Module, before: Callable[[torch.optim.Optimizer], object]) -> pd.DataFrame:
    """The norms of five batches, before each of which gradients are reset in some way."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with TelemetryCollector(model, optimizer, root, collect_every_n=1) as telemetry:
        for batch in range(5):
            before(optimizer)
            backward(model, seed=batch)
            telemetry.step()
            expected.append(norm(model))
            optimizer.step()
    norms = open_run(root).gradient_norms()
    assert norms["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    return norms


def test_gradients_that_are_zeroed_or_added_to_in_place_are_new(tmp_path: Path) -> None:
    """They are the same tensors in every batch."""
    loop(tmp_path / "zeroed", TinyNet(), lambda optimizer: optimizer.zero_grad(set_to_none=False))
    loop(tmp_path / "added", TinyNet(), lambda _: None)


def test_an_optimizer_that_steps_in_some_batches_has_norms_in_those(tmp_path: Path) -> None:
    """Between them its gradients are old; the model still has the parameters, so nothing is wrong."""
    model, _ = tiny()
    head = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
    body = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
    with TelemetryCollector(model, {"head": head, "body": body}, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(9):
            is_both = batch % 3 == 0
            head.zero_grad()
            if is_both:
                body.zero_grad()
                backward(model, seed=batch)
            else:
                model.mlp_head(torch.randn(4, 8)).square().mean().backward()
            telemetry.step()
            head.step()
            if is_both:
                body.step()
    assert nulls(tmp_path, "mlp_head") == [False] * 9
    # The row after a step of both still finds the parameters changed: the gradient is the one that was used.
    assert nulls(tmp_path, "backbone_2")[2::3] == [True] * 3
    assert warnings(tmp_path) == []


def replay(model: nn.Module, parts: list[nn.Module]) -> None:
    """What the replay of a CUDA graph of forward and backward does: new numbers, in the same tensors, uncounted."""
    for part in parts:
        for parameter in part.parameters():
            assert parameter.grad is not None
            parameter.grad.data.copy_(torch.randn_like(parameter))
    assert len(list(model.parameters())) > len(list(parts[0].parameters()))


@pytest.mark.parametrize("is_whole", [True, False], ids=["of the model", "of a part"])
def test_gradients_that_a_graph_computes_are_new(tmp_path: Path, is_whole: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Neither the tensors nor torch's counts change, but the optimizer changes the parameters."""
    model, optimizer = tiny()
    backward(model)
    expected = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(5):
            replay(model, [model.backbone, model.mlp_head] if is_whole else [model.backbone])
            if not is_whole:
                model.mlp_head.zero_grad()
                model.mlp_head(torch.randn(4, 8, generator=torch.Generator().manual_seed(batch))).mean().backward()
            telemetry.step()
            expected.append(norm(model))
            optimizer.step()
    assert open_run(tmp_path).gradient_norms()["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    assert warnings(tmp_path) == []


def test_no_gradient_is_held() -> None:
    """Neither a reference nor its row keeps one alive; another tensor in its place is not taken for it."""
    model, optimizer = tiny()
    targets = TrainingTargets.of(model, {}, {"optimizer": optimizer})
    stale = StaleGradients(targets, lambda _: [])
    for batch in range(20):
        optimizer.zero_grad()
        backward(model, seed=batch)
        assert list(stale.among([one.grad for one in model.parameters()], targets.changes(), None)) == []
        references = [ref(one.grad) for one in model.parameters()]
        optimizer.zero_grad()
        assert [one() for one in references] == [None] * len(references)
