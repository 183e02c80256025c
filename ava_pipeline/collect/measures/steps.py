"""Steps: when each collected step was, its loss scale, and what the user gave as values."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import SupportsFloat

from ava_pipeline.collect.amp import hooks_show_skips
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.builtin_tables import STEPS
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.values import non_finite_events, scale_drop_events
from ava_pipeline.write.pending import Numbers, Rows


class Steps(Measure):
    """The time, the scale, what clipping did, and a number a value."""

    table = STEPS

    def __init__(self, watched: TrainingTargets) -> None:
        super().__init__(watched)
        self._is_told_by_scale = not hooks_show_skips(tuple(watched.optimizers.values()))
        self._init_scale: float | None = None
        self._before: tuple[float | None, int] | None = None

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The user's values, named as at the first collected step."""
        return self.watched.value_names

    def read(self, moment: StepSnapshot) -> Reading:
        """Take what there is; a value not given is null."""
        self._init_scale = moment.scaler.init_scale
        return Reading([
            moment.time_s,
            moment.scaler.scale,
            moment.clipping.total,
            moment.clipping.scale,
            moment.clipping.max_norm,
            moment.clipping.num_shortened,
            moment.clipping.num_clips,
            *(moment.values.get(name) for name in self.watched.value_names),
        ])  # fmt: skip

    def columns(self, numbers: Sequence[Numbers], layout: object) -> dict[str, Sequence[object]]:  # noqa: ARG002  # one layout
        """Values by name."""
        times, scales, totals, of_totals, max_norms, num_shortened, num_clips, *values = map(
            list, zip(*numbers, strict=True)
        )
        return {
            "time_utc": [datetime.fromtimestamp(time_s, UTC) for time_s in times],
            "loss_scale": scales,
            "clip_coefficient": list(map(_coefficient, totals, of_totals, max_norms)),
            "clip_rate": [
                short / clips if clips else None for short, clips in zip(num_shortened, num_clips, strict=True)
            ],
            **{name: list(map(_as_float, of_it)) for name, of_it in zip(self.run_columns, values, strict=True)},
        }

    def events(self, rows: Rows) -> Iterator[Event]:
        """What is not finite; and where the loss scale fell, if hooks do not tell of skipped steps."""
        yield from non_finite_events(rows, is_scaled=any(row["loss_scale"] is not None for row in rows))
        if self._is_told_by_scale:
            before = self._before or (self._init_scale, self.watched.resumed_from + 1)
            yield from scale_drop_events(rows, *before)
            for row in rows:
                if isinstance(row["loss_scale"], float) and isinstance(row["batch_idx"], int):
                    self._before = row["loss_scale"], row["batch_idx"]


def _as_float(value: object) -> object:
    """Whole numbers and truths are numbers too; None stays "not measured"."""
    return float(value) if isinstance(value, SupportsFloat) else value


def _coefficient(total: float | None, scale: float | None, max_norm: float | None) -> float | None:
    """What clipping multiplies gradients by, as in `torch.nn.utils.clip_grads_with_norm_`."""
    if total is None or max_norm is None:
        return None
    length = total if scale is None else total / scale if scale else math.nan  # halved down to 0 by a GradScaler
    return length if math.isnan(length) else min(1.0, max_norm / (length + 1e-6))
