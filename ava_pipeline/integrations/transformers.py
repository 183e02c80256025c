"""transformers: a `Trainer` that records its training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.collect.weight_pass import STATE
from ava_pipeline.contract.files import written_aside
from ava_pipeline.errors import require_extra
from ava_pipeline.integrations.scalars import scalars
from ava_pipeline.logs import logger

require_extra("TelemetryMixin", "frameworks", "transformers", "accelerate")

from transformers import TrainerCallback  # noqa: E402  # after the check that it is there
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

STATE_FILE = "telemetry.json"
WEIGHTS_FILE = "telemetry_weights.pt"  # what the state holds besides numbers, with track_weight_delta


class TelemetryMixin:
    """Records every `train` of a transformers `Trainer` with a `TelemetryCollector`.

    Norms are those before clipping: `training_step` is the last place before it, since `on_pre_optimizer_step` and all
    later callbacks come after it. Gradient accumulation, float16, epochs and the global step are those of the Trainer;
    the value `loss` is the loss of an optimizer step. Metrics of `evaluate` go to `metrics.csv`. The state is saved
    with each checkpoint, so `train(resume_from_checkpoint=True)` goes on with the same tables.

    Example:
        from ava_pipeline.integrations.transformers import TelemetryMixin

        class MyTrainer(TelemetryMixin, Trainer): ...

        trainer = MyTrainer(model, args, train_dataset=images, telemetry={"collect_every_n": 10})
        trainer.train()

    Args:
        *args: arguments of the Trainer.
        telemetry: arguments of `TelemetryCollector` other than the model, the optimizer and the scaler. The directory
            `output_dir` is that of the Trainer if left out.
        **kwargs: arguments of the Trainer.

    Attributes:
        telemetry: the collector while `train` runs; None otherwise.

    Raises:
        ConfigError: transformers or accelerate is not installed.
    """

    # Attributes of the Trainer, which the class that mixes this in has.
    args: Any
    accelerator: Any
    model_wrapped: Any
    optimizer: Any
    state: Any

    def __init__(self, *args: Any, telemetry: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.telemetry: TelemetryCollector | None = None
        self._telemetry_options = dict(telemetry or {})
        self._checkpoint: str | bool | None = None
        self._num_batches = 0
        self._epoch = 0
        self._loss: Tensor | None = None
        self.add_callback(_TrainerCalls(self))  # type: ignore[attr-defined]  # the Trainer's

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001  # as the Trainer
        """Train as the Trainer does, and close the collector with the status of how it ended."""
        self._checkpoint = resume_from_checkpoint
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]  # the Trainer's
        except BaseException as error:
            telemetry, self.telemetry = self.telemetry, None
            if telemetry is not None:
                telemetry.__exit__(type(error), error, error.__traceback__)
            raise
        telemetry, self.telemetry = self.telemetry, None
        if telemetry is not None:
            telemetry.close()
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute gradients as the Trainer does, and record them, before they are clipped."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]  # the Trainer's
        if self.telemetry is not None:
            self._record(self.telemetry, loss)
        return loss

    def _record(self, telemetry: TelemetryCollector, loss: Tensor) -> None:
        self._num_batches += 1
        # The Trainer divides each batch's loss by their number, so that those of a step add up to the step's loss.
        self._loss = loss if self._loss is None else self._loss + loss
        if not self.accelerator.sync_gradients:
            telemetry.step(self._epoch, accumulating=True)
            return
        telemetry.step(self._epoch, values={"loss": self._loss}, global_step=self.state.global_step)
        self._loss = None

    def _begin_telemetry(self) -> None:
        if self.telemetry is not None:  # the Trainer begins again, with smaller batches after it ran out of memory
            self.telemetry.close(status="failed", error="OutOfMemoryError")
        self.telemetry = TelemetryCollector(
            self.model_wrapped,
            self.optimizer,
            grad_scaler=self.accelerator.scaler,
            **{"output_dir": self.args.output_dir, **self._telemetry_options},
        )
        self._num_batches, self._loss, self._epoch = 0, None, -1
        if not self.state.global_step:
            return
        folder = self._checkpoint if isinstance(self._checkpoint, str) else get_last_checkpoint(self.args.output_dir)
        try:
            state = _read_state(Path(str(folder)))
        except (OSError, ValueError) as error:
            logger.warning("%s has no state of telemetry (%s): its batches are counted from 1 again.", folder, error)
            return
        self.telemetry.load_state_dict(state)
        self._num_batches = state["batch_idx"]

    def _begin_epoch(self) -> None:
        self._epoch = int(self.state.epoch or 0) if self._epoch < 0 else self._epoch + 1

    def _save_telemetry(self) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.telemetry is None or not self.args.should_save or not folder.is_dir():
            return
        state = self.telemetry.state_dict()
        weights = state.pop(STATE, None)
        try:
            if weights is not None:
                with written_aside(folder / WEIGHTS_FILE) as file:
                    torch.save(weights, file)
            with written_aside(folder / STATE_FILE) as file:
                file.write(json.dumps(state).encode())
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
            logger.warning(
                "%s has no state of telemetry (%s): training from it would count batches from 1 again.", folder, error
            )

    def _log_evaluation(self, metrics: Mapping[str, object]) -> None:
        if self.telemetry is None or self._epoch < 0:
            return  # an evaluation before or after the training
        is_end = float(self.state.epoch or 0).is_integer()
        batch_idx = None if is_end else self._num_batches
        self.telemetry.log_metrics(scalars(metrics), epoch=self._epoch, batch_idx=batch_idx)


def _read_state(folder: Path) -> dict[str, Any]:
    """The state that a checkpoint has; raise OSError or ValueError if it has none."""
    state: dict[str, Any] = json.loads((folder / STATE_FILE).read_bytes())
    weights = folder / WEIGHTS_FILE
    return state | ({STATE: torch.load(weights, map_location="cpu", weights_only=True)} if weights.exists() else {})


class _TrainerCalls(TrainerCallback):  # type: ignore[misc]  # its type is not known without transformers
    """Tells the trainer of its own events, which have no methods to override."""

    def __init__(self, trainer: TelemetryMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer._begin_telemetry()  # noqa: SLF001  # one class in two parts

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._trainer._begin_epoch()  # noqa: SLF001

    def on_save(self, *_: Any, **__: Any) -> None:
        self._trainer._save_telemetry()  # noqa: SLF001

    def on_evaluate(self, *_: Any, metrics: Mapping[str, object], **__: Any) -> None:
        self._trainer._log_evaluation(metrics)  # noqa: SLF001
