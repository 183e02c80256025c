"""The background thread: take steps from the channel, write them, end."""

import atexit
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from weakref import WeakSet

from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import in_words
from ava_pipeline.logs import logger
from ava_pipeline.signs.evidence import collected_steps
from ava_pipeline.write.channel import MAX_ROWS_PER_WAKE, Channel, PendingStep, TelemetryStats
from ava_pipeline.write.endings import FINISHED, Ending, ending_by, exit_code
from ava_pipeline.write.event_log import EventLog, gap_event, lost_event
from ava_pipeline.write.run_writer import RunWriter


class Worker:
    """Writes the steps of a channel, in a daemon thread that a normal exit of the interpreter waits for.

    Steps are written at most `flush_interval_s` after they were handed over. A normal exit without `close` waits for
    the last steps for `exit_timeout_s`, after it has called what the weak reference `before_exit` refers to, which may
    hand over one more. The worker first waits for the workers of `after`, which are ending: they still
    hold the run directory.
    """

    def __init__(  # noqa: PLR0913  # all but the first three by name
        self,
        channel: Channel[PendingStep],
        files: RunWriter,
        log: EventLog,
        *,
        flush_interval_s: float,
        exit_timeout_s: float = 30.0,
        after: Sequence["Worker"] = (),
        before_exit: Callable[[], Callable[[], object] | None] | None = None,
    ) -> None:
        self._channel = channel
        self._files = files
        self._log = log
        self._flush_interval_s = flush_interval_s
        self._exit_timeout_s = exit_timeout_s
        self._after = tuple(after)
        self._before_exit = before_exit
        self._ending: Ending | None = None  # given by the first `close`, `hand_over` or `abandon`
        self._is_started = False
        self._older_error_id = id(None)  # not the error itself, which would keep its frames and their tensors alive
        self._thread = threading.Thread(target=self._run, name="ava-telemetry", daemon=True)

    def start(self) -> None:
        """Start the thread; from now on a normal exit waits for it. If that fails, every step is dropped.

        If a signal handler's exception interrupts it, the next call does the rest.
        """
        if self._is_started:
            return
        if self._thread.ident is None:
            self._older_error_id = id(_last_error())
            atexit.register(self._close_at_exit)
            try:
                self._thread.start()
            except RuntimeError as error:  # the system refuses another thread, or the interpreter is shutting down
                atexit.unregister(self._close_at_exit)
                self._channel.close()
                self._log.fail(error, "telemetry has no thread to write in")
        _workers.add(self)
        exit_code.watch()
        self._is_started = True

    def close(self, timeout_s: float | None, status: Status, error: str | None = None) -> TelemetryStats:
        """Write the waiting steps, finish the files and end the thread. Called again, it waits until `has_ended`.

        The manifest gets the status and the type of the error given by the first call. A timeout of None waits for
        ever. In the counters, steps that could not be written in time are still pending.
        """
        self._end(Ending(status, error))
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self.has_ended:
            self.forget()
        else:
            self._warn_of_unfinished(timeout_s)
        return self._channel.stats()

    def hand_over(self) -> None:
        """End the run as interrupted, without waiting: a newer collector of this process continues in its directory."""
        self._end(Ending("interrupted"))

    def abandon(self) -> None:
        """End the run without waiting, because nobody can close it any more."""
        self._end(self._unclosed_ending())

    @property
    def has_ended(self) -> bool:
        """Whether the thread has finished the files and ended, or never started."""
        return not self._thread.is_alive()

    @property
    def is_ending(self) -> bool:
        """Whether the thread is finishing the files, after which it ends."""
        return self._ending is not None and not self.has_ended

    @property
    def root(self) -> Path:
        """The run directory."""
        return self._files.root

    def wait(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def forget(self) -> None:
        """Do not wait for the thread at exit: it has ended, or this is a forked child, where it does not exist."""
        atexit.unregister(self._close_at_exit)
        if self in _workers:
            _workers.discard(self)
            if not _workers:
                exit_code.leave()

    def _warn_of_unfinished(self, timeout_s: float | None) -> None:
        num_pending = self._channel.stats().pending
        logger.warning(
            "telemetry did not finish within %s s: it still has %sfiles to finish. It is %s; "
            "open_run() reads the rows in the journal.",
            timeout_s,
            f"{collected_steps(num_pending)} to write and " if num_pending else "",
            self._files.doing,
        )

    def _close_at_exit(self) -> None:
        hand_over = None if self._before_exit is None else self._before_exit()
        try:
            if hand_over is not None:
                hand_over()
        finally:
            self.close(self._exit_timeout_s, *self._unclosed_ending())

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending
        self._channel.close()

    def _unclosed_ending(self) -> Ending:
        """The ending of a run that nobody closed."""
        error = _last_error()
        if error is None or id(error) == self._older_error_id:
            return exit_code.ending
        return ending_by(error)

    def _run(self) -> None:
        try:
            self._drain()
        except BaseException as error:
            self._die(error)
            raise

    def _drain(self) -> None:
        self._wait_for_older()
        while True:
            is_last = self._channel.is_closed
            steps, gaps = self._channel.take(self._flush_interval_s)
            for gap in gaps:
                self._log.add(gap_event(gap))
            for _, of_one_setup in groupby(steps, key=lambda step: step.setup):
                alike = list(of_one_setup)
                for start in range(0, len(alike), MAX_ROWS_PER_WAKE):
                    self._write(alike[start : start + MAX_ROWS_PER_WAKE])
            self._files.write_snapshot(self._channel.stats())  # behind the rows, which a full disk must cost last
            if is_last:
                break
            self._files.heartbeat(self._channel.stats())
        self._files.close(self._channel.stats(), *(self._ending or FINISHED))

    def _wait_for_older(self) -> None:
        """Wait until older workers have released the run directory."""
        for older in self._after:
            self._files.doing = "waiting for an older collector of this process to finish the same run"
            older.wait()
            older.forget()
        self._after = ()

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
        try:
            self._log.fail(error, "telemetry ended early")
            if waiting:
                self._log.add(lost_event(waiting, "telemetry ended early."))
        finally:
            self._files.close(self._channel.stats(), "failed", type(error).__name__)


_workers: WeakSet[Worker] = WeakSet()


def ending_workers(root: Path) -> list[Worker]:
    """The workers of this process that are still finishing the files of a run directory."""
    return [worker for worker in list(_workers) if worker.root == root and worker.is_ending]


def _last_error() -> BaseException | None:
    """The last uncaught exception; in a notebook, which continues after it, it may be older than the run."""
    return getattr(sys, "last_value", None)
