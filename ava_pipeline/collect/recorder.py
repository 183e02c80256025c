"""From a call of `step` to a pending row in the channel."""

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from operator import is_
from pathlib import Path

import torch
from pydantic import JsonValue

from ava_pipeline.collect.call_checks import BatchCount, CallChecks, as_numbers, check_values, whole_number
from ava_pipeline.collect.finding_queue import FindingQueue
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.measures import make_measures
from ava_pipeline.collect.measures.measure import Measure, Reading, Value, join_readings, read_measures
from ava_pipeline.collect.staging import Staging
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import ChannelClosedError, ChannelFullError, MisuseError, in_words
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Channel, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.own_writers import OwnWriter
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.setup import Setup
from ava_pipeline.write.worker import Worker

_log = logging.getLogger("ava_pipeline")


@dataclass(slots=True)
class _OpenRow:
    """A row that is being measured: the readings of each optimizer that steps in its batch."""

    batch_idx: int
    epoch: int
    sample_ids: Sequence[object] | None
    _: KW_ONLY
    is_deferred: bool
    parts: list[list[Reading]] = field(default_factory=list)


class Recorder:
    """Turns calls of `step` into pending rows and hands them to a worker, which the first of them starts.

    `findings` takes every warning sign, in the background thread; `measures` and `writers` are the user's own. In a
    forked child (`is_child`) nothing is recorded.
    """

    def __init__(  # noqa: PLR0913  # everything that a row needs meets here
        self,
        targets: TrainingTargets,
        config: TelemetryConfig,
        output_dir: Path,
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
        self._output_dir = output_dir
        self._count = count
        self._events = events
        self._gradient_pass = gradient_pass
        self._checks = checks
        self._run_info = run_info
        self._findings = findings
        self._metrics = metrics
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
        self._worker: Worker | None = None
        self.is_closed = False
        self.is_child = False
        _recorders.add(self)

    def record(
        self,
        values: Mapping[str, Value],
        sample_ids: Sequence[object] | None,
        *,
        optimizer: str | None = None,
        global_step: int | None = None,
    ) -> None:
        """Measure a step, stage the numbers and hand them over; if the channel is full, count the step as dropped.

        If the call names an `optimizer`, the row stays open for further calls of its batch (`record_part`) until
        `hand_over`. Raise MisuseError after `close` or for a value that is not a scalar. Under `on_error="raise"`,
        raise WriteError if rows could not be written, and any error of a measure, which otherwise costs the step.
        """
        if self.is_closed:
            raise MisuseError("step() was called after close(): create a new collector, or close after the last step.")
        self.raise_first_error()
        self.hand_over()
        count = self._count
        is_deferred = count.batch_idx != count.next_row
        check_values(values)
        count.schedule_row()
        if self._worker is None:
            self._worker = self._start(values)
        # The channel counts what it refuses, and the worker records each gap as one event.
        with suppress(ChannelFullError, ChannelClosedError):
            self._channel.reserve(count.batch_idx, count.epoch)
            self._row = _OpenRow(count.batch_idx, count.epoch, sample_ids, is_deferred=is_deferred)
            self.record_part(values, optimizer=optimizer, global_step=global_step)
            if optimizer is None:
                self.hand_over()

    def record_part(self, values: Mapping[str, Value], *, optimizer: str | None, global_step: int | None) -> None:
        """Measure what one optimizer of the open row's batch steps; as `record`, of which it is a part."""
        row = self._row
        if row is None:  # it was dropped
            return
        check_values(values)
        if global_step is not None:
            global_step = whole_number("global_step", global_step)
        numbers, unread = as_numbers(values)
        self._renew(numbers)
        checks = self._checks
        checks.check_unread(unread)
        try:
            snapshot = self._gradient_pass.take(
                numbers,
                row.batch_idx,
                optimizer=optimizer,
                global_step=checks.global_step() if global_step is None else global_step,
                is_optimizer_replaced=checks.is_optimizer_replaced(),
            )
            checks.check(snapshot)
            row.parts.append(read_measures(self._measures, snapshot, is_strict=self._is_strict))
        except Exception as error:  # noqa: BLE001  # whatever fails in measuring costs this step, and is reported
            self._drop_row(row, error)

    def hand_over(self) -> None:
        """Stage the numbers of the open row, if there is one, and give it to the background thread."""
        row, self._row = self._row, None
        if row is None:
            return
        try:
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
        except Exception as error:  # noqa: BLE001  # whatever fails in measuring costs this step, and is reported
            self._drop_row(row, error)
            return
        with suppress(ChannelFullError, ChannelClosedError):
            self._channel.offer(step, row.batch_idx, row.epoch)

    def begins_batch(self, optimizer: str, *, accumulating: bool) -> bool:
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

    @property
    def has_open_row(self) -> bool:
        """Whether a row of the latest batch waits for calls that name other optimizers."""
        return self._row is not None

    def _drop_row(self, row: "_OpenRow", error: Exception) -> None:
        self._row = None
        self._channel.drop(row.batch_idx, row.epoch)
        if self._is_strict:
            raise error
        self._events.fail(error, "a step could not be measured")

    def _start(self, values: Mapping[str, Value]) -> Worker:
        targets = replace(self._targets.renewed(values=values), resumed_from=self._count.resumed_from)
        self._checks.check_optimizers()
        measures = make_measures(self._own_measures, targets, on_failure=self._report_unmade)
        config = self._config
        facts = RunFacts(
            groups=targets.described_groups(),
            rate_names=targets.rate_names(),
            collect_every_n=config.collect_every_n,
            resumed_from=targets.resumed_from,
            run_info=self._run_info,
            device=_device_name(targets.device),
            thresholds=config.signs.model_dump(exclude_defaults=True),
        )
        signs = None
        if config.signs.on_line:
            signs = OnlineSigns(facts.groups, config.signs, self._events, self._findings.put)
        files = RunWriter(
            self._output_dir,
            measures,
            facts,
            self._events,
            formats=config.formats,
            writers=self._own_writers,
            fsync=config.fsync,
            signs=signs,
            metrics=self._metrics,
        )
        self._targets, self._measures, self._setup = targets, measures, files.setup
        worker = Worker(self._channel, files, self._events, flush_interval_s=config.flush_interval_s)
        worker.start()
        return worker

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
        measures = make_measures(self._own_measures, targets, on_failure=self._report_unmade)
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
        self._channel.close()
        return True

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
            _log.warning(
                "telemetry of %s: no row was recorded, because the run had %d batches and collect_every_n is %d. "
                "Lower collect_every_n to %d or less.",
                self._output_dir,
                num_batches,
                every,
                num_batches,
            )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _in_forked_child() -> None:
    for recorder in _recorders:
        recorder.become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
