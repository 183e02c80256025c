"""The loop over epochs: training, validation, checkpoints, and a clean stop on a signal."""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.arrays import Integers
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import NonFiniteLossError
from ava_pipeline.metrics import Metrics, mean_scores, prediction_metrics
from ava_pipeline.train.batch_step import BatchStep
from ava_pipeline.train.checkpoint import Checkpoint, restore_rng_states, rng_states, save_checkpoint
from ava_pipeline.train.display import Display
from ava_pipeline.train.losses import BatchLoss, LossWatch
from ava_pipeline.train.run_dir import EpochResult, write_result
from ava_pipeline.write.metrics_file import MetricsFile

if TYPE_CHECKING:
    from ava_pipeline.train.data.dataset import BatchLoader
    from ava_pipeline.train.data.prepare import TrainData

_log = logging.getLogger("ava_pipeline")
_MAX_WARNINGS = 3


class StopRequested(KeyboardInterrupt):
    """A signal asked training to stop; raised between two batches. The manifest then says interrupted, not failed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopSignals:
    """Inside the `with` block, signals request a stop instead of ending the process.

    The first Ctrl-C lets the batch finish; the second one ends the process immediately. Worker processes forked inside
    the block ignore the first Ctrl-C too.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        for signum in _handled_signals():
            self._before[signum] = signal.signal(signum, self._request_stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def check(self) -> None:
        """Raise `StopRequested` if a signal has arrived."""
        if self._signum is not None:
            raise StopRequested(self._signum)

    def _request_stop(self, signum: int, _frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if os.getpid() == self._owner:
            # The progress bar hides the cursor, and a second Ctrl-C would leave it hidden.
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            os.write(2, f"{cursor}\nEnding after this batch, with a checkpoint. Ctrl-C ends immediately.\n".encode())


def _handled_signals() -> list[int]:
    """The handled signals; empty outside the main thread, where Python allows no handlers."""
    try:
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    except ValueError:
        return []
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def validate(
    step: BatchStep, batches: "BatchLoader", *, epoch: int, save_predictions: bool, on_batch: Callable[[int], None]
) -> Metrics:
    """Predict every validation image, and return the metrics that `ava-pipeline evaluate` finds in the predictions.

    The predictions file appears complete, or not at all if `on_batch`, called with the number of batches done, raises.
    The model is in eval mode meanwhile, and in train mode afterwards, even if an exception ends the pass.
    """
    device = next(step.model.parameters()).device
    gathered: list[tuple[Tensor, Tensor]] = []
    saving: Any = step.telemetry.val_predictions(epoch) if save_predictions else nullcontext()
    step.model.eval()
    try:
        with torch.inference_mode(), saving as predictions:
            for done, (image_ids, images, votes) in enumerate(batches, start=1):
                with step.precision.autocast():
                    logits = step.model(images.to(device, non_blocking=True))
                pred_dist = logits.float().softmax(dim=1)
                if predictions is not None:
                    predictions.add(image_ids, pred_dist, votes)
                gathered.append((pred_dist, votes))
                on_batch(done)
    finally:
        step.model.train()
    return _metrics(*(torch.cat(parts).cpu().numpy() for parts in zip(*gathered, strict=True)))


def _metrics(softmax: npt.NDArray[np.float32], votes: Integers) -> Metrics:
    """Compute the metrics from shares and means as in the predictions file, so that both give the same values."""
    shares = softmax.astype(np.float64)
    pred = shares / shares.sum(axis=1)[:, None]
    counts = votes.sum(axis=1, dtype=np.int64)
    gt_dist = votes / counts[:, None]
    return prediction_metrics(
        pred.astype(np.float32), gt_dist.astype(np.float32), mean_scores(pred), mean_scores(votes) / counts
    )


@dataclass(slots=True)
class Position:
    """The position of a run in its epochs."""

    losses: Tensor  # [2] sum and number of the epoch's finite losses, on the device
    epoch: int = 0  # 0-based
    batch: int = 0  # batches of the epoch done so far
    results: list[EpochResult] = field(default_factory=list)  # one per finished epoch


class Loop:
    """Runs the epochs of one config; `fingerprint` holds the settings that a resume must not change."""

    def __init__(
        self,
        config: RunConfig,
        *,
        layout: RunLayout,
        data: "TrainData",
        step: BatchStep,
        fingerprint: Mapping[str, Any],
        display: Display,
    ) -> None:
        self._config, self._layout, self._data, self._step = config, layout, data, step
        self._fingerprint, self._display = fingerprint, display
        self._device = next(step.model.parameters()).device
        self._watch = LossWatch(self._on_nonfinite)
        self._metrics_file = MetricsFile(layout)
        self._num_nonfinite = 0
        self._unsaved_batches = 0
        self.position = Position(self._no_losses())

    def run(self, stop: StopSignals) -> None:
        """Train until the last epoch is done.

        Raise StopRequested, with the checkpoint saved, if a signal asked training to stop, NonFiniteLossError if a loss
        is nan or inf and the config says to stop, and TrainingError if a checkpoint or a row of metrics.csv could not
        be written.
        """
        try:
            while self.position.epoch < self._config.train.epochs:
                self._train(stop)
                self._finish_epoch(self._validate(stop))
        except StopRequested:
            self._save()
            raise

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore everything to the state of the checkpoint."""
        options = [{**group, "params": None} for group in self._step.optimizer.param_groups]
        self._step.model.load_state_dict(dict(checkpoint.model))
        self._step.optimizer.load_state_dict(dict(checkpoint.optimizer))
        for group, own in zip(self._step.optimizer.param_groups, options, strict=True):
            # Rates and decay come from the config, which may have been changed for the rest of the run.
            group.update({key: value for key, value in own.items() if key != "params"})
        if self._step.scaler is not None and checkpoint.scaler:
            self._step.scaler.load_state_dict(dict(checkpoint.scaler))
        self._step.num_steps = checkpoint.scheduler["step"]
        self._step.schedule.apply(self._step.optimizer, max(0, self._step.num_steps - 1))
        self._step.telemetry.load_state_dict(dict(checkpoint.telemetry))
        restore_rng_states(dict(checkpoint.rng))
        results = [EpochResult.from_row(row) for row in checkpoint.metrics]
        losses = checkpoint.losses.to(self._device)
        self.position = Position(losses, epoch=checkpoint.epoch, batch=checkpoint.batch, results=results)

    def _train(self, stop: StopSignals) -> None:
        started_s = time.perf_counter()
        label = f"epoch {self.position.epoch}, {self.position.epoch + 1} of {self._config.train.epochs}"
        with self._display.bar(label, total=self._data.num_batches, done=self.position.batch) as bar:
            for image_ids, images, votes in self._data.train_batches(
                self.position.epoch, start_batch=self.position.batch
            ):
                self._train_batch(image_ids.tolist(), images, votes)
                bar.update(self.position.batch, loss=self._watch.latest, images_each=len(images))
                if self._at_optimizer_step():
                    stop.check()
                    self._save_if_due()
        self._watch.catch_up()
        self._step.costs.train_s += time.perf_counter() - started_s

    def _train_batch(self, image_ids: list[int], images: Tensor, votes: Tensor) -> None:
        position, accumulate = self.position, self._config.train.accumulate
        first = position.batch - position.batch % accumulate
        images, votes = images.to(self._device, non_blocking=True), votes.to(self._device, non_blocking=True)
        loss = self._step.backward(images, votes, share=1 / min(accumulate, self._data.num_batches - first))
        position.batch += 1
        complete = self._at_optimizer_step()
        self._step.observe(loss, epoch=position.epoch, image_ids=image_ids, accumulating=not complete)
        self._watch.add(loss, epoch=position.epoch, batch=position.batch, image_ids=image_ids)
        finite = torch.isfinite(loss)
        position.losses += torch.stack([torch.where(finite, loss, torch.zeros_like(loss)), finite.to(loss.dtype)])
        self._unsaved_batches += 1
        if complete:
            self._step.optimize()

    def _at_optimizer_step(self) -> bool:
        """Whether this batch ends in an optimizer step; the last, incomplete accumulation of an epoch does too."""
        batch = self.position.batch
        return batch % self._config.train.accumulate == 0 or batch == self._data.num_batches

    def _validate(self, stop: StopSignals) -> EpochResult:
        total_loss, num_losses = self.position.losses.tolist()
        with self._display.bar("validation", total=self._data.num_val_batches) as bar:

            def on_batch(done: int) -> None:
                bar.update(done)
                stop.check()

            metrics = validate(
                self._step,
                self._data.val_batches(),
                epoch=self.position.epoch,
                save_predictions=self._config.save_val_predictions,
                on_batch=on_batch,
            )
        return EpochResult(self.position.epoch, total_loss / num_losses if num_losses else math.nan, metrics)

    def _finish_epoch(self, result: EpochResult) -> None:
        """Save the checkpoint first: a resume can rewrite metrics.csv from it, but nothing else restores an epoch."""
        results = [*self.position.results, result]
        self.position = Position(self._no_losses(), epoch=result.epoch + 1, results=results)
        self._save()
        write_result(self._metrics_file, result)
        generated = self._config.data.sample is not None
        self._display.epoch(result, epochs=self._config.train.epochs, generated=generated)

    def _save_if_due(self) -> None:
        every = self._config.checkpoint.every_n_batches
        if every is not None and self._unsaved_batches >= every:
            self._save()

    def _save(self) -> None:
        self._watch.catch_up()
        step, position = self._step, self.position
        checkpoint = Checkpoint(
            fingerprint=self._fingerprint,
            model=step.model.state_dict(),
            optimizer=step.optimizer.state_dict(),
            scheduler={"step": step.num_steps},
            scaler={} if step.scaler is None else step.scaler.state_dict(),
            rng=rng_states(),
            epoch=position.epoch,
            batch=position.batch,
            losses=position.losses,
            telemetry=step.telemetry.state_dict(),
            metrics=[result.to_row() for result in position.results],
        )
        save_checkpoint(self._layout.checkpoint, checkpoint)
        self._unsaved_batches = 0

    def _no_losses(self) -> Tensor:
        dtype = torch.float32 if self._device.type == "mps" else torch.float64
        return torch.zeros(2, dtype=dtype, device=self._device)

    def _on_nonfinite(self, loss: BatchLoss) -> None:
        if self._config.train.on_nonfinite_loss == "stop":
            raise NonFiniteLossError(f"{loss}. {_remedy(self._layout)}")
        self._num_nonfinite += 1
        if self._num_nonfinite <= _MAX_WARNINGS:
            last = " Later ones are not logged." if self._num_nonfinite == _MAX_WARNINGS else ""
            _log.warning("%s; the gradients of its step are dropped.%s", loss, last)


def _remedy(layout: RunLayout) -> str:
    saved = f"The weights before it are in {layout.checkpoint}. " if layout.checkpoint.exists() else ""
    return (
        f"{saved}Check the gradients in {layout.telemetry}; lower optim.base_lr, set train.clip_norm or "
        "train.amp=off, then continue with --resume; or set train.on_nonfinite_loss to 'continue'."
    )
