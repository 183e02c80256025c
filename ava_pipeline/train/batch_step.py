"""One batch: forward, backward, telemetry, clipping, optimizer."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, optim
from torch.amp.grad_scaler import GradScaler

from ava_pipeline.train.losses import drop_unless, squared_emd
from ava_pipeline.train.models import AvaModel
from ava_pipeline.train.optim import Precision, Schedule

if TYPE_CHECKING:
    from ava_pipeline.collect.collector import TelemetryCollector


@dataclass(slots=True)
class Costs:
    """Time spent on training by this process."""

    train_s: float = 0.0  # from the first batch of each epoch to its last, including reading images
    telemetry_s: float = 0.0  # the part spent inside `telemetry.step`
    num_batches: int = 0


@dataclass(slots=True, kw_only=True)
class BatchStep:
    """Trains on one batch at a time; every `accumulate` batches make an optimizer step."""

    model: AvaModel
    optimizer: optim.Optimizer
    schedule: Schedule
    precision: Precision
    scaler: GradScaler | None
    telemetry: "TelemetryCollector"
    clip_norm: float | None  # an L2 norm; None does not clip
    drop_nonfinite: bool  # if a loss is nan or inf, set the gradients of its optimizer step to zero
    num_steps: int = 0  # optimizer steps taken, over all epochs
    costs: Costs = field(default_factory=Costs)

    def backward(self, images: Tensor, votes: Tensor, *, share: float) -> Tensor:
        """Add the gradients of images [batch, 3, H, W] and votes [batch, 10], times `share`; return the loss."""
        self.schedule.apply(self.optimizer, self.num_steps)
        with self.precision.autocast():
            logits = self.model(images)
        loss = squared_emd(logits, votes)
        scaled = loss * share if self.scaler is None else self.scaler.scale(loss * share)
        scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it out
        return loss.detach()

    def observe(self, loss: Tensor, *, epoch: int, image_ids: list[int], accumulating: bool) -> None:
        """Pass the gradients to telemetry and measure how long that takes."""
        started_s = time.perf_counter()
        self.telemetry.step(epoch, values={"loss": loss}, sample_ids=image_ids, accumulating=accumulating)
        self.costs.telemetry_s += time.perf_counter() - started_s
        self.costs.num_batches += 1
        if self.drop_nonfinite:
            drop_unless(torch.isfinite(loss), self._gradients())

    def optimize(self) -> None:
        """Clip the gradients, step, and release them."""
        if self.scaler is None:
            self._clip()
            self.optimizer.step()
        else:
            self.scaler.unscale_(self.optimizer)
            self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def _clip(self) -> None:
        if self.clip_norm is not None:
            self.telemetry.clip_grad_norm_(self.clip_norm)

    def _gradients(self) -> list[Tensor]:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]
