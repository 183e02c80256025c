"""Lightning: a callback that records a `Trainer.fit`."""

import sys
from collections.abc import Collection, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor
from torch.optim import Optimizer

from ava_pipeline.collect.amp import scaler_state
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.contract.events import EventName
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.errors import MisuseError, require_extra
from ava_pipeline.integrations.scalars import scalars
from ava_pipeline.logs import logger

if TYPE_CHECKING:
    from ava_pipeline.collect.measures.measure import Value
    from ava_pipeline.collect.predictions import EpochPredictions

_NAMES = ("lightning.pytorch", "pytorch_lightning")  # one library under two names, whose classes do not mix


def _lightning() -> Any:
    """The Lightning that the program uses: the one that is imported, else the one that is installed."""
    installed = [name for name in _NAMES if find_spec(name.partition(".")[0])]
    if not installed:
        require_extra("TelemetryCallback", "frameworks", _NAMES[0])
    return import_module(next((name for name in _NAMES if name in sys.modules), installed[0]))


class TelemetryCallback(_lightning().Callback):  # type: ignore[misc]  # which class it is is known at run time
    """Records every `Trainer.fit` with a `TelemetryCollector`.

    Norms are those before clipping and at true scale, also with optimizers that unscale gradients themselves. Values
    are what `training_step` returns: the loss and every single number of a mapping. With manual optimization, where it
    returns after the steps, they are the losses given to `manual_backward`. Metrics in `callback_metrics` go to
    `metrics.csv` at the end of each epoch. The state is kept in the checkpoint: `fit(ckpt_path=...)` with the same
    `output_dir` goes on with the same tables.

    Example:
        from ava_pipeline.integrations.lightning import TelemetryCallback

        trainer = lightning.Trainer(callbacks=[TelemetryCallback("outputs/ava/my_run", collect_every_n=10)])
        trainer.fit(model, train_loader, val_loader)

    Args:
        output_dir: the run directory; None is the trainer's `log_dir`, or its `default_root_dir` without a logger.
            Where Lightning's `CSVLogger` writes a `metrics.csv` there, it is the folder `ava_run` in it.
        stop_on: ids of findings, such as `"non-finite"`, that stop the training after the batch; by default none does.
        **config: further arguments of `TelemetryCollector`.

    Raises:
        ConfigError: Lightning is not installed.
        MisuseError: `stop_on` names something that is not the id of a finding; at the start of a fit, `output_dir` is
            the folder of a `CSVLogger`.
    """

    def __init__(
        self, output_dir: str | PathLike[str] | None = None, stop_on: Collection[str] = (), **config: Any
    ) -> None:
        super().__init__()
        self._output_dir = output_dir
        self._stop_on = _checked_ids(stop_on)
        self._config = config
        self._telemetry: TelemetryCollector | None = None
        self._state: dict[str, Any] = {}
        self._names: dict[int, str] = {}  # of several optimizers, by id
        self._predictions: EpochPredictions | None = None
        self._old_metrics: dict[str, Any] = {}
        self._old_metrics_of_validation: dict[str, Any] = {}
        self._output = _StepOutput()
        self._must_rebind = False
        self._must_stop = False
        self._has_stepped = False
        self._last_step: tuple[int, int] | None = None
        self._loss: Tensor | None = None  # the sum since the last step, with manual optimization

    def val_predictions(
        self,
        outputs: Any,  # noqa: ARG002  # for those who override it
        batch: Any,  # noqa: ARG002
    ) -> tuple[Sequence[object] | Tensor, Tensor, Tensor] | None:
        """Override it to write predictions: return image ids, predicted distributions and votes of a validation batch.

        Example:
            class MyTelemetry(TelemetryCallback):
                def val_predictions(self, outputs, batch):
                    image_ids, _, votes = batch
                    return image_ids, outputs["pred_dist"], votes

        Args:
            outputs: what `validation_step` returned.
            batch: the batch.

        Returns:
            The arguments of `EpochPredictions.add`; None for a batch without predictions.
        """
        return None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an attempt, behind the checkpoint or the earlier fit if the trainer goes on from there."""
        if not trainer.optimizers:
            logger.warning("the module has no optimizer, so telemetry records nothing.")
            return
        optimizers = self._optimizers(trainer)
        is_several = isinstance(optimizers, Mapping)
        self._names = {id(optimizer): name for name, optimizer in optimizers.items()} if is_several else {}
        self._telemetry = TelemetryCollector(
            pl_module if trainer.model is None else trainer.model,
            optimizers,
            self._run_directory(trainer),
            grad_scaler=getattr(trainer.precision_plugin, "scaler", None),
            **self._config,
        )
        self._telemetry.on_finding(self._take_finding)
        if self._state and trainer.global_step:
            self._telemetry.load_state_dict(self._state)
        self._must_rebind = self._must_stop = False
        self._last_step = self._loss = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002  # Lightning's arguments
        """Remember the metrics that are older than the epoch."""
        self._old_metrics = dict(trainer.callback_metrics)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Keep what the next `training_step` returns."""
        self._has_stepped = False
        if self._telemetry is None:
            return
        if self._must_rebind:
            self._must_rebind = False
            self._telemetry.rebind(optimizer=self._optimizers(trainer))
        if pl_module.automatic_optimization:
            self._output.watch(pl_module)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """With manual optimization, add up the losses until the next step of an optimizer."""
        if self._telemetry is not None and not pl_module.automatic_optimization:
            scale = scaler_state(getattr(trainer.precision_plugin, "scaler", None), ()).scale
            loss = loss.detach() if scale is None else loss.detach() / scale
            self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Record the gradients, before they are clipped."""
        step = trainer.global_step, id(optimizer)
        if self._telemetry is None or step == self._last_step:  # LBFGS computes the gradients of a step several times
            return
        self._last_step, self._has_stepped = step, True
        name = self._names.get(id(optimizer))
        if pl_module.automatic_optimization:
            values: dict[str, Value] = self._output.values
        else:
            values = {} if self._loss is None else {f"loss_{name}" if name else "loss": self._loss}
            self._loss = None
        self._telemetry.step(trainer.current_epoch, values=values, optimizer=name, global_step=trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count a batch that only accumulated gradients, and stop if a finding says so."""
        if self._telemetry is not None and not self._has_stepped:
            self._telemetry.step(trainer.current_epoch, accumulating=True)
        if self._stop_on:  # every process has to stop at the same batch
            trainer.should_stop |= trainer.strategy.reduce_boolean_decision(self._must_stop, all=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Remember the metrics that are older than a validation within an epoch."""
        if self._telemetry is not None and _validates_within_epochs(trainer):
            self._old_metrics_of_validation = dict(trainer.callback_metrics)

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Add the batch's predictions."""
        found = None if self._telemetry is None or trainer.sanity_checking else self.val_predictions(outputs, batch)
        if self._telemetry is None or found is None:
            return
        if self._predictions is None:
            files = self._telemetry.val_predictions(trainer.current_epoch, batch_idx=_batch_idx(trainer))
            self._predictions = files.begin()
        self._predictions.add(*found)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Write the predictions."""
        predictions, self._predictions = self._predictions, None
        if predictions is not None:
            predictions.end()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log the metrics of a validation within an epoch."""
        if not trainer.sanity_checking and _validates_within_epochs(trainer):
            self._log_metrics(trainer, self._old_metrics_of_validation, batch_idx=_batch_idx(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log the metrics of the epoch."""
        self._log_metrics(trainer, self._old_metrics, batch_idx=None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Close the collector."""
        self._end("finished", None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Close the collector with the status of a run that was interrupted or has failed."""
        was_interrupted = isinstance(exception, KeyboardInterrupt) or trainer.received_sigterm
        self._end("interrupted" if was_interrupted else "failed", type(exception).__name__)

    def state_dict(self) -> dict[str, Any]:
        """The state for the checkpoint; empty before the first fit."""
        return dict(self._state) if self._telemetry is None else dict(self._telemetry.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint, for the next fit."""
        if self._telemetry is None:
            self._state = dict(state_dict)
        else:  # `lr_find` in the middle of a fit restores the optimizers after it has trained with them
            self._must_rebind = True

    def _run_directory(self, trainer: Any) -> Path:
        """The run directory: one whose metrics.csv no logger writes."""
        folder = Path(self._output_dir or trainer.log_dir or trainer.default_root_dir)
        csv_logger = _lightning().loggers.CSVLogger
        taken = [Path(one.log_dir).absolute() for one in trainer.loggers if isinstance(one, csv_logger)]
        if folder.expanduser().absolute() not in taken:
            return folder
        free = RunLayout(folder).run_beside_metrics
        if self._output_dir is not None:
            raise MisuseError(
                f"output_dir is {folder}, where the CSVLogger writes its own metrics.csv: give another directory, such "
                f"as {free}."
            )
        return free

    def _optimizers(self, trainer: Any) -> Any:
        """The optimizers as the collector takes them: one, or several by name."""
        if len(trainer.optimizers) == 1:
            return trainer.optimizers[0]
        return {f"optimizer_{index}": optimizer for index, optimizer in enumerate(trainer.optimizers)}

    def _take_finding(self, finding: Finding) -> None:
        if finding.id in self._stop_on:
            self._must_stop = True
            logger.warning("training stops, because stop_on names %s: %s", finding.id, finding)

    def _log_metrics(self, trainer: Any, old: Mapping[str, Any], *, batch_idx: int | None) -> None:
        """Log the metrics that were computed anew: those of an earlier epoch stay in `callback_metrics`."""
        new = {name: value for name, value in trainer.callback_metrics.items() if value is not old.get(name)}
        metrics = scalars(new)
        if self._telemetry is not None and metrics:
            self._telemetry.log_metrics(metrics, epoch=trainer.current_epoch, batch_idx=batch_idx)

    def _end(self, status: Status, error: str | None) -> None:
        telemetry, self._predictions = self._telemetry, None
        self._output.release()
        if telemetry is None:
            return
        try:
            self._state = telemetry.state_dict()
        finally:
            self._telemetry = None
            telemetry.close(status=status, error=error)


class _StepOutput:
    """The numbers that one call of `training_step` returned.

    Lightning shows callbacks the output only after the optimizer's step. So the method is replaced for its next call,
    and is itself again before that call runs.
    """

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self._module: Any = None
        self._own_method: Any = None

    def watch(self, module: Any) -> None:
        """Keep the numbers of the next call."""
        self.release()
        training_step = module.training_step

        @wraps(training_step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.release()
            output = training_step(*args, **kwargs)
            self.values = scalars(output)
            return output

        self._module, self._own_method = module, vars(module).get("training_step")  # a compiled module has its own
        module.training_step = watched

    def release(self) -> None:
        """Give the module its method back."""
        module, self._module, self.values = self._module, None, {}
        if module is None:
            return
        if self._own_method is None:
            del module.training_step
        else:
            module.training_step = self._own_method


def _checked_ids(stop_on: Collection[str]) -> frozenset[str]:
    known = {name.replace("_", "-") for name in get_args(EventName)}
    ids = frozenset([stop_on] if isinstance(stop_on, str) else stop_on)
    if not ids <= known:
        raise MisuseError(f"stop_on: expected ids of findings, got {sorted(ids - known)}; they are {sorted(known)}.")
    return ids


def _validates_within_epochs(trainer: Any) -> bool:
    """Whether validation comes at other times than the end of an epoch."""
    every = trainer.val_check_batch  # None if it comes by time
    return trainer.check_val_every_n_epoch is None or every is None or every < trainer.num_training_batches


def _batch_idx(trainer: Any) -> int | None:
    """The run's batch after which the model is validated; None if that is at the end of the epoch."""
    return trainer.fit_loop.total_batch_idx + 1 if _validates_within_epochs(trainer) else None
