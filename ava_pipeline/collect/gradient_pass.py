"""Taking one collected step's moment: the one pass over the gradients, and what clipping makes of it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.collect.amp import scaler_state
from ava_pipeline.collect.arguments import num_ranks
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.measures.measure import StepSnapshot, Value
from ava_pipeline.collect.norms import NormPlan

_kind = attrgetter("dtype", "layout", "device")

# Of models that leave other parameters out at every step there is no end: plans are made anew then.
MAX_PLANS = 64


class GradientPass:
    """Takes a moment of training, in the training thread, without waiting for the device.

    Args:
        parameters: whose gradients are read, anew each time: they are other tensors after `zero_grad`.
        optimizers: whose gradients a scaler may have unscaled.
        grad_scaler: what scales the loss; None where nothing does.
        clipping: shares the pass.
        is_reduced: whether gradients of several processes are brought together in the backward pass already.
        are_shards: whether each process holds but a part of every gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizers: Iterable[Optimizer],
        grad_scaler: Any,
        clipping: Clipping,
        *,
        is_reduced: bool,
        are_shards: bool,
    ) -> None:
        self._parameters = parameters
        self._optimizers = tuple(optimizers)
        self._grad_scaler = grad_scaler
        self._clipping = clipping
        self._is_reduced = is_reduced
        self._are_shards = are_shards
        self._plans: dict[object, NormPlan] = {}

    def take(self, values: Mapping[str, Value], batch_idx: int) -> StepSnapshot:
        """Look at the gradients as they are now.

        Args:
            values: what the user gave to `step`.
            batch_idx: of that step.
        """
        gradients = [parameter.grad for parameter in self._parameters]
        plan = self._plan(gradients)
        if plan.unmeasured:
            gradients = [None if place in plan.unmeasured else one for place, one in enumerate(gradients)]
        self._clipping.mark(gradients, batch_idx)
        norms = plan.measure(gradients) if plan.whole_tensors or plan.by_rows else None
        scaler = scaler_state(self._grad_scaler, self._optimizers)
        is_total = not plan.unmeasured and scaler.is_uniform
        is_shared = self._may_share() and plan.equals_torch and is_total and scaler.remaining_scale is None
        return StepSnapshot(
            gradients=gradients,
            norms=norms,
            plan=plan,
            scaler=scaler,
            clipping=self._clipping.look(norms if is_total else None, scaler.remaining_scale, is_shared=is_shared),
            values=values,
            time_s=time.time(),
        )

    def _may_share(self) -> bool:
        """Whether nobody else may add to the gradients before the clip, which torch would not count as a change."""
        return self._is_reduced or num_ranks() == 1

    def _plan(self, gradients: Sequence[Tensor | None]) -> NormPlan:
        """The plan for gradients of these kinds: one object, so that rows of the same meaning are made together."""
        is_whole = self._clipping.is_used
        kinds = (is_whole, *(None if gradient is None else _kind(gradient) for gradient in gradients))
        plan = self._plans.get(kinds)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[kinds] = NormPlan.of(gradients, whole=is_whole, are_shards=self._are_shards)
        return plan
