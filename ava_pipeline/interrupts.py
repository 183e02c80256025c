"""Exceptions that a signal handler raised: they are for the loop that was interrupted, wherever that happened."""

from types import FrameType


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler raised the exception, and not the code that it interrupted.

    Python calls a handler between two instructions of the main thread, and gives it the frame that it interrupts. In
    the traceback, the handler's frame therefore follows a frame that is among its own variables.

    Example:
        def stop(signum, frame):
            raise TimeLimitError

        signal.signal(signal.SIGALRM, stop)     # `is_from_signal` is True for this TimeLimitError, and no other one
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        if any(_is_or_holds(value, trace.tb_frame) for value in trace.tb_next.tb_frame.f_locals.values()):
            return True
        trace = trace.tb_next
    return False


def _is_or_holds(value: object, frame: FrameType) -> bool:
    """Whether a variable is the frame, or is the arguments of a handler that takes any."""
    return value is frame or (type(value) is tuple and any(part is frame for part in value))
