"""When a sign counts as seen. docs/diagnosis.md gives the reason for each figure."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NumRows = Annotated[int, Field(ge=2)]


class Thresholds(BaseModel):
    """The figures that the signs are judged by."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    on_line: bool = Field(default=True, description="Look while training too; `diagnose` looks in any case.")
    least_rows: NumRows = Field(default=20, description="Collected steps that a state must last to be a sign.")
    backbone_share: Positive = Field(
        default=3e-3, description="The backbone's last stage is not learning below this share of the overall norm."
    )
    head_ratio: Positive = Field(
        default=30.0, description="The head dominates where it is more than this many times all the rest."
    )
    dead_share: Positive = Field(default=1e-3, description="A head's layer is dead below this share of the head.")
    vanishing_below: Positive = Field(default=1e-6, description="Everything vanishes where the overall norm is below.")
    vanishing_ratio: Positive = Field(default=1e-4, description="... or below this share of the norm at the beginning.")
    exploding_above: Positive = Field(default=1e4, description="Everything explodes where the overall norm is above.")
    exploding_ratio: Positive = Field(default=100.0, description="... or above this multiple of the beginning's norm.")
    spike_factor: Positive = Field(default=5.0, description="A spike is this many times the median before it, and")
    spike_deviations: Positive = Field(default=6.0, description="this many robust deviations of the logarithm above.")
    spike_window: NumRows = Field(default=64, description="Collected steps before it that a spike is held against.")
    saturated_share: Positive = Field(
        default=1e-3, description="A batch saturates the outputs where the norm falls to this share of the median, and"
    )
    saturated_loss: Positive = Field(default=3.0, description="the loss is this many times its median.")
    rising_factor: Positive = Field(default=10.0, description="Norms rise where they grew by this factor, and")
    rising_tau: Share = Field(default=0.8, description="Kendall's tau of norm and time is at least this.")
    loss_floor: float | None = Field(
        default=0.0, description="A loss below is the wrong way round; null: the loss may be anything."
    )
    loss_rise: Positive = Field(default=1.2, description="The loss rises where it grew by this factor as steadily.")
    rate_jump: Positive = Field(default=10.0, description="A learning rate jumps by this factor from row to row.")
    head_rate_above: bool = Field(
        default=False, description="The head's rate is meant to be above the backbone's; `train` knows by itself."
    )
    clip_share: Share = Field(default=0.95, description="Clipping shortens nearly every step from this share on.")
    overflow_share: Share = Field(
        default=0.05, description="Under a GradScaler, this share of rows may overflow without a warning."
    )
