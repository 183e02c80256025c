"""The metrics that a loop logs are in metrics.csv of the run directory, and nothing about them stops training."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.errors import MisuseError, WriteError
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import tiny, train
from tests.write.test_lock import held_elsewhere

pytestmark = pytest.mark.timeout(60)


def collector(folder: Path, **settings: Any) -> TelemetryCollector:
    """A collector that recorded nothing yet."""
    model, optimizer = tiny()
    return TelemetryCollector(model, optimizer, folder, **{"collect_every_n": 1, **settings})


def step(telemetry: TelemetryCollector, epoch: int, num_batches: int = 1) -> None:
    """Batches of an epoch, of which telemetry collects rows without gradients."""
    for _ in range(num_batches):
        telemetry.step(epoch)


def frame(root: Path) -> pd.DataFrame:
    """metrics.csv as a user reads it."""
    return pd.read_csv(root / "metrics.csv")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_loop_logs_by_epoch_and_by_batch(tmp_path: Path, enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The epoch is that of the latest step unless it is given; the run validates, and can be read as other runs."""
    with collector(tmp_path, enabled=enabled) as telemetry:
        for epoch in range(2):
            step(telemetry, epoch, 3)
            telemetry.log_metrics({"val_loss": 1 / (epoch + 1)}, batch_idx=3 * epoch + 2)
            telemetry.log_metrics({"val_loss": 0.5 / (epoch + 1), "srcc": float("nan")})
            telemetry.log_metrics({"train/loss": 0.25}, epoch=epoch)
    found = frame(tmp_path)
    assert list(found) == ["epoch", "batch_idx", "val_loss", "srcc", "train/loss"]
    assert found["epoch"].tolist() == [0, 0, 1, 1]
    assert found["batch_idx"].fillna(-1).tolist() == [2, -1, 5, -1]
    assert found["val_loss"].tolist() == [1.0, 0.5, 0.5, 0.25]
    assert found["train/loss"].fillna(-1).tolist() == [-1, 0.25, -1, 0.25]
    rows = open_run(tmp_path).metrics()
    assert rows["srcc"].isna().tolist() == [True, False, True, False]  # null, not nan
    assert [str(one) for one in validate_run(tmp_path)] == []
    assert (tmp_path / "telemetry").exists() == enabled


def test_values_are_read_from_whatever_holds_one_number(tmp_path: Path) -> None:
    """Tensors of any shape and type with one element, arrays, NumPy's and Python's numbers, None."""
    values: dict[str, Any] = {
        "half": torch.tensor([[0.5]], dtype=torch.bfloat16),
        "loss": torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
        "array": np.array([3]),
        "scalar": np.float32(0.25),
        "count": 7,
        "done": True,
        "inf": float("inf"),
        "none": None,
    }
    collector(tmp_path).log_metrics(values, epoch=0)
    (row,) = frame(tmp_path).to_dict("records")
    assert list(row.values())[:-1] == [0, 0.5, 0.1, 3.0, 0.25, 7.0, 1.0, float("inf")]
    assert np.isnan(row["none"])


MISUSES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "two elements": ({"loss": torch.ones(2)}, {"epoch": 0}, r"metrics\['loss'\] is a Tensor of shape \(2,\): give one"),
    "complex": ({"loss": torch.ones(1, dtype=torch.complex64)}, {"epoch": 0}, "give one real number"),
    "an array": ({"loss": np.ones((2, 2))}, {"epoch": 0}, r"ndarray of shape \(2, 2\)"),
    "texts in NumPy": ({"loss": np.array(["a"])}, {"epoch": 0}, "give one real number"),
    "text": ({"loss": "0.5"}, {"epoch": 0}, "is a str '0.5': give one real number"),
    "a list": ({"loss": [0.5]}, {"epoch": 0}, "give one real number"),
    "a name with a comma": ({"a,b": 1.0}, {"epoch": 0}, "cannot name a column"),
    "no text as name": ({1: 1.0}, {"epoch": 0}, "give a mapping name -> number"),
    "no mapping": ([("loss", 1.0)], {"epoch": 0}, "give a mapping name -> number"),
    "the epoch as metric": ({"epoch": 1}, {"epoch": 0}, r"give it as log_metrics\(\.\.\., epoch=1\)"),
    "the batch as metric": ({"batch_idx": 1}, {"epoch": 0}, r"give it as log_metrics\(\.\.\., batch_idx=1\)"),
    "no epoch": ({"loss": 1.0}, {}, "not known before the first step"),
    "half an epoch": ({"loss": 1.0}, {"epoch": 0.5}, "give an int, 0 or more"),
    "batch 0": ({"loss": 1.0}, {"epoch": 0, "batch_idx": 0}, "give an int, 1 or more"),
}


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("case", MISUSES)
def test_a_call_that_cannot_be_right_raises(
    tmp_path: Path, case: str, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every rank, so that a mistake is not found only where rows are written; and nothing is."""
    monkeypatch.setenv("RANK", rank)
    metrics, arguments, reason = MISUSES[case]
    with pytest.raises(MisuseError, match=reason):
        collector(tmp_path).log_metrics(metrics, **arguments)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_number_that_no_float_holds_raises(tmp_path: Path) -> None:
    """Where it is read."""
    with pytest.raises(MisuseError, match="give one real number"):
        collector(tmp_path).log_metrics({"loss": 10**400}, epoch=0)


def test_no_metrics_are_no_row(tmp_path: Path) -> None:
    """A callback may have nothing to log."""
    collector(tmp_path).log_metrics({}, epoch=0)
    assert list(tmp_path.iterdir()) == []


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks make the same calls; not even a device tensor is read there."""
    monkeypatch.setenv("RANK", "1")
    telemetry = collector(tmp_path)
    telemetry.log_metrics({"loss": torch.zeros(1, device="meta")}, epoch=0)
    telemetry.close()
    assert list(tmp_path.iterdir()) == []


class TestResume:
    """Rows of earlier attempts stay if they are before the checkpoint, and are in superseded/ otherwise."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> dict[str, float]:
        """A checkpoint after epoch 1 of a run that went on to epoch 2."""
        with collector(tmp_path) as telemetry:
            for epoch in range(3):
                step(telemetry, epoch, 4)
                telemetry.log_metrics({"loss": epoch + 0.5}, batch_idx=4 * epoch + 2)
                telemetry.log_metrics({"loss": epoch + 0.25, "old": 1.0})
                if epoch == 1:
                    state = telemetry.state_dict()
        return state

    def test_a_resumed_run_goes_on_after_its_checkpoint(self, state: dict[str, float], tmp_path: Path) -> None:
        """At its first collected step, before it has logged anything; then the tables and the metrics agree."""
        telemetry = collector(tmp_path)
        telemetry.load_state_dict(state)
        step(telemetry, 2)
        assert telemetry.flush()
        assert frame(tmp_path)["epoch"].tolist() == [0, 0, 1, 1]
        telemetry.log_metrics({"loss": 7.0, "new": 2.0})
        telemetry.close()
        assert (tmp_path / "metrics.csv").read_text() == (
            "epoch,batch_idx,loss,old,new\n0,2,0.5,,\n0,,0.25,1.0,\n1,6,1.5,,\n1,,1.25,1.0,\n2,,7.0,,2.0\n"
        )
        moved = (tmp_path / "superseded/attempt-1/metrics.csv").read_text()
        assert moved == "epoch,batch_idx,loss,old\n2,10,2.5,\n2,,2.25,1.0\n"
        assert [str(one) for one in validate_run(tmp_path)] == []

    @pytest.mark.usefixtures("state")
    def test_a_run_that_starts_anew_moves_all_rows(self, tmp_path: Path) -> None:
        """Without telemetry too, where the first row is the start."""
        before = (tmp_path / "metrics.csv").read_text()
        telemetry = collector(tmp_path, enabled=False)
        step(telemetry, 0)
        assert (tmp_path / "metrics.csv").read_text() == before
        telemetry.log_metrics({"loss": 7.0})
        assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n0,7.0\n"
        assert (tmp_path / "superseded/attempt-1/metrics.csv").read_text() == before

    def test_the_epoch_is_known_after_a_resume(self, state: dict[str, float], tmp_path: Path) -> None:
        """It is that of the checkpoint."""
        telemetry = collector(tmp_path)
        telemetry.load_state_dict(state)
        telemetry.log_metrics({"test_srcc": 0.5})
        assert frame(tmp_path)["test_srcc"].tolist()[-1] == 0.5
        assert frame(tmp_path)["epoch"].tolist()[-1] == 1

    def test_a_checkpoint_that_is_loaded_too_late_raises(self, state: dict[str, float], tmp_path: Path) -> None:
        """Its rows have been moved."""
        telemetry = collector(tmp_path)
        telemetry.log_metrics({"loss": 0.5}, epoch=0)
        with pytest.raises(MisuseError, match=r"came after log_metrics\(\)"):
            telemetry.load_state_dict(state)


class TestDisk:
    """A disk that refuses a row costs no more than that."""

    def refuse(self, root: Path) -> Callable[[], None]:
        """Put a folder in the way of a new file, for root too; returns a function that removes it."""
        root.mkdir(exist_ok=True)
        (root / "metrics.csv.partial").mkdir()
        return (root / "metrics.csv.partial").rmdir

    def test_rows_wait_for_the_next_call(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """One event and one warning say so, and one of each that they were written."""
        with collector(tmp_path) as telemetry:
            step(telemetry, 0)
            allow = self.refuse(tmp_path)
            with caplog.at_level(logging.WARNING, "ava_pipeline"):
                telemetry.log_metrics({"loss": 1.0})
            (message,) = [one for one in caplog.messages if "metrics" in one]
            assert "the metrics of epoch 0 could not be written to metrics.csv: " in message
            assert "kept in memory; the next log_metrics() and close() try again." in message
            allow()
            telemetry.log_metrics({"loss": 2.0}, epoch=1)
        assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n0,1.0\n1,2.0\n"
        events = open_run(tmp_path).events().query("event == 'failed_metrics'")
        assert events[["event", "severity", "column"]].to_numpy().tolist() == [
            ["failed_metrics", "error", "metrics.csv"],
            ["failed_metrics", "info", "metrics.csv"],
        ]
        assert [str(one) for one in validate_run(tmp_path)] == []

    @pytest.mark.parametrize("enabled", [True, False])
    def test_rows_wait_for_close(self, tmp_path: Path, enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
        """Also if telemetry is off."""
        telemetry = collector(tmp_path, enabled=enabled)
        allow = self.refuse(tmp_path)
        telemetry.log_metrics({"loss": 1.0}, epoch=0)
        allow()
        telemetry.close()
        assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n0,1.0\n"

    def test_rows_that_close_cannot_write_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """And nothing raises."""
        telemetry = collector(tmp_path)
        self.refuse(tmp_path)
        telemetry.log_metrics({"loss": 1.0}, epoch=0)
        telemetry.close()
        assert "1 row could not be written to metrics.csv at the end either: " in caplog.text

    def test_it_raises_where_asked_to(self, tmp_path: Path) -> None:
        """With on_error='raise'; the row waits all the same."""
        telemetry = collector(tmp_path, on_error="raise")
        allow = self.refuse(tmp_path)
        with pytest.raises(WriteError, match="the metrics of epoch 0, batch 5 could not be written"):
            telemetry.log_metrics({"loss": 1.0}, epoch=0, batch_idx=5)
        allow()
        telemetry.close()
        assert frame(tmp_path)["batch_idx"].tolist() == [5]

    def test_a_device_that_fails_costs_the_row(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A tensor that cannot be read, here one without data; the next row is written."""
        telemetry = collector(tmp_path)
        telemetry.log_metrics({"loss": torch.zeros((), device="meta")}, epoch=0)
        telemetry.log_metrics({"loss": 1.0}, epoch=1)
        telemetry.close()
        assert "the metrics of epoch 0 could not be written" in caplog.text
        assert "kept in memory" not in caplog.text
        assert frame(tmp_path)["epoch"].tolist() == [1]


def test_a_second_process_leaves_the_metrics_of_the_first_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same script started twice: its rows are refused with the name of the first, and move nothing."""
    with collector(tmp_path) as first:
        step(first, 0)
        first.log_metrics({"loss": 1.0})
    before = (tmp_path / "metrics.csv").read_text()
    with held_elsewhere(tmp_path / "telemetry/writer.lock") as holder:
        second = collector(tmp_path)
        second.log_metrics({"loss": 2.0}, epoch=0)
        step(second, 0)
        second.log_metrics({"loss": 3.0})
        second.close()
    assert (tmp_path / "metrics.csv").read_text() == before
    assert f"metrics.csv: {tmp_path}/telemetry is being written by another process (pid {holder.pid} " in caplog.text


def test_training_is_the_same_with_metrics(tmp_path: Path) -> None:
    """To the last bit: reading a loss does not touch the weights."""
    results = []
    for folder in (tmp_path / "run", None):
        model, optimizer = tiny()
        telemetry = None if folder is None else TelemetryCollector(model, optimizer, folder, collect_every_n=1)
        for epoch in range(2):
            train(telemetry, model, optimizer, 3)
            if telemetry is not None:
                telemetry.log_metrics({"norm": next(model.parameters()).norm()}, epoch=epoch)
        if telemetry is not None:
            telemetry.close()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *results))


def test_the_first_row_waits_until_it_is_known_who_writes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first one: later calls do not wait for the background thread."""
    waited: list[float] = []
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    monkeypatch.setattr(telemetry._metrics, "_wait_for_rows", waited.append)
    for epoch in range(3):
        telemetry.log_metrics({"loss": 1.0}, epoch=epoch)
    telemetry.close()
    assert len(waited) == 1
