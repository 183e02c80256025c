"""Mixed precision: what a GradScaler's state says without waiting for the device."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


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


class AutocastProbe:
    """Checks one training forward pass for float16 autocast, from a hook that then removes itself.

    The hook is set by `start` and not before: `torch.jit.script` rejects a model that has one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found_float16 = False
        self._model: nn.Module | None = model
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def start(self) -> None:
        """Check the next training forward pass; later calls do nothing."""
        if self._model is not None:
            self._hook = self._model.register_forward_pre_hook(self._check)
            self._model = None

    def close(self) -> None:
        """Remove the hook."""
        self._model = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _check(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return  # a compiler traces hooks too, and this one must leave no operation in the graph
        device = next(module.parameters()).device.type  # read now: the model may have moved since the constructor
        self.found_float16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        self.close()
