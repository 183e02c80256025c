"""Loops as others write them: exact norms, and the same weights with and without telemetry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from ava_pipeline import TelemetryCollector, open_run, validate_run
from tests.collect.models import TinyNet, backward

NUM_BATCHES = 6
Record = Callable[[], None]
Loop = Callable[[TinyNet, Path | None], tuple[TelemetryCollector | None, list[float]]]


def norm(model: nn.Module) -> float:
    """All gradients as one vector, in float64."""
    return float(
        torch.cat([one.grad.double().reshape(-1) for one in model.parameters() if one.grad is not None]).norm()
    )


def collected(model: nn.Module, optimizer: Any, root: Path | None) -> TelemetryCollector | None:
    """A collector of every batch, or none."""
    return None if root is None else TelemetryCollector(model, optimizer, root, collect_every_n=1)


def lbfgs(model: TinyNet, root: Path | None) -> tuple[TelemetryCollector | None, list[float]]:
    """The row is that of the first evaluation of each step, at the weights before it."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    telemetry, expected = collected(model, optimizer, root), []
    for batch in range(1, NUM_BATCHES + 1):
        is_first = True

        def closure() -> torch.Tensor:
            nonlocal is_first
            optimizer.zero_grad()
            loss = backward(model, seed=batch)  # noqa: B023  # it is called in this turn
            if is_first:
                expected.append(norm(model))
                if telemetry is not None:
                    telemetry.step(values={"loss": loss.detach()})
            is_first = False
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's
    return telemetry, expected


class SharpnessAware(Optimizer):
    """SAM: climbs to a sharper point, takes the gradient there, and steps from where it was (Foret et al. 2021)."""

    def __init__(self, parameters: Any, base: Optimizer, rho: float = 0.05) -> None:
        super().__init__(parameters, {"rho": rho})
        self.base_optimizer = base
        self.param_groups = base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb."""
        parameters = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        length = torch.cat([one.grad.reshape(-1) for one in parameters]).norm()
        for one in parameters:
            self.state[one]["climbed"] = one.grad * (0.05 / (length + 1e-12))
            one.add_(self.state[one]["climbed"])

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back, and step."""
        for one, state in self.state.items():
            one.sub_(state["climbed"])
        self.base_optimizer.step()


def sam(model: TinyNet, root: Path | None) -> tuple[TelemetryCollector | None, list[float]]:
    """The row is that of the gradient that the base optimizer uses."""
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = SharpnessAware(list(model.parameters()), base)
    telemetry, expected = collected(model, base, root), []
    for batch in range(1, NUM_BATCHES + 1):
        optimizer.zero_grad()
        backward(model, seed=batch)
        optimizer.first_step()
        optimizer.zero_grad()
        loss = backward(model, seed=batch)
        expected.append(norm(model))
        if telemetry is not None:
            telemetry.step(values={"loss": loss})
        optimizer.second_step()
    return telemetry, expected


def unfreezing(model: TinyNet, root: Path | None) -> tuple[TelemetryCollector | None, list[float]]:
    """The head first, then one stage of the backbone after the other, each with a parameter group of its own."""
    model.backbone.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.mlp_head.parameters(), lr=1e-2)
    telemetry, expected = collected(model, optimizer, root), []
    for batch in range(1, NUM_BATCHES + 1):
        if batch in {3, 5}:
            stage = model.backbone[2 if batch == 3 else 0]
            stage.requires_grad_(requires_grad=True)
            optimizer.add_param_group({"params": list(stage.parameters()), "lr": 1e-3 / batch})
        optimizer.zero_grad()
        loss = backward(model, seed=batch)
        expected.append(norm(model))
        if telemetry is not None:
            telemetry.step(values={"loss": loss})
        optimizer.step()
    return telemetry, expected


def compiled(model: TinyNet, root: Path | None) -> tuple[TelemetryCollector | None, list[float]]:
    """Forward and backward of a compiled model."""
    fast: Any = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.05)
    telemetry, expected = collected(fast, optimizer, root), []
    for batch in range(1, NUM_BATCHES + 1):
        optimizer.zero_grad()
        loss = backward(fast, seed=batch)
        expected.append(norm(model))
        if telemetry is not None:
            telemetry.step(values={"loss": loss})
        optimizer.step()
    return telemetry, expected


LOOPS: list[Loop] = [lbfgs, sam, unfreezing, compiled]


def trained(loop: Loop, root: Path | None) -> tuple[TinyNet, list[float]]:
    """A seeded model that a loop trained."""
    torch.manual_seed(0)
    model = TinyNet()
    telemetry, expected = loop(model, root)
    if telemetry is not None:
        telemetry.close()
    return model, expected


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_norms_are_exact_and_the_training_is_unchanged(loop: Loop, tmp_path: Path) -> None:
    """Within 1e-5 of float64, weights bit for bit, and nothing to warn of."""
    model, expected = trained(loop, tmp_path)
    norms = open_run(tmp_path).gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(1, NUM_BATCHES + 1))
    assert norms["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    other, _ = trained(loop, None)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
    events = open_run(tmp_path).events()
    assert events[events["severity"] != "info"].empty
    assert validate_run(tmp_path) == []
