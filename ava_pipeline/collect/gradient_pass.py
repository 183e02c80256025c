"""The snapshot of one collected step: the one pass over the gradients, and what clipping shares of it."""

import os
import time
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ava_pipeline.collect.amp import scaler_state
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.measures.measure import StepSnapshot, Value
from ava_pipeline.collect.norms import NormPlan
from ava_pipeline.collect.stale_gradients import StaleGradients
from ava_pipeline.collect.targets import TrainingTargets

# A model that uses other parameters at every step needs endless plans; past this many, the old ones are dropped.
MAX_PLANS = 64


class GradientPass:
    """Takes snapshots of the training, in the training thread, without waiting for the device.

    `devices` names those that held the measured gradients so far: more than one if the model is spread over them, or
    was moved. The background thread reads it. Unless it `is_measuring`, no gradient is read.
    """

    def __init__(
        self,
        targets: TrainingTargets,
        grad_scaler: Any,
        clipping: Clipping,
        stale_gradients: StaleGradients,
        *,
        is_measuring: bool = True,
    ) -> None:
        self._is_measuring = is_measuring
        self._grad_scaler = grad_scaler
        self._clipping = clipping
        self._stale_gradients = stale_gradients
        self._known_devices: set[torch.device] = set()
        self.devices: tuple[str, ...] = ()
        self._targets = targets
        self.measure(targets)

    def measure(self, targets: TrainingTargets) -> None:
        """Measure these targets from now on."""
        self._targets = targets
        self._stale_gradients.follow(targets)
        owners = targets.optimizers_of()
        trained = [parameter.requires_grad for parameter in targets.parameters]
        self._frozen = [position for position, held in enumerate(owners) if not (held or trained[position])]
        self._others = {
            name: [position for position, held in enumerate(owners) if held and optimizer not in held]
            for name, optimizer in targets.optimizers.items()
        }
        self._plans: dict[object, NormPlan] = {}
        self._clipping.use(targets.parameters)

    def take(  # noqa: PLR0913  # each is a fact of the step, all but two by name
        self,
        values: Mapping[str, Value],
        batch_idx: int,
        *,
        changes: Sequence[int] | None,
        labels: Mapping[str, Tensor] | None = None,
        optimizer: str | None = None,
        global_step: int | None = None,
        is_optimizer_replaced: bool = False,
    ) -> StepSnapshot:
        """Take the snapshot of a step, with the values that the user gave to it.

        `changes` counts those of each parameter; None if the training step is part of a CUDA graph, whose replays are
        not counted. With the name of an `optimizer`, gradients of parameters of other optimizers count as missing.
        """
        gradients = self._gradients(optimizer, changes)
        plan = self._plan(gradients)
        if plan.unmeasured:
            gradients = [None if position in plan.unmeasured else grad for position, grad in enumerate(gradients)]
        if self._is_measuring:
            self._clipping.remember_gradients(gradients, batch_idx)
        can_measure = self._is_measuring and (plan.whole_tensors or plan.by_rows)
        norms = plan.measure(gradients) if can_measure else None
        optimizers = self._targets.optimizers
        stepping = tuple(optimizers.values()) if optimizer is None else (optimizers[optimizer],)
        scaler = scaler_state(self._grad_scaler, stepping)
        scale = scaler.remaining_scale
        has_total = not plan.unmeasured and scaler.is_uniform and optimizer is None
        equals_torch = plan.equals_torch and has_total and scale is None and self._is_final()
        return StepSnapshot(
            gradients=gradients,
            norms=norms,
            plan=plan,
            scaler=scaler,
            clipping=self._clipping.share_norms(norms if has_total else None, scale, equals_torch=equals_torch),
            values=values,
            labels=labels or {},
            batch_idx=batch_idx,
            time_s=time.time(),
            global_step=global_step,
            optimizer=optimizer,
            is_optimizer_replaced=is_optimizer_replaced,
        )

    def _gradients(self, optimizer: str | None, changes: Sequence[int] | None) -> list[Tensor | None]:
        """The present gradients, without those of other optimizers, and without those left over from earlier batches.

        No optimizer resets a frozen parameter that it does not hold, and no backward pass computes its gradient.
        """
        gradients = [parameter.grad for parameter in self._targets.parameters]
        for position in self._others[optimizer] if optimizer is not None else ():
            gradients[position] = None
        for position in self._frozen:
            gradients[position] = None
        for position in () if changes is None else self._stale_gradients.among(gradients, changes, optimizer):
            gradients[position] = None
        return gradients

    def _plan(self, gradients: Sequence[Tensor | None]) -> NormPlan:
        """The plan for gradients of these types; always the same object, so that neighbouring rows share a layout."""
        is_whole = self._clipping.is_used
        types = (is_whole, *(None if gradient is None else _type(gradient) for gradient in gradients))
        plan = self._plans.get(types)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[types] = NormPlan.of(gradients, whole=is_whole, are_shards=self._targets.is_sharded)
            self._name_devices(gradients)
        return plan

    def _name_devices(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the devices that are new; each name is asked for once, since asking for a GPU's calls CUDA."""
        found = dict.fromkeys(gradient.device for gradient in gradients if gradient is not None)
        new = [device for device in found if device not in self._known_devices]
        self._known_devices.update(new)
        self.devices += tuple(name for name in map(_device_name, new) if name not in self.devices)

    def _is_final(self) -> bool:
        """Whether no other process adds to the gradients before the clip; torch would not count that as a change."""
        return self._targets.is_reduced or _num_ranks() == 1


_type = attrgetter("dtype", "layout", "device")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"


def _num_ranks() -> int:
    is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_initialized else 1
