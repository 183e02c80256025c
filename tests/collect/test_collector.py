"""The collector as a training loop meets it."""

import copy
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, TelemetryConfig, TelemetryStats, open_run
from ava_pipeline.errors import ConfigError, GroupsError, MisuseError, WriteError
from tests.collect.models import backward, tiny, train


def batches(folder: Path, table: str = "gradient_norms") -> list[int]:
    """The batch_idx column of a table."""
    return [int(one) for one in pd.read_csv(folder / "telemetry" / f"{table}.csv")["batch_idx"]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_rows_are_every_nth_batch_in_every_table(tmp_path: Path) -> None:
    """With collect_every_n=3, rows are 3, 6, 9, in CSV and in Parquet."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=3) as telemetry:
        train(telemetry, model, optimizer, 10)
    assert telemetry.stats() == TelemetryStats(collected=3, written=3)
    for table in ("gradient_norms", "learning_rates", "steps"):
        assert batches(tmp_path, table) == [3, 6, 9]
        assert pd.read_parquet(tmp_path / "telemetry" / f"{table}.parquet")["batch_idx"].tolist() == [3, 6, 9]


def test_the_constructor_touches_nothing(tmp_path: Path) -> None:
    """No file, no thread, until the first collected step."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=2)
    telemetry.step()
    assert not (tmp_path / "run").exists()
    assert telemetry.close() == TelemetryStats()


def test_a_run_too_short_for_a_row_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, at its end; nothing else would."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path)
    train(telemetry, model, optimizer, 5)
    telemetry.close()
    telemetry.close()
    (told,) = warnings_of(caplog)
    assert "5 batches, collect_every_n=10: no row was due" in told
    with TelemetryCollector(model, optimizer, tmp_path):
        pass
    with TelemetryCollector(model, optimizer, tmp_path, enabled=False) as off:
        train(off, model, optimizer, 5)
    assert len(warnings_of(caplog)) == 1


def test_accumulated_batches_are_counted_and_collected_later(tmp_path: Path) -> None:
    """What is due at a batch that only accumulates is collected at the next that steps."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=3) as telemetry:
        for batch in range(1, 13):
            backward(model, batch)
            is_last = batch % 4 == 0
            collected = telemetry.step(accumulating=not is_last)
            assert collected == (batch in {4, 8, 12})
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    assert batches(tmp_path) == [4, 8, 12]
    assert open_run(tmp_path).manifest.attempt.deferred == 3


def test_learning_rates_are_those_of_the_step(tmp_path: Path) -> None:
    """A rate changed by a scheduler shows at the batch it is used for; further optimizers go on counting groups."""
    model, optimizer = tiny()
    other = torch.optim.AdamW(model.mlp_head.parameters(), lr=torch.tensor(0.25))
    with TelemetryCollector(model, {"main": optimizer, "other": other}, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 / (batch + 1)
            backward(model)
            telemetry.step()
    frame = pd.read_csv(tmp_path / "telemetry" / "learning_rates.csv")
    assert frame["lr_group_0"].tolist() == [0.1, 0.05, 0.1 / 3]
    assert frame["lr_group_1"].tolist() == [0.1] * 3
    assert frame["lr_group_2"].tolist() == [0.25] * 3


def test_values_are_recorded_beside_the_step(tmp_path: Path) -> None:
    """Numbers and tensors alike; nan is kept as nan, what is not given is null."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        backward(model)
        telemetry.step(values={"loss": torch.tensor(1.5, requires_grad=True), "images": 32})
        telemetry.step(values={"loss": float("nan")})
    steps = open_run(tmp_path).steps()
    assert steps["loss"].iloc[0] == 1.5
    assert steps["images"].tolist()[0] == 32
    assert steps["images"].isna().tolist() == [False, True]
    assert steps["loss"].isna().tolist() == [False, False]


def test_telemetry_changes_nothing(tmp_path: Path) -> None:
    """With telemetry on, off and absent, the same seed trains the very same weights."""
    weights = []
    for enabled in (True, False, None):
        model, optimizer = tiny(seed=3)
        telemetry = None
        if enabled is not None:
            telemetry = TelemetryCollector(
                model, optimizer, tmp_path / str(enabled), collect_every_n=1, enabled=enabled
            )
        train(telemetry, model, optimizer, 8)
        if telemetry is not None:
            telemetry.close()
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not (tmp_path / "False").exists()


def test_clipping_is_torchs(tmp_path: Path) -> None:
    """clip_grad_norm_ clips and returns as torch does, and the row stays as before clipping."""
    clipped, reference = tiny()[0], tiny()[0]
    backward(clipped)
    backward(reference)
    with TelemetryCollector(clipped, torch.optim.SGD(clipped.parameters()), tmp_path, collect_every_n=1) as telemetry:
        telemetry.step()
        total = telemetry.clip_grad_norm_(0.01)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    assert torch.equal(total, expected)
    for one, other in zip(clipped.parameters(), reference.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert open_run(tmp_path).gradient_norms()["overall"].iloc[0] == pytest.approx(float(expected), rel=1e-5)


class TestOwnCount:
    """`batch_idx` given by those who keep a count of their own."""

    def test_it_is_followed(self, tmp_path: Path) -> None:
        """Rows carry the user's count, also where it jumps."""
        model, optimizer = tiny()
        backward(model)
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=10) as telemetry:
            for batch_idx in (1, 10, 11, 25, 30):
                telemetry.step(batch_idx=batch_idx)
        assert batches(tmp_path) == [10, 25, 30]

    def test_zero_is_refused(self, tmp_path: Path) -> None:
        """An index from enumerate begins at 0: the message says what to give."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError, match=r"enumerate\(loader, start=1\)"):
            TelemetryCollector(model, optimizer, tmp_path).step(batch_idx=0)

    def test_one_that_starts_again_warns_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A count that begins again each epoch would repeat rows: the collector counts on."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            for epoch in range(2):
                for batch_idx in (1, 2, 3, 4):
                    backward(model)
                    telemetry.step(epoch, batch_idx=batch_idx)
        assert batches(tmp_path) == [2, 4, 6, 8]
        assert len([one for one in warnings_of(caplog) if "does not rise" in one]) == 1


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
        assert sum("no parameter of the model is in an optimizer" in told for told in warnings_of(caplog)) == 1
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
    def test_an_epoch_that_is_none_is_refused(self, tmp_path: Path, epoch: object) -> None:
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

    def test_what_is_no_state_is_refused(self, tmp_path: Path) -> None:
        """Another object's state, or a damaged one."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path)
        at, clip = {"batch_idx": 5, "epoch": 0}, {"clip_max_norm": 1.0, "clip_num_clips": 2}
        for state in (None, {}, at | {"batch_idx": "x"}, at | {"batch_idx": -5}, at | clip):
            with pytest.raises(MisuseError, match="give"):
                telemetry.load_state_dict(state)  # type: ignore[arg-type]  # wrong on purpose
        assert telemetry.state_dict() == {"batch_idx": 0, "epoch": 0}

    def test_values_that_are_no_mapping_are_refused(self, tmp_path: Path) -> None:
        """With what to give."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
        for values in ([1.0], {1: 1.0}):
            with pytest.raises(MisuseError, match="give a mapping"):
                telemetry.step(values=values)  # type: ignore[arg-type]  # wrong on purpose

    def test_groups_added_later_have_no_column(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Gradual unfreezing: told once, and the rates there were go on."""
        model, _ = tiny()
        optimizer = torch.optim.SGD(model.mlp_head.parameters(), lr=0.5)
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for batch in range(3):
                if batch == 1:
                    optimizer.add_param_group({"params": model.backbone.parameters(), "lr": 0.1})
                backward(model)
                telemetry.step()
        assert open_run(tmp_path).learning_rates()["lr_group_0"].tolist() == [0.5] * 3
        assert len([one for one in warnings_of(caplog) if "have 2 groups now" in one]) == 1

    def test_a_value_that_is_no_number_fails_its_row(self, tmp_path: Path) -> None:
        """The row of steps is named and counted; the other tables' rows and the next steps are written."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for loss in (1.0, "one", 3.0):
                backward(model)
                telemetry.step(values={"loss": loss})  # type: ignore[dict-item]  # what the test is about
        assert telemetry.stats() == TelemetryStats(collected=3, written=2, failed=1)
        assert batches(tmp_path, "steps") == [1, 3]
        assert batches(tmp_path) == [1, 2, 3]
        events = open_run(tmp_path).events()
        assert events[["batch_idx", "event", "column"]].iloc[0].tolist() == [2, "failed_row", "loss"]

    def test_truths_and_numpys_numbers_are_numbers(self, tmp_path: Path) -> None:
        """Flags are 0 and 1, on the host and in tensors."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for value in (True, torch.tensor(True), np.float32(0.5), np.array(2.0), torch.tensor([3]), 4, None):  # noqa: FBT003  # torch's own signature
                backward(model)
                telemetry.step(values={"value": value})  # type: ignore[dict-item]  # numbers for Python's purposes
        assert telemetry.stats().failed == 0
        assert open_run(tmp_path).steps()["value"].fillna(-1).tolist() == [1, 1, 0.5, 2, 3, 4, -1]

    def test_late_values_have_no_column(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Columns are fixed by the first collected step; a later name warns once."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            for values in ({"loss": 1.0}, {"loss": 1.0, "late": 2.0}, {"loss": 1.0, "late": 2.0}):
                backward(model)
                telemetry.step(values=values)
        assert "late" not in open_run(tmp_path).steps().columns
        assert len([one for one in warnings_of(caplog) if "'late'" in one]) == 1

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
    def test_an_argument_of_another_kind(self, tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
        """Is named where it is given, with what to give."""
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
        """There is no rate to record."""
        model, optimizer = tiny()
        with pytest.raises(GroupsError, match="empty mapping"):
            TelemetryCollector(model, {}, tmp_path)
        optimizer.param_groups.clear()
        with pytest.raises(GroupsError, match="no parameter groups"):
            TelemetryCollector(model, optimizer, tmp_path)

    def test_an_unknown_setting_names_the_nearest(self, tmp_path: Path) -> None:
        """A typing error is found at once."""
        model, optimizer = tiny()
        with pytest.raises(ConfigError, match="collect_every_n"):
            TelemetryCollector(model, optimizer, tmp_path, collect_every=5)
        with pytest.raises(ConfigError, match="given 0"):
            TelemetryCollector(model, optimizer, tmp_path, TelemetryConfig(), collect_every_n=0)

    def test_run_info_that_is_no_json(self, tmp_path: Path) -> None:
        """The manifest could not hold it."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError, match=r"run_info\['model'\]"):
            TelemetryCollector(model, optimizer, tmp_path, run_info={"model": object()})
        with pytest.raises(MisuseError, match="finite"):
            TelemetryCollector(model, optimizer, tmp_path, run_info={"best": float("nan")})


class TestEnvironment:
    """Trouble with the environment costs telemetry, not the run."""

    def test_an_unwritable_directory_warns_and_training_goes_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The steps are counted as failed."""
        (tmp_path / "file").write_text("in the way")
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path / "file" / "run", collect_every_n=1)
        train(telemetry, model, optimizer, 3)
        assert telemetry.close() == TelemetryStats(collected=3, failed=3)
        assert len(warnings_of(caplog)) == 1

    def test_gradients_that_cannot_be_measured_cost_their_rows(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As of a layer that lies nowhere: told once, counted, and training goes on."""
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
        with TelemetryCollector(model, torch.optim.SGD(model.parameters()), tmp_path, collect_every_n=1) as telemetry:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            for _ in range(3):
                telemetry.step()
        assert telemetry.stats() == TelemetryStats(collected=3, dropped=3)
        assert len([one for one in warnings_of(caplog) if "a step could not be measured" in one]) == 1

    def test_it_raises_once_where_asked_to(self, tmp_path: Path) -> None:
        """With on_error='raise', at the next call, with what to do."""
        (tmp_path / "file").write_text("in the way")
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path / "file" / "run", collect_every_n=1, on_error="raise")
        train(telemetry, model, optimizer, 1)
        with pytest.raises(WriteError, match="on_error='warn'"):
            telemetry.close()
        assert telemetry.close() == TelemetryStats(collected=1, failed=1)

    def test_other_ranks_write_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only rank 0 writes, predictions included."""
        monkeypatch.setenv("RANK", "1")
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 2)
            with telemetry.val_predictions(0) as predictions:
                predictions.add([1], torch.full((1, 10), 0.1), torch.ones(1, 10))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(("rank", "is_written"), [("", True), ("0", True), ("2", False)])
    def test_the_environment_tells_the_rank(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        rank: str,
        is_written: bool,  # noqa: FBT001  # a parameter of the test
    ) -> None:
        """A RANK that is set to nothing, as job scripts leave it, is none."""
        monkeypatch.setenv("RANK", rank)
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 1)
        assert (tmp_path / "run").exists() is is_written

    def test_a_rank_that_is_no_number_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By its name, with what to do."""
        monkeypatch.setenv("RANK", "first")
        with pytest.raises(MisuseError, match="RANK is 'first': set it to"):
            TelemetryCollector(*tiny(), tmp_path)

    def test_a_forked_child_does_nothing(self, tmp_path: Path) -> None:
        """Its steps, close and exit leave the parent's files alone."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 2)
            telemetry.flush()
            child = os.fork()
            if child == 0:
                collected = telemetry.step()
                telemetry.close()
                os._exit(int(collected))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            backward(model)
            telemetry.step()
        assert batches(tmp_path) == [1, 2, 3]


class TestResume:
    """Going on behind a checkpoint."""

    def test_tables_go_on_behind_the_checkpoint(self, tmp_path: Path) -> None:
        """Rows past it are set aside; batch_idx goes on without gap or repetition."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            train(telemetry, model, optimizer, 5)
            state = telemetry.state_dict()
            assert batches(tmp_path) == [2, 4]
            train(telemetry, model, optimizer, 5)
        assert state == {"batch_idx": 5, "epoch": 0}
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            telemetry.load_state_dict(state)
            train(telemetry, model, optimizer, 3)
        assert batches(tmp_path) == [2, 4, 6, 8]
        aside = pd.read_csv(tmp_path / "telemetry" / "superseded" / "attempt-2" / "gradient_norms.csv")
        assert aside["batch_idx"].tolist() == [6, 8, 10]

    def test_a_used_directory_starts_a_new_attempt(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without load_state_dict: rows from batch 1, older ones set aside, one warning."""
        model, optimizer = tiny()
        for _ in range(2):
            with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
                train(telemetry, model, optimizer, 3)
        assert batches(tmp_path) == [1, 2, 3]
        assert (tmp_path / "telemetry" / "superseded" / "attempt-2" / "gradient_norms.parquet").exists()
        assert len([one for one in warnings_of(caplog) if "load_state_dict" in one]) == 1

    def test_after_the_first_step_it_is_refused(self, tmp_path: Path) -> None:
        """Rows were counted already."""
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path)
        telemetry.step()
        with pytest.raises(MisuseError, match="before the first step"):
            telemetry.load_state_dict({"batch_idx": 5, "epoch": 0})


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted"), (None, "finished")]
)
def test_the_manifest_says_how_the_run_ended(tmp_path: Path, error: type[BaseException] | None, status: str) -> None:
    """An exception in the block ends the attempt with its name, and its rows are all there."""
    model, optimizer = tiny()
    try:
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 2)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    manifest = open_run(tmp_path).manifest
    assert manifest.status == status
    assert manifest.attempt.error == (error.__name__ if error else None)
    assert batches(tmp_path) == [1, 2]


def test_forgotten_collectors_leave_no_hooks(tmp_path: Path) -> None:
    """Neither does one that never collected: a search over settings makes many for one optimizer."""
    model, optimizer = tiny()
    for number in range(3):
        telemetry = TelemetryCollector(model, optimizer, tmp_path / str(number), collect_every_n=1)
        if number:
            train(telemetry, model, optimizer, 1)
            with pytest.warns(ResourceWarning, match="never closed"):
                del telemetry
        else:
            del telemetry
    assert not optimizer._optimizer_step_post_hooks


def test_a_forgotten_collector_warns(tmp_path: Path) -> None:
    """Nobody closed it: a ResourceWarning says so, and the rows are written all the same."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(telemetry, model, optimizer, 2)
    recorder = telemetry._recorder
    with pytest.warns(ResourceWarning, match="never closed"):
        del telemetry
    assert recorder is not None
    recorder._worker._thread.join(30)
    assert batches(tmp_path) == [1, 2]
