"""Statistics of every parameter tensor: mean, spread, least and largest number, norm, and the norm of its gradient."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ava_pipeline.collect.layer_pass import LayerPlan, combine_pieces, kind
from ava_pipeline.collect.measures.gradient_readings import MAX_JOINED, GradientReadings, as_joined, joined_numbers
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.norms import combine_each
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.arrays import Bools, Floats, Integers, arrow_array
from ava_pipeline.contract.builtin_tables import PER_LAYER_STATS
from ava_pipeline.contract.columns import Values, to_arrow
from ava_pipeline.contract.events import Event
from ava_pipeline.write.channel import Numbers

_COLUMNS = {column.name: column for column in PER_LAYER_STATS.columns}


@dataclass(frozen=True, slots=True, eq=False)
class LayerLayout:
    """What the numbers of one step mean: those of the weights, unless they were read in the batch before; then norms.

    `norms` is what `GradientReadings` needs to know; None if no gradient is measured.
    """

    plan: LayerPlan
    num_of_weights: int
    norms: object


class LayerStats(Measure):
    """Reads the weights once per batch, and takes the norms of gradients from the pass that is made anyway.

    If several optimizers step in a batch, the weights are those at its first call, and each gradient is that of its own
    optimizer's call.
    """

    table = PER_LAYER_STATS

    def __init__(self, targets: TrainingTargets) -> None:
        super().__init__(targets)
        self._gradients = GradientReadings(targets)
        self._names, _ = to_arrow(_COLUMNS["layer_name"], targets.names)
        self._kinds: tuple[object, ...] = ()
        self._plan: LayerPlan | None = None
        self._layouts: dict[tuple[object, ...], LayerLayout] = {}
        self._batch_of_weights = 0

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Read the weights, unless an earlier call of the batch did, and the norm of every gradient."""
        plan = self._plan_of_weights()
        is_first = snapshot.optimizer is None or snapshot.batch_idx != self._batch_of_weights
        self._batch_of_weights = snapshot.batch_idx
        weights = Reading(plan.measure(self.targets.parameters) if is_first and plan.parts else [])
        norms = Reading([]) if snapshot.norms is None else self._gradients.read(snapshot)
        return self._reading(plan, weights, norms)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Keep the weights of the first call, and put the norms of all calls behind each other."""
        layouts = [_as_layer_layout(reading.layout) for reading in readings]
        norms = [
            Reading(reading.numbers[layout.num_of_weights :], layout.norms)
            for reading, layout in zip(readings, layouts, strict=True)
            if layout.norms is not None
        ]
        weights = Reading(readings[0].numbers[: layouts[0].num_of_weights])
        return self._reading(layouts[0].plan, weights, self._gradients.join(norms) if norms else Reading([]))

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Combine the pieces of every tensor in float64: a row for each parameter and step."""
        layout = _as_layer_layout(layout)
        plan, num_steps = layout.plan, len(numbers)
        vectors = np.array(numbers, dtype=np.float64)
        statistics = combine_pieces(vectors[:, : layout.num_of_weights], plan)
        is_empty = ~plan.is_measured | (plan.num_params == 0)
        norms, has_no_norm = self._norms(vectors[:, layout.num_of_weights :], layout.norms)
        return {
            "layer_name": pa.concat_arrays([self._names] * num_steps),
            "mean": _floats(statistics.mean, is_empty),
            "std": _floats(statistics.std, is_empty | (plan.num_params == 1)),
            "min": _floats(statistics.least, is_empty),
            "max": _floats(statistics.largest, is_empty),
            "l2_norm": _floats(statistics.l2_norm, ~plan.is_measured),
            "num_params": _column(pa.int64(), np.tile(plan.num_params, (num_steps, 1)), plan.is_unknown),
            "grad_norm": _floats(norms, has_no_norm),
        }

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:  # noqa: ARG002  # as every measure has it
        """Report nothing: an event for each of some hundred rows would say what those of the norms say already."""
        return ()

    def _plan_of_weights(self) -> LayerPlan:
        """The plan for parameters of these kinds; the same object while they stay the same."""
        kinds = tuple(map(kind, self.targets.parameters))
        if self._plan is None or kinds != self._kinds:
            self._plan = LayerPlan.of(self.targets.parameters, are_shards=self.targets.is_sharded)
            self._kinds = kinds
        return self._plan

    def _reading(self, plan: LayerPlan, weights: Reading, norms: Reading) -> Reading:
        """The numbers of the weights and of the gradients as one reading, whose layout neighbouring steps share."""
        num_of_weights = len(weights.numbers)
        meaning = (plan, num_of_weights, norms.layout)
        layout = self._layouts.get(meaning)
        if layout is None:
            if len(self._layouts) >= MAX_JOINED:
                self._layouts.clear()
            layout = self._layouts[meaning] = LayerLayout(*meaning)
        return Reading(joined_numbers([weights.numbers, norms.numbers]), layout)

    def _norms(self, numbers: Floats, layout: object) -> tuple[Floats, Bools]:
        """The norm of every parameter's gradient (steps, parameters), and which parameters have none."""
        num_parameters = len(self.targets.parameters)
        squares = np.zeros((len(numbers), num_parameters))
        if layout is None:
            return squares, np.ones(num_parameters, dtype=np.bool_)
        joined, start = as_joined(layout, numbers.shape[1]), 0
        for part, length in joined.parts:
            squares += combine_each(numbers[:, start : start + length], part)
            start += length
        return np.sqrt(squares), ~joined.is_known


def _as_layer_layout(layout: object) -> LayerLayout:
    if not isinstance(layout, LayerLayout):
        raise TypeError(f"expected the LayerLayout of per-layer statistics, got {layout!r}")
    return layout


def _floats(values: Floats, is_null: Bools) -> "pa.Array[Any]":
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return _column(pa.float32(), values.astype(np.float32), is_null)


def _column(
    arrow_type: pa.DataType, values: "np.typing.NDArray[np.float32] | Integers", is_null: Bools
) -> "pa.Array[Any]":
    """Values (steps, parameters), one step's behind those of the step before, null at some parameters."""
    mask = np.tile(is_null, len(values)) if is_null.any() else None
    return arrow_array(arrow_type, values.reshape(-1), mask)
