"""Wrong calls of the collector raise or warn once, each with its remedy."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, TelemetryConfig, open_run
from ava_pipeline.errors import ConfigError, GroupsError, MisuseError
from tests.collect.models import backward, tiny, train
from tests.collect.recorded import batches, warnings_of


class TestMisuse:
    """Calls that cannot be right."""

    def test_step_after_close(self, tmp_path: Path) -> None:
        """It raises, with the remedy, and what is written stays."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        train(telemetry, model, optimizer, 2)
        telemetry.close()
        for accumulating in (False, True):
            with pytest.raises(MisuseError, match="after close"):
                telemetry.step(accumulating=accumulating)
        assert batches(tmp_path) == [1, 2]

    @pytest.mark.parametrize("enabled", [True, False])
    def test_close_twice_is_close_once(self, tmp_path: Path, enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
        """Both return the same counters."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, enabled=enabled)
        train(telemetry, model, optimizer, 2)
        assert telemetry.close() == telemetry.close()

    def test_no_gradients_warns_once_and_the_row_is_null(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Called before backward or after zero_grad."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            telemetry.step()
            telemetry.step()
        assert open_run(tmp_path).gradient_norms()["overall"].isna().tolist() == [True, True]
        assert len([one for one in warnings_of(caplog) if "after backward() and before zero_grad()" in one]) == 1
        assert open_run(tmp_path).events()["event"].tolist() == ["misuse"]

    def test_after_optimizer_step_warns_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """In the wrong place, the rates are those of the next step."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for _ in range(5):
                optimizer.zero_grad()
                backward(model)
                optimizer.step()
                telemetry.step()
        assert len([one for one in warnings_of(caplog) if "called after optimizer.step()" in one]) == 1

    def test_twice_in_one_batch_warns_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Two calls for one optimizer step, as in accumulation without saying so."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for _ in range(6):
                optimizer.zero_grad()
                for _ in range(2):
                    backward(model)
                    telemetry.step()
                optimizer.step()
        assert len([one for one in warnings_of(caplog) if "accumulating=True" in one]) == 1

    def test_an_optimizer_of_another_model_warns_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Its learning rates are not those of the gradients."""
        model, optimizer = tiny()
        _, other = tiny()
        with TelemetryCollector(model, other, tmp_path, collect_every_n=1) as telemetry:
            for batch in range(3):
                backward(model, batch)
                telemetry.step()
                other.step()
        assert sum("no parameter of the model is in an optimizer" in warning for warning in warnings_of(caplog)) == 1
        caplog.clear()
        with TelemetryCollector(model, {"other": other, "own": optimizer}, tmp_path / "both") as telemetry:
            train(telemetry, model, optimizer, 10)
        assert "no parameter of the model" not in caplog.text

    def test_a_right_loop_warns_of_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Also with accumulation and a step left out now and then."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for batch in range(1, 25):
                backward(model, batch)
                telemetry.step(accumulating=batch % 2 == 1)
                if batch % 2 == 0 and batch != 12:
                    optimizer.step()
                    optimizer.zero_grad()
        assert warnings_of(caplog) == []

    def test_a_value_of_many_numbers_is_refused(self, tmp_path: Path) -> None:
        """A loss that was not reduced."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        with pytest.raises(MisuseError, match=r"values\['loss'\] is a tensor of shape \(4,\)"):
            telemetry.step(values={"loss": torch.zeros(4)})

    @pytest.mark.parametrize("epoch", [torch.tensor(1), 1.5, "x", None, -1, True, 2**70])
    def test_an_invalid_epoch_is_refused(self, tmp_path: Path, epoch: object) -> None:
        """At the call, not as a failed row."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        with pytest.raises(MisuseError, match="epoch is"):
            telemetry.step(epoch)  # type: ignore[arg-type]  # wrong on purpose
        for batch_idx in ("3", 2**70):
            with pytest.raises(MisuseError, match="batch_idx is"):
                telemetry.step(0, batch_idx=batch_idx)  # type: ignore[arg-type]  # wrong on purpose

    def test_numpys_integers_are_integers(self, tmp_path: Path) -> None:
        """As they come from an arange."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            backward(model)
            telemetry.step(np.int64(2), batch_idx=np.int64(7))  # type: ignore[arg-type]  # an int for Python's purposes
        frame = open_run(tmp_path).gradient_norms()
        assert (frame["epoch"][0], frame["batch_idx"][0]) == (2, 7)

    @pytest.mark.parametrize("name", ["epoch", "loss_scale", "clip_rate", "time_utc"])
    def test_a_value_named_like_a_column_is_refused(self, tmp_path: Path, name: str) -> None:
        """It would stand twice in the table."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        with pytest.raises(MisuseError, match=f"column '{name}' twice"):
            telemetry.step(values={name: 1.0})

    @pytest.mark.parametrize("name", ["overall", "batch_idx", "epoch"])
    def test_a_group_named_like_a_column_is_refused(self, tmp_path: Path, name: str) -> None:
        """`overall` is every parameter, always."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError, match="is a column already"):
            TelemetryCollector(model, optimizer, tmp_path, groups={name: "mlp_head.*"})

    def test_an_invalid_state_is_refused(self, tmp_path: Path) -> None:
        """Another object's state, or a damaged one."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path)
        at, clip = {"batch_idx": 5, "epoch": 0}, {"clip_max_norm": 1.0, "clip_num_clips": 2}
        for state in (None, {}, at | {"batch_idx": "x"}, at | {"batch_idx": -5}, at | clip):
            with pytest.raises(MisuseError, match="give"):
                telemetry.load_state_dict(state)  # type: ignore[arg-type]  # wrong on purpose
        assert telemetry.state_dict() == {"batch_idx": 0, "epoch": 0, "global_step": 0}

    def test_values_that_are_not_a_mapping_are_refused(self, tmp_path: Path) -> None:
        """The message says what to give."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        for values in ([1.0], {1: 1.0}):
            with pytest.raises(MisuseError, match="give a mapping"):
                telemetry.step(values=values)  # type: ignore[arg-type]  # wrong on purpose

    def test_truths_and_numpys_numbers_are_numbers(self, tmp_path: Path) -> None:
        """Flags are 0 and 1, on the host and in tensors."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for value in (True, torch.tensor(True), np.float32(0.5), np.array(2.0), torch.tensor([3]), 4, None):  # noqa: FBT003  # torch's own signature
                backward(model)
                telemetry.step(values={"value": value})  # type: ignore[dict-item]  # numbers for Python's purposes
        assert telemetry.stats().failed == 0
        assert open_run(tmp_path).steps()["value"].fillna(-1).tolist() == [1, 1, 0.5, 2, 3, 4, -1]

    def test_pickling_and_copying_are_refused(self, tmp_path: Path) -> None:
        """A collector belongs to one process."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path)
        with pytest.raises(MisuseError, match="belongs to one process"):
            pickle.dumps(telemetry)
        with pytest.raises(MisuseError, match="belongs to one process"):
            copy.deepcopy(telemetry)

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"model": None}, "model is a NoneType: give the torch.nn.Module"),
            ({"model": list(tiny()[0].parameters())}, "model is a list: give the torch.nn.Module"),
            ({"output_dir": None}, "output_dir is None: give the run's directory"),
            ({"output_dir": ""}, "output_dir is '': give the run's directory"),
            ({"output_dir": b"run"}, "output_dir is b'run': give the run's directory"),
            ({"groups": ["a"]}, "groups is a list: give a mapping"),
            ({"grad_scaler": "x"}, "grad_scaler is a str: give the torch.amp.GradScaler"),
        ],
    )
    def test_an_argument_of_another_type(self, tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
        """The constructor raises, and says what to give."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError) as refused:
            TelemetryCollector(**{"model": model, "optimizer": optimizer, "output_dir": tmp_path, **given})
        assert str(refused.value).startswith(sentence)

    def test_a_model_without_parameters(self, tmp_path: Path) -> None:
        """There is nothing to measure."""
        _, optimizer = tiny()
        with pytest.raises(GroupsError, match="has no parameters"):
            TelemetryCollector(nn.ReLU(), optimizer, tmp_path)

    def test_no_optimizer(self, tmp_path: Path) -> None:
        """There would be no rate to record."""
        model, optimizer = tiny()
        with pytest.raises(GroupsError, match="mapping of optimizers is empty"):
            TelemetryCollector(model, {}, tmp_path)
        optimizer.param_groups.clear()
        with pytest.raises(GroupsError, match="no parameter groups"):
            TelemetryCollector(model, optimizer, tmp_path)

    def test_an_unknown_setting_names_the_nearest(self, tmp_path: Path) -> None:
        """A typing error is found at once."""
        model, optimizer = tiny()
        with pytest.raises(ConfigError, match="collect_every_n"):
            TelemetryCollector(model, optimizer, tmp_path, collect_every=5)
        with pytest.raises(ConfigError, match="expected a number of at least 1, got 0"):
            TelemetryCollector(model, optimizer, tmp_path, TelemetryConfig(), collect_every_n=0)

    def test_run_info_that_is_not_json(self, tmp_path: Path) -> None:
        """The manifest could not hold it."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError, match=r"run_info\['model'\]"):
            TelemetryCollector(model, optimizer, tmp_path, run_info={"model": object()})
        with pytest.raises(MisuseError, match="finite"):
            TelemetryCollector(model, optimizer, tmp_path, run_info={"best": float("nan")})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": {"val loss": 1.0}}, "'val loss' cannot name a column"),
        ({"values": {"loss": torch.ones(2)}}, "is a tensor of shape"),
        ({"epoch": 0.5}, "epoch is 0.5"),
    ],
)
def test_arguments_are_checked_at_the_first_batch(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Not hours later, at the first one that is collected."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path) as telemetry, pytest.raises(MisuseError, match=message):
        telemetry.step(**arguments)


def test_a_value_that_is_no_number_costs_its_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One-element arrays and NumPy numbers are numbers; what is none is null, with one warning."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for _ in range(3):
            backward(model)
            telemetry.step(values={"array": np.array([0.5]), "half": np.float16(2.0), "text": "high"})  # type: ignore[dict-item]  # wrong on purpose
            optimizer.step()
    steps = open_run(tmp_path).steps()
    assert steps["array"].tolist() == [0.5] * 3
    assert steps["half"].tolist() == [2.0] * 3
    assert steps["text"].isna().all()
    assert telemetry.stats().written == 3
    assert len([one for one in warnings_of(caplog) if "values['text'] is 'high' (str)" in one]) == 1


@pytest.mark.parametrize("status", ["failed", "interrupted", "finished"])
def test_close_records_how_the_training_ended(status: Any, tmp_path: Path) -> None:
    """For callbacks of frameworks, which know it."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    backward(model)
    telemetry.step()
    with pytest.raises(MisuseError, match="give one of finished, failed, interrupted"):
        telemetry.close(status="stopped")  # type: ignore[arg-type]  # wrong on purpose
    telemetry.close(status=status, error=None if status == "finished" else RuntimeError("out of memory"))
    attempt = open_run(tmp_path).manifest.attempt
    assert (attempt.status, attempt.error) == (status, None if status == "finished" else "RuntimeError")
