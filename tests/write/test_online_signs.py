"""Signs while training: reported when they appear and when they end, over a bounded window, at the cost of no row."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs import registry
from ava_pipeline.signs.evidence import Evidence
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.write.channel import PendingStep
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.online_signs import MAX_NEW_ROWS, WINDOW_ROWS, OnlineSigns
from tests.signs.rows import EVERY, GROUPS, Columns, clip, columns, evidence

NORMS = ("overall", "trunk", "top", "first", "second")


class KeptLog(EventLog):
    """An event log that keeps its events."""

    def __init__(self) -> None:
        super().__init__(Path("run"))
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        """Keep the event, and log it as usual."""
        self.events.append(event)
        super().add(event)

    def resolve(self, event: Event) -> None:
        """Keep the event, and log it as usual."""
        self.events.append(event)
        super().resolve(event)


class Feed:
    """Online signs that get rows block by block."""

    def __init__(self, given: Columns, *, clock_step_s: float = 1.0) -> None:
        self.log = KeptLog()
        self.reported: list[Finding] = []
        self._now = 0.0
        self._clock_step_s = clock_step_s
        self.signs = OnlineSigns(GROUPS, Thresholds(), self.log, self.reported.append, clock=lambda: self._now)
        self._run = evidence(given)
        self._next = 0

    def rows(self, num_rows: int, *, samples: bool = True, check: bool = True) -> None:
        """Add the next rows, as the worker does."""
        self._now += self._clock_step_s
        first, self._next = self._next, self._next + num_rows
        tables = {"gradient_norms": self._run.norms, "learning_rates": self._run.rates, "steps": self._run.steps}
        for name, figures in tables.items():
            for batch in figures.rows.slice(first, num_rows).to_batches():
                self.signs.add_rows(name, batch)
        self.signs.add_steps([pending(row, samples=samples) for row in range(first, self._next)])
        if check:
            self.signs.check()

    @property
    def ids(self) -> list[str]:
        """The ids of the findings reported, in order."""
        return [finding.sign for finding in self.reported]


class Nothing:
    """No numbers."""

    def read(self) -> list[object]:
        """None."""
        return []


def pending(row: int, *, samples: bool) -> PendingStep:
    """The step of one row."""
    batch = (row + 1) * EVERY
    return PendingStep(batch, 0, Nothing(), (), sample_ids=[f"{batch}a", f"{batch}b"] if samples else None)  # type: ignore[arg-type]  # never read


def changed(first: int, last: int, by: float, names: Sequence[str] = NORMS, num_rows: int = 400) -> Columns:
    """Healthy columns, some of them multiplied over some rows."""
    given = columns(num_rows)
    for name in names:
        given[name][first:last] *= by
    return given


def test_a_state_is_reported_when_it_appears_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """One event and one warning each, however many blocks it lasts; the callback gets its appearance."""
    feed = Feed(changed(100, 200, 1e-6, ["trunk"]))
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        for _ in range(40):
            feed.rows(10)
    assert feed.ids == ["backbone-not-learning"]
    appeared, ended = feed.log.events
    assert (appeared.event, appeared.severity, appeared.column) == ("backbone_not_learning", "warning", "trunk")
    assert appeared.batch_idx == 101 * EVERY
    assert "Samples" not in appeared.message
    assert feed.reported[0].sample_ids == ()
    assert (ended.event, ended.severity, ended.column) == ("backbone_not_learning", "info", "trunk")
    assert 200 * EVERY < ended.batch_idx <= 240 * EVERY
    assert len(caplog.records) == 2
    assert "ended, after" in caplog.records[1].getMessage()


def test_a_state_that_appears_again_is_reported_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged again too."""
    given = changed(100, 150, 1e-6, ["trunk"])
    given["trunk"][250:300] *= 1e-6
    feed = Feed(given)
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        for _ in range(40):
            feed.rows(10)
    assert feed.ids == ["backbone-not-learning"] * 2
    assert len(caplog.records) == 4


def test_a_spike_names_the_samples_of_its_batch() -> None:
    """In the event's message, and in the finding for the callback; it is reported once."""
    feed = Feed(changed(120, 121, 100.0))
    for _ in range(20):
        feed.rows(20)
    (finding,) = feed.reported
    assert (finding.sign, finding.batch_idx, finding.sample_ids) == ("spike", 1210, ("1210a", "1210b"))
    (event,) = feed.log.events
    assert event.event == "spike"
    assert event.message.endswith("Samples of batch 1210: 1210a, 1210b.")


@pytest.mark.parametrize("share", [0.08, 0.5, 1.0])
def test_clipping_before_step_is_reported_once(share: float) -> None:
    """However seldom the bound is reached, it does not end in between."""
    given = columns(800)
    for name in NORMS:
        given[name] /= np.linspace(1, 0.5, 800)
    clip(given, float(np.quantile(given["overall"], 1 - share)))
    feed = Feed(given)
    for _ in range(160):
        feed.rows(5)
    assert feed.ids == ["clipped-before-step"]
    assert [(event.event, event.severity) for event in feed.log.events] == [("clipped_before_step", "warning")]
    assert "Call telemetry.step() after backward() and before clipping." in feed.log.events[0].message


def test_values_that_are_not_finite_are_called_back_and_not_written_twice() -> None:
    """The measures write the event."""
    feed = Feed(changed(120, 125, float("nan"), ["overall"]))
    for _ in range(20):
        feed.rows(20)
    (finding,) = feed.reported
    assert (finding.sign, finding.batch_idx, finding.sample_ids) == ("non-finite", 1210, ("1210a", "1210b"))
    assert feed.log.events == []


def test_values_that_stay_not_finite_are_called_back_again_as_an_error() -> None:
    """Once when they appear, and once when they last, however many rows follow."""
    feed = Feed(changed(120, 400, float("nan")))
    for _ in range(400):
        feed.rows(1)
    assert [(one.sign, one.severity, one.batch_idx) for one in feed.reported] == [
        ("non-finite", "warning", 1210),
        ("non-finite", "error", 1210),
    ]


def test_overflows_that_a_grad_scaler_does_not_repair_are_called_back_and_written() -> None:
    """Steps that it skips while it searches for its scale are neither."""
    given = changed(0, 5, float("inf"))
    for name in NORMS:
        given[name][300:] = float("nan")
    given["loss_scale"] = [2.0 ** max(20 - row, 15) for row in range(400)]
    feed = Feed(given)
    for _ in range(400):
        feed.rows(1)
    assert [(one.sign, one.severity, one.batch_idx) for one in feed.reported] == [("non-finite", "error", 3010)]
    assert [(one.event, one.severity, one.batch_idx) for one in feed.log.events] == [("non_finite", "warning", 3010)]


def test_a_warm_restart_of_a_long_schedule_is_not_a_jump_but_a_rate_beyond_it_is() -> None:
    """However long ago the highest rate left the window."""
    period, num_rows = 3000, 7000
    given = columns(num_rows)
    given["lr_group_0"] = 1e-4 * 0.5 * (1 + np.cos(np.pi * (np.arange(num_rows) % period) / period))
    feed = Feed(given)
    for _ in range(num_rows // 100):
        feed.rows(100)
    assert feed.reported == []
    given["lr_group_0"][6500:] *= 1000
    feed = Feed(given)
    for _ in range(num_rows // 100):
        feed.rows(100)
    assert [(one.sign, one.batch_idx) for one in feed.reported] == [("learning-rate-jump", 6501 * EVERY)]


def test_memory_is_bounded_however_many_rows_come() -> None:
    """Each check leaves one window of rows."""
    feed = Feed(columns(6000))
    for _ in range(60):
        feed.rows(100)
        held = feed.signs._rows["gradient_norms"]
        assert sum(batch.num_rows for batch in held) <= WINDOW_ROWS
    assert sum(batch.get_total_buffer_size() for batch in held) < 10 * WINDOW_ROWS * 8 * 7
    assert len(feed.signs._new_samples) == 0


def test_rows_that_come_fast_are_checked_only_before_they_leave_the_window() -> None:
    """While the clock stands still, a check waits for 4,096 rows, and leaves none of them out."""
    given = changed(500, 501, 100.0, num_rows=3 * MAX_NEW_ROWS)
    feed = Feed(given, clock_step_s=0.0)
    feed.signs._next_check_s = 1.0
    feed.rows(MAX_NEW_ROWS - 1)
    assert feed.reported == []
    feed.rows(1)
    assert feed.ids == ["spike"]
    feed.rows(10)
    feed.signs.check(is_last=True)
    assert feed.ids == ["spike"]


def test_a_sign_that_fails_ends_the_checks_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with its traceback; no rows are kept after it."""

    def broken(run: Evidence, limits: Thresholds) -> list[Finding]:
        raise ZeroDivisionError("a broken sign")

    monkeypatch.setattr(registry, "SIGNS", (broken,))
    feed = Feed(columns(400))
    for _ in range(4):
        feed.rows(100, samples=True)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert feed.reported == []
    assert feed.signs._rows["gradient_norms"] == []
    assert feed.signs._new_samples == {}


def test_tables_that_signs_do_not_read_are_ignored() -> None:
    """Such as the table of a measure of the user's own."""
    feed = Feed(columns(10))
    feed.signs.add_rows("weights", pa.record_batch({"batch_idx": pa.array([1])}))
    assert "weights" not in feed.signs._rows


def test_weights_that_stay_the_same_are_reported_while_training() -> None:
    """When they have stayed for as many rows as a sign must last, and when they move again."""
    given = columns()
    feed = Feed(given)
    num_rows = len(given["overall"])
    batches = pa.array(np.arange(1, num_rows + 1) * EVERY)
    keys = {"batch_idx": batches, "epoch": pa.array(np.zeros(num_rows, dtype=np.int64))}
    moved = np.where((np.arange(num_rows) >= 20) & (np.arange(num_rows) < 60), 0.0, 0.5)
    norms = pa.table({**keys, **{name: pa.array(np.ones(num_rows)) for name in NORMS}})
    spans = pa.array(np.full(num_rows, EVERY))
    deltas = pa.table({**keys, "num_batches": spans, **{name: pa.array(moved) for name in NORMS}})
    for first in range(0, 100, 10):
        for name, rows in (("weight_norms", norms), ("weight_deltas", deltas)):
            for batch in rows.slice(first, 10).to_batches():
                feed.signs.add_rows(name, batch)
        feed.rows(10)
    assert [(one.id, one.column, one.batch_idx) for one in feed.reported] == [("weights-not-moving", "overall", 210)]
    events = [(event.event, event.severity) for event in feed.log.events]
    assert events == [("weights_not_moving", "warning"), ("weights_not_moving", "info")]
