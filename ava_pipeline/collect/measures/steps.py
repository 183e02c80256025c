"""Steps: when each collected step was, its loss scale, and what the user gave as values."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ava_pipeline.collect.measure import Measure, Moment, Reading
from ava_pipeline.contract.keys import KEY_COLUMNS
from ava_pipeline.contract.tables import Column, Table
from ava_pipeline.write.rows import Numbers

STEPS = Table(
    name="steps",
    description="When each collected step was, its loss scale, and what the user gave as values.",
    columns=(
        *KEY_COLUMNS,
        Column(name="time_utc", dtype="timestamp", description="When the step was collected, UTC."),
        Column(
            name="loss_scale",
            dtype="float64",
            description="What the loss was multiplied by under AMP; null without a GradScaler.",
            nullable=True,
            not_below=0,
        ),
        Column(
            name="clip_coefficient",
            dtype="float64",
            description="What clipping multiplies this step's gradients by, 1 where they are short enough; "
            "by the max_norm of the clip before. Null without telemetry.clip_grad_norm_.",
            nullable=True,
            not_below=0,
        ),
        Column(
            name="clip_rate",
            dtype="float64",
            description="Share of the clips since the last row, this step's not yet among them, that shortened.",
            nullable=True,
            not_below=0,
        ),
    ),
    run_columns=Column(
        name="<value>", dtype="float64", description="A value that the user gave to step().", nullable=True
    ),
)


class Steps(Measure):
    """The time, the scale, and a number a value."""

    table = STEPS

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The user's values, named as at the first collected step."""
        return self.watched.value_names

    def read(self, moment: Moment) -> Reading:
        """Take what there is; a value not given is null."""
        return Reading([
            moment.time_s,
            moment.scaler.scale,
            moment.clipping.coefficient,
            moment.clipping.num_shortened,
            moment.clipping.num_clips,
            *(moment.values.get(name) for name in self.watched.value_names),
        ])  # fmt: skip

    def columns(self, numbers: Sequence[Numbers], layout: object) -> dict[str, Sequence[object]]:  # noqa: ARG002  # one layout
        """Values by name."""
        times, scales, coefficients, num_shortened, num_clips, *values = map(list, zip(*numbers, strict=True))
        return {
            "time_utc": [datetime.fromtimestamp(time_s, UTC) for time_s in times],
            "loss_scale": scales,
            "clip_coefficient": coefficients,
            "clip_rate": [
                short / clips if clips else None for short, clips in zip(num_shortened, num_clips, strict=True)
            ],
            **dict(zip(self.run_columns, values, strict=True)),
        }
