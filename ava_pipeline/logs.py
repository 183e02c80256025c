"""The package's log, which returns to its caller whatever a handler of the user's raises."""

import logging
import sys
from contextlib import suppress
from typing import Any

from ava_pipeline.errors import in_words
from ava_pipeline.interrupts import is_from_signal


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that handlers and filters cannot stop.

    A failed message is printed to stderr instead, as the handlers of the standard library do. An exception that a
    signal handler raised meanwhile is not theirs, and is raised.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message."""
        stack_level = kwargs.pop("stacklevel", 1) + 1  # this frame is not the caller
        try:
            super().log(level, msg, *args, stacklevel=stack_level, **kwargs)
        except Exception as error:
            if is_from_signal(error):
                raise
            with suppress(OSError, ValueError, AttributeError):  # stderr is full, closed or absent: nowhere else to go
                sys.stderr.write(f"A logging handler failed: {in_words(error)} The message was: {_text(msg, args)}\n")


def _text(msg: object, args: tuple[object, ...]) -> str:
    try:
        return str(msg) % args if args else str(msg)
    except (TypeError, ValueError):
        return str(msg)


logger = SafeLogger(logging.getLogger("ava_pipeline"))
