"""The settings of one run as frozen pydantic models."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ava_pipeline.signs.thresholds import Thresholds

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _not_empty(given: Any) -> Any:
    """No text would be the current directory."""
    if given == "":
        raise PydanticCustomError("empty_path", "Input should be a path, such as . for the current directory")
    return given


# Text becomes a path and YAML's list a tuple; everything else stays strict.
AnyPath = Annotated[Path, Field(strict=False), BeforeValidator(_not_empty)]
Globs = Annotated[tuple[str, ...], Field(strict=False)]


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
    groups: dict[str, str | Globs] | None = Field(
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
    signs: Thresholds = Field(default=Thresholds(), description="When a warning sign counts as seen.")


class SampleConfig(_Settings):
    """Generated images and votes in AVA's format, for a first run without AVA."""

    num_images: int = Field(default=800, ge=10, description="How many images to generate.")
    seed: int = Field(default=0, ge=0, description="The same seed generates the same images and votes.")
    image_size: int = Field(default=96, ge=32, description="Width and height of the generated JPEGs, in pixels.")


class SplitConfig(_Settings):
    """Which images train, validate and test: three fractions, or three files with one image id a line."""

    train: float | AnyPath = Field(description="Fraction of the images, or a file of image ids.")
    val: float | AnyPath = Field(description="Fraction of the images, or a file of image ids.")
    test: float | AnyPath | None = Field(
        default=None, description="Fraction of the images, a file of image ids, or null: no test set."
    )

    @property
    def fractions(self) -> tuple[float, ...] | None:
        """The fractions of train, val and test, or None where files are given."""
        sets = (self.train, self.val, 0.0 if self.test is None else self.test)
        given = tuple(float(share) for share in sets if not isinstance(share, Path))
        return given if len(given) == len(sets) else None

    @property
    def paths(self) -> dict[str, Path]:
        """The id lists by set; empty where fractions are given."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: value for name, value in named.items() if isinstance(value, Path)}

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        fractions = self.fractions
        if fractions is None:
            if len(self.paths) < (2 if self.test is None else 3):
                raise ValueError("fractions and files are mixed; give three fractions, or a file for each set")
        elif min(fractions[:2]) <= 0 or fractions[2] < 0:
            raise ValueError(f"given {fractions}; train and val must be above 0, test 0 or more")
        elif abs(sum(fractions) - 1) > 1e-6:  # noqa: PLR2004  # what decimal fractions lose in binary.
            raise ValueError(f"the fractions add up to {sum(fractions):g}; they must add up to 1")
        return self


class DataConfig(_Settings):
    """Where labels and images lie. Relative paths start at the current directory."""

    labels: AnyPath = Field(description="AVA.txt: index, image id, votes for 1..10, two tags, challenge.")
    images: AnyPath = Field(description="Folder of <image_id>.jpg.")
    split: SplitConfig = Field(
        default=SplitConfig(train=0.9, val=0.05, test=0.05), description="Which images train, validate and test."
    )
    image_size: int = Field(default=224, ge=32, description="Width and height the network sees, in pixels.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="More missing or broken images than this is an error."
    )
    num_workers: int = Field(default=2, ge=0, description="Processes that read images; 0 reads in the main one.")
    sample: SampleConfig | None = Field(
        default=None, description="Generate this data where it does not exist yet. For real AVA: null."
    )

    @model_validator(mode="after")
    def _generated_where_it_is_read(self) -> Self:
        if self.sample is not None and (self.labels.name != "AVA.txt" or self.images != self.labels.parent / "images"):
            raise ValueError(
                f"labels is {self.labels}, images {self.images}; generated data is written as FOLDER/AVA.txt and "
                "FOLDER/images: name these, or set sample to null"
            )
        return self


class ModelConfig(_Settings):
    """A ResNet from torchvision with an MLP head of ten logits."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        default="resnet50", description="The torchvision ResNet in front of the head."
    )
    weights: str = Field(
        default="imagenet",
        min_length=1,
        description="Backbone weights at the start: 'imagenet' (downloaded once), 'none', or a state dict file.",
    )
    hidden_sizes: tuple[Annotated[int, Field(ge=1, strict=True)], ...] = Field(
        default=(256,), description="Widths of the head's hidden layers; [] is one linear layer.", strict=False
    )
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout behind each hidden layer.")


class OptimConfig(_Settings):
    """Two parameter groups: 0 the backbone, 1 the head."""

    name: Literal["sgd", "adamw"] = Field(default="adamw", description="The optimizer.")
    base_lr: Positive = Field(default=1e-4, description="Learning rate of the backbone, after warm-up.")
    head_lr_mult: Positive = Field(default=10.0, description="The head's learning rate is this many times base_lr.")
    weight_decay: NotNegative = Field(default=1e-4, description="Weight decay of both groups.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD; AdamW has its own betas.")
    warmup_epochs: NotNegative | None = Field(default=None, description="Linear warm-up over this many epochs.")
    warmup_batches: int | None = Field(default=None, ge=0, description="Or: linear warm-up over this many batches.")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="After warm-up.")
    min_lr: NotNegative = Field(
        default=0.0, description="Where the cosine ends for the backbone; the head ends at head_lr_mult times it."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_epochs is not None and self.warmup_batches is not None:
            raise ValueError("warmup_epochs and warmup_batches are both given; give one of them")
        if self.min_lr > self.base_lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above base_lr {self.base_lr:g}; it must not be")
        return self


class TrainConfig(_Settings):
    """How long, in what portions and with what precision."""

    epochs: int = Field(default=10, ge=1, description="Times through the training images.")
    batch_size: int = Field(default=32, ge=2, description="Images a batch; a last smaller batch is left out.")
    accumulate: int = Field(default=1, ge=1, description="Batches whose gradients make one optimizer step.")
    clip_norm: Positive | None = Field(default=None, description="Clip the gradients to this L2 norm; null: do not.")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto", description="Mixed precision. auto: bf16 or fp16 on CUDA as the device has it, else off."
    )
    on_nonfinite_loss: Literal["stop", "continue"] = Field(
        default="stop", description="A loss of nan or inf: stop, or drop that batch's gradients and train on."
    )


class CheckpointConfig(_Settings):
    """When the run is saved besides the end of each epoch."""

    every_n_batches: int | None = Field(
        default=None, ge=1, description="Also save every n batches, at the next optimizer step; null: do not."
    )


class RunConfig(_Settings):
    """Everything that decides a run of `ava-pipeline train`."""

    output_dir: AnyPath = Field(description="Where the run's files go. Relative paths start at the current directory.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Weights, order, augmentation and split follow from it.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto: CUDA where there is one, then MPS, then the CPU."
    )
    save_val_predictions: bool = Field(
        default=True, description="Write each epoch's validation predictions to predictions/."
    )
    data: DataConfig = Field(description="Labels, images and split.")
    model: ModelConfig = Field(default=ModelConfig(), description="Backbone and head.")
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimizer and learning rates.")
    train: TrainConfig = Field(default=TrainConfig(), description="Epochs, batches and precision.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Saving for --resume.")
    telemetry: TelemetryConfig = Field(default=TelemetryConfig(), description="What the collector records.")

    def with_head_above(self) -> TelemetryConfig:
        """The telemetry's settings, the head's rate held above the backbone's where `optim` puts it there."""
        is_above = self.telemetry.signs.head_rate_above or self.optim.head_lr_mult > 1
        signs = self.telemetry.signs.model_copy(update={"head_rate_above": is_above})
        return self.telemetry.model_copy(update={"signs": signs})
