"""The drop-in collector: one call a batch, one row every n batches."""

import logging
import math
import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.collect.amp import AutocastProbe
from ava_pipeline.collect.arguments import as_json, check_given, check_values, rank, telemetry_config, whole_number
from ava_pipeline.collect.call_checks import BatchCount, CallChecks, StepCall
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.groups import GroupChoice, find_groups, log_groups
from ava_pipeline.collect.measures import check_measures
from ava_pipeline.collect.measures.measure import Measure, Value
from ava_pipeline.collect.predictions import EpochPredictions, PredictionFiles
from ava_pipeline.collect.recorder import FindingQueue, Recorder
from ava_pipeline.collect.targets import TrainingTargets, is_parallel, is_sharded, named_parameters, optimizers_by_name
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import AvaPipelineError, MisuseError
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.writers import Writer, check_writers

_log = logging.getLogger("ava_pipeline")

CHECKPOINT_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 30.0


class TelemetryCollector:
    """Records gradient norms, learning rates and your values of a training loop, without slowing it.

    Call `step` once a batch, after `backward` and before clipping and `optimizer.step`:

        with TelemetryCollector(model, optimizer, "outputs/ava/my_run", collect_every_n=10) as telemetry:
            for epoch in range(epochs):
                for images, gt_dist in train_loader:
                    optimizer.zero_grad()
                    loss = emd_loss(model(images), gt_dist)
                    loss.backward()
                    telemetry.step(epoch, values={"loss": loss})
                    optimizer.step()

    The constructor opens no file and starts no thread; the first collected step does. Wrong arguments raise; trouble
    with the environment (permission, lock, disk) costs telemetry, not the run, unless `on_error="raise"`.

    Args:
        model: what is being trained; may be compiled or wrapped for data parallelism.
        optimizer: one, or a mapping name -> optimizer.
        output_dir: the run directory. One that was used goes on after `load_state_dict`; else a new attempt begins at
            batch 1 and older rows are set aside.
        config: a `TelemetryConfig` or a mapping of its fields.
        groups: column -> a module, parameters or name globs (`"stages.3.*"`). Left out, they are found.
        grad_scaler: under float16 AMP, so that norms are true-scale.
        run_info: facts of your own for the manifest; whatever JSON can hold.
        measures: subclasses of `Measure`, each of which adds a table to the built-in ones.
        writers: subclasses of `Writer`, each of which writes every table in one more format.
        **overrides: single fields of `TelemetryConfig`.

    Raises:
        ConfigError: a field that is unknown or not allowed.
        GroupsError: no parameters behind a column, or no optimizer groups.
        MisuseError: an argument of another kind, a name that cannot name a column, or run_info that is not JSON.
    """

    def __init__(  # noqa: PLR0913  # the model and its optimizer belong beside the directory
        self,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer],
        output_dir: str | os.PathLike[str],
        config: TelemetryConfig | Mapping[str, Any] | None = None,
        *,
        groups: Mapping[str, GroupChoice] | None = None,
        grad_scaler: Any = None,
        run_info: Mapping[str, Any] | None = None,
        measures: Sequence[type[Measure]] = (),
        writers: Sequence[type[Writer]] = (),
        **overrides: Any,
    ) -> None:
        check_given(model, output_dir, groups, grad_scaler)
        self._own_measures, self._own_writers = check_measures(measures), check_writers(writers)
        self._config = telemetry_config(config, overrides)
        self._layout = RunLayout(Path(output_dir))
        self._named = named_parameters(model)
        self._parameters = tuple(self._named.values())
        chosen = self._config.groups if groups is None else groups
        self._groups = find_groups(model, chosen)
        log_groups(model, self._groups, is_found=chosen is None)
        self._optimizers = optimizers_by_name(optimizer)
        self._run_info = as_json(run_info or {})
        self._events = EventLog(self._layout.root)
        self._kept = PredictionFiles()
        self._refused: set[str] = set()
        self._notices = CallChecks(self._events, self._optimizers.values(), AutocastProbe(model))
        self._clipping = Clipping(self._parameters)
        self._moments = GradientPass(
            self._parameters,
            self._optimizers.values(),
            grad_scaler,
            self._clipping,
            is_reduced=is_parallel(model),
            are_shards=is_sharded(model),
        )
        self._recorder: Recorder | None = None
        self._closed: TelemetryStats | None = None
        self._has_ended = False
        self._is_child = False
        self._epoch = 0
        self._count = BatchCount()
        self._next_row: float = self._config.collect_every_n if self._is_collecting else math.inf
        self._due = self._next_row  # where step() has more to do than count: the next row, or a finding to tell
        wake = weakref.WeakMethod(self._wake)  # the background thread must not keep a forgotten collector alive
        self._findings = FindingQueue(wake)
        _alive.add(self)

    def step(
        self,
        epoch: int = 0,
        *,
        batch_idx: int | None = None,
        accumulating: bool = False,
        values: Mapping[str, Value] | None = None,
        sample_ids: Sequence[object] | None = None,
    ) -> bool:
        """Count a batch, and collect a row where one is due.

        Call it after `backward` (under AMP with or without `unscale_`) and before clipping and `optimizer.step`.

        Args:
            epoch: 0-based.
            batch_idx: your own count of the run's batches, 1-based and rising; left out, calls are counted.
            accumulating: this batch only adds to the gradients; what is due is collected at the next that does not.
            values: scalars to record beside, such as the loss: numbers or one-element tensors, on any device. Those
                of the first collected step name the columns.
            sample_ids: what the batch consisted of, to name it when something is found.

        Returns:
            Whether a row of this batch was collected.

        Raises:
            MisuseError: after `close`; a `batch_idx` of 0; a value that is no scalar.
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        self._epoch = epoch
        count = self._count
        if batch_idx is None:
            count.batch_idx += 1
        else:
            self._follow(batch_idx)
        if accumulating and self._closed is None:
            count.num_accumulating += 1
            return False
        if count.batch_idx < self._due:
            return False
        is_due = count.batch_idx >= self._next_row
        if is_due:
            self._collect(values or {}, sample_ids)
        # First the mark, then the look: a finding that arrives between them sets it again.
        self._due = self._next_row
        self._findings.deliver()
        return is_due

    def on_finding(self, callback: Callable[[Finding], object]) -> None:
        """Have a function called with every warning sign that appears.

        It is called in the training thread, at the next `step` that does not only accumulate; what it raises comes
        out of that `step`, so that it can end the training. Signs that are seen after the last `step` are in
        `events.csv` and in the log only.

        Args:
            callback: is given the `Finding`; several may be registered, and each is called.
        """
        self._findings.register(callback)

    def val_predictions(self, epoch: int, *, name: str = "val") -> EpochPredictions:
        """Collect one epoch's predictions in a `with` block; the file appears complete on exit.

        Works with `enabled=False` too. Predictions that are no distributions are logged, named in `events.csv` where
        rows are collected, and not written; under `on_error="raise"` they raise. The end of the block writes and
        syncs the file in this thread, so it waits for the disk, as saving a checkpoint does.

        Args:
            epoch: 0-based.
            name: of the set: `val`, `test`, `val_ema`.

        Raises:
            MisuseError: a name that cannot name a file, or an epoch that is no int from 0.
        """
        check_column_name(name)
        if "/" in name:
            raise MisuseError(f"predictions cannot be named {name!r}: give a name without '/', such as 'val_ema'.")
        epoch = whole_number("epoch", epoch, least=0)
        return EpochPredictions(
            self._layout.epoch_predictions(epoch, name),
            is_written=self._may_write,
            write=self._kept.write,
            on_trouble=self._tell_of_predictions,
        )

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip all gradients of the model to the very bits of `torch.nn.utils.clip_grad_norm_`. Call it after `step`.

        After a step that was collected, float32 gradients are not read again: the step's norms serve, so nothing may
        change gradients through `.data` between the two. Among several processes that holds where
        `DistributedDataParallel` has brought gradients together; elsewhere torch reads them anew. On a CPU the
        rows of a loop that clips here come from torch's norms of whole tensors, with torch's accuracy (up to 1e-4 on
        ResNet-50) instead of 1e-5. Rows are always of the gradients before clipping. Works in whatever state
        telemetry is: disabled, in trouble, or closed.

        Args:
            max_norm: largest L2 norm of all gradients taken as one vector.

        Returns:
            That norm before clipping, a scalar tensor on the gradients' device.
        """
        return self._clipping.clip(max_norm, self._count.batch_idx)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every row so far is in the files, or was refused and told; False when the time is up first.

        Raises:
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        is_done = self._recorder is None or self._is_child or self._recorder.flush(timeout_s)
        self._raise_trouble()
        return is_done

    def stats(self) -> TelemetryStats:
        """What became of every collected step."""
        if self._closed is not None:
            return self._closed
        return TelemetryStats() if self._recorder is None or self._is_child else self._recorder.stats()

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint: where the count stands, and what clipping came to.

        Waits until the rows so far are in the files, on a stuck disk for `CHECKPOINT_TIMEOUT_S`.

        Returns:
            `batch_idx`, `epoch`, and numbers whose names begin with `clip_` where the loop clips through telemetry.
        """
        if not self.flush(CHECKPOINT_TIMEOUT_S):
            _log.warning(
                "the disk took no rows for %s s: a checkpoint is made all the same, and the rows follow when it can.",
                CHECKPOINT_TIMEOUT_S,
            )
        epoch = whole_number("epoch", self._epoch, least=0)
        return {"batch_idx": self._count.batch_idx, "epoch": epoch, **self._clipping.state_dict()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on behind a checkpoint's batch; rows past it are set aside at the first collected step.

        Raises:
            MisuseError: steps were counted already, or this is no state of a collector.
        """
        if self._count.batch_idx:
            raise MisuseError(
                f"load_state_dict() came after {self._count.batch_idx} batches: call it before the first step()."
            )
        if not isinstance(state, Mapping) or not {"batch_idx", "epoch"} <= set(state):
            raise MisuseError(f"{state!r} is no collector's state: give what state_dict() returned.")
        batch_idx = whole_number("state['batch_idx']", state["batch_idx"], least=0)
        epoch = whole_number("state['epoch']", state["epoch"], least=0)
        self._clipping.load_state_dict(state)
        self._count.resume(batch_idx)
        self._epoch = epoch
        if self._is_collecting:
            self._due = self._next_row = self._count.next_multiple(self._config.collect_every_n)

    def close(self, timeout_s: float | None = CLOSE_TIMEOUT_S) -> TelemetryStats:
        """Write what waits, finish the files and stop. Closing twice is closing once.

        Where a slow disk left steps pending or files unfinished, closing again waits again.

        Args:
            timeout_s: how long to wait for a slow disk; None waits for ever.

        Returns:
            The counters; steps that could not be written in time are still pending.

        Raises:
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        return self._end("finished", None, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        status: Status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        try:
            self._end(status, kind.__name__, CLOSE_TIMEOUT_S)
        except AvaPipelineError:
            _log.exception("telemetry could not be closed; the exception of the training loop follows")

    def __del__(self) -> None:
        if hasattr(self, "_notices"):  # else the constructor raised
            self._notices.close()
        recorder = getattr(self, "_recorder", None)
        if recorder is not None and self._closed is None and not self._is_child:
            recorder.abandon()
            warnings.warn(
                f"The TelemetryCollector of {self._layout.root} was never closed: call close(), or use it in a `with`.",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __reduce__(self) -> str:
        raise MisuseError(
            "A TelemetryCollector cannot be pickled or copied: it belongs to one process. "
            "Give other processes the model, and keep the collector in the one that trains."
        )

    @property
    def _is_collecting(self) -> bool:
        return self._config.enabled and self._may_write()

    def _may_write(self) -> bool:
        return rank() == 0 and not self._is_child

    def _follow(self, batch_idx: int) -> None:
        complaint = self._count.follow(batch_idx)
        if complaint is not None:
            self._notices.tell("batch_idx", complaint, self._count.batch_idx, self._epoch)

    def _collect(self, values: Mapping[str, Value], sample_ids: Sequence[object] | None) -> None:
        if self._closed is not None:
            raise MisuseError("step() was called after close(): make a new collector, or close after the last step.")
        self._raise_trouble()
        check_values(values)
        self._epoch = whole_number("epoch", self._epoch, least=0)
        is_deferred = self._count.batch_idx != self._next_row
        self._next_row = self._count.next_multiple(self._config.collect_every_n)
        if self._recorder is None:
            self._recorder = self._start(values)
        self._recorder.record(
            StepCall(
                batch_idx=self._count.batch_idx,
                epoch=self._epoch,
                values=values,
                sample_ids=sample_ids,
                is_deferred=is_deferred,
                resumed_from=self._count.resumed_from,
                num_calls=self._count.num_calls,
            )
        )

    def _wake(self) -> None:
        """Make the next `step` look for findings; called in the background thread."""
        self._due = -1

    def _start(self, values: Mapping[str, Value]) -> Recorder:
        for name in values:
            check_column_name(name)
        watched = TrainingTargets(
            parameters=self._parameters,
            names=tuple(self._named),
            groups=self._groups,
            optimizers=self._optimizers,
            value_names=tuple(values),
            resumed_from=self._count.resumed_from,
        )
        if all(owner is None for owner in watched.optimizer_of()):
            message = (
                "no parameter of the model is in an optimizer that the collector was given, so the learning rates are "
                "another model's. Give it the optimizer that was made of this model's parameters, and make that after "
                "whatever replaces them."
            )
            self._notices.tell("optimizer", message, self._count.batch_idx, self._epoch)
        return Recorder(
            watched,
            self._config,
            self._layout.root,
            self._events,
            moments=self._moments,
            notices=self._notices,
            run_info=self._run_info,
            on_finding=self._findings.put,
            measures=self._own_measures,
            writers=self._own_writers,
        )

    def _tell_of_predictions(self, name: str, error: AvaPipelineError) -> None:
        if self._config.on_error == "raise":
            raise error
        at = self._count.batch_idx
        if name in self._refused:  # else the event is logged, as the first of its kind
            _log.warning("telemetry of %s: batch %d: %s", self._layout.root, at, error)
        self._refused.add(name)
        self._events.add(
            Event(
                event="failed_predictions",
                severity="error",
                message=str(error),
                batch_idx=at,
                batch_idx_end=at,
                epoch=self._epoch,
                column=name,
            )
        )

    def _raise_trouble(self) -> None:
        trouble = self._events.first_error
        if self._config.on_error == "raise" and trouble is not None:
            self._events.first_error = None
            raise trouble

    def _end(self, status: Status, error: str | None, timeout_s: float | None) -> TelemetryStats:
        if self._is_child or self._has_ended:
            return self.stats()
        self._notices.close()
        if status == "finished":
            self._tell_of_no_row()
        stats = TelemetryStats() if self._recorder is None else self._recorder.close(timeout_s, status, error)
        self._has_ended = self._recorder is None or self._recorder.has_ended
        if self._has_ended:  # else the disk is stuck, and would hold up this thread too
            self._kept.write_again()
        self._closed = stats
        self._due = self._next_row = 0
        self._raise_trouble()
        return stats

    def _tell_of_no_row(self) -> None:
        """Warn once where a whole run was too short for a row; nothing else would say so."""
        every = self._config.collect_every_n
        if 0 < self._count.batch_idx < every == self._next_row:  # still the first row that was to come
            _log.warning(
                "telemetry of %s: %d batches, collect_every_n=%d: no row was due, and none is recorded. "
                "Lower collect_every_n to %d or less.",
                self._layout.root,
                self._count.batch_idx,
                every,
                self._count.batch_idx,
            )

    def _become_child(self) -> None:
        """After a fork: the files, the thread, the locks and the trouble stay with the parent."""
        self._is_child = True
        self._events.first_error = None
        self._due = self._next_row = math.inf
        if self._recorder is not None:
            self._recorder.forget()


_alive: "weakref.WeakSet[TelemetryCollector]" = weakref.WeakSet()


def _in_forked_child() -> None:
    for collector in _alive:
        collector._become_child()  # noqa: SLF001  # this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
