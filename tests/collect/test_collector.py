"""The collector as a training loop meets it."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, TelemetryStats, open_run
from ava_pipeline.errors import MisuseError, WriteError
from tests.collect.models import backward, tiny, train
from tests.collect.recorded import batches, warnings_of


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
    """Once, at its end."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path)
    train(telemetry, model, optimizer, 5)
    telemetry.close()
    telemetry.close()
    (warning,) = warnings_of(caplog)
    assert "no row was recorded, because the run had 5 batches and collect_every_n is 10" in warning
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
    """A scheduler's rate shows at the batch that uses it; further optimizers continue the count of groups."""
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
    """Numbers and tensors are recorded; nan stays nan, and a value that is not given is null."""
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
        """It is logged once and counted, and training continues."""
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
    def test_the_rank_is_read_from_the_environment(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        rank: str,
        is_written: bool,  # noqa: FBT001  # a parameter of the test
    ) -> None:
        """An empty RANK, as job scripts leave it, means rank 0."""
        monkeypatch.setenv("RANK", rank)
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 1)
        assert (tmp_path / "run").exists() is is_written

    def test_a_rank_that_is_not_a_number_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message names the variable and says what to do."""
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
    """Continuing after a checkpoint."""

    def test_tables_continue_after_the_checkpoint(self, tmp_path: Path) -> None:
        """Later rows are moved to superseded/; batch_idx continues without gap or repetition."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            train(telemetry, model, optimizer, 5)
            state = telemetry.state_dict()
            assert batches(tmp_path) == [2, 4]
            train(telemetry, model, optimizer, 5)
        assert state == {"batch_idx": 5, "epoch": 0, "global_step": 5}
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            telemetry.load_state_dict(state)
            train(telemetry, model, optimizer, 3)
        assert batches(tmp_path) == [2, 4, 6, 8]
        aside = pd.read_csv(tmp_path / "telemetry" / "superseded" / "attempt-2" / "gradient_norms.csv")
        assert aside["batch_idx"].tolist() == [6, 8, 10]

    def test_a_used_directory_starts_a_new_attempt(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without load_state_dict: rows from batch 1, older ones in superseded/, one warning."""
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
    """A search over settings makes many collectors for one optimizer, and some never collect."""
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
    """A ResourceWarning says that it was not closed, and its rows are written nevertheless."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(telemetry, model, optimizer, 2)
    worker = telemetry._recorder._worker
    with pytest.warns(ResourceWarning, match="never closed"):
        del telemetry
    assert worker is not None
    worker._thread.join(30)
    assert batches(tmp_path) == [1, 2]
