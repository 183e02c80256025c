"""The thresholds of the signs. docs/diagnosis.md gives the reason for each default."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NumRows = Annotated[int, Field(ge=2)]


class Thresholds(BaseModel):
    """The thresholds of the signs, as set under `telemetry.signs`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    on_line: bool = Field(default=True, description="Check for signs while training too; `diagnose` always does.")
    least_rows: NumRows = Field(default=20, description="How many collected steps a state must last to be a sign.")
    backbone_share: Positive = Field(
        default=3e-3, description="The backbone's last stage is not learning below this share of the overall norm."
    )
    head_ratio: Positive = Field(
        default=30.0, description="The head dominates above this many times the norm of all other parameters."
    )
    dead_share: Positive = Field(default=1e-3, description="A layer is dead below this share of the whole head's norm.")
    vanishing_below: Positive = Field(default=1e-6, description="Gradients vanish if the overall norm is below this.")
    vanishing_ratio: Positive = Field(
        default=1e-4, description="Gradients also vanish below this share of the norm at the beginning of the run."
    )
    exploding_above: Positive = Field(default=1e4, description="Gradients explode if the overall norm is above this.")
    exploding_ratio: Positive = Field(
        default=100.0, description="Gradients also explode above this multiple of the norm at the beginning of the run."
    )
    spike_factor: Positive = Field(default=5.0, description="A spike exceeds the median before it by this factor.")
    spike_deviations: Positive = Field(
        default=6.0, description="A spike is also this many robust deviations of the logarithm above that median."
    )
    spike_window: NumRows = Field(default=64, description="How many collected steps before a spike give the median.")
    saturated_share: Positive = Field(
        default=1e-3, description="Outputs are saturated if the norm falls to this share of its median at a high loss."
    )
    saturated_loss: Positive = Field(default=3.0, description="A loss is high if it is this many times its median.")
    rising_factor: Positive = Field(default=10.0, description="Norms rise if they steadily grow by this factor.")
    rising_tau: Share = Field(default=0.8, description="Least Kendall's tau of norm and time for a steady rise.")
    loss_floor: float | None = Field(
        default=0.0, description="A loss below this has the wrong sign; null allows any value."
    )
    loss_rise: Positive = Field(default=1.2, description="A loss rises if it grows by this factor just as steadily.")
    rate_jump: Positive = Field(default=10.0, description="A rate jumps if it is this many times any earlier one.")
    head_rate_above: bool = Field(
        default=False, description="Whether the head's rate should be above the backbone's; `train` sets this itself."
    )
    update_above: Positive = Field(
        default=0.1, description="Updates are too large if a group moves by more than this share of its norm a batch."
    )
    update_below: Positive = Field(
        default=1e-9, description="Updates are very small if a group moves by less than this share of its norm a batch."
    )
    label_deviations: Positive = Field(
        default=6.0, description="Labels are biased from this many standard deviations of chance on."
    )
    clip_share: Share = Field(default=0.95, description="Clipping is too frequent if it shortens this share of steps.")
    clipped_tolerance: Share = Field(
        default=1e-4,
        description="A norm is at a bound, to which it may be clipped, if it differs from it by less than this share.",
    )
    clipped_ratio: Positive = Field(
        default=30.0,
        description="A bound is that of clipping if groups jump by this many times what the norms at it vary.",
    )
    overflow_share: Share = Field(
        default=0.05, description="Under a GradScaler, this share of rows may overflow without a warning."
    )
