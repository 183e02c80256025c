"""Findings on their way from the background thread to the user's functions in the training thread."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import JsonValue

from ava_pipeline.collect.call_checks import CallChecks, StepCall
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.measures import make_measures, read_measures
from ava_pipeline.collect.measures.measure import Measure
from ava_pipeline.collect.staging import staging_for
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import ChannelClosedError, ChannelFullError
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Channel, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.pending import PendingStep
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.worker import Worker
from ava_pipeline.write.writers import Writer

MAX_WAITING = 256


class FindingQueue:
    """Holds findings until the training thread comes by; the oldest give way where they are too many.

    Args:
        wake: a weak reference to what is called after each one.
    """

    def __init__(self, wake: Callable[[], Callable[[], None] | None]) -> None:
        self._wake = wake
        self._waiting: deque[Finding] = deque(maxlen=MAX_WAITING)
        self._due: deque[tuple[Callable[[Finding], object], Finding]] = deque()
        self._callbacks: list[Callable[[Finding], object]] = []

    def register(self, callback: Callable[[Finding], object]) -> None:
        """Tell `callback` too."""
        self._callbacks.append(callback)

    def put(self, finding: Finding) -> None:
        """Take a finding; called in the background thread."""
        self._waiting.append(finding)
        self._wake_up()

    def deliver(self) -> None:
        """Call the functions; what one of them raises is raised, and what the others were still to hear waits on."""
        while self._due or self._waiting:
            if not self._due:
                finding = self._waiting.popleft()
                self._due.extend((callback, finding) for callback in self._callbacks)
                continue
            callback, finding = self._due.popleft()
            try:
                callback(finding)
            except BaseException:
                self._wake_up()
                raise

    def _wake_up(self) -> None:
        wake = self._wake()
        if wake is not None:
            wake()


class Recorder:
    """Turns calls of `step` into pending rows and hands them to the worker that it started.

    Args:
        watched: what is measured.
        moments: takes the pass over the gradients.
        notices: looks at each step for what cannot be right.
        config: how it is written.
        output_dir: the run directory.
        log: where to tell what happens.
        run_info: the user's own facts.
        on_finding: told of every warning sign, in the background thread.
        measures: the user's own, beside the built-in ones.
        writers: the user's own, beside the formats of the config.
    """

    def __init__(  # noqa: PLR0913  # the one place where everything meets
        self,
        watched: TrainingTargets,
        config: TelemetryConfig,
        output_dir: Path,
        log: EventLog,
        *,
        moments: GradientPass,
        notices: CallChecks,
        run_info: Mapping[str, JsonValue],
        on_finding: Callable[[Finding], None],
        measures: Sequence[type[Measure]] = (),
        writers: Sequence[type[Writer]] = (),
    ) -> None:
        self._moments = moments
        self._notices = notices
        self._value_names = watched.value_names
        self._measures = make_measures(measures, watched, on_failure=log.fail)
        self._staging = staging_for(watched.device)
        self._is_strict = config.on_error == "raise"
        self._log = log
        self._channel: Channel[PendingStep] = Channel(
            config.max_pending_rows, on_full=config.on_full, block_timeout_s=config.block_timeout_s
        )
        facts = RunFacts(
            groups=watched.described_groups(),
            collect_every_n=config.collect_every_n,
            resumed_from=watched.resumed_from,
            run_info=run_info,
            device=_device_name(watched.device),
            thresholds=config.signs.model_dump(exclude_defaults=True),
        )
        watch = OnlineSigns(facts.groups, config.signs, log, on_finding) if config.signs.on_line else None
        files = RunWriter(
            output_dir,
            self._measures,
            facts,
            log,
            formats=config.formats,
            writers=writers,
            fsync=config.fsync,
            watch=watch,
        )
        self._worker = Worker(self._channel, files, log, flush_interval_s=config.flush_interval_s)
        self._worker.start()

    def record(self, call: StepCall) -> None:
        """Measure, stage and hand over; where there is no room, the step is counted as dropped.

        Raises:
            Exception: whatever a measure raised, under `on_error="raise"`; else it costs the step.
        """
        # What is full or closed is counted by the channel and told by the worker, as one event a gap.
        with suppress(ChannelFullError, ChannelClosedError):
            self._channel.reserve(call.batch_idx, call.epoch)
            try:
                row = self._measure(call)
            except Exception as error:
                self._channel.drop(call.batch_idx, call.epoch)
                if self._is_strict:
                    raise
                self._log.fail(error, "a step could not be measured")
                return
            self._channel.offer(row, call.batch_idx, call.epoch)

    def _measure(self, call: StepCall) -> PendingStep:
        moment = self._moments.take(call.values, call.batch_idx)
        self._notices.look(moment, call, value_names=self._value_names)
        readings = read_measures(self._measures, moment, is_strict=self._is_strict)
        return PendingStep(
            batch_idx=call.batch_idx,
            epoch=call.epoch,
            staged=self._staging.stage(readings),
            layouts=tuple(one.layout for one in readings),
            is_deferred=call.is_deferred,
            sample_ids=call.sample_ids,
        )

    def flush(self, timeout_s: float | None) -> bool:
        """Wait until every row so far is written."""
        return self._channel.flush(timeout_s)

    def stats(self) -> TelemetryStats:
        """The counters."""
        return self._channel.stats()

    def close(self, timeout_s: float | None, status: Status, error: str | None) -> TelemetryStats:
        """Write what waits and end the worker."""
        return self._worker.close(timeout_s, status, error)

    @property
    def has_ended(self) -> bool:
        """Whether the worker has finished the files and is gone."""
        return self._worker.has_ended

    def abandon(self) -> None:
        """Let the worker finish by itself: nobody waits for it."""
        self._channel.close()

    def forget(self) -> None:
        """In a forked child: everything here belongs to the parent."""
        self._worker.forget()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"
