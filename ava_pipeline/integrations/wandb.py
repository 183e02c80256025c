"""Weights & Biases: a run's numbers over a step metric of their own, and its events as alerts."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from ava_pipeline.errors import MisuseError
from ava_pipeline.integrations.points import Note, Point
from ava_pipeline.integrations.tracker import Tracker, TrackerWriter

PREFIX = "telemetry/"
STEP_METRIC = f"{PREFIX}global_step"
MAX_WAITING_POINTS = 1024
POLL_S = 0.1
_MAX_TITLE = 63
_LEVELS = {"warning": "WARN", "error": "ERROR"}


class WandbWriter(TrackerWriter):
    """Shows a run in Weights & Biases while it trains: numbers over `telemetry/global_step`, and events as alerts.

    W&B has one counter of steps for everything that a run logs. It discards what is logged with a `step=` below that
    counter, so points of telemetry that moved the counter could cost points of yours. By default a point therefore
    waits for the next step that you log, and is shown with it: one point for each of your steps. Those that still wait
    when the collector closes become steps of their own then. Log with `step=` before that, or pass `commit=False`.

    Example:
        from ava_pipeline.integrations.wandb import WandbWriter

        run = wandb.init(project="ava")
        telemetry = TelemetryCollector(model, optimizer, "outputs/ava/my_run", writers=[WandbWriter(run)])

    Args:
        run: what `wandb.init` returned. It stays yours: finish it after the collector is closed.
        commit: True shows every point at once, as a step of its own: right if nothing in the program passes `step=` to
            `log`, as Lightning's WandbLogger and the Trainer of transformers do not. False never makes a step: points
            that still wait at the end are left out.

    Raises:
        MisuseError: `run` is not a run of W&B.
    """

    def __init__(self, run: Any, *, commit: bool | None = None) -> None:
        super().__init__("wandb", WandbTracker(run, commit=commit))


class WandbTracker(Tracker):
    """Logs into a W&B run; what `commit` does is said in `WandbWriter`.

    With `table`, which is `wandb.Table`, the events become one table at the end: nobody wants alerts of an old run.
    """

    def __init__(self, run: Any, *, commit: bool | None = None, table: Any = None) -> None:
        if not all(hasattr(type(run), name) for name in ("log", "define_metric", "alert", "step")):
            raise MisuseError(f"run is {run!r}: give the run that wandb.init() returned.")
        # Of a run that several processes share, the server counts the steps.
        is_shared = getattr(getattr(run, "settings", None), "mode", None) == "shared"
        self._run = run
        self._commit = True if is_shared else commit
        self._table = table
        self._notes: list[Note] = []
        self._defined: set[str] = set()
        self._waiting: deque[Point] = deque()
        self._taken_step = -1

    def start(self, *, is_resumed: bool) -> None:  # noqa: ARG002  # W&B cannot take back points
        """Define the axis."""
        self._run.define_metric(STEP_METRIC, hidden=True)

    def log(self, points: Sequence[Point]) -> None:
        """Log each point, or let it wait for the user's steps."""
        if self._commit:
            for point in points:
                self._log(point)
            return
        self._waiting.extend(points)
        while len(self._waiting) > MAX_WAITING_POINTS:  # every second one, so that a curve keeps its shape
            self._waiting = deque(list(self._waiting)[1::2])
        self._log_into_users_step()

    def note(self, notes: Sequence[Note]) -> None:
        """Send an alert for each event that is a warning or an error."""
        if self._table is not None:
            self._notes += notes
            return
        for step, _, event, severity, message in notes:
            if severity in _LEVELS:
                text = f"Global step {step}: {message}"
                self._run.alert(title=f"telemetry: {event}"[:_MAX_TITLE], text=text, level=_LEVELS[severity])

    def finish(self) -> None:
        """Log the points that still wait, and the table of events."""
        if self._notes:
            rows = [list(note) for note in self._notes]
            self._run.log({f"{PREFIX}events": self._table(columns=list(Note._fields), data=rows)})
        if self._commit is None and self._waiting:
            if self._run.step == self._taken_step:
                self._run.log({}, commit=True)  # ends the step that holds an earlier point
            for point in self._waiting:
                self._log(point)
        self._waiting.clear()
        self.pause_s = None

    def _log_into_users_step(self) -> None:
        """Add the oldest point to the user's step, which stays open, unless that holds a point already."""
        if self._waiting and self._run.step != self._taken_step:
            self._log(self._waiting.popleft(), commit=False)
            self._taken_step = self._run.step  # read again, because the user may have logged in between
        self.pause_s = POLL_S if self._waiting else None

    def _log(self, point: Point, **options: Any) -> None:
        values = {f"{PREFIX}{name}": value for name, value in point.values.items()}
        for name in values.keys() - self._defined:
            self._run.define_metric(name, step_metric=STEP_METRIC)
        self._defined |= values.keys()
        self._run.log({STEP_METRIC: point.global_step, **values}, **options)
