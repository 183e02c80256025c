"""Optimizers that take turns, share parameters, lose groups or are replaced: rates and norms stay in their columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector, open_run, validate_run
from tests.collect.models import TinyNet, backward, tiny


def norm(*modules: nn.Module) -> float:
    """Their gradients as one vector, in float64."""
    gradients = [one.grad for module in modules for one in module.parameters() if one.grad is not None]
    return float(torch.cat([one.double().reshape(-1) for one in gradients]).norm())


def train_in_turns(
    telemetry: TelemetryCollector,
    model: nn.Module,
    turns: Mapping[str, tuple[torch.optim.Optimizer, range]],
    *,
    is_named: bool,
) -> list[float]:
    """Phases, in each of which one of the collector's optimizers steps; returns the norm that each step used."""
    used = []
    for name, (optimizer, batches) in turns.items():
        for batch in batches:
            model.zero_grad()
            backward(model, seed=batch)
            telemetry.step(optimizer=name if is_named else None)
            held = [one for group in optimizer.param_groups for one in group["params"]]
            used.append(float(torch.cat([one.grad.double().reshape(-1) for one in held]).norm()))
            optimizer.step()
    return used


@pytest.mark.parametrize("is_named", [True, False])
def test_optimizers_in_turns_are_not_taken_for_replaced_ones(tmp_path: Path, is_named: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The rates stay, every batch in which either steps counts, and nothing is reported."""
    model, _ = tiny()
    warm = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
    rest = torch.optim.SGD(model.backbone.parameters(), lr=0.01)
    with TelemetryCollector(model, {"warm": warm, "rest": rest}, tmp_path, collect_every_n=2) as telemetry:
        turns = {"warm": (warm, range(1, 15)), "rest": (rest, range(15, 25))}
        train_in_turns(telemetry, model, turns, is_named=is_named)
        # The first call of a phase belongs to the batch before: no name has come again.
        num_batches = 23 if is_named else 24
        assert telemetry.state_dict()["global_step"] == num_batches
    run = open_run(tmp_path)
    num_rows = num_batches // 2
    assert run.learning_rates()["lr_group_0"].tolist() == [0.1] * num_rows
    assert run.learning_rates()["lr_group_1"].tolist() == [0.01] * num_rows
    assert run.steps()["global_step"].tolist() == list(range(1, num_batches, 2))
    assert run.events().empty


def test_a_parameter_of_two_optimizers_is_measured_for_both(tmp_path: Path) -> None:
    """The head alone first, then everything."""
    model, _ = tiny()
    warm = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
    full = torch.optim.SGD(model.parameters(), lr=0.01)
    with TelemetryCollector(model, {"warm": warm, "full": full}, tmp_path, collect_every_n=1) as telemetry:
        turns = {"warm": (warm, range(1, 4)), "full": (full, range(4, 7))}
        used = train_in_turns(telemetry, model, turns, is_named=True)
    run = open_run(tmp_path)
    # The third row has both calls, since no name comes again between them; what both measured is that of the last.
    assert run.gradient_norms()["overall"].tolist() == pytest.approx([*used[:2], *used[3:]], rel=1e-5)
    assert run.gradient_norms()["mlp_head"].notna().all()
    assert run.gradient_norms()["backbone_2"].isna().tolist() == [True] * 2 + [False] * 3
    assert run.manifest.groups["mlp_head"].learning_rates == ("lr_group_0", "lr_group_1")
    assert run.events().empty


@pytest.mark.parametrize("unscaled", ["warm", "full", None])
def test_a_shared_parameter_is_unscaled_once_either_optimizer_is(tmp_path: Path, unscaled: str | None) -> None:
    """By the scale that still multiplies it."""
    model, _ = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = {
        "warm": torch.optim.SGD(model.mlp_head.parameters(), lr=0.1),
        "full": torch.optim.SGD(model.parameters(), lr=0.01),
    }
    backward(model, scaler=scaler)
    if unscaled is not None:
        scaler.unscale_(optimizers[unscaled])
    expected = norm(model.mlp_head) / (1024.0 if unscaled is None else 1.0)
    with TelemetryCollector(model, optimizers, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        telemetry.step()
    assert open_run(tmp_path).gradient_norms()["mlp_head"].tolist() == pytest.approx([expected], rel=1e-5)


class Halves(nn.Module):
    """Two parts with an optimizer each, and one that no optimizer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.g = nn.Linear(3, 4)
        self.d = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number a sample."""
        score: Tensor = self.d(self.g(self.stem(x)))
        return score


def test_a_gradient_of_no_optimizer_counts_once_in_a_batch(tmp_path: Path) -> None:
    """As it was at the last call, not once for each call."""
    torch.manual_seed(0)
    model = Halves()
    optimizers = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.1) for name in ("d", "g")}
    groups = {"stem": model.stem, "g": model.g, "d": model.d}
    expected: dict[str, list[float]] = {"stem": [], "overall": []}
    with TelemetryCollector(model, optimizers, tmp_path, collect_every_n=1, groups=groups) as telemetry:
        for _ in range(3):
            model.stem.zero_grad()
            squares = []
            for name, optimizer in optimizers.items():
                optimizer.zero_grad()
                model(torch.randn(8, 3)).mean().backward()
                telemetry.step(optimizer=name)
                squares.append(norm(getattr(model, name)) ** 2)
                optimizer.step()
            expected["stem"].append(norm(model.stem))
            expected["overall"].append((sum(squares) + norm(model.stem) ** 2) ** 0.5)
    norms = open_run(tmp_path).gradient_norms()
    assert norms["stem"].tolist() == pytest.approx(expected["stem"], rel=1e-5)
    assert norms["overall"].tolist() == pytest.approx(expected["overall"], rel=1e-5)


@pytest.mark.parametrize("is_scaled", [False, True])
def test_rebind_to_an_optimizer_of_the_same_parameters(tmp_path: Path, is_scaled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Its rates are recorded, and its `unscale_` is seen."""
    model = nn.Linear(6, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=is_scaled)
    expected = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for batch in range(6):
            if batch == 3:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
                telemetry.rebind(optimizer=optimizer)
            optimizer.zero_grad()
            backward(model, seed=batch, scaler=scaler)
            scaler.unscale_(optimizer)
            telemetry.step()
            expected.append(norm(model))
            scaler.step(optimizer)
            scaler.update()
    run = open_run(tmp_path)
    assert run.learning_rates()["lr_group_0"].tolist() == [0.1] * 3 + [0.001] * 3
    assert run.gradient_norms()["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    assert run.events().empty


def layers(num: int) -> tuple[nn.Sequential, torch.optim.SGD]:
    """A model of layers, with a named parameter group for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), *(nn.Linear(4, 4) for _ in range(num - 1)))
    groups = [{"params": [*one.parameters()], "lr": 10.0**-k, "name": f"L{k}"} for k, one in enumerate(model)]
    return model, torch.optim.SGD(groups)


def rates(root: Path) -> list[list[float | None]]:
    """The columns of rates, None for null."""
    frame = open_run(root).learning_rates()
    columns = [frame[name] for name in frame.columns if name.startswith("lr_")]
    return [
        [None if null else float(one) for one, null in zip(column, column.isna(), strict=True)] for column in columns
    ]


def change_between(root: Path, change: Any, *, num: int = 3) -> None:
    """Two batches, a change of the optimizer, and two more."""
    model, optimizer = layers(num)
    with TelemetryCollector(model, optimizer, root, collect_every_n=1) as telemetry:
        for batch in range(4):
            if batch == 2:
                change(model, optimizer)
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            optimizer.step()


def test_a_group_that_is_removed_moves_no_other_rate(tmp_path: Path) -> None:
    """Its own column is null from there on, and every column keeps its name."""

    def remove(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        del optimizer.param_groups[0]
        model[0].requires_grad_(requires_grad=False).zero_grad()

    change_between(tmp_path, remove)
    assert rates(tmp_path) == [[1.0, 1.0, None, None], [0.1] * 4, [0.01] * 4]
    manifest = open_run(tmp_path).manifest
    assert manifest.rate_names == {"lr_group_0": "L0", "lr_group_1": "L1", "lr_group_2": "L2"}
    assert validate_run(tmp_path) == []


def test_a_group_that_replaces_a_removed_one_has_a_column_of_its_own(tmp_path: Path) -> None:
    """Even if Python puts its list where the old one was."""

    def replace(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        del optimizer.param_groups[0]
        model.append(nn.Linear(4, 4))
        optimizer.add_param_group({"params": model[-1].parameters(), "lr": 0.5})

    change_between(tmp_path, replace)
    assert rates(tmp_path) == [[1.0, 1.0, None, None], [0.1] * 4, [0.01] * 4, [None, None, 0.5, 0.5]]


def test_loading_a_state_makes_new_groups_for_the_same_columns(tmp_path: Path) -> None:
    """As a resume inside a run does."""

    def load(_: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state_dict()
        state["param_groups"][1]["lr"] = 0.7
        optimizer.load_state_dict(state)

    change_between(tmp_path, load)
    assert rates(tmp_path) == [[1.0] * 4, [0.1, 0.1, 0.7, 0.7], [0.01] * 4]


def test_a_group_whose_parameters_are_replaced_keeps_its_column(tmp_path: Path) -> None:
    """It is the same group, at the same place."""

    def replace(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model[2] = nn.Linear(4, 4)
        optimizer.param_groups[2]["params"] = [*model[2].parameters()]

    change_between(tmp_path, replace)
    assert rates(tmp_path) == [[1.0] * 4, [0.1] * 4, [0.01] * 4]


def test_an_optimizer_without_hooks_is_recorded(tmp_path: Path) -> None:
    """A subclass that wraps another one, and does not call the constructor of Optimizer."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            self.base, self.param_groups = base, base.param_groups
            self.state, self.defaults = base.state, base.defaults

        def step(self, closure: Any = None) -> Any:
            return self.base.step(closure)

        def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002  # torch's signature
            self.base.zero_grad(set_to_none)

    model = TinyNet()
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(6):
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            optimizer.step()
    run = open_run(tmp_path)
    assert run.learning_rates()["lr_group_0"].tolist() == [0.1] * 6
    assert run.steps()["global_step"].isna().tolist() == [False] + [True] * 5
    assert run.events().empty
