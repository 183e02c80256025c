"""One run's settings: YAML -> frozen pydantic models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    """Frozen, strict, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TelemetryConfig(_Settings):
    """What the collector records, how often, and what it does when it cannot."""

    enabled: bool = Field(default=True, description="Collect at all. Predictions and clipping work either way.")
    collect_every_n: int = Field(default=10, ge=1, description="Collect every n-th batch: n, 2n, 3n, ...")
    formats: tuple[Literal["csv", "parquet"], ...] = Field(
        default=("csv", "parquet"), min_length=1, description="File formats of the tables.", strict=False
    )
    groups: dict[str, str | tuple[str, ...]] | None = Field(
        default=None, description="Column -> parameter name globs. Found in the model where left out.", strict=False
    )
    flush_interval_s: Positive = Field(default=1.0, description="Rows reach the files within this many seconds.")
    max_pending_rows: int = Field(default=1024, ge=1, description="Collected steps that may wait to be written.")
    on_full: Literal["drop", "block"] = Field(
        default="drop", description="When that many wait: drop the new one, or wait for room."
    )
    block_timeout_s: Positive = Field(default=1.0, description="With on_full 'block': wait this long, then drop.")
    on_error: Literal["warn", "raise"] = Field(
        default="warn", description="Trouble with disk or data: warn once and train on, or raise."
    )
    fsync: bool = Field(default=False, description="Sync files to the disk at every flush: survives power loss.")
