"""Several optimizers that step in one batch, each after a backward pass of its own, as in a GAN."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, open_run, validate_run
from ava_pipeline.errors import MisuseError


class Gan(nn.Module):
    """A generator and a discriminator of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))


def norm(*modules: nn.Module) -> float:
    """Their gradients as one vector, in float64."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return float(torch.cat([one.grad.double().reshape(-1) for one in parameters if one.grad is not None]).norm())


def train(
    root: Path | None, num_batches: int, *, every: int = 1, num_critic: int = 1
) -> tuple[list[dict[str, float]], nn.Module]:
    """Train a GAN; returns the norms of each batch, of the generator and of the last discriminator step."""
    torch.manual_seed(0)
    model = Gan()
    g, d = model.generator, model.discriminator
    opt = {"d": torch.optim.Adam(d.parameters(), lr=1e-2), "g": torch.optim.Adam(g.parameters(), lr=1e-3)}
    telemetry = None
    if root is not None:
        telemetry = TelemetryCollector(model, opt, root, collect_every_n=every, groups={"g": g, "d": d})
    expected = []
    for batch in range(1, num_batches + 1):
        real, noise = torch.randn(8, 4) + 2, torch.randn(8, 3)
        opt["d"].zero_grad()
        d_loss = d(g(noise)).mean() - d(real).mean() + d(real).square().mean()
        d_loss.backward()
        norms = {"d": norm(d)}
        if telemetry is not None:
            telemetry.step(0, optimizer="d", values={"d_loss": d_loss})
        opt["d"].step()
        if batch % num_critic == 0:
            opt["g"].zero_grad()
            g_loss = (d(g(noise)) - 3).square().mean()
            g_loss.backward()
            norms["g"] = norm(g)
            if telemetry is not None:
                telemetry.step(0, optimizer="g", values={"g_loss": g_loss})
            opt["g"].step()
        expected.append(norms)
    if telemetry is not None:
        stats = telemetry.close()
        assert stats.collected == stats.written == num_batches // every
    return expected, model


def test_a_row_has_each_groups_own_gradients(tmp_path: Path) -> None:
    """Not those that the other's backward pass left behind; overall is their joined norm, and both losses are there."""
    expected, _ = train(tmp_path, 4)
    run = open_run(tmp_path)
    norms = run.gradient_norms()
    assert norms["batch_idx"].tolist() == [1, 2, 3, 4]
    for name in ("d", "g"):
        assert norms[name].tolist() == pytest.approx([one[name] for one in expected], rel=1e-5)
    joined = [(one["d"] ** 2 + one["g"] ** 2) ** 0.5 for one in expected]
    assert norms["overall"].tolist() == pytest.approx(joined, rel=1e-5)
    assert run.steps()[["d_loss", "g_loss"]].notna().all(axis=None)
    assert run.learning_rates()[["lr_group_0", "lr_group_1"]].iloc[0].tolist() == [1e-2, 1e-3]
    assert run.steps()["global_step"].tolist() == [0, 1, 2, 3]
    assert run.events().empty
    assert validate_run(tmp_path) == []


def test_calls_of_one_batch_are_due_together(tmp_path: Path) -> None:
    """With collect_every_n=3, batches 3 and 6 have both parts."""
    expected, _ = train(tmp_path, 7, every=3)
    norms = open_run(tmp_path).gradient_norms()
    assert norms["batch_idx"].tolist() == [3, 6]
    assert norms["g"].tolist() == pytest.approx([expected[2]["g"], expected[5]["g"]], rel=1e-5)


def test_an_optimizer_that_does_not_step_in_every_batch_is_null_in_the_others(tmp_path: Path) -> None:
    """Five steps of a critic per step of the generator; no call is taken for a wrong order."""
    expected, _ = train(tmp_path, 10, num_critic=5)
    norms = open_run(tmp_path).gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(1, 11))
    assert norms["g"].notna().tolist() == ["g" in one for one in expected]
    assert open_run(tmp_path).events()["event"].tolist() == ["changed_columns"]  # of the value that came later


def test_the_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    """Bit for bit."""
    _, with_telemetry = train(tmp_path, 5)
    _, without = train(None, 5)
    for one, other in zip(with_telemetry.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_last_row_is_handed_over_by_flush(tmp_path: Path) -> None:
    """It waits for the next batch else."""
    model = Gan()
    opt = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.1) for name in ("generator", "discriminator")}
    telemetry = TelemetryCollector(model, opt, tmp_path, collect_every_n=1)
    model.discriminator(model.generator(torch.randn(2, 3))).mean().backward()
    assert telemetry.step(optimizer="discriminator")
    assert telemetry.step(optimizer="generator")
    assert telemetry.flush()
    assert telemetry.stats().written == 1
    telemetry.close()


def test_a_call_behind_its_own_step_is_named(tmp_path: Path) -> None:
    """Order is judged optimizer by optimizer."""
    model = Gan()
    opt = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.1) for name in ("generator", "discriminator")}
    with TelemetryCollector(model, opt, tmp_path, collect_every_n=1) as telemetry:
        for _ in range(3):
            model.discriminator(model.generator(torch.randn(2, 3))).mean().backward()
            telemetry.step(optimizer="discriminator")
            opt["discriminator"].step()
            opt["generator"].step()
            telemetry.step(optimizer="generator")
    events = open_run(tmp_path).events()
    (warning,) = events[events["event"] == "misuse"]["message"]
    assert "after optimizer.step() of 'generator'" in warning


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """The message lists the names."""
    model = Gan()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        TelemetryCollector(model, {"both": optimizer}, tmp_path) as telemetry,
        pytest.raises(MisuseError, match="'critic': give one of the names 'both'"),
    ):
        telemetry.step(optimizer="critic")


def test_accumulated_batches_are_collected_with_the_steps(tmp_path: Path) -> None:
    """Batches that only accumulate are counted; the row is that of the next batch that ends in steps."""
    model = Gan()
    opt = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.1) for name in ("generator", "discriminator")}
    with TelemetryCollector(model, opt, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 5):
            accumulating = batch % 2 == 1
            for name in ("discriminator", "generator"):
                model.discriminator(model.generator(torch.randn(2, 3))).mean().backward()
                telemetry.step(optimizer=name, accumulating=accumulating)
                if not accumulating:
                    opt[name].step()
    assert open_run(tmp_path).gradient_norms()["batch_idx"].tolist() == [2, 4]
    assert open_run(tmp_path).events().empty


WITHOUT_CLOSE = """
import sys, torch
from torch import nn
from ava_pipeline import TelemetryCollector
g, d = nn.Linear(3, 4), nn.Linear(4, 1)
optimizers = {"d": torch.optim.SGD(d.parameters(), lr=0.1), "g": torch.optim.SGD(g.parameters(), lr=0.1)}
telemetry = TelemetryCollector([g, d], optimizers, sys.argv[1], collect_every_n=1)
for batch in range(3):
    for name in optimizers:
        optimizers[name].zero_grad()
        d(g(torch.randn(8, 3))).mean().backward()
        telemetry.step(optimizer=name)
        optimizers[name].step()
if sys.argv[2] == "del":
    del telemetry
"""


@pytest.mark.parametrize("end", ["exit", "del"])
def test_the_last_row_is_written_without_close(tmp_path: Path, end: str) -> None:
    """At the exit of the interpreter, and when the collector is gone."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_CLOSE, str(tmp_path), end]
    subprocess.run(command, check=True, timeout=120)
    norms = open_run(tmp_path).gradient_norms()
    assert norms["batch_idx"].tolist() == [1, 2, 3]
    assert norms[["module_0", "module_1"]].notna().all(axis=None)
    assert open_run(tmp_path).manifest.attempt.counters.written == 3


def pair() -> tuple[nn.ModuleList, dict[str, torch.optim.Optimizer]]:
    """A generator and a discriminator of one layer each."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1)])
    return model, {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in zip("gd", model, strict=True)}


def call(telemetry: TelemetryCollector, model: nn.ModuleList, optimizer: torch.optim.Optimizer, name: str) -> None:
    """A backward pass and a step of one optimizer."""
    optimizer.zero_grad()
    model[1](model[0](torch.randn(8, 3))).mean().backward()
    telemetry.step(optimizer=name)
    optimizer.step()


def test_an_open_row_is_pending(tmp_path: Path) -> None:
    """Every collected step is in the counters."""
    model, optimizers = pair()
    with TelemetryCollector(list(model), optimizers, tmp_path, collect_every_n=1) as telemetry:
        call(telemetry, model, optimizers["d"], "d")
        stats = telemetry.stats()
        assert (stats.collected, stats.pending) == (1, 1)
    assert telemetry.stats().written == 1


def test_flush_between_the_calls_of_a_batch_leaves_its_row_open(tmp_path: Path) -> None:
    """The rows before it are written, and the row gets the norms of the other call."""
    model, optimizers = pair()
    with TelemetryCollector(list(model), optimizers, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 4):
            call(telemetry, model, optimizers["d"], "d")
            telemetry.state_dict()
            assert telemetry.stats().written == batch - 1
            call(telemetry, model, optimizers["g"], "g")
        telemetry.state_dict()
        assert telemetry.stats().written == 3
    assert open_run(tmp_path).gradient_norms()[["module_0", "module_1"]].notna().all(axis=None)
    assert open_run(tmp_path).events().empty


def test_a_checkpoint_of_a_batch_with_one_of_the_calls_has_its_row(tmp_path: Path) -> None:
    """Where the other optimizer does not step in every batch; if it does in this one after all, a warning says so."""
    model, optimizers = pair()
    with TelemetryCollector(list(model), optimizers, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 6):
            call(telemetry, model, optimizers["d"], "d")
            if batch == 3:
                call(telemetry, model, optimizers["g"], "g")
        telemetry.state_dict()
        assert telemetry.stats().written == 5
        call(telemetry, model, optimizers["g"], "g")
    (warning,) = open_run(tmp_path).events()["message"]
    assert "after flush(), state_dict() or rebind() in the same batch" in warning
