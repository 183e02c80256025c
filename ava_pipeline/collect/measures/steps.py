"""Steps: when each step was collected, its loss scale, what clipping did, and the user's values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import SupportsFloat

import numpy as np
import pyarrow as pa

from ava_pipeline.collect.amp import hooks_show_skips
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.arrays import null_mask, numpy_values
from ava_pipeline.contract.builtin_tables import STEPS
from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.values import non_finite_events, scale_drop_events
from ava_pipeline.write.channel import Numbers


class Steps(Measure):
    """Reads the time, the loss scale, the state of clipping, and one number per value."""

    table = STEPS

    def __init__(self, targets: TrainingTargets) -> None:
        super().__init__(targets)
        self._must_watch_scale = not hooks_show_skips(tuple(targets.optimizers.values()))
        self._init_scale: float | None = None
        self._before: tuple[float, int] | None = None

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The names of the user's values so far."""
        return self.targets.value_names

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Read the numbers of the step; a value that is not given is null."""
        self._init_scale = snapshot.scaler.init_scale
        clipping = snapshot.clipping
        return Reading([
            snapshot.time_s,
            snapshot.global_step,
            snapshot.scaler.scale,
            clipping.total,
            clipping.scale,
            clipping.max_norm,
            clipping.num_shortened,
            clipping.num_clips,
            *(snapshot.values.get(name) for name in self.targets.value_names),
        ])  # fmt: skip

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Take the first time and global step and, of everything else, the last number that is not None."""
        first, *others = (list(reading.numbers) for reading in readings)
        for _, _, *other in others:  # a value that came with a later call has no place in the numbers of the first
            time_s, global_step, *older = first
            last = (old if new is None else new for old, new in zip_longest(older, other))
            first = [time_s, global_step, *last]
        return Reading(first)

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:  # noqa: ARG002  # one layout
        """The columns of the table and one per value."""
        times, steps, scales, totals, total_scales, max_norms, num_shortened, num_clips, *values = zip(
            *numbers, strict=True
        )
        return {
            "time_utc": [datetime.fromtimestamp(time_s, UTC) for time_s in times],
            "global_step": steps,
            "loss_scale": scales,
            "clip_coefficient": list(map(_coefficient, totals, total_scales, max_norms)),
            "clip_rate": [
                shortened / clips if clips else None for shortened, clips in zip(num_shortened, num_clips, strict=True)
            ],
            **{name: list(map(_as_float, value)) for name, value in zip(self.run_columns, values, strict=True)},
        }

    def events(self, rows: pa.RecordBatch) -> Iterator[Event]:
        """Report values that are not finite, and drops of the loss scale if hooks cannot show skipped steps."""
        scales = rows.column("loss_scale")
        is_scaled = ~null_mask(scales) if scales.null_count else np.ones(rows.num_rows, dtype=np.bool_)
        yield from non_finite_events(rows, is_scaled=bool(is_scaled.any()))
        if self._must_watch_scale:
            yield from scale_drop_events(rows, *(self._before or (self._init_scale, self.targets.resumed_from + 1)))
            if is_scaled.any():
                last = int(np.flatnonzero(is_scaled)[-1])
                self._before = float(numpy_values(scales)[last]), int(numpy_values(rows.column("batch_idx"))[last])


def _as_float(value: object) -> object:
    """Integers, booleans and NumPy numbers as floats; None stays "not measured"."""
    return float(value) if isinstance(value, SupportsFloat) else value


def _coefficient(total: float | None, scale: float | None, max_norm: float | None) -> float | None:
    """What clipping multiplies gradients by, as in `torch.nn.utils.clip_grads_with_norm_`."""
    if total is None or max_norm is None:
        return None
    length = total if scale is None else total / scale if scale else math.nan  # a GradScaler can halve down to 0
    return length if math.isnan(length) else min(1.0, max_norm / (length + 1e-6))
