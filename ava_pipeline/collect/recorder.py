"""From a call of `step` to a pending row in the channel."""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from operator import is_
from pathlib import Path

from pydantic import JsonValue

from ava_pipeline.collect.call_checks import BatchCount, CallChecks, as_numbers, check_step
from ava_pipeline.collect.capture import is_capturing
from ava_pipeline.collect.finding_queue import FindingQueue
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.measures import built_in_measures, make_measures
from ava_pipeline.collect.measures.measure import Measure, Reading, Value, join_readings, read_measures
from ava_pipeline.collect.snapshots import WeightSnapshots
from ava_pipeline.collect.staging import Staging
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import ChannelClosedError, ChannelFullError, MisuseError, in_words
from ava_pipeline.interrupts import is_from_signal
from ava_pipeline.logs import logger
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import UNMEASURED, Channel, PendingStep, TelemetryStats
from ava_pipeline.write.endings import exit_code
from ava_pipeline.write.event_log import EventLog, snapshot_event
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.own_writers import OwnWriter
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.setup import Setup
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


_IN_CAPTURE = (
    "step() was called while a CUDA graph is captured, when no kernel runs, so nothing is recorded. "
    "Call it outside the capture, after each graph.replay()."
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
        self._targets = targets
        self._config = config
        self.root = root
        self._count = count
        self._events = events
        self._gradient_pass = gradient_pass
        self._checks = checks
        self._run_info = run_info
        self._findings = findings
        self._metrics = metrics
        self._built_in_measures = built_in_measures(config)
        self._own_measures = measures
        self._own_writers = writers
        self._is_strict = config.on_error == "raise"
        self._channel: Channel[PendingStep] = Channel(
            config.max_pending_rows, on_full=config.on_full, block_timeout_s=config.block_timeout_s
        )
        self._measures: list[Measure] = []
        self._setup: Setup | None = None
        self._row: _OpenRow | None = None
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

    def record(
        self,
        values: Mapping[str, Value],
        sample_ids: Sequence[object] | None,
        *,
        optimizer: str | None = None,
        global_step: int | None = None,
    ) -> bool:
        """Measure a step, stage the numbers and hand them over; if the channel is full, count the step as dropped.

        If the call names an `optimizer`, the row stays open for further calls of its batch (`record_part`) until
        `hand_over`. Return whether the step was collected. It is not in the capture of a CUDA graph, which computes
        nothing, and if another thread, for which this one waited, has collected the row that was due.

        Raise MisuseError after `close` or for a value that is not a scalar. Under `on_error="raise"`, raise WriteError
        if rows could not be written, and any error of a measure, which otherwise costs the step. Raise whatever a
        signal handler raises; the step is counted as dropped then, unless it was handed over before.
        """
        with self._turn:
            if self.is_closed:
                raise MisuseError(self._refusal)
            count = self._count
            if count.batch_idx < count.next_row:
                return False
            if is_capturing():
                self._checks.warn_once("capture", _IN_CAPTURE)
                count.num_accumulating += 1  # as a batch without an optimizer step; the row stays due
                return False
            self.raise_first_error()
            self.hand_over()
            check_step(values, global_step)
            self._start_worker(values)
            # Read once: other threads may go on counting.
            batch_idx, next_row = count.batch_idx, count.next_row
            row = _OpenRow(batch_idx, count.epoch, sample_ids, is_deferred=batch_idx != next_row)
            self._work_on(row, partial(self._begin, row, values, optimizer, global_step))
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
            batch_idx, epoch = count.batch_idx, count.epoch
            count.schedule_snapshot(batch_idx)
            try:
                self._start_worker({})
                if snapshots.take(batch_idx, epoch):
                    self._channel.wake()
            except Exception as error:
                if is_from_signal(error) or self._is_strict:
                    raise
                reason = f"the weights of this batch could not be copied: {in_words(error)}"
                self._events.add(snapshot_event(batch_idx, epoch, reason))

    def _start_worker(self, values: Mapping[str, Value]) -> None:
        if self._worker is None:
            self._worker = self._make_worker(values)
        self._worker.start()
        exit_code.forget()

    def record_part(self, values: Mapping[str, Value], optimizer: str, global_step: int | None) -> bool:
        """Measure what one optimizer of the open row's batch steps; as `record`, of which it is a part."""
        with self._turn:
            row = self._row
            if row is None or is_capturing():
                return False
            check_step(values, global_step)
            self._work_on(row, partial(self._measure_part, row, values, optimizer, global_step))
            return True

    def hand_over(self) -> None:
        """Stage the numbers of the open row, if there is one, and give it to the background thread."""
        with self._turn:
            row = self._row
            if row is not None:
                self._work_on(row, partial(self._offer, row))

    def _work_on(self, row: "_OpenRow", work: Callable[[], None]) -> None:
        """Do a part of the work on a row. What fails costs the row, and is reported; what interrupts it is raised."""
        num_before = self._channel.num_collected
        try:
            # The channel counts what it refuses, and the worker records each gap as one event.
            with suppress(ChannelFullError, ChannelClosedError):
                work()
        except BaseException as error:
            self._row = None
            self._count.schedule_row(row.batch_idx)  # again, because a signal may have come before
            is_interrupt = not isinstance(error, Exception) or is_from_signal(error)
            if self._channel.num_collected == num_before:
                reason = f"{type(error).__name__} interrupted their step" if is_interrupt else UNMEASURED
                self._channel.drop(row.batch_idx, row.epoch, reason=reason)
            if is_interrupt or self._is_strict:
                raise
            self._events.fail(error, "a step could not be measured")

    def _begin(
        self, row: "_OpenRow", values: Mapping[str, Value], optimizer: str | None, global_step: int | None
    ) -> None:
        self._count.schedule_row(row.batch_idx)
        self._channel.reserve(row.batch_idx, row.epoch)
        self._row = row
        self._measure_part(row, values, optimizer, global_step)
        if optimizer is None:
            self._offer(row)

    def _measure_part(
        self, row: "_OpenRow", values: Mapping[str, Value], optimizer: str | None, global_step: int | None
    ) -> None:
        numbers, unread = as_numbers(values)
        self._renew(numbers)
        checks = self._checks
        checks.check_unread(unread)
        snapshot = self._gradient_pass.take(
            numbers,
            row.batch_idx,
            optimizer=optimizer,
            global_step=checks.global_step() if global_step is None else global_step,
            is_optimizer_replaced=checks.is_optimizer_replaced(),
        )
        checks.check(snapshot)
        row.parts.append(read_measures(self._measures, snapshot, is_strict=self._is_strict))

    def _offer(self, row: "_OpenRow") -> None:
        self._row = None
        readings = join_readings(self._measures, row.parts, is_strict=self._is_strict)
        step = PendingStep(
            batch_idx=row.batch_idx,
            epoch=row.epoch,
            staged=self._staging.stage(readings),
            layouts=tuple(reading.layout for reading in readings),
            is_deferred=row.is_deferred,
            sample_ids=row.sample_ids,
            setup=self._setup,
        )
        self._channel.offer(step, row.batch_idx, row.epoch)

    def begins_batch(self, optimizer: str, accumulating: bool) -> bool:  # noqa: FBT001  # passed on
        """Whether a call that names an optimizer is the first of its batch; the row of the batch before is complete.

        Raise MisuseError if the name is unknown.
        """
        names = self._targets.optimizers
        if optimizer not in names:
            raise MisuseError(f"optimizer is {optimizer!r}: give one of the names {', '.join(map(repr, names))}.")
        is_first = self._count.begins_batch(optimizer, accumulating=accumulating)
        if is_first:
            self.hand_over()
        return is_first

    @property
    def targets(self) -> TrainingTargets:
        """What is measured now."""
        return self._targets

    def _make_worker(self, values: Mapping[str, Value]) -> Worker:
        targets = replace(self._targets.renewed(values=values), resumed_from=self._count.resumed_from)
        self._checks.check_optimizers()
        measures = make_measures(self._built_in_measures, self._own_measures, targets, on_failure=self._report_unmade)
        config, gradient_pass = self._config, self._gradient_pass
        facts = RunFacts(
            groups=targets.described_groups(),
            rate_names=targets.rate_names(),
            collect_every_n=config.collect_every_n,
            resumed_from=targets.resumed_from,
            run_info=self._run_info,
            devices=lambda: gradient_pass.devices,
            thresholds=config.signs.model_dump(exclude_defaults=True),
        )
        signs = None
        if config.signs.on_line:
            signs = OnlineSigns(facts.groups, config.signs, self._events, self._findings.put)
        files = RunWriter(
            self.root,
            measures,
            facts,
            self._events,
            formats=Formats(config.formats, config.csv_of_long_tables),
            writers=self._own_writers,
            fsync=config.fsync,
            signs=signs,
            metrics=self._metrics,
            snapshots=self._snapshot_writer(),
        )
        self._targets, self._measures, self._setup = targets, measures, files.setup
        return Worker(
            self._channel,
            files,
            self._events,
            flush_interval_s=config.flush_interval_s,
            after=ending_workers(self.root),
        )

    def _snapshot_writer(self) -> SnapshotWriter | None:
        if self._snapshots is None:
            return None
        layout, max_snapshots = RunLayout(self.root), self._config.max_weight_snapshots
        return SnapshotWriter(layout, self._snapshots.hand_over, self._events, max_snapshots=max_snapshots)

    def rebind(self, targets: TrainingTargets) -> None:
        """Measure other targets from the next row on."""
        self.hand_over()
        if self._worker is None:
            self._follow(targets)
        else:
            self._measure(targets)

    def _renew(self, values: Mapping[str, Value]) -> None:
        """Measure what was added to optimizers and values since the last row, and note which groups are trained."""
        new = [name for name in values if name not in self._targets.value_names]
        if self._checks.have_targets_changed() or new:
            self._measure(self._targets.renewed(values=new))

    def _measure(self, targets: TrainingTargets) -> None:
        """Make the measures of other targets, unless the tables, groups and rates stay the same."""
        measures = make_measures(self._built_in_measures, self._own_measures, targets, on_failure=self._report_unmade)
        setup = Setup(measures, targets.described_groups(), targets.rate_names())
        has_same_parameters = all(map(is_, targets.parameters, self._targets.parameters))
        if self._setup is None or not (has_same_parameters and setup.records_the_same(self._setup)):
            self._measures, self._setup = measures, setup
        self._follow(targets)

    def _follow(self, targets: TrainingTargets) -> None:
        self._targets = targets
        self._gradient_pass.measure(targets)
        self._checks.follow(targets)

    def _report_unmade(self, measure: type[Measure], error: Exception) -> None:
        batch_idx = self._count.batch_idx
        self._events.add(
            Event(
                event="failed_write",
                severity="error",
                message=f"the measure {measure.__name__} could not be made, so its table gets no rows: "
                f"{in_words(error)}",
                batch_idx=batch_idx,
                batch_idx_end=batch_idx,
                epoch=self._count.epoch,
                column=measure.table.name,
            )
        )

    def raise_first_error(self) -> None:
        """Raise the first WriteError of the background thread, once, under `on_error="raise"`."""
        error = self._events.first_error
        if self._is_strict and error is not None:
            self._events.first_error = None
            raise error

    def flush(self, timeout_s: float | None) -> bool:
        """Wait until every row so far is written; False if the time is up first."""
        self.hand_over()
        is_done = self.wait(timeout_s)
        self.raise_first_error()
        return is_done

    def wait(self, timeout_s: float | None) -> bool:
        """Wait as `flush` does, and raise nothing."""
        return self._worker is None or self.is_child or self._channel.flush(timeout_s)

    def stats(self) -> TelemetryStats:
        """The counters; zeros in a forked child."""
        return TelemetryStats() if self.is_child else self._channel.stats()

    def close(self, timeout_s: float | None, status: Status, error: str | None) -> TelemetryStats:
        """Write what waits and end the worker; until it `has_ended`, closing again waits again."""
        if self.is_child or (self.is_closed and self.has_ended):
            return self.stats()
        self.hand_over()
        self._checks.close()
        if status == "finished":
            self._warn_if_nothing_was_due()
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
        self.hand_over()
        self._checks.close()
        self.is_closed = True
        self._count.finish()
        if self._worker is not None:
            self._worker.hand_over()

    def become_child(self) -> None:
        """After a fork: the files, the thread, the locks and the errors belong to the parent."""
        self.is_child = True
        self._row = None
        self._events.first_error = None
        self._count.stop()
        if self._worker is not None:
            self._worker.forget()

    def _warn_if_nothing_was_due(self) -> None:
        """Warn if the whole run was too short for a row; no event would say so, since no file is open."""
        num_batches, every = self._count.batch_idx, self._config.collect_every_n
        if 0 < num_batches < every == self._count.next_row:
            in_graph = "Call step() after each graph.replay() of the training step, outside the capture."
            logger.warning(
                "telemetry of %s: no row was recorded, because the run had %d batches and collect_every_n is %d. %s",
                self.root,
                num_batches,
                every,
                in_graph if self._checks.is_optimizer_captured else f"Lower collect_every_n to {num_batches} or less.",
            )


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _in_forked_child() -> None:
    for recorder in _recorders:
        recorder.become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
