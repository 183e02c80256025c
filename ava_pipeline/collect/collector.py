"""The collector that a training loop calls: once per batch, for one row every n batches."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.collect.arguments import (
    as_json,
    check_arguments,
    process_rank,
    read_state,
    telemetry_config,
    whole_number,
)
from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.collect.call_checks import CallChecks
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.compiling import leave_untraced, outside_graphs
from ava_pipeline.collect.finding_queue import FindingQueue
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.groups import ChosenGroups, GroupChoice, log_groups, rebound
from ava_pipeline.collect.holdout import TakesHoldout
from ava_pipeline.collect.logged_metrics import LoggedMetrics, Metric
from ava_pipeline.collect.measures import check_measures
from ava_pipeline.collect.measures.measure import Measure, Value
from ava_pipeline.collect.predictions import EpochPredictions, PredictionFiles
from ava_pipeline.collect.recorder import Recorder
from ava_pipeline.collect.run_directory import run_directory
from ava_pipeline.collect.stale_gradients import StaleGradients
from ava_pipeline.collect.step_values import StepCall
from ava_pipeline.collect.targets import TrainingTargets, optimizers_by_name
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import AvaPipelineError, MisuseError
from ava_pipeline.logs import logger
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.endings import ending_by
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.own_writers import OwnWriter, check_writers

COUNTING = (CallChecks.follow_count, BatchCount.follow, whole_number)  # what `step` calls for every batch
CHECKPOINT_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 30.0
ENDINGS: tuple[Status, ...] = ("finished", "failed", "interrupted")


class TelemetryCollector(TakesHoldout):
    """Records gradient norms, learning rates and your own values of a training loop, without slowing it down.

    The constructor opens no file and starts no thread; the first collected step does. Wrong arguments raise; trouble
    with the environment (permission, lock, disk) costs telemetry, not the run, unless `on_error="raise"`.

    Example:
        Call `step` once per batch, after `backward` and before clipping and `optimizer.step`:

            with TelemetryCollector(model, optimizer, "outputs/ava/my_run", collect_every_n=10) as telemetry:
                for epoch in range(epochs):
                    for images, gt_dist in train_loader:
                        optimizer.zero_grad()
                        loss = emd_loss(model(images), gt_dist)
                        loss.backward()
                        telemetry.step(epoch, values={"loss": loss})
                        optimizer.step()

    Args:
        model: the module that is being trained; may be compiled or wrapped for data parallelism. A list of modules,
            such as both halves of a GAN or the chunks of a pipeline, also has a column `module_<index>` for each.
        optimizer: an optimizer, or a mapping name -> optimizer.
        output_dir: the run directory; `~` is your home directory. In one that was used before, `load_state_dict`
            continues its tables; without it a new attempt starts at batch 1 and older rows are moved to `superseded/`.
            An older collector of this process that is still open there is closed as interrupted.
        config: a `TelemetryConfig` or a mapping of its fields.
        groups: column -> a module, parameters or name globs (`"stages.3.*"`); by default found in the model.
        grad_scaler: the GradScaler of float16 AMP, so that norms are those of unscaled gradients.
        run_info: your own facts for the manifest; any JSON values.
        measures: subclasses of `Measure`; each adds a table to the built-in ones.
        writers: subclasses of `Writer`, or objects such as `TensorBoardWriter(log_dir)`; each writes every table in one
            more format.
        **overrides: single fields of `TelemetryConfig`.

    Raises:
        ConfigError: a field is unknown or invalid.
        GroupsError: a column has no parameters, or an optimizer no parameter groups.
        MisuseError: an argument has the wrong type, a name cannot name a column, run_info is not JSON, or output_dir is
            the telemetry folder of a run.
    """

    def __init__(  # noqa: PLR0913  # the model and its optimizer belong beside the directory
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Optimizer | Mapping[str, Optimizer],
        output_dir: str | os.PathLike[str],
        config: TelemetryConfig | Mapping[str, Any] | None = None,
        *,
        groups: Mapping[str, GroupChoice] | None = None,
        grad_scaler: Any = None,
        run_info: Mapping[str, Any] | None = None,
        measures: Sequence[type[Measure]] = (),
        writers: Sequence[OwnWriter] = (),
        **overrides: Any,
    ) -> None:
        check_arguments(model, output_dir, groups, grad_scaler)
        own_measures, own_writers = check_measures(measures), check_writers(writers)
        settings = telemetry_config(config, overrides)
        self._groups = ChosenGroups(model, settings.groups if groups is None else groups)
        log_groups(model, self._groups.columns, is_found=self._groups.is_found)
        targets = TrainingTargets.of(model, self._groups.columns, optimizers_by_name(optimizer))
        facts = as_json(run_info or {})  # before the first hook is set, since this may raise
        layout = RunLayout(run_directory(output_dir))
        events = EventLog(layout.root)
        self._root = layout.root
        self._count = BatchCount.of(settings)
        self._clipping = Clipping(targets.parameters)
        self._prediction_files = PredictionFiles(layout, events, self._count, is_strict=settings.on_error == "raise")
        self._findings = FindingQueue(self._count)
        classes = settings.label_classes if settings.track_batch_stats else None
        self._checks = CallChecks(events, self._count, targets, model, label_classes=classes)
        self._is_checked = False
        self._outside_graphs = outside_graphs()
        leave_untraced(TelemetryCollector.step, TelemetryCollector.clip_grad_norm_, *COUNTING)
        metrics = MetricsLog(layout, fsync=settings.fsync)
        stale = StaleGradients(targets, self._checks.gone)
        self._recorder = Recorder(
            targets,
            settings,
            layout.root,
            self._count,
            events,
            gradient_pass=GradientPass(
                targets, grad_scaler, self._clipping, stale, is_measuring=settings.track_gradients
            ),
            checks=self._checks,
            run_info=facts,
            findings=self._findings,
            metrics=metrics,
            measures=own_measures,
            writers=own_writers,
        )
        is_strict, wait = settings.on_error == "raise", self._recorder.wait
        self._metrics = LoggedMetrics(metrics, events, self._count, wait_for_rows=wait, is_strict=is_strict)

    def step(  # noqa: PLR0913  # each is a fact of the batch, all but the first by name
        self,
        epoch: int = 0,
        *,
        batch_idx: int | None = None,
        accumulating: bool = False,
        values: Mapping[str, Value] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        sample_ids: Sequence[object] | None = None,
        optimizer: str | None = None,
        global_step: int | None = None,
    ) -> bool:
        """Count a batch, and collect a row if one is due.

        Call it after `backward` (under AMP before or after `unscale_`) and before clipping and `optimizer.step`. With
        CUDA graphs, call it after `replay`; during a capture it records nothing. Threads that call it at once wait for
        each other where a row is due.

        `batch_idx` counts the batches of the run, from 1. It is not the global step of frameworks, which counts
        optimizer steps.

        Example:
            Gradients that accumulate over four batches:

                telemetry.step(epoch, values={"loss": loss}, accumulating=number % 4 != 0)

        Args:
            epoch: 0-based.
            batch_idx: your own count of the run's batches, 1-based and rising; by default the calls are counted.
            accumulating: this batch only adds to the gradients; a due row is collected at the next batch that does not.
            values: scalars to record, such as the loss: numbers or one-element tensors on any device. A name becomes a
                column at the first collected step that has it.
            labels: for `track_batch_stats`: tensors of classes (one for each sample) or of votes (a row for each).
            sample_ids: the samples of the batch, to name them in a finding.
            optimizer: the name of the optimizer that steps next, if several do in a batch. A batch begins when a name
                comes again; its row has each group's norm from the call of its own optimizer, and is handed over when
                the next batch begins.
            global_step: the framework's count of optimizer steps before this one; by default they are counted.

        Returns:
            Whether a row of this batch was collected.

        Raises:
            MisuseError: the collector is closed, a newer one of this process has taken over its run directory,
                `batch_idx` is 0, a name is unknown, or another argument is wrong at the first call; later it is null.
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        count = self._count
        count.epoch = epoch
        if optimizer is not None and not self._outside_graphs(self._recorder.begins_batch, optimizer, accumulating):
            part = StepCall(values, labels, sample_ids, optimizer, global_step)
            return not accumulating and bool(self._outside_graphs(self._recorder.record_part, part))
        if batch_idx is None:
            count.batch_idx += 1
        else:
            self._checks.follow_count(batch_idx)
        if accumulating and not self._recorder.is_closed:
            count.num_accumulating += 1
            return False
        if count.batch_idx < count.due:
            return False
        call = StepCall(values, labels, sample_ids, optimizer, global_step)
        if not self._is_checked:  # the first batch, whether it is collected or not
            self._outside_graphs(self._checks.check_first_step, call)
            self._is_checked = True
        is_due: bool = count.batch_idx >= count.next_row and self._outside_graphs(self._recorder.record, call)
        if count.batch_idx >= count.next_snapshot:
            self._outside_graphs(self._recorder.save_weights)
        count.schedule_step()  # before `deliver`: a finding that arrives now makes the next step due again
        self._findings.deliver()
        return is_due

    def rebind(
        self,
        *,
        model: nn.Module | Sequence[nn.Module] | None = None,
        optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
        groups: Mapping[str, GroupChoice] | None = None,
    ) -> None:
        """Measure a model whose parameters changed, or another optimizer, from the next step on.

        Rows stay where they are. The manifest keeps which parameters each group had in which batches; a group that the
        model no longer has is null from there on. A group that was given as a module is what is at its place now.

        Example:
            model.fc = nn.Linear(512, 10)
            optimizer = torch.optim.AdamW(model.parameters())
            telemetry.rebind(model=model, optimizer=optimizer)

        Args:
            model: the module that is trained from now on, which may be the same one with other parameters.
            optimizer: one, or a mapping name -> optimizer.
            groups: the groups of this `model`, as in the constructor; by default those of before.

        Raises:
            MisuseError: neither a model nor an optimizer is given, or groups without a model, or it is closed.
            GroupsError: the model or a column has no parameters, or an optimizer no parameter groups.
        """
        if model is None and (optimizer is None or groups is not None):
            raise MisuseError("rebind() changes nothing: give model=, also with groups=, or optimizer=, or both.")
        if self._recorder.is_closed:
            raise MisuseError("rebind() was called after close(): create a new collector.")
        chosen = self._groups
        if model is not None:
            check_arguments(model, self._root, groups, None)
            chosen = chosen if groups is None else ChosenGroups(model, groups)
        targets = rebound(self._recorder.measuring.targets, model, chosen, optimizer)
        self._groups = chosen
        self._recorder.rebind(targets, model)

    def on_finding(self, callback: Callable[[Finding], object]) -> None:
        """Call a function with every warning sign that appears.

        It is called in the training thread, by the next `step` that does not only accumulate. That `step` raises its
        exceptions, so it can end the training. Signs found after the last `step` are only in `events.csv` and the log.

        Example:
            def stop(finding):
                if finding.severity == "error":
                    raise RuntimeError(str(finding))

            telemetry.on_finding(stop)

        Args:
            callback: called with the `Finding`; all registered functions are called.
        """
        self._findings.register(callback)

    def val_predictions(self, epoch: int, *, batch_idx: int | None = None, name: str = "val") -> EpochPredictions:
        """Collect one epoch's predictions in a `with` block; the file appears complete on exit.

        Where a `with` block cannot span the validation, as in the callbacks of a framework, call `begin()`, then
        `end()`, which writes the file, or `drop()`, which writes nothing, if an exception ended the validation.

        Works with `enabled=False` too. Predictions that are not distributions are not written; the log and, if rows are
        collected, `events.csv` say so, and under `on_error="raise"` they raise. The end of the block writes and syncs
        the file in this thread, so it waits for the disk, as saving a checkpoint does.

        Example:
            with torch.inference_mode(), telemetry.val_predictions(epoch) as predictions:
                for image_ids, images, gt_votes in val_loader:
                    predictions.add(image_ids, model(images).softmax(dim=1), gt_votes)

            In callbacks:

                self.predictions = telemetry.val_predictions(epoch, batch_idx=500).begin()
                self.predictions.add(image_ids, pred_dist, gt_votes)  # for each batch
                self.predictions.end()  # val_epoch_000_batch_00000500.parquet

        Args:
            epoch: 0-based.
            batch_idx: the run's batch after which the model is validated, 1-based; None at the end of the epoch.
            name: the set, such as `val`, `test` or `val_ema`.

        Raises:
            MisuseError: the name cannot be part of a file name, the epoch is not an int from 0, or `batch_idx` is not
                one from 1.
        """
        batch_idx = None if batch_idx is None else whole_number("batch_idx", batch_idx, least=1)
        moment = Moment(whole_number("epoch", epoch), batch_idx)
        return self._prediction_files.block(moment, name, is_written=self._may_write)

    def log_metrics(
        self, metrics: Mapping[str, Metric], *, epoch: int | None = None, batch_idx: int | None = None
    ) -> None:
        """Write metrics of an epoch, such as those of the validation, as a row of `metrics.csv` in the run directory.

        The columns are `epoch`, `batch_idx` once it is given, and the names in the order in which they first appear.
        Metrics of an epoch, or of a batch, that has a row already are added to it, and replace older values of the same
        name. Works with `enabled=False` too.

        Like the end of a block of predictions, it waits: for the device if a value is a tensor there, and for the disk.
        So call it once per validation, and give values of every batch to `step`. A row that the disk refuses is
        recorded as an event, waits in memory, and is written by the next call or by `close`.

        The first call, or the first collected step of a run that logged metrics before, moves rows of earlier attempts
        to `superseded/`: those after the batch and the epoch that `load_state_dict` was given, or all of them.

        Example:
            Once per epoch, and after every 500 batches:

                telemetry.log_metrics({"val_loss": val_loss, "srcc": srcc}, epoch=epoch)
                telemetry.log_metrics({"val_loss": val_loss}, epoch=epoch, batch_idx=500)

        Args:
            metrics: numbers, or tensors and arrays of one element; nan and inf stay, None is "not measured" and
                replaces no value.
            epoch: 0-based; by default that of the latest `step`.
            batch_idx: the run's batch after which they were measured, 1-based; None at the end of the epoch.

        Raises:
            MisuseError: a value is not a scalar, a name cannot be that of a column, or the epoch is not known.
            WriteError: the row could not be written, and `on_error="raise"`.
        """
        self._metrics.log(metrics, epoch, batch_idx, is_written=self._may_write)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the model's gradients, bit for bit as `torch.nn.utils.clip_grad_norm_` does. Call it after `step`.

        After a collected step, float32 gradients are not read again: the step's norms are used, so nothing may change
        gradients through `.data` between the two calls. With several processes, this holds if `DistributedDataParallel`
        has reduced the gradients; otherwise torch reads them again. On a CPU, the rows of a loop that clips here come
        from torch's norms of whole tensors, with torch's accuracy (up to 1e-4 on ResNet-50) instead of 1e-5. Rows
        always hold the norms before clipping. Clipping also works if telemetry is disabled, in trouble or closed.

        Example:
            loss.backward()
            telemetry.step(epoch)
            telemetry.clip_grad_norm_(1.0)
            optimizer.step()

        Args:
            max_norm: largest L2 norm of all gradients taken as one vector.

        Returns:
            That norm before clipping, a scalar tensor on the gradients' device.
        """
        total: Tensor = self._outside_graphs(self._clipping.clip, max_norm, self._count.batch_idx)
        return total

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every row so far is written or reported as failed; False if the time is up first.

        Example:
            if telemetry.flush(timeout_s=10.0):
                norms = open_run("outputs/ava/my_run").gradient_norms()

        Raises:
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        return self._recorder.flush(timeout_s)

    def stats(self) -> TelemetryStats:
        """How many collected steps are written, dropped, failed and pending.

        Example:
            stats = telemetry.stats()
            print(f"{stats.pending} of {stats.collected} steps wait to be written, {stats.failed} failed")
        """
        return self._recorder.stats()

    def state_dict(self) -> dict[str, Any]:
        """The state of the collector for a checkpoint.

        Waits until the rows so far are written, at most `CHECKPOINT_TIMEOUT_S` if the disk is stuck.

        Example:
            torch.save({"model": model.state_dict(), "telemetry": telemetry.state_dict()}, path)

        Returns:
            `batch_idx`, `epoch`, `global_step` if it is known, numbers named `clip_...` if the loop clips through the
            collector, and with `track_weight_delta` `weight_reference`: a copy of the weights at the latest row.
        """
        if not self.flush(CHECKPOINT_TIMEOUT_S):
            logger.warning("not all rows were written within %s s; a checkpoint waits no longer.", CHECKPOINT_TIMEOUT_S)
        epoch, global_step = self._checks.epoch(), self._checks.global_step()
        state: dict[str, Any] = {"batch_idx": self._count.batch_idx, "epoch": epoch, **self._clipping.state_dict()}
        state |= self._recorder.measuring.weights.state_dict(self._recorder.measuring.targets)
        return state if global_step is None else state | {"global_step": global_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after a checkpoint's batch; the first collected step moves later rows to `superseded/`.

        Example:
            telemetry = TelemetryCollector(model, optimizer, "outputs/ava/my_run")
            telemetry.load_state_dict(torch.load(path)["telemetry"])

        Raises:
            MisuseError: `step` or `log_metrics` was called before, or the state is not a collector's.
        """
        if self._count.batch_idx:
            raise MisuseError(
                f"load_state_dict() came after {self._count.batch_idx} batches: call it before the first step()."
            )
        batch_idx, epoch, global_step = read_state(state)
        self._metrics.resume(batch_idx, epoch)
        self._clipping.load_state_dict(state)
        self._recorder.measuring.weights.load_state_dict(state)
        self._count.resume(batch_idx, epoch, global_step)

    def close(
        self,
        timeout_s: float | None = CLOSE_TIMEOUT_S,
        *,
        status: Status = "finished",
        error: BaseException | str | None = None,
    ) -> TelemetryStats:
        """Write the rows that wait, finish the files and stop; leaving a `with` block does the same.

        A second call does nothing, unless a slow disk left steps or files unfinished: then it waits again.

        Example:
            stats = telemetry.close()
            print(f"{stats.written} of {stats.collected} rows were written")

        Args:
            timeout_s: how long to wait for a slow disk; None waits as long as it takes.
            status: how the training ended, for the manifest: `finished`, `failed` or `interrupted`.
            error: what ended it, or the name of its type.

        Returns:
            The counters; steps that could not be written in time are still pending.

        Raises:
            MisuseError: the status is another one.
            WriteError: rows could not be written, and `on_error="raise"`; raised once.
        """
        if status not in ENDINGS:
            raise MisuseError(f"status is {status!r}: give one of {', '.join(ENDINGS)}.")
        return self._end(status, type(error).__name__ if isinstance(error, BaseException) else error, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ending = ending_by(error)
        try:
            self._end(*ending, CLOSE_TIMEOUT_S)
        except AvaPipelineError:
            if error is None:
                raise
            logger.exception("telemetry could not be closed; the exception of the training loop follows")

    def __del__(self) -> None:
        if hasattr(self, "_recorder") and self._recorder.abandon():  # without a recorder, the constructor raised
            warnings.warn(
                f"The TelemetryCollector of {self._root} was never closed: call close(), or use a `with` statement.",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __reduce__(self) -> str:
        raise MisuseError(
            "A TelemetryCollector cannot be pickled or copied: it belongs to one process. "
            "Pass the model to other processes, and keep the collector in the one that trains."
        )

    def _end(self, status: Status, error: str | None, timeout_s: float | None) -> TelemetryStats:
        stats = self._recorder.close(timeout_s, status, error)
        if self._recorder.has_ended:  # else the disk is stuck, and would hold up this thread too
            self._prediction_files.write_again()
            self._metrics.write_again()
        self._recorder.raise_first_error()
        return stats

    def _may_write(self) -> bool:
        return process_rank() == 0 and not self._recorder.is_child
