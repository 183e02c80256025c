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
from ava_pipeline.collect.targets import TrainingTargets

# A model that uses other parameters at every step needs endless plans; past this many, the old ones are dropped.
MAX_PLANS = 64


class GradientPass:
    """Takes snapshots of the training, in the training thread, without waiting for the device.

    `devices` names those that held the measured gradients so far: more than one if the model is spread over them, or
    was moved. The background thread reads it.
    """

    def __init__(self, targets: TrainingTargets, grad_scaler: Any, clipping: Clipping) -> None:
        self._parameters = targets.parameters
        self._optimizers = tuple(targets.optimizers.values())
        self._is_reduced = targets.is_reduced
        self._is_sharded = targets.is_sharded
        self._grad_scaler = grad_scaler
        self._clipping = clipping
        self._plans: dict[object, NormPlan] = {}
        self._known_devices: set[torch.device] = set()
        self.devices: tuple[str, ...] = ()

    def take(self, values: Mapping[str, Value], batch_idx: int) -> StepSnapshot:
        """Take the snapshot of a step, with the values that the user gave to it."""
        gradients = [parameter.grad for parameter in self._parameters]
        plan = self._plan(gradients)
        if plan.unmeasured:
            gradients = [None if position in plan.unmeasured else grad for position, grad in enumerate(gradients)]
        self._clipping.remember_gradients(gradients, batch_idx)
        norms = plan.measure(gradients) if plan.whole_tensors or plan.by_rows else None
        scaler = scaler_state(self._grad_scaler, self._optimizers)
        scale = scaler.remaining_scale
        has_total = not plan.unmeasured and scaler.is_uniform
        equals_torch = plan.equals_torch and has_total and scale is None and self._is_final()
        return StepSnapshot(
            gradients=gradients,
            norms=norms,
            plan=plan,
            scaler=scaler,
            clipping=self._clipping.share_norms(norms if has_total else None, scale, equals_torch=equals_torch),
            values=values,
            time_s=time.time(),
        )

    def _plan(self, gradients: Sequence[Tensor | None]) -> NormPlan:
        """The plan for gradients of these types; always the same object, so that neighbouring rows share a layout."""
        is_whole = self._clipping.is_used
        types = (is_whole, *(None if gradient is None else _type(gradient) for gradient in gradients))
        plan = self._plans.get(types)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[types] = NormPlan.of(gradients, whole=is_whole, are_shards=self._is_sharded)
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
        return self._is_reduced or _num_ranks() == 1


_type = attrgetter("dtype", "layout", "device")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"


def _num_ranks() -> int:
    is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_initialized else 1
