"""steps.global_step: the optimizer steps of the run before this one."""

from pathlib import Path

import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from tests.collect.models import backward, tiny


def steps_of(root: Path) -> list[object]:
    """The column, None for null."""
    column = open_run(root).steps()["global_step"]
    return [None if is_null else int(value) for value, is_null in zip(column.tolist(), column.isna(), strict=True)]


def test_steps_are_counted_by_hooks(tmp_path: Path) -> None:
    """Batches that only accumulate make none."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 9):
            backward(model, seed=batch)
            is_last = batch % 4 == 0
            telemetry.step(accumulating=not is_last)
            if is_last:
                optimizer.step()
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [4, 8]
    assert steps_of(tmp_path) == [0, 1]


def test_they_go_on_after_a_resume(tmp_path: Path) -> None:
    """The checkpoint has the count; an older one has not, and then it is unknown rather than wrong."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    for batch in (1, 2):
        backward(model, seed=batch)
        telemetry.step()
        optimizer.step()
    state = telemetry.state_dict()
    telemetry.close()
    assert state["global_step"] == 2
    for name, given in (("new", state), ("old", {"batch_idx": 2, "epoch": 0})):
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path / name, collect_every_n=1) as telemetry:
            telemetry.load_state_dict(given)
            for batch in (3, 4):
                backward(model, seed=batch)
                telemetry.step()
                optimizer.step()
    assert steps_of(tmp_path / "new") == [2, 3]
    assert steps_of(tmp_path / "old") == [None, None]


def test_the_frameworks_count_wins(tmp_path: Path) -> None:
    """Numbers of any size stay exact."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for step in (7, 2**53 + 1):
            backward(model)
            telemetry.step(global_step=step)
            optimizer.step()
    assert steps_of(tmp_path) == [7, 2**53 + 1]


def test_steps_that_no_hook_sees_are_unknown(tmp_path: Path) -> None:
    """As when the parameters are changed by hand."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 4):
            backward(model, seed=batch)
            telemetry.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.01 * parameter.grad)
    assert steps_of(tmp_path) == [0, None, None]


@pytest.mark.parametrize("given", [-1, 0.5, "7", True])
def test_what_is_no_count_is_refused(given: object, tmp_path: Path) -> None:
    """At the first step, whether it is collected or not."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path) as telemetry, pytest.raises(ValueError, match="global_step is"):
        telemetry.step(global_step=given)  # type: ignore[arg-type]  # wrong on purpose
