"""Norms are true-scale under a GradScaler."""

from collections.abc import Container
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.amp import Scaling, scaler_state
from tests.collect.models import TinyNet, backward, tiny


@pytest.mark.parametrize("unscales", [False, True])
def test_norms_are_true_scale_before_and_after_unscale(
    tmp_path: Path,
    unscales: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """Whether or not scaler.unscale_ has run, the row is that of the unscaled gradients."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for seed in range(3):
            optimizer.zero_grad()
            backward(model, seed, scaler=scaler)
            if unscales:
                scaler.unscale_(optimizer)
            telemetry.step()
            scaler.step(optimizer)
            scaler.update()
    reference, optimizer = tiny()
    expected = []
    for seed in range(3):
        optimizer.zero_grad()
        backward(reference, seed)
        expected.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None]))
        )
        optimizer.step()
    run = open_run(tmp_path)
    assert run.gradient_norms()["overall"].tolist() == pytest.approx(expected, rel=1e-5)
    assert run.steps()["loss_scale"].tolist() == [1024.0] * 3


@pytest.mark.parametrize("unscales", [False, True])
def test_gradients_that_no_optimizer_steps_are_true_scale_too(
    tmp_path: Path,
    unscales: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """`unscale_` does not change them, so their norms are divided by the scale."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.mlp_head.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        backward(model, 0, scaler=scaler)
        if unscales:
            scaler.unscale_(optimizer)
        telemetry.step()
    model.zero_grad()
    backward(model, 0)
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert open_run(tmp_path).gradient_norms()["overall"].tolist() == pytest.approx([float(expected)], rel=1e-5)


def test_several_optimizers_are_true_scale_each(tmp_path: Path) -> None:
    """One scaler, two optimizers, the head's unscaled to be clipped, the backbone's not yet."""
    model, _ = tiny()
    parts = {"backbone": model.backbone, "head": model.mlp_head}
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in parts.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(
        model, optimizers, tmp_path, collect_every_n=1, grad_scaler=scaler, groups=parts
    ) as telemetry:
        backward(model, 0, scaler=scaler)
        scaler.unscale_(optimizers["head"])
        telemetry.step()
    model.zero_grad()
    backward(model, 0)
    found = open_run(tmp_path).gradient_norms()
    for name, part in {**parts, "overall": model}.items():
        expected = torch.nn.utils.get_total_norm([p.grad for p in part.parameters() if p.grad is not None])
        assert found[name].tolist() == pytest.approx([float(expected)], rel=1e-5)


def test_the_state_follows_the_scaler() -> None:
    """Scaled after scale(), unscaled after unscale_(), scaled again after update()."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    states = []

    def read() -> None:
        states.append(scaler_state(scaler, (optimizer,)).of_optimizer[id(optimizer)])

    backward(model, 0, scaler=scaler)
    read()
    scaler.unscale_(optimizer)
    read()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    backward(model, 1, scaler=scaler)
    read()
    assert states == [Scaling.SCALED, Scaling.NONE, Scaling.SCALED]


def test_no_scaler_or_a_disabled_one_scales_nothing() -> None:
    """A loop that keeps a disabled GradScaler for one code path."""
    _, optimizer = tiny()
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False)):
        assert scaler_state(scaler, (optimizer,)).of_optimizer == {id(optimizer): Scaling.NONE}


def test_a_scaler_whose_scale_cannot_be_read_costs_the_norms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A foreign scaler: the rows' norms are null, an event and one warning say why, rates are recorded."""
    model, optimizer = tiny()
    foreign = SimpleNamespace(is_enabled=lambda: True)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=foreign) as telemetry:
        for seed in range(2):
            backward(model, seed)
            telemetry.step()
    run = open_run(tmp_path)
    assert run.gradient_norms()["overall"].isna().all()
    assert run.learning_rates()["lr_group_1"].tolist() == [0.1, 0.1]
    assert run.events()["event"].tolist() == ["unknown_scale"]
    assert len([record for record in caplog.records if "scale cannot be read" in record.getMessage()]) == 1


def overflowing(
    telemetry: TelemetryCollector,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Container[int] = frozenset({4, 5, 8}),
) -> None:
    """Ten steps under a scaler, those of some batches with gradients that are not finite."""
    for batch in range(1, 11):
        optimizer.zero_grad()
        backward(model, batch, scaler=scaler)
        if batch in batches:
            gradient = next(model.parameters()).grad
            assert gradient is not None
            gradient[0] = float("inf")
        telemetry.step()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(("every", "ranges"), [(1, [(4, 4), (5, 5), (8, 8)]), (5, [(5, 9)])])
def test_skipped_steps_are_events(tmp_path: Path, every: int, ranges: list[tuple[int, int]]) -> None:
    """A step that the scaler skipped is an event with the batches between which it happened."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=every, grad_scaler=scaler) as telemetry:
        overflowing(telemetry, model, optimizer, scaler)
    events = open_run(tmp_path).events()
    skipped = events[events["event"] == "skipped_step"]
    found = list(zip(skipped["batch_idx"], skipped["batch_idx_end"], strict=True))
    assert found[-len(ranges) :] == ranges
    assert skipped["value"].sum() == 3


def test_with_a_fused_optimizer_the_scale_shows_skipped_steps(tmp_path: Path) -> None:
    """Its hooks run on skipped steps too; a falling scale gives them away, a drop an interval."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        overflowing(telemetry, model, optimizer, scaler)
    events = open_run(tmp_path).events()
    assert events[events["event"] == "skipped_step"]["batch_idx"].tolist() == [4, 5, 8]


@pytest.mark.parametrize(("every", "ranges"), [(1, [(2, 2), (6, 6)]), (5, [(1, 4), (5, 9)])])
def test_the_scale_shows_between_which_batches_a_step_was_skipped(
    tmp_path: Path, every: int, ranges: list[tuple[int, int]]
) -> None:
    """From the first batch on, and as closely as rows stand."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=every, grad_scaler=scaler) as telemetry:
        overflowing(telemetry, model, optimizer, scaler, batches={2, 6})
    events = open_run(tmp_path).events()
    skipped = events[events["event"] == "skipped_step"]
    assert list(zip(skipped["batch_idx"], skipped["batch_idx_end"], strict=True)) == ranges


def two_optimizers() -> tuple[TinyNet, dict[str, torch.optim.Optimizer]]:
    """One for the backbone, one for the head."""
    model, _ = tiny()
    return model, {
        "backbone": torch.optim.SGD(model.backbone.parameters(), lr=0.01),
        "head": torch.optim.SGD(model.mlp_head.parameters(), lr=0.01),
    }


def test_a_step_skipped_by_one_of_two_optimizers_is_an_event(tmp_path: Path) -> None:
    """GradScaler skips each optimizer alone; the other's steps do not hide it."""
    model, optimizers = two_optimizers()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizers, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for batch in range(1, 7):
            model.zero_grad()
            backward(model, batch, scaler=scaler)
            gradient = next(model.mlp_head.parameters()).grad
            assert gradient is not None
            gradient[0] = float("inf") if batch in {3, 5} else 0
            telemetry.step()
            for optimizer in optimizers.values():
                scaler.step(optimizer)
            scaler.update()
    events = open_run(tmp_path).events()
    assert events[events["event"] == "skipped_step"]["batch_idx"].tolist() == [3, 5]


def test_a_scale_that_was_halved_to_0_costs_no_row(tmp_path: Path) -> None:
    """Nothing finite is left to record, and that is what the rows say."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for batch in range(3):
            optimizer.zero_grad()
            backward(model, batch, scaler=scaler)
            assert scaler._scale is not None
            scaler._scale.fill_(0.0)
            telemetry.step()
            telemetry.clip_grad_norm_(1.0)
    assert telemetry.stats().written == 3
    assert not np.isfinite(open_run(tmp_path).gradient_norms()["overall"].to_numpy(dtype=float)).any()


def test_the_clip_coefficient_is_null_if_only_part_of_the_gradients_is_unscaled(tmp_path: Path) -> None:
    """Gradients of two scales have no common length."""
    model, optimizers = two_optimizers()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with TelemetryCollector(model, optimizers, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        for batch in range(3):
            model.zero_grad()
            backward(model, batch, scaler=scaler)
            scaler.unscale_(optimizers["head"])
            telemetry.step()
            scaler.unscale_(optimizers["backbone"])
            telemetry.clip_grad_norm_(0.05)
            scaler.update()
    steps = open_run(tmp_path).steps()
    assert steps["clip_coefficient"].isna().all()
    assert steps["clip_rate"].tolist()[1:] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scales", "gives_scaler", "num_warnings"),
    [(True, False, 1), (True, True, 0), (False, False, 0)],
    ids=["not given", "given", "disabled"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_was_not_given_is_noticed_once(
    tmp_path: Path,
    scales: bool,  # noqa: FBT001  # a parameter of the test
    gives_scaler: bool,  # noqa: FBT001  # a parameter of the test
    num_warnings: int,
    fused: bool,  # noqa: FBT001  # a parameter of the test
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever steps the optimizer shows it, behind a scheduler too; a disabled scaler scales nothing."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scales)
    with TelemetryCollector(
        model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler if gives_scaler else None
    ) as telemetry:
        for seed in range(4):
            optimizer.zero_grad()
            backward(model, seed, scaler=scaler)
            telemetry.step()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    assert len([record for record in caplog.records if "grad_scaler=scaler" in record.getMessage()]) == num_warnings


def test_a_loop_without_a_scaler_is_not_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Autocast alone scales nothing, and an own method named `step` is no scaler."""
    model, optimizer = tiny()

    class Trainer:
        def step(self) -> None:
            optimizer.step()

    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for seed in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                backward(model, seed)
            telemetry.step()
            Trainer().step()
    assert caplog.records == []
