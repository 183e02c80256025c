"""timm's train.py: a loss scaler that records the gradients between its backward pass and its step."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.errors import require_extra

require_extra("TelemetryScaler", "frameworks", "timm")

from timm.utils.clip_grad import dispatch_clip_grad  # noqa: E402  # after the check that it is there


class TelemetryScaler:
    """Takes the place of timm's `NativeScaler`, which computes, unscales, clips and applies gradients in one call.

    With `enabled=False` it does the same without a loss scale, where train.py makes no scaler. Norms are at true scale
    and before clipping; the value `loss` is the loss of an update. The state of telemetry is saved and loaded with the
    scaler's own.

    Example:
        from ava_pipeline.integrations.timm import TelemetryScaler

        loss_scaler = TelemetryScaler(device=device.type, enabled=loss_scaler is not None)
        ...
        telemetry = TelemetryCollector(model, optimizer, output_dir, grad_scaler=loss_scaler.grad_scaler)
        loss_scaler.attach(telemetry)
        for epoch in range(start_epoch, num_epochs):
            loss_scaler.epoch = epoch
            train_one_epoch(epoch, model, loader_train, optimizer, args, loss_scaler=loss_scaler)

    Args:
        device: the type of the device, such as `cuda`.
        enabled: whether the loss is scaled.

    Attributes:
        grad_scaler: the `torch.amp.GradScaler`, for the collector.
        epoch: the 0-based epoch, which train.py has to set.

    Raises:
        ConfigError: timm is not installed.
    """

    state_dict_key = "amp_scaler"

    def __init__(self, device: str = "cuda", *, enabled: bool = True) -> None:
        self.grad_scaler = torch.amp.GradScaler(device, enabled=enabled)
        self.epoch = 0
        self._telemetry: TelemetryCollector | None = None
        self._state: Mapping[str, Any] = {}
        self._loss: Tensor | None = None

    def attach(self, telemetry: TelemetryCollector) -> None:
        """Record with this collector; if the scaler's state was loaded before, behind that checkpoint."""
        if self._state:
            telemetry.load_state_dict(self._state)
        self._telemetry = telemetry

    def __call__(  # noqa: PLR0913, PLR0917  # as timm calls it
        self,
        loss: Tensor,
        optimizer: Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,  # noqa: FBT001, FBT002
        need_update: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Compute the gradients of a batch, record them, and with `need_update` clip and apply them."""
        self.grad_scaler.scale(loss).backward(create_graph=create_graph)  # type: ignore[no-untyped-call]  # torch's
        self._record(loss.detach(), need_update=need_update)
        if need_update:
            if clip_grad is not None:
                self.grad_scaler.unscale_(optimizer)
                dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
            self.grad_scaler.step(optimizer)
            self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, with that of telemetry under `telemetry`."""
        telemetry = self._state if self._telemetry is None else self._telemetry.state_dict()
        return {**self.grad_scaler.state_dict(), "telemetry": dict(telemetry)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state, also one that timm's own scaler has saved, or a scaler without a loss scale."""
        scaler = dict(state_dict)
        self._state = scaler.pop("telemetry", {})
        if scaler:
            self.grad_scaler.load_state_dict(scaler)

    def _record(self, loss: Tensor, *, need_update: bool) -> None:
        # train.py divides each batch's loss by their number, so that those of an update add up to the update's loss.
        self._loss = loss if self._loss is None else self._loss + loss
        if self._telemetry is not None:
            values = {"loss": self._loss} if need_update else {}
            self._telemetry.step(self.epoch, accumulating=not need_update, values=values)
        if need_update:
            self._loss = None
