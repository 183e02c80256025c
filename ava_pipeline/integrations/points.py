"""What trackers such as TensorBoard show of a run: the numbers of each step and the events, over the global step."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from ava_pipeline.contract.arrays import floats, integers, null_mask
from ava_pipeline.contract.builtin_tables import STEPS
from ava_pipeline.contract.finding import Severity
from ava_pipeline.contract.tables import BATCH, ROW_KEY, measured_columns

GLOBAL_STEP = "global_step"
MAX_KNOWN_STEPS = 4096
MAX_WAITING_STEPS = 1024
_TIME = "time_utc"
_US_PER_S = 1e6


class Point(NamedTuple):
    """The numbers of one collected step, by table and column: `{"gradient_norms/overall": 0.25}`.

    `global_step` counts completed optimizer steps; the time is in seconds since 1970 UTC.
    """

    global_step: int
    time_s: float
    values: dict[str, float]


class Note(NamedTuple):
    """An event of the run, at the global step of its first batch; the time is in seconds since 1970 UTC."""

    global_step: int
    time_s: float
    event: str
    severity: Severity
    message: str


def has_points(schema: pa.Schema) -> bool:
    """Whether each row of a table is one point of its curves; not if it has a row per layer, sample or process."""
    has_text = any(pa.types.is_string(field.type) for field in schema)
    is_long = has_text or "rank" in schema.names or ROW_KEY in (schema.metadata or {})
    return not is_long and bool(measured_columns(schema))


class Points:
    """Joins the rows that the tables have of a step, and takes the step's global step and time from the table `steps`.

    A step without a global step is shown at the last known one plus the number of batches since then. Before the first
    known one, and in a run without any, such as one of an older version, the batches take their place.
    """

    def __init__(self) -> None:
        self._values: dict[int, dict[str, float]] = {}  # by batch
        self._known: dict[int, tuple[int, float]] = {}  # batch -> global step and time, of the latest steps
        self._last_known = (0, 0)  # the latest batch whose global step was given, and that step

    def add(self, table: str, rows: pa.RecordBatch | pa.Table) -> None:
        """Add rows of a table that `has_points`."""
        batches = integers(rows, BATCH).tolist()
        if table == STEPS.name:
            self._learn(batches, rows)
        for name in measured_columns(rows.schema):
            if name == GLOBAL_STEP:
                continue
            numbers, is_null = floats(rows, name).tolist(), null_mask(rows.column(name)).tolist()
            for batch_idx, number, is_missing in zip(batches, numbers, is_null, strict=True):
                if not is_missing:
                    self._values.setdefault(batch_idx, {})[f"{table}/{name}"] = number

    def take(self, *, is_last: bool = False) -> list[Point]:
        """The points that are complete, by batch: those whose row of `steps` was added; with `is_last`, all of them."""
        is_full = len(self._values) > MAX_WAITING_STEPS  # as after many rows of `steps` that were refused
        batches = sorted(batch for batch in self._values if is_last or is_full or batch in self._known)
        return [Point(*self._place(batch), self._values.pop(batch)) for batch in batches]

    def notes(self, rows: pa.RecordBatch | pa.Table) -> list[Note]:
        """The events in rows of the table `events`."""
        batches, times_s = integers(rows, BATCH).tolist(), _times_s(rows)
        texts = [rows.column(name).to_pylist() for name in ("event", "severity", "message")]
        return [
            Note(self._known_before(batch)[1], time_s, *text)
            for batch, time_s, *text in zip(batches, times_s, *texts, strict=True)
        ]

    def _learn(self, batches: Sequence[int], rows: pa.RecordBatch | pa.Table) -> None:
        known: Sequence[int | None] = [None] * len(batches)
        if GLOBAL_STEP in rows.schema.names:
            is_null = null_mask(rows.column(GLOBAL_STEP)).tolist()
            numbers = integers(rows, GLOBAL_STEP).tolist()
            known = [None if is_missing else step for step, is_missing in zip(numbers, is_null, strict=True)]
        for batch_idx, step, time_s in zip(batches, known, _times_s(rows), strict=True):
            if step is not None:
                self._last_known = batch_idx, step
            last_batch, last_step = self._last_known
            self._known[batch_idx] = last_step + batch_idx - last_batch, time_s
        while len(self._known) > MAX_KNOWN_STEPS:
            del self._known[next(iter(self._known))]

    def _place(self, batch_idx: int) -> tuple[int, float]:
        """The global step and the time at which the numbers of a batch are shown."""
        known_batch, step, time_s = self._known_before(batch_idx)
        return step + max(batch_idx - known_batch, 0), time_s

    def _known_before(self, batch_idx: int) -> tuple[int, int, float]:
        """The batch itself, or else the nearest known batch before it, with its global step and time."""
        if not self._known:
            return batch_idx, batch_idx, time.time()
        if batch_idx not in self._known:
            earlier = [batch for batch in self._known if batch < batch_idx]
            batch_idx = max(earlier) if earlier else min(self._known)
        return batch_idx, *self._known[batch_idx]


def _times_s(rows: pa.RecordBatch | pa.Table) -> list[float]:
    times: list[int] = integers(rows, _TIME).tolist()
    return [time_us / _US_PER_S for time_us in times]
