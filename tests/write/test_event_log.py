"""events.csv and the warnings logged with it."""

import logging
from pathlib import Path

import pytest

from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.contract.finding import Severity
from ava_pipeline.write.event_log import EventLog
from tests.write.feeding import csv_rows


def event(
    batch_idx: int, message: str = "something.", name: EventName = "misuse", severity: Severity = "warning"
) -> Event:
    """An event of one batch."""
    return Event(event=name, severity=severity, message=message, batch_idx=batch_idx, batch_idx_end=batch_idx, epoch=0)


def batches(path: Path) -> list[object]:
    """First batches of the events in a file."""
    return [row["batch_idx"] for row in csv_rows(path)]


def test_events_from_before_the_file_was_open_are_written(tmp_path: Path) -> None:
    """Events before the first step are not lost."""
    log = EventLog(tmp_path)
    log.add(event(1))
    log.write()
    log.open(tmp_path / "events.csv")
    log.add(event(2))
    log.write()
    assert batches(tmp_path / "events.csv") == [1, 2]
    assert log.num_rows == {"events.csv": 2}
    log.close()


def test_an_event_is_logged_once_per_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning per row would bury the output of the training."""
    log = EventLog(tmp_path)
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        for batch in range(1, 50):
            log.add(event(batch))
            log.fail(OSError("no space left"), "manifest.json could not be written")
        log.add(event(50, severity="info", name="unknown_scale"))
    assert len(caplog.messages) == 2
    assert "batch 1: something." in caplog.messages[0]
    assert caplog.messages[1].endswith("no space left. Training continues without it.")


def test_the_first_error_is_kept_with_its_remedy(tmp_path: Path) -> None:
    """`on_error="raise"` raises the cause, not its consequences."""
    log = EventLog(tmp_path)
    log.add(event(1, "a warning is no trouble."))
    assert log.first_error is None
    log.add(event(2, "the first.", severity="error"))
    log.add(event(3, "the second.", severity="error"))
    assert "the first." in str(log.first_error)
    assert "on_error='warn'" in str(log.first_error)


def test_an_event_that_breaks_a_rule_is_logged_and_does_not_delay_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that cannot be a row is logged instead."""
    log = EventLog(tmp_path)
    log.open(tmp_path / "events.csv")
    log.add(event(-1))
    log.add(event(2))
    log.close()
    assert batches(tmp_path / "events.csv") == [2]
    assert any("batch_idx: expected 0 or more, got -1" in message for message in caplog.messages)


def test_a_message_is_one_line(tmp_path: Path) -> None:
    """Line ends in the text of an exception do not become lines of the file."""
    log = EventLog(tmp_path)
    log.open(tmp_path / "events.csv")
    log.add(event(1, "two\nlines, and\r\na third."))
    log.close()
    assert (tmp_path / "events.csv").read_text().count("\n") == 2
    assert csv_rows(tmp_path / "events.csv")[0]["message"] == "two lines, and a third."
