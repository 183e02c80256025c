"""Gradient norms: the L2 norm of every group's gradients."""

from collections.abc import Sequence

import numpy as np
import torch

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.measure import Measure, Moment, Reading
from ava_pipeline.collect.norms import NormLayout, combine, piece_norms
from ava_pipeline.collect.watched import Watched
from ava_pipeline.contract.keys import KEY_COLUMNS
from ava_pipeline.contract.tables import Column, Table
from ava_pipeline.write.rows import Numbers

GRADIENT_NORMS = Table(
    name="gradient_norms",
    description="L2 norm of every group's gradients taken as one vector: true scale, before clipping.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<group>",
        dtype="float32",
        description="L2 norm of the group's gradients; null where it had none.",
        nullable=True,
        not_below=0,
    ),
    l2_of_groups=True,
)


class GradientNorms(Measure):
    """One vector of norms a step, combined by group off the training thread."""

    table = GRADIENT_NORMS

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._groups = [np.array(positions) for positions in watched.positions().values()]
        self._optimizers = [None if owner is None else id(owner) for owner in watched.optimizer_of()]
        self._layouts: dict[tuple[bool, ...], NormLayout] = {}

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.watched.groups)

    def read(self, moment: Moment) -> Reading:
        """Take every gradient's norm in one pass, and the loss scale where gradients are still multiplied by it."""
        scaling = [moment.scaler.of_optimizer.get(owner or 0, Scaling.NONE) for owner in self._optimizers]
        present = [
            gradient is not None and of_it is not Scaling.UNKNOWN
            for gradient, of_it in zip(moment.gradients, scaling, strict=True)
        ]
        measured = [
            gradient
            for gradient, there in zip(moment.gradients, present, strict=True)
            if there and gradient is not None
        ]
        is_scaled = [of_it is Scaling.SCALED for of_it in scaling]
        if not measured:
            return Reading([], self._layout(present, is_scaled, []))
        norms, owners = piece_norms(measured)
        if moment.scaler.scale is not None:
            norms = torch.cat((norms, moment.scaler.scale.reshape(1).to(norms.device, torch.float32)))
        return Reading(norms, self._layout(present, is_scaled, owners))

    def columns(self, numbers: Sequence[Numbers], layout: object) -> dict[str, Sequence[object]]:
        """Combine the pieces of every group in float64."""
        if not isinstance(layout, NormLayout):
            raise TypeError(f"The layout of gradient norms is a NormLayout, not {layout!r}.")
        vectors = np.stack([np.asarray(vector, dtype=np.float64) for vector in numbers])
        norms = combine(vectors, layout, self._groups).astype(np.float32)
        return {
            column: norms[:, index].tolist() if layout.present[group].any() else [None] * len(numbers)
            for index, (column, group) in enumerate(zip(self.run_columns, self._groups, strict=True))
        }

    def _layout(self, present: list[bool], is_scaled: list[bool], owners: list[int]) -> NormLayout:
        """The same object for steps whose numbers mean the same, so that they are made rows of together."""
        key = (*present, *is_scaled)
        if key not in self._layouts:
            positions = np.flatnonzero(present)
            self._layouts[key] = NormLayout(
                owners=positions[np.array(owners, dtype=np.int64)],
                present=np.array(present),
                is_scaled=np.array(is_scaled),
            )
        return self._layouts[key]
