"""Gradient norms: the L2 norm of every group's gradients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import torch

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.norms import NormLayout, NormPlan, combine
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS
from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.channel import Numbers

MAX_JOINED = 64


class GradientNorms(Measure):
    """Reads one vector of norms per step, and combines them by group in the background thread."""

    table = GRADIENT_NORMS

    def __init__(self, targets: TrainingTargets) -> None:
        super().__init__(targets)
        self._groups = [np.array(positions) for positions in targets.positions().values()]
        self._layouts: WeakKeyDictionary[NormPlan, dict[object, NormLayout]] = WeakKeyDictionary()
        self._joined_layouts: dict[tuple[object, ...], JoinedLayout] = {}
        self._has_scale = False

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.targets.groups)

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take the norm of every gradient, followed by the loss scale if there is one."""
        norms, scale = snapshot.norms, snapshot.scaler.scale
        # One layout object for all steps whose numbers mean the same, so that their rows are made together.
        layouts = self._layouts.setdefault(snapshot.plan, {})
        num_groups = sum(len(optimizer.param_groups) for optimizer in self.targets.optimizers.values())
        meaning = (snapshot.optimizer, *snapshot.scaler.of_optimizer.values(), num_groups, scale is not None)
        layout = layouts.get(meaning) or layouts.setdefault(meaning, self._layout(snapshot))
        if norms is None:
            return Reading([], layout)
        if scale is None:
            return Reading(norms, layout)
        if norms.device.type == "cpu" != scale.device.type:  # offloaded: bringing the scale here would wait
            return Reading([*norms.tolist(), scale], layout)
        return Reading(torch.cat((norms, scale.reshape(1).to(norms.device, torch.float32, non_blocking=True))), layout)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Put the norms of the parameters of several optimizers behind each other.

        A gradient that belongs to several of them, or to none, counts as it was at the last call that measured it.
        """
        vectors = [reading.numbers for reading in readings if isinstance(reading.numbers, torch.Tensor)]
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
        return Reading(torch.cat([one.to(vectors[0].device) for one in vectors]) if vectors else [], layout)

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Combine the norms of every group in float64; null if the group has no gradient, or not all are known."""
        parts = layout.parts if isinstance(layout, JoinedLayout) else [(as_norm_layout(layout), len(numbers[0]))]
        vectors = np.array(numbers, dtype=np.float64)
        squares = np.zeros((len(numbers), len(self._groups)))
        start = 0
        for part, length in parts:
            squares += np.square(combine(vectors[:, start : start + length], part, self._groups))
            start += length
        norms = np.sqrt(squares)
        self._has_scale = any(part.has_scale for part, _ in parts)
        present = np.logical_or.reduce([part.present for part, _ in parts])
        unknown = np.logical_or.reduce([part.unknown for part, _ in parts])
        return {
            column: norms[:, index] if present[group].any() and not unknown[group].any() else [None] * len(numbers)
            for index, (column, group) in enumerate(zip(self.run_columns, self._groups, strict=True))
        }

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report norms that are not finite: as information under a loss scale, which is too high now and then."""
        return non_finite_events(rows, is_scaled=self._has_scale)

    def _layout(self, snapshot: StepSnapshot) -> NormLayout:
        scaler = snapshot.scaler
        scaling = [scaler.of_parameter(owners) for owners in self.targets.optimizers_of()]
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


@dataclass(frozen=True, slots=True, eq=False)
class JoinedLayout:
    """The layouts of several optimizers' norms that follow each other, each with how many numbers it describes."""

    parts: Sequence[tuple[NormLayout, int]]


def as_norm_layout(layout: object) -> NormLayout:
    """The layout of one pass; raise TypeError if it is another measure's."""
    if not isinstance(layout, NormLayout):
        raise TypeError(f"expected the NormLayout of gradient norms, got {layout!r}")
    return layout
