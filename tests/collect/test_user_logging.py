"""A logging handler of the user's that raises stops neither the training nor the background thread."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ava_pipeline import TelemetryCollector, TelemetryStats, open_run
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import backward, tiny


class Unreachable(logging.Handler):
    """Sends records to a server that is gone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise, in whatever thread the record was logged."""
        raise ConnectionError(f"no server takes {record.name}")


@pytest.fixture
def _unreachable() -> Iterator[None]:
    handler = Unreachable()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


@pytest.mark.usefixtures("_unreachable")
def test_rows_and_events_are_written_and_files_are_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One warning comes from the training thread, and one from the background; stderr has both."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        telemetry.step(values={"loss": 1.0})  # before backward: misuse
        backward(model)
        telemetry.step(values={"loss": float("nan")})
        telemetry.step(values={"loss": 1.0})
    assert telemetry.stats() == TelemetryStats(collected=3, written=3)
    run = open_run(tmp_path)
    assert run.manifest.status == "finished"
    assert set(run.events()["event"]) >= {"misuse", "non_finite"}
    assert not list(tmp_path.rglob("*.journal"))
    assert [str(one) for one in validate_run(tmp_path)] == []
    printed = capsys.readouterr().err
    assert "after backward() and before zero_grad()" in printed
    assert "loss: measured, and not f" in printed
