"""How a run ended: by the exception that left its loop, by the last uncaught one, or by the code of `sys.exit`."""

import sys
import threading
from typing import NamedTuple, NoReturn

from ava_pipeline.contract.manifest import Status


class Ending(NamedTuple):
    """The status of an ended run, and the type of the exception that ended it."""

    status: Status
    error: str | None = None


FINISHED = Ending("finished")


def ending_by(error: BaseException | None) -> Ending:
    """The ending by an exception, if there was one; `sys.exit(0)` is a normal end.

    Example:
        >>> ending_by(SystemExit(0)), ending_by(SystemExit("no data"))
        (Ending(status='finished', error=None), Ending(status='failed', error='SystemExit'))
    """
    if error is None or (isinstance(error, SystemExit) and _is_success(error.code)):
        return FINISHED
    return Ending("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", type(error).__name__)


def _is_success(code: object) -> bool:
    """Whether the interpreter makes 0 of the code that `sys.exit` was given; a text is printed and becomes 1."""
    return code is None or (isinstance(code, int) and code == 0)


class ExitCode:
    """Notes the code that `sys.exit` is given in the main thread, while any run is open.

    Python sets `sys.last_value` to the last uncaught exception, but keeps nothing of a SystemExit: when exit handlers
    run, its code is known to nobody. So `sys.exit` is replaced by a function that notes the code and calls the one
    before. A `raise SystemExit(1)` outside a `with` block goes unnoticed.
    """

    def __init__(self) -> None:
        self._exit = sys.exit
        self._is_in_place = False
        self._is_watching = False
        self._code: object = None

    def watch(self) -> None:
        """Note codes from now on."""
        self._is_watching, self._code = True, None
        if not self._is_in_place:
            self._exit, sys.exit = sys.exit, self._note_and_exit
            self._is_in_place = True

    def leave(self) -> None:
        """Put the function before back; if someone has wrapped ours meanwhile, it stays, and notes nothing."""
        self._is_watching = False
        if sys.exit == self._note_and_exit:
            sys.exit = self._exit
            self._is_in_place = False

    def forget(self) -> None:
        """Forget the code: the training goes on, so someone caught the SystemExit."""
        self._code = None

    @property
    def ending(self) -> Ending:
        """The ending by the code that was noted last; finished if there is none."""
        return ending_by(SystemExit(self._code))

    def _note_and_exit(self, status: object = None, /) -> NoReturn:
        if self._is_watching and threading.current_thread() is threading.main_thread():  # elsewhere it ends a thread
            self._code = status
        self._exit(status)  # type: ignore[arg-type]  # whatever the caller gave


exit_code = ExitCode()
