"""TensorBoard: a run's numbers as scalars and its events as texts, while training or from a run directory."""

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ava_pipeline.errors import require_extra
from ava_pipeline.integrations.points import Note, Point
from ava_pipeline.integrations.tracker import Tracker, TrackerWriter

require_extra("TensorBoardWriter", "trackers", "tensorboard")

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: E402  # after the check that it is there
from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: E402
from tensorboard.plugins.text.summary_v2 import text_pb  # noqa: E402
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: E402

_SUFFIX = ".ava_telemetry"
_AFTER_ALL_STEPS = 2**62


class TensorBoardWriter(TrackerWriter):
    """Shows a run in TensorBoard while it trains: norms, rates and values over the global step, and events as texts.

    After a resume, TensorBoard hides the points that the new ones replace; a run that starts again hides all.

    Example:
        from ava_pipeline.integrations.tensorboard import TensorBoardWriter

        writers = [TensorBoardWriter("outputs/ava/my_run/tensorboard")]
        telemetry = TelemetryCollector(model, optimizer, "outputs/ava/my_run", writers=writers)

    Args:
        log_dir: a directory of its own, because TensorBoard hides replaced points of everything that is in it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        super().__init__("tensorboard", TensorBoardTracker(log_dir))


class TensorBoardTracker(Tracker):
    """Writes event files, which TensorBoard reads, into a directory."""

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        self._log_dir = Path(log_dir)
        self._is_resumed = False
        self._file: Any = None

    def start(self, *, is_resumed: bool) -> None:
        """Open no file yet: the first point says from which step on it replaces older ones."""
        self._is_resumed = is_resumed

    def log(self, points: Sequence[Point]) -> None:
        """Write one scalar for each number."""
        for step, time_s, values in points:
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._add(step, time_s, summary=Summary(value=scalars))
        self._flush()

    def note(self, notes: Sequence[Note]) -> None:
        """Write one text for each event."""
        for step, time_s, event, severity, message in notes:
            self._add(step, time_s, summary=text_pb(f"events/{event}", f"**{severity}**: {message}"))
        self._flush()

    def finish(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add(self, step: int, time_s: float, **content: Any) -> None:
        if self._file is None:
            self._file = self._open(step)
        self._file.add_event(Event(step=step, wall_time=time_s, **content))

    def _open(self, first_step: int) -> Any:
        """Begin a file with the start of a session, from whose step on TensorBoard hides what older files hold.

        TensorBoard takes the very first session start in a directory for no restart, so every file has one.
        """
        has_older = any(self._log_dir.glob(f"*{_SUFFIX}"))
        hidden_from = _AFTER_ALL_STEPS if not has_older else first_step if self._is_resumed else 0
        file = EventFileWriter(str(self._log_dir), filename_suffix=_SUFFIX)
        session = SessionLog(status=SessionLog.START)
        file.add_event(Event(step=hidden_from, wall_time=time.time(), session_log=session))
        return file

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
