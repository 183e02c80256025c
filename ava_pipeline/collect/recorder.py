"""From a call of `step` to a pending row in the channel."""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.collect.call_checks import CallChecks
from ava_pipeline.collect.capture import is_capturing
from ava_pipeline.collect.finding_queue import FindingQueue
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.measures.measure import Measure, Reading, join_readings, read_measures
from ava_pipeline.collect.measuring import Measuring
from ava_pipeline.collect.samples import HoldoutQuestion
from ava_pipeline.collect.snapshots import WeightSnapshots
from ava_pipeline.collect.staging import Staging
from ava_pipeline.collect.step_values import StepCall
from ava_pipeline.collect.targets import Model, TrainingTargets
from ava_pipeline.collect.undisturbed import Autocast
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import ChannelClosedError, ChannelFullError, MisuseError, in_words
from ava_pipeline.interrupts import is_from_signal
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import UNMEASURED, Channel, PendingStep, TelemetryStats
from ava_pipeline.write.endings import exit_code
from ava_pipeline.write.event_log import EventLog, snapshot_event
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.own_writers import OwnWriter
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.snapshots import SnapshotWriter
from ava_pipeline.write.worker import Worker, ending_workers
from ava_pipeline.write.writers import Formats

_IN_CAPTURE = (
    "step() was called while a CUDA graph is captured, when no kernel runs, so nothing is recorded. "
    "Call it outside the capture, after each graph.replay()."
)


@dataclass(slots=True)
class _OpenRow:
    """A row that is being measured: the readings of each optimizer that steps in its batch."""

    batch_idx: int
    epoch: int
    sample_ids: Sequence[object] | None
    _: KW_ONLY
    is_deferred: bool
    parts: list[list[Reading]] = field(default_factory=list)
    num_before: int = 0  # steps that were counted when the last part of the work began


_HANDED_OVER = (
    "step(optimizer=...) came after flush(), state_dict() or rebind() in the same batch, whose row had been handed "
    "over, so what this optimizer steps is null in it. Call them after the last step() of a batch."
)


class Recorder:
    """Turns calls of `step` into pending rows and hands them to a worker, which the first of them starts.

    `findings` takes every warning sign, in the background thread; `measures` and `writers` are the user's own. In a
    forked child (`is_child`) nothing is recorded.
    """

    def __init__(  # noqa: PLR0913  # everything that a row needs meets here
        self,
        targets: TrainingTargets,
        config: TelemetryConfig,
        root: Path,
        count: BatchCount,
        events: EventLog,
        *,
        gradient_pass: GradientPass,
        checks: CallChecks,
        run_info: Mapping[str, JsonValue],
        findings: FindingQueue,
        metrics: MetricsLog,
        measures: Sequence[type[Measure]] = (),
        writers: Sequence[OwnWriter] = (),
    ) -> None:
        self.measuring = Measuring(targets, config, gradient_pass=gradient_pass, checks=checks, own=measures)
        self._config = config
        self.root = root
        self._count = count
        self._events = events
        self._gradient_pass = gradient_pass
        self._checks = checks
        self._run_info = run_info
        self._findings = findings
        self._metrics = metrics
        self._own_writers = writers
        self._is_strict = config.on_error == "raise"
        self._channel: Channel[PendingStep] = Channel(
            config.max_pending_rows, on_full=config.on_full, block_timeout_s=config.block_timeout_s
        )
        self._row: _OpenRow | None = None  # which further calls of its batch complete
        self._at_work: _OpenRow | None = None  # which a signal handler finds half done
        self._last_handed_over = 0
        self._staging = Staging()
        self._snapshots: WeightSnapshots | None = None
        if config.track_weight_snapshots and count.is_collecting:
            self._snapshots = WeightSnapshots(lambda: checks.modules, events)
        self._worker: Worker | None = None
        self._turn = threading.RLock()
        self._refusal = "step() was called after close(): create a new collector, or close after the last step."
        self.is_closed = False
        self.is_child = False
        if count.is_collecting:
            self._take_over()
        _recorders.add(self)

    def record(self, call: StepCall) -> bool:
        """Measure a step, stage the numbers and hand them over; if the channel is full, count the step as dropped.

        If the call names an `optimizer`, the row stays open for further calls of its batch (`record_part`) until
        `hand_over`. Return whether the step was collected. It is not in the capture of a CUDA graph, which computes
        nothing, if another thread, for which this one waited, has collected the row that was due, and in a signal
        handler that interrupts the work on a row.

        Raise MisuseError after `close`. Under `on_error="raise"`, raise WriteError if rows could not be written, and
        any error of a measure, which otherwise costs the step. Raise whatever a signal handler raises; the step is
        counted as dropped then, unless it was handed over before.
        """
        with self._turn:
            if self.is_closed:
                raise MisuseError(self._refusal)
            count = self._count
            if count.batch_idx < count.next_row or self._at_work is not None:
                return False
            if is_capturing():
                self._checks.warn_once("capture", _IN_CAPTURE)
                count.num_accumulating += 1  # as a batch without an optimizer step; the row stays due
                return False
            self.raise_first_error()
            self.hand_over()
            self._start_worker(call)
            # Read once: other threads may go on counting.
            batch_idx, next_row = count.batch_idx, count.next_row
            row = _OpenRow(batch_idx, self._checks.epoch(), call.sample_ids, is_deferred=batch_idx != next_row)
            self._work_on(row, partial(self._begin, row, call))
            return True

    def save_weights(self) -> None:
        """Copy the weights of the present batch and leave them for the background thread, unless they are not due.

        What fails costs the snapshot, and is reported, or is raised under `on_error="raise"`; whatever a signal handler
        raises is raised.
        """
        with self._turn:
            count, snapshots = self._count, self._snapshots
            if snapshots is None or self.is_closed or count.batch_idx < count.next_snapshot:
                return
            if is_capturing():
                self._checks.warn_once("capture", _IN_CAPTURE)
                return  # it stays due
            batch_idx, epoch = count.batch_idx, self._checks.epoch()
            count.schedule_snapshot(batch_idx)
            try:
                self._start_worker(StepCall())
                if snapshots.take(batch_idx, epoch):
                    self._channel.wake()
            except Exception as error:
                if is_from_signal(error) or self._is_strict:
                    raise
                reason = f"the weights of this batch could not be copied: {in_words(error)}"
                self._events.add(snapshot_event(batch_idx, epoch, reason))

    def _start_worker(self, call: StepCall) -> None:
        if self._worker is None:
            self._worker = self._make_worker(self._checks.numbers(call.values), self._checks.labels(call.labels))
        self._worker.start()
        exit_code.forget()

    def record_part(self, call: StepCall) -> bool:
        """Measure what one optimizer of the open row's batch steps; as `record`, of which it is a part."""
        with self._turn:
            row = self._row
            if row is None and self._last_handed_over == self._count.batch_idx:
                self._checks.warn_once("handed over", _HANDED_OVER)
            if row is None or self._at_work is not None or is_capturing():
                return False
            self._work_on(row, partial(self._measure_part, row, call))
            return True

    def hand_over(self) -> None:
        """Stage the numbers of the open row, if there is one, and give it to the background thread.

        In a signal handler that interrupts the work on a row, do nothing: that work goes on.
        """
        with self._turn:
            row = self._row
            if row is not None and self._at_work is None:
                self._last_handed_over = row.batch_idx
                self._work_on(row, partial(self._offer, row))

    def _work_on(self, row: "_OpenRow", work: Callable[[], None]) -> None:
        """Do a part of the work on a row. What fails costs the row, and is reported; what interrupts it is raised."""
        row.num_before = num_before = self._channel.num_collected
        try:
            self._at_work = row
            # The channel counts what it refuses, and the worker records each gap as one event.
            with suppress(ChannelFullError, ChannelClosedError):
                work()
            self._at_work = None
        except BaseException as error:
            self._row = self._at_work = None
            self._count.schedule_row(row.batch_idx)  # again, because a signal may have come before
            is_interrupt = not isinstance(error, Exception) or is_from_signal(error)
            if self._channel.num_collected == num_before:
                reason = f"{type(error).__name__} interrupted their step" if is_interrupt else UNMEASURED
                self._channel.drop(row.batch_idx, row.epoch, reason=reason)
            if is_interrupt or self._is_strict:
                raise
            self._events.fail(error, "a step could not be measured")

    def _begin(self, row: "_OpenRow", call: StepCall) -> None:
        self._count.schedule_row(row.batch_idx)
        self._channel.reserve(row.batch_idx, row.epoch)
        if call.optimizer is not None:
            self._row = row
        self.measuring.begin_holdout(row.batch_idx)
        self._measure_part(row, call)
        if call.optimizer is None:
            self._offer(row)

    def _measure_part(self, row: "_OpenRow", call: StepCall) -> None:
        checks = self._checks
        numbers, labels = checks.numbers(call.values), checks.labels(call.labels)
        self.measuring.renew(numbers, labels)
        changes = self.measuring.targets.changes()
        snapshot = self._gradient_pass.take(
            numbers,
            row.batch_idx,
            labels=labels,
            optimizer=call.optimizer,
            global_step=checks.global_step(call.global_step),
            changes=None if checks.is_optimizer_captured else changes,
            is_optimizer_replaced=checks.is_optimizer_replaced(changes),
        )
        checks.check(snapshot)
        row.parts.append(read_measures(self.measuring.measures, snapshot, is_strict=self._is_strict))

    def _offer(self, row: "_OpenRow") -> None:
        self._row = None
        readings = join_readings(self.measuring.measures, row.parts, is_strict=self._is_strict)
        step = PendingStep(
            batch_idx=row.batch_idx,
            epoch=row.epoch,
            staged=self._staging.stage(readings),
            layouts=tuple(reading.layout for reading in readings),
            is_deferred=row.is_deferred,
            sample_ids=row.sample_ids,
            setup=self.measuring.setup,
        )
        self._channel.offer(step, row.batch_idx, row.epoch)

    def begins_batch(self, optimizer: str, accumulating: bool) -> bool:  # noqa: FBT001  # passed on
        """Whether a call that names an optimizer is the first of its batch; the row of the batch before is complete.

        Raise MisuseError if the name is unknown.
        """
        names = self.measuring.targets.optimizers
        if optimizer not in names:
            raise MisuseError(f"optimizer is {optimizer!r}: give one of the names {', '.join(map(repr, names))}.")
        is_first = self._count.begins_batch(optimizer, accumulating=accumulating)
        if is_first:
            self.hand_over()
        return is_first

    def _make_worker(self, values: Iterable[str], labels: Iterable[str]) -> Worker:
        setup = self.measuring.begin(values, labels, self._count.resumed_from)
        config, gradient_pass, weights = self._config, self._gradient_pass, self.measuring.weights
        facts = RunFacts(
            groups=setup.groups,
            rate_names=setup.rate_names,
            collect_every_n=config.collect_every_n,
            resumed_from=self._count.resumed_from,
            run_info=self._run_info,
            devices=lambda: gradient_pass.devices,
            weight_reference_bytes=lambda: weights.reference_bytes,
            thresholds=config.signs.model_dump(exclude_defaults=True),
        )
        signs = None
        if config.signs.on_line:
            signs = OnlineSigns(facts.groups, config.signs, self._events, self._findings.put)
        files = RunWriter(
            self.root,
            setup.sources,
            facts,
            self._events,
            formats=Formats(config.formats, config.csv_of_long_tables),
            writers=self._own_writers,
            fsync=config.fsync,
            signs=signs,
            metrics=self._metrics,
            snapshots=self._snapshot_writer(),
        )
        self.measuring.setup = files.setup
        return Worker(
            self._channel,
            files,
            self._events,
            flush_interval_s=config.flush_interval_s,
            after=ending_workers(self.root),
            before_exit=weakref.WeakMethod(self.hand_over),
        )

    def _snapshot_writer(self) -> SnapshotWriter | None:
        if self._snapshots is None:
            return None
        layout, max_snapshots = RunLayout(self.root), self._config.max_weight_snapshots
        return SnapshotWriter(layout, self._snapshots.hand_over, self._events, max_snapshots=max_snapshots)

    def set_holdout(self, batches: Iterable[Any], question: HoldoutQuestion, autocast: Autocast) -> None:
        """Evaluate held-out samples from the next row on."""
        if self.is_child:
            return
        with self._turn:
            if self.is_closed:
                raise MisuseError("set_holdout() was called after close(): create a new collector.")
            is_collecting = self._count.is_collecting
            self.measuring.set_holdout(batches, question, autocast, is_collecting=is_collecting)

    def rebind(self, targets: TrainingTargets, model: Model | None) -> None:
        """Measure other targets from the next row on, those of another model unless it is None."""
        self.hand_over()
        self._checks.rebind(targets, model)
        self.measuring.measure(targets)

    def raise_first_error(self) -> None:
        """Raise the first WriteError of the background thread, once, under `on_error="raise"`."""
        error = self._events.first_error
        if self._is_strict and error is not None:
            self._events.first_error = None
            raise error

    def flush(self, timeout_s: float | None) -> bool:
        """Wait until every row so far is written; False if the time is up first.

        A row whose batch has further calls stays open: those of optimizers that were called in every batch before.
        """
        if not self._count.is_batch_open(self.measuring.targets.optimizers):
            self.hand_over()
        is_done = self.wait(timeout_s)
        self.raise_first_error()
        return is_done

    def wait(self, timeout_s: float | None) -> bool:
        """Wait as `flush` does, and raise nothing."""
        return self._worker is None or self.is_child or self._channel.flush(timeout_s)

    def stats(self) -> TelemetryStats:
        """The counters; zeros in a forked child. A row that waits for further calls of its batch is pending."""
        if self.is_child:
            return TelemetryStats()
        stats = self._channel.stats()
        return stats if self._row is None else replace(stats, collected=stats.collected + 1, pending=stats.pending + 1)

    def close(self, timeout_s: float | None, status: Status, error: str | None) -> TelemetryStats:
        """Write what waits and end the worker; until it `has_ended`, closing again waits again."""
        if self.is_child or (self.is_closed and self.has_ended):
            return self.stats()
        self._end_rows()
        if status == "finished":
            self._checks.warn_if_nothing_was_due(self.root, self._config.collect_every_n)
        self.is_closed = True
        self._count.finish()
        if self._worker is not None:
            self._worker.close(timeout_s, status, error)
        return self.stats()

    @property
    def has_ended(self) -> bool:
        """Whether the worker has finished the files, or was never started; False in a forked child."""
        return not self.is_child and (self._worker is None or self._worker.has_ended)

    def abandon(self) -> bool:
        """Let the worker finish alone, since its collector is gone; True if that should have been closed."""
        self._checks.close()
        if self._worker is None or self.is_closed or self.is_child:
            return False
        try:
            self.hand_over()
        finally:
            self._worker.abandon()
        return True

    def _take_over(self) -> None:
        """End older collectors of this process in the same run directory, as when a notebook's cell is run again."""
        for older in list(_recorders):
            if older.root == self.root and not (older.is_closed or older.is_child):
                older.give_way()

    def give_way(self) -> None:
        """End as interrupted, without waiting, because a newer collector continues in the run directory."""
        self._refusal = (
            f"step() was called after a newer collector of this process took over {self.root}: "
            "call the newer one's, or give each collector an output directory of its own."
        )
        self._end_rows()
        self.is_closed = True
        self._count.finish()
        if self._worker is not None:
            self._worker.hand_over()

    def _end_rows(self) -> None:
        """Take no more rows. One that is being measured, as in a signal handler that closes, is counted as dropped."""
        row = self._at_work
        if row is None:
            self.hand_over()
        elif self._channel.num_collected == row.num_before:
            self._channel.drop(row.batch_idx, row.epoch, reason="close() interrupted their step")
        self._row = None
        self._checks.close()

    def become_child(self) -> None:
        """After a fork: the files, the thread, the locks and the errors belong to the parent."""
        self.is_child = True
        self._row = None
        self._events.first_error = None
        self._count.stop()
        if self._worker is not None:
            self._worker.forget()


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _in_forked_child() -> None:
    for recorder in _recorders:
        recorder.become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
