"""What measures of gradients share: the numbers of the one pass, whose they are, and several optimizers' together."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.measures.measure import Reading, StepSnapshot
from ava_pipeline.collect.norms import NormLayout, NormPlan
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.arrays import Bools

MAX_JOINED = 64


@dataclass(frozen=True, slots=True, eq=False)
class JoinedLayout:
    """The layouts of several optimizers' norms that follow each other, each with how many numbers it describes."""

    parts: Sequence[tuple[NormLayout, int]]

    @property
    def has_scale(self) -> bool:
        """Whether a GradScaler is at work."""
        return any(part.has_scale for part, _ in self.parts)

    @property
    def is_known(self) -> Bools:
        """For each parameter whether it had a gradient, and its norm is known."""
        return self.present & ~self.unknown

    @property
    def present(self) -> Bools:
        """For each parameter whether it had a gradient with a known norm."""
        present: Bools = np.logical_or.reduce([part.present for part, _ in self.parts])
        return present

    @property
    def unknown(self) -> Bools:
        """For each parameter whether it had a gradient with an unknown norm."""
        unknown: Bools = np.logical_or.reduce([part.unknown for part, _ in self.parts])
        return unknown


class GradientReadings:
    """Reads the norm of every gradient, in the training thread, as the pass over the gradients left them."""

    def __init__(self, targets: TrainingTargets) -> None:
        self._targets = targets
        self._layouts: WeakKeyDictionary[NormPlan, dict[object, NormLayout]] = WeakKeyDictionary()
        self._joined_layouts: dict[tuple[object, ...], JoinedLayout] = {}

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take the norm of every gradient, followed by the loss scale if there is one."""
        norms, scale = snapshot.norms, snapshot.scaler.scale
        # One layout object for all steps whose numbers mean the same, so that their rows are made together.
        layouts = self._layouts.setdefault(snapshot.plan, {})
        num_groups = sum(len(optimizer.param_groups) for optimizer in self._targets.optimizers.values())
        meaning = (snapshot.optimizer, *snapshot.scaler.of_optimizer.values(), num_groups, scale is not None)
        layout = layouts.get(meaning) or layouts.setdefault(meaning, self._layout(snapshot))
        if norms is None:
            return Reading([], layout)
        if scale is None:
            return Reading(norms, layout)
        if norms.device.type == "cpu" != scale.device.type:  # offloaded: bringing the scale here would wait
            return Reading([*norms.tolist(), scale], layout)
        return Reading(joined_numbers([norms, scale.reshape(1)]), layout)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Put the norms of the parameters of several optimizers behind each other.

        A gradient that belongs to several of them, or to none, counts as it was at the last call that measured it.
        """
        layouts = tuple(reading.layout for reading in readings)
        layout = self._joined_layouts.get(layouts)
        if layout is None:
            if len(self._joined_layouts) >= MAX_JOINED:
                self._joined_layouts.clear()
            parts = [as_norm_layout(reading.layout) for reading in readings]
            for index in range(len(parts) - 1):
                later = np.logical_or.reduce([part.present | part.unknown for part in parts[index + 1 :]])
                parts[index] = parts[index].without(later)
            lengths = [len(reading.numbers) for reading in readings]
            layout = self._joined_layouts[layouts] = JoinedLayout(list(zip(parts, lengths, strict=True)))
        return Reading(joined_numbers([reading.numbers for reading in readings]), layout)

    def _layout(self, snapshot: StepSnapshot) -> NormLayout:
        scaler = snapshot.scaler
        scaling = [scaler.of_parameter(owners) for owners in self._targets.optimizers_of()]
        is_known = np.array([one is not Scaling.UNKNOWN for one in scaling])
        has_gradient = np.array([gradient is not None for gradient in snapshot.gradients])
        is_unmeasured = np.isin(np.arange(len(has_gradient)), list(snapshot.plan.unmeasured))
        owners = snapshot.plan.owners
        return NormLayout(
            owners=np.where(is_known[owners], owners, -1),
            present=has_gradient & is_known,
            unknown=is_unmeasured | (has_gradient & ~is_known),
            is_scaled=np.array([one is Scaling.SCALED for one in scaling]),
            has_scale=scaler.scale is not None,
        )


def as_joined(layout: object, num_numbers: int) -> JoinedLayout:
    """The layout of what `GradientReadings` read or joined, whose numbers are given by their count.

    Raise TypeError if it is another measure's.
    """
    return layout if isinstance(layout, JoinedLayout) else JoinedLayout([(as_norm_layout(layout), num_numbers)])


def as_norm_layout(layout: object) -> NormLayout:
    """The layout of one pass; raise TypeError if it is another measure's."""
    if not isinstance(layout, NormLayout):
        raise TypeError(f"expected the NormLayout of gradient norms, got {layout!r}")
    return layout


def joined_numbers(parts: Sequence[Tensor | Sequence[object]]) -> Tensor | list[object]:
    """The numbers of readings behind each other, on an accelerator if any tensor is on one, without waiting for it.

    Numbers that are not in a tensor make the result a list.
    """
    parts = [part for part in parts if len(part)]
    vectors = [part for part in parts if isinstance(part, Tensor)]
    if len(vectors) < len(parts) or not vectors:
        return [number for part in parts for number in _listed(part)]
    if len(vectors) == 1:
        return vectors[0]
    device = next((vector.device for vector in vectors if vector.device.type != "cpu"), vectors[0].device)
    return torch.cat([vector.to(device, torch.float32, non_blocking=True) for vector in vectors])


def _listed(part: Tensor | Sequence[object]) -> Sequence[object]:
    if not isinstance(part, Tensor):
        return part
    numbers: Sequence[object] = part.tolist() if part.device.type == "cpu" else part.unbind()
    return numbers
