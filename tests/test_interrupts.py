"""Exceptions of signal handlers are told apart from those of the code that they interrupt."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import pytest

from ava_pipeline.interrupts import is_from_signal


class TimeLimitError(Exception):
    """What the handlers raise."""


def raising(_signum: int, _frame: FrameType | None) -> None:
    """The usual handler."""
    raise TimeLimitError


def deeper(signum: int, frame: FrameType | None) -> None:
    """A handler that calls another function, which raises."""
    raising(signum, None)
    assert frame


def taking_any(*_: object) -> None:
    """A handler that ignores its arguments."""
    raise TimeLimitError


class Stop:
    """A handler that is an object, and one that is a method."""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise."""
        raising(signum, frame)

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Raise."""
        raising(signum, frame)


def named(_name: str, signum: int, frame: FrameType | None) -> None:
    """A handler that is called with one more argument."""
    raising(signum, frame)


HANDLERS = [raising, deeper, taking_any, Stop(), Stop().stop, partial(named, "x")]


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def caught(work: Callable[[], object]) -> BaseException:
    """What the work raises."""
    with pytest.raises(TimeLimitError) as raised:
        work()
    return raised.value


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_handlers_exception(handler: Callable[[int, FrameType | None], None]) -> None:
    """However the handler takes its arguments, and however deep it raises."""
    signal.signal(signal.SIGUSR1, handler)
    assert is_from_signal(caught(lambda: signal.raise_signal(signal.SIGUSR1)))


def test_an_exception_of_the_work_itself() -> None:
    """Raised by the same function, and called with arguments of the same kinds."""
    assert not is_from_signal(caught(lambda: raising(signal.SIGUSR1, None)))
    assert not is_from_signal(caught(lambda: taking_any(signal.SIGUSR1, (1, "x"), None)))
    assert not is_from_signal(TimeLimitError())


def test_an_exception_that_follows_a_handlers() -> None:
    """What the interrupted code makes of it is its own."""

    def wrapped() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except TimeLimitError:
            raise TimeLimitError from None

    signal.signal(signal.SIGUSR1, raising)
    assert not is_from_signal(caught(wrapped))
