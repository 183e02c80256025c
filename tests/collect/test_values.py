"""Values, epochs and global steps: what is wrong raises at the first step, and later costs that value alone."""

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.errors import MisuseError
from tests.collect.models import backward, tiny


def warnings(root: Path) -> list[str]:
    """The messages of misuse."""
    events = open_run(root).events()
    return [str(message) for message in events[events["event"] == "misuse"]["message"]]


def record(root: Path, steps: list[dict[str, Any]], *, every: int = 1) -> pd.DataFrame:
    """The rows of steps with these arguments; no step is lost."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, root, collect_every_n=every) as telemetry:
        for batch, arguments in enumerate(steps, start=1):
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step(**arguments)
            optimizer.step()
    assert telemetry.stats().written == telemetry.stats().collected == len(steps) // every
    return open_run(root).steps()


class Unreadable:
    """A value that has no number yet."""

    def __float__(self) -> float:
        raise AttributeError("no value yet")


WRONG: dict[str, tuple[Any, object, str]] = {
    "a column of the table": ("loss_scale", 1.0, "column 'loss_scale' twice"),
    "a key column": ("batch_idx", 1.0, "column 'batch_idx' twice"),
    "no name of a column": ("R^2 (val)", 0.5, "'R^2 (val)' cannot name a column"),
    "no text": (3, 0.5, "values has the name 3"),
    "several numbers": ("accuracy", torch.ones(2), "is a tensor of shape (2,)"),
    "a complex number": ("accuracy", torch.ones(1, dtype=torch.complex64), "is a tensor of shape (1,)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_raises_at_the_first_step(tmp_path: Path, wrong: str) -> None:
    """Which is not collected."""
    name, value, message = WRONG[wrong]
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=5) as telemetry:
        backward(model)
        with pytest.raises(MisuseError) as refused:
            telemetry.step(values={name: value})  # type: ignore[dict-item]  # wrong on purpose
        assert message in str(refused.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_later_it_costs_that_value_alone(tmp_path: Path, wrong: str) -> None:
    """Every row is written, with the other values, and one warning says what is wrong."""
    name, value, message = WRONG[wrong]
    good: dict[Any, Any] = {"accuracy": 0.25, "loss": 1.0}
    steps = record(tmp_path, [{"values": good}] * 3 + [{"values": {**good, name: value}}] * 3)
    assert steps["loss"].tolist() == [1.0] * 6
    assert steps["accuracy"].isna().tolist() == [False] * 3 + [name == "accuracy"] * 3
    (warning,) = warnings(tmp_path)
    assert message in warning


@pytest.mark.parametrize("value", [Unreadable(), object(), "high", [1.0, 2.0], 10**400])
def test_a_value_that_cannot_be_read_costs_its_cell(tmp_path: Path, value: object) -> None:
    """Whatever its conversion raises."""
    steps = record(tmp_path, [{"values": {"loss": 1.0, "x": value}}] * 3)
    assert steps["x"].isna().all()
    assert steps["loss"].tolist() == [1.0] * 3
    assert len(warnings(tmp_path)) == 1


def test_what_is_no_mapping_later_costs_the_values(tmp_path: Path) -> None:
    """A loss given without its name."""
    steps = record(tmp_path, [{"values": {"loss": 1.0}}, {"values": torch.ones(3)}, {"values": {"loss": 1.0}}])
    assert steps["loss"].isna().tolist() == [False, True, False]
    assert "give a mapping name -> number" in warnings(tmp_path)[0]


def test_an_epoch_that_is_not_whole_later_is_the_last_one_that_was(tmp_path: Path) -> None:
    """One warning says so."""
    steps = record(tmp_path, [{"epoch": 0}, {"epoch": 1}, {"epoch": 1.5}, {"epoch": 2}])
    assert steps["epoch"].tolist() == [0, 1, 1, 2]
    (warning,) = warnings(tmp_path)
    assert "epoch is 1.5" in warning


def test_it_does_not_stop_a_checkpoint(tmp_path: Path) -> None:
    """Nor an event of the batch."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=100)
    for epoch in (3, 3.5):
        telemetry.step(epoch)  # type: ignore[arg-type]  # wrong on purpose
        assert telemetry.state_dict()["epoch"] == 3
    telemetry.close()


def test_a_global_step_that_is_no_count_later_is_null(tmp_path: Path) -> None:
    """One warning says so."""
    steps = record(tmp_path, [{"global_step": 5}, {"global_step": 5.5}, {"global_step": -1}, {"global_step": 8}])
    assert steps["global_step"].isna().tolist() == [False, True, True, False]
    assert len(warnings(tmp_path)) == 1


class Stop(Exception):  # noqa: N818  # as users name what their handlers raise
    """What a signal handler raises."""


class Interrupted:
    """A value whose conversion a signal interrupts."""

    def __float__(self) -> float:
        signal.raise_signal(signal.SIGUSR1)
        return 1.0


def test_a_signal_in_a_conversion_is_raised(tmp_path: Path) -> None:
    """It is not the value's failure."""

    def stop(_signum: int, _frame: object) -> None:
        raise Stop

    model, optimizer = tiny()
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            backward(model)
            with pytest.raises(Stop):
                telemetry.step(values={"x": Interrupted()})  # type: ignore[dict-item]  # a number for Python's purposes
            assert telemetry.stats().dropped <= 1
    finally:
        signal.signal(signal.SIGUSR1, before)
