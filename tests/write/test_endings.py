"""`sys.exit` is watched while a run is open, and is itself again afterwards."""

import sys
import threading
from collections.abc import Iterator

import pytest

from ava_pipeline.write.endings import FINISHED, Ending, ExitCode, ending_by

PYTHONS = sys.exit
FAILED = Ending("failed", "SystemExit")


@pytest.fixture(autouse=True)
def _pythons_exit() -> Iterator[None]:
    """Whatever a test leaves, Python's own is back."""
    sys.exit = PYTHONS
    yield
    sys.exit = PYTHONS


def exited_with(status: object) -> None:
    """Call it as scripts do."""
    with pytest.raises(SystemExit) as raised:
        sys.exit(status)  # type: ignore[arg-type]  # whatever it is
    assert raised.value.code == status


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (None, FINISHED),
        (SystemExit(), FINISHED),
        (SystemExit(0), FINISHED),
        (SystemExit(1), FAILED),
        (SystemExit("no data"), FAILED),
        (KeyboardInterrupt(), Ending("interrupted", "KeyboardInterrupt")),
        (ValueError(), Ending("failed", "ValueError")),
    ],
)
def test_the_ending_by_an_exception(error: BaseException | None, ending: Ending) -> None:
    """As the exit status of a process that ends by it: only 0 is a normal end."""
    assert ending_by(error) == ending


def test_a_code_is_noted_and_raised_as_before() -> None:
    """The last one counts, and none after the training went on."""
    code = ExitCode()
    code.watch()
    exited_with(3)
    assert code.ending == FAILED
    exited_with(0)
    assert code.ending == FINISHED
    exited_with("no data")
    code.forget()
    assert code.ending == FINISHED


def test_codes_before_and_after_a_run_do_not_count() -> None:
    """And the function is Python's own then."""
    code = ExitCode()
    exited_with(3)
    code.watch()
    assert code.ending == FINISHED
    assert sys.exit != PYTHONS
    code.leave()
    assert sys.exit == PYTHONS
    exited_with(3)
    assert code.ending == FINISHED


def test_an_exit_of_another_thread_does_not_count() -> None:
    """It ends that thread only."""
    code = ExitCode()
    code.watch()
    thread = threading.Thread(target=exited_with, args=(3,))
    thread.start()
    thread.join()
    assert code.ending == FINISHED


def test_another_wrapper_around_ours_stays_and_works() -> None:
    """A library that began to watch `sys.exit` later is not removed, and a second run adds no second layer."""
    code = ExitCode()
    code.watch()
    ours = sys.exit
    calls = []

    def theirs(status: object = None, /) -> None:
        calls.append(status)
        ours(status)  # type: ignore[arg-type]  # whatever it is

    sys.exit = theirs  # type: ignore[assignment]  # as such a library does
    code.leave()
    assert sys.exit is theirs
    exited_with(3)
    assert code.ending == FINISHED
    code.watch()
    exited_with(4)
    assert code.ending == FAILED
    assert calls == [3, 4]
