"""What a GradScaler knows and does not tell without waiting for the device."""

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
    """A GradScaler at one step.

    Attributes:
        scale: the loss scale, a float32 scalar on the device; None where nothing is scaled, or it is not known.
        of_optimizer: id of each optimizer -> what its gradients are.
        is_given: whether the collector was given a scaler, enabled or not.
        init_scale: what the scaler began with, or was resumed with; None where it is not known.
    """

    scale: Tensor | None
    of_optimizer: dict[int, Scaling]
    is_given: bool = True
    init_scale: float | None = None

    @property
    def of_unowned(self) -> Scaling:
        """What the gradients of parameters that no optimizer steps are: `unscale_` passes them by."""
        if self.scale is not None:
            return Scaling.SCALED
        return Scaling.UNKNOWN if Scaling.UNKNOWN in self.of_optimizer.values() else Scaling.NONE

    @property
    def remaining_scale(self) -> Tensor | None:
        """The scale where any gradient is still multiplied by it."""
        return self.scale if Scaling.SCALED in self.of_optimizer.values() else None

    @property
    def is_uniform(self) -> bool:
        """Whether all gradients are multiplied by the same, so that they have one length together."""
        return len(found := set(self.of_optimizer.values())) == 1 and Scaling.UNKNOWN not in found


def scaler_state(grad_scaler: Any, optimizers: tuple[Optimizer, ...]) -> ScalerState:
    """Read the scale and whether `unscale_` has run, without waiting for the device.

    `get_scale()` waits, and whether an optimizer's gradients were unscaled is private to `torch.amp.GradScaler`:
    `_scale` is the scale's tensor (None before the first `scale()`), `_per_optimizer_states[id]["stage"]` is READY
    until `unscale_` or `step` ran, `_init_scale` is what it began with. This is the one place that reads them.
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


def hooks_show_skips(optimizers: Sequence[Optimizer]) -> bool:
    """Whether step hooks tell which steps a GradScaler left out; where they do not, only its scale does.

    One that looks for itself whether gradients are finite, as fused ones do, is called all the same: GradScaler asks
    it for the attribute that is read here. Of several, each may be left out by itself, and each may have its own pace.
    """
    return len(optimizers) == 1 and not getattr(optimizers[0], "_step_supports_amp_scaling", False)


def _scaling(states: Any, optimizer: int) -> Scaling:
    stage = getattr(states[optimizer].get("stage"), "name", None) if optimizer in states else "READY"
    if stage == "READY":
        return Scaling.SCALED
    return Scaling.NONE if stage in {"UNSCALED", "STEPPED"} else Scaling.UNKNOWN


class AutocastProbe:
    """Looks at one training forward pass, from a hook that then removes itself.

    There is no hook before `begin`: `torch.jit.script` refuses a model that has one.

    Args:
        model: whose forward pass to look at.

    Attributes:
        saw_float16: whether that pass ran under float16 autocast.
    """

    def __init__(self, model: nn.Module) -> None:
        self.saw_float16 = False
        self._model: nn.Module | None = model
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def begin(self) -> None:
        """Look at the next training forward pass; only once, however often this is called."""
        if self._model is not None:
            self._hook = self._model.register_forward_pre_hook(self._look)
            self._model = None

    def close(self) -> None:
        """Stop looking."""
        self._model = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _look(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return  # a compiler traces hooks too, and must find nothing to do in this one
        kind = next(module.parameters()).device.type  # now: the model may have been moved since it was given
        self.saw_float16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        self.close()
