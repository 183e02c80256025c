"""Gradient norms: the L2 norm of every group's gradients."""

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.norms import NormLayout, NormPlan, combine
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.pending import Numbers, Rows


class GradientNorms(Measure):
    """One vector of norms a step, combined by group off the training thread."""

    table = GRADIENT_NORMS

    def __init__(self, watched: TrainingTargets) -> None:
        super().__init__(watched)
        self._groups = [np.array(positions) for positions in watched.positions().values()]
        self._layouts: WeakKeyDictionary[NormPlan, dict[object, NormLayout]] = WeakKeyDictionary()
        self._has_scale = False

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.watched.groups)

    def read(self, moment: StepSnapshot) -> Reading:
        """Take every gradient's norm, and the loss scale where gradients are still multiplied by it."""
        has_scale = moment.scaler.scale is not None
        # One object for steps whose numbers mean the same: they are made rows of together.
        layouts = self._layouts.setdefault(moment.plan, {})
        num_groups = sum(len(optimizer.param_groups) for optimizer in self.watched.optimizers.values())
        meaning = (*moment.scaler.of_optimizer.values(), num_groups, has_scale)
        layout = layouts.get(meaning) or layouts.setdefault(meaning, self._layout(moment))
        if moment.norms is None:
            return Reading([], layout)
        if moment.scaler.scale is None:
            return Reading(moment.norms, layout)
        scale = moment.scaler.scale.reshape(1).to(moment.norms.device, torch.float32)
        return Reading(torch.cat((moment.norms, scale)), layout)

    def columns(self, numbers: Sequence[Numbers], layout: object) -> dict[str, Sequence[object]]:
        """Combine the pieces of every group in float64; null where a group had no gradient, or one is not known."""
        if not isinstance(layout, NormLayout):
            raise TypeError(f"The layout of gradient norms is a NormLayout, not {layout!r}.")
        self._has_scale = layout.has_scale
        vectors = np.stack([np.asarray(vector, dtype=np.float64) for vector in numbers])
        norms = combine(vectors, layout, self._groups).astype(np.float32)
        return {
            column: norms[:, index].tolist() if _is_measured(layout, group) else [None] * len(numbers)
            for index, (column, group) in enumerate(zip(self.run_columns, self._groups, strict=True))
        }

    def events(self, rows: Rows) -> Iterator[Event]:
        """What is not finite: information under a loss scale, which is too high now and then."""
        yield from non_finite_events(rows, is_scaled=self._has_scale)

    def _layout(self, moment: StepSnapshot) -> NormLayout:
        # Nobody unscales the gradients of what no optimizer steps.
        scaling = [
            moment.scaler.of_unowned if owner is None else moment.scaler.of_optimizer[id(owner)]
            for owner in self.watched.optimizer_of()
        ]
        is_known = np.array([of_it is not Scaling.UNKNOWN for of_it in scaling])
        is_there = np.array([gradient is not None for gradient in moment.gradients])
        is_left_out = np.isin(np.arange(len(is_there)), list(moment.plan.unmeasured))
        owners = moment.plan.owners
        return NormLayout(
            owners=np.where(is_known[owners], owners, -1),
            present=is_there & is_known,
            unknown=is_left_out | (is_there & ~is_known),
            is_scaled=np.array([of_it is Scaling.SCALED for of_it in scaling]),
            has_scale=moment.scaler.scale is not None,
        )


def _is_measured(layout: NormLayout, group: NDArray[np.int64]) -> bool:
    """Of a part of its gradients a group's norm would be too small."""
    return bool(layout.present[group].any() and not layout.unknown[group].any())
