"""The background thread: take steps from the channel, write them, end."""

import atexit
import logging
import sys
import threading
from collections.abc import Sequence
from itertools import groupby

from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import in_words
from ava_pipeline.signs.evidence import collected_steps
from ava_pipeline.write.channel import MAX_ROWS_PER_WAKE, Channel, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import EventLog, gap_event, lost_event
from ava_pipeline.write.run_writer import RunWriter

_log = logging.getLogger("ava_pipeline")


class Worker:
    """Writes the steps of a channel, in a daemon thread that a normal exit of the interpreter waits for.

    Steps are written at most `flush_interval_s` after they were handed over. A normal exit without `close` waits for
    the last steps for `exit_timeout_s`.
    """

    def __init__(
        self,
        channel: Channel[PendingStep],
        files: RunWriter,
        log: EventLog,
        *,
        flush_interval_s: float,
        exit_timeout_s: float = 30.0,
    ) -> None:
        self._channel = channel
        self._files = files
        self._log = log
        self._flush_interval_s = flush_interval_s
        self._exit_timeout_s = exit_timeout_s
        self._ending: tuple[Status, str | None] | None = None  # given by the first `close`
        self._older_error_id = id(None)  # not the error itself, which would keep its frames and their tensors alive
        self._thread = threading.Thread(target=self._run, name="ava-telemetry", daemon=True)

    def start(self) -> None:
        """Start the thread; from now on a normal exit waits for it. If that fails, every step is dropped."""
        self._older_error_id = id(_last_error())
        try:
            self._thread.start()
        except RuntimeError as error:  # the system refuses another thread, or the interpreter is shutting down
            self._channel.close()
            self._log.fail(error, "telemetry has no thread to write in")
            return
        atexit.register(self._close_at_exit)

    def close(self, timeout_s: float | None, status: Status, error: str | None = None) -> TelemetryStats:
        """Write the waiting steps, finish the files and end the thread. Called again, it waits until `has_ended`.

        The manifest gets the status and the type of the error given by the first call. A timeout of None waits for
        ever. In the counters, steps that could not be written in time are still pending.
        """
        self._ending = self._ending or (status, error)
        self._channel.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self.has_ended:
            atexit.unregister(self._close_at_exit)
        else:
            self._warn_of_unfinished(timeout_s)
        return self._channel.stats()

    @property
    def has_ended(self) -> bool:
        """Whether the thread has finished the files and ended, or never started."""
        return not self._thread.is_alive()

    def forget(self) -> None:
        """In a forked child, where the thread does not exist: do not wait for it at exit."""
        atexit.unregister(self._close_at_exit)

    def _warn_of_unfinished(self, timeout_s: float | None) -> None:
        num_pending = self._channel.stats().pending
        _log.warning(
            "telemetry did not finish within %s s: it still has %sfiles to finish. It is %s; "
            "open_run() reads the rows in the journal.",
            timeout_s,
            f"{collected_steps(num_pending)} to write and " if num_pending else "",
            self._files.doing,
        )

    def _close_at_exit(self) -> None:
        error = _last_error()
        if error is None or id(error) == self._older_error_id:
            self.close(self._exit_timeout_s, "finished")
        else:
            status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.close(self._exit_timeout_s, status, type(error).__name__)

    def _run(self) -> None:
        try:
            self._drain()
        except BaseException as error:
            self._die(error)
            raise

    def _drain(self) -> None:
        while True:
            is_last = self._channel.is_closed
            steps, gaps = self._channel.take(self._flush_interval_s)
            for gap in gaps:
                self._log.add(gap_event(gap))
            for _, of_one_setup in groupby(steps, key=lambda step: step.setup):
                alike = list(of_one_setup)
                for start in range(0, len(alike), MAX_ROWS_PER_WAKE):
                    self._write(alike[start : start + MAX_ROWS_PER_WAKE])
            if is_last:
                break
            self._files.heartbeat(self._channel.stats())
        self._files.close(self._channel.stats(), *(self._ending or ("finished", None)))

    def _write(self, steps: Sequence[PendingStep]) -> None:
        num_failed = len(steps)
        try:
            self._files.open(self._channel.stats())
            if steps[0].setup is not None:
                self._files.adopt(steps[0].setup, steps[0], self._channel.stats())
            num_failed = self._files.write(steps)
        except Exception as error:  # noqa: BLE001  # whatever it is, it costs these steps and not the thread
            self._log.add(lost_event(steps, in_words(error)))
        finally:
            self._channel.settle(written=len(steps) - num_failed, failed=num_failed)

    def _die(self, error: BaseException) -> None:
        """Leave no caller waiting: count pending steps as failed and later ones as dropped, and finish the files."""
        waiting = self._channel.give_up()
        self._log.fail(error, "telemetry ended early")
        if waiting:
            self._log.add(lost_event(waiting, "telemetry ended early."))
        self._files.close(self._channel.stats(), "failed", type(error).__name__)


def _last_error() -> BaseException | None:
    """The last uncaught exception; in a notebook, which continues after it, it may be older than the run."""
    return getattr(sys, "last_value", None)
