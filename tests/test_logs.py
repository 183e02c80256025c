"""Handlers and filters that fail cost their message, and nothing else."""

import logging
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from ava_pipeline.logs import logger


class Broken(logging.Handler):
    """A handler whose server is gone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Fail."""
        raise ConnectionError(f"the server of {record.name} is gone")


@pytest.fixture
def broken() -> Iterator[Broken]:
    """The package's log has that handler."""
    handler = Broken()
    logging.getLogger("ava_pipeline").addHandler(handler)
    yield handler
    logging.getLogger("ava_pipeline").removeHandler(handler)


def test_a_handler_that_raises_is_reported_on_stderr(broken: Broken, capsys: pytest.CaptureFixture[str]) -> None:
    """With its error and the message that it lost; the caller does not notice."""
    logger.warning("batch %d: %s", 7, "the loss is nan.")
    printed = capsys.readouterr().err
    assert "A logging handler failed: ConnectionError: the server of ava_pipeline is gone." in printed
    assert "batch 7: the loss is nan." in printed


def test_a_filter_that_raises_is_reported_too(broken: Broken, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the user's code as well."""

    def fail(_record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    broken.addFilter(fail)
    logger.warning("100 %")
    assert "ZeroDivisionError. The message was: 100 %" in capsys.readouterr().err


def test_a_closed_stderr_is_no_problem(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program without a terminal."""
    for stderr in (None, open("/dev/null", "w")):  # noqa: PTH123, SIM115  # closed below
        if stderr is not None:
            stderr.close()
        monkeypatch.setattr("sys.stderr", stderr)
        logger.warning("lost")


def test_a_signal_handler_that_raises_while_a_message_is_logged_is_not_stopped(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exception belongs to the training loop, not to the log."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGUSR1, stop)
    monkeypatch.setattr(broken, "emit", lambda _: signal.raise_signal(signal.SIGUSR1))
    try:
        with pytest.raises(TimeoutError):
            logger.warning("interrupted")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_messages_name_the_line_that_logged_them(caplog: pytest.LogCaptureFixture) -> None:
    """And not a line of the log itself."""
    logger.warning("here")
    assert [record.filename for record in caplog.records] == ["test_logs.py"]
