"""Mixed precision: what a GradScaler's state says without waiting for the device."""

import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from types import FrameType


class Scaling(Enum):
    """What the gradients of one optimizer are multiplied by."""

    NONE = "none"
    SCALED = "scaled"
    UNKNOWN = "unknown"


class ScalerState(NamedTuple):
    """The state of a GradScaler at one step.

    `scale` is a float32 scalar on the device; None if nothing is scaled, or the scale is unknown. `of_optimizer` is
    keyed by the optimizers' ids. `is_given` is True for a disabled scaler too.
    """

    scale: Tensor | None
    of_optimizer: dict[int, Scaling]
    is_given: bool = True
    init_scale: float | None = None

    @property
    def of_unowned(self) -> Scaling:
        """How the gradients of parameters without an optimizer are scaled: `unscale_` does not change them."""
        if self.scale is not None:
            return Scaling.SCALED
        return Scaling.UNKNOWN if Scaling.UNKNOWN in self.of_optimizer.values() else Scaling.NONE

    def of_parameter(self, optimizers: Iterable[Optimizer]) -> Scaling:
        """How the gradient of a parameter that these optimizers hold is scaled.

        `unscale_` divides it once for each of them, and what is left after a second time is not known.
        """
        scalings = [self.of_optimizer[id(one)] for one in optimizers if id(one) in self.of_optimizer]
        if not scalings:
            return self.of_unowned
        if Scaling.UNKNOWN in scalings or (self.scale is not None and scalings.count(Scaling.NONE) > 1):
            return Scaling.UNKNOWN
        return Scaling.NONE if Scaling.NONE in scalings else Scaling.SCALED

    @property
    def remaining_scale(self) -> Tensor | None:
        """The scale, if it still multiplies any gradient."""
        return self.scale if Scaling.SCALED in self.of_optimizer.values() else None

    @property
    def is_uniform(self) -> bool:
        """Whether the same number multiplies all gradients, so that they have a common length."""
        return len(scalings := set(self.of_optimizer.values())) == 1 and Scaling.UNKNOWN not in scalings


def scaler_state(grad_scaler: Any, optimizers: tuple[Optimizer, ...]) -> ScalerState:
    """Read the scale and whether `unscale_` has run, without waiting for the device.

    `get_scale()` waits, and `torch.amp.GradScaler` has no public way to ask whether gradients are unscaled. So this
    reads private attributes, and is the one place that does: `_scale` is the scale's tensor (None before the first
    `scale()`), `_per_optimizer_states[id]["stage"]` is READY until `unscale_` or `step` runs, `_init_scale` is the
    scale at the start.
    """
    if grad_scaler is None or not grad_scaler.is_enabled():
        of_optimizer = {id(optimizer): Scaling.NONE for optimizer in optimizers}
        return ScalerState(None, of_optimizer, is_given=grad_scaler is not None)
    scale = getattr(grad_scaler, "_scale", None)
    states = getattr(grad_scaler, "_per_optimizer_states", None)
    if not isinstance(scale, Tensor) or states is None:
        return ScalerState(None, {id(optimizer): Scaling.UNKNOWN for optimizer in optimizers})
    of_optimizer = {id(optimizer): _scaling(states, id(optimizer)) for optimizer in optimizers}
    return ScalerState(scale, of_optimizer, init_scale=getattr(grad_scaler, "_init_scale", None))


def _scaling(states: Any, optimizer: int) -> Scaling:
    stage = getattr(states[optimizer].get("stage"), "name", None) if optimizer in states else "READY"
    if stage == "READY":
        return Scaling.SCALED
    return Scaling.NONE if stage in {"UNSCALED", "STEPPED"} else Scaling.UNKNOWN


def hooks_show_skips(optimizers: Sequence[Optimizer]) -> bool:
    """Whether optimizer step hooks show which steps a GradScaler skipped; if not, only a falling scale does.

    GradScaler calls an optimizer that checks for non-finite gradients itself, as fused ones do, even when its step is
    skipped; it recognizes such an optimizer by the attribute read here. Of several optimizers each can be skipped
    alone and step at its own pace.
    """
    return len(optimizers) == 1 and not getattr(optimizers[0], "_step_supports_amp_scaling", False)


MAX_FRAMES = 16


def is_stepped_by_scaler() -> bool:
    """Whether an enabled GradScaler is calling the optimizer; asked in an optimizer's step hook.

    A scaler leaves no trace on the model or the optimizer that could be found later, and a hook on the model would be
    copied, saved and traced with it. So this searches the calls that led here for that of `GradScaler.step`.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # as `inspect.currentframe`, without its own frame
    for _ in range(MAX_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_name == "step":
            caller = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler):
                return caller.is_enabled()
        frame = frame.f_back
    return False
