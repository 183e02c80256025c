"""The settings of one run, as frozen pydantic models."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ava_pipeline.signs.thresholds import Positive, Thresholds

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _not_empty(value: Any) -> Any:
    """Refuse empty text, which pathlib would take for the current directory."""
    if value == "":
        raise PydanticCustomError("empty_path", "Input should be a path, such as . for the current directory")
    return value


# Text becomes a path, and a list a tuple; every other value must have the declared type.
AnyPath = Annotated[Path, Field(strict=False), BeforeValidator(_not_empty)]
Globs = Annotated[tuple[str, ...], Field(strict=False)]


def _drop_example(schema: dict[str, Any]) -> None:
    """Keep the first line of a docstring as a schema's description, without its example in Python."""
    schema["description"] = schema["description"].partition("\n")[0]


class _Settings(BaseModel):
    """Frozen and strict settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_drop_example)


class TelemetryConfig(_Settings):
    """What the collector records, how often, and what it does if it cannot.

    TelemetryCollector(model, optimizer, output_dir, TelemetryConfig(collect_every_n=25, formats=("parquet",)))
    """

    enabled: bool = Field(default=True, description="Whether to collect. Predictions and clipping work in either case.")
    collect_every_n: int = Field(default=10, ge=1, description="Collect every n-th batch: n, 2n, 3n, ...")
    formats: tuple[Literal["csv", "parquet"], ...] = Field(
        default=("csv", "parquet"), min_length=1, description="File formats of the tables.", strict=False
    )
    csv_of_long_tables: bool = Field(
        default=False, description="Also write CSV of per_layer_stats, whose rows are many; by default, only Parquet."
    )
    track_gradients: bool = Field(default=True, description="Record gradient_norms.")
    track_learning_rates: bool = Field(default=True, description="Record learning_rates.")
    track_weight_delta: bool = Field(
        default=False,
        description="Record weight_norms, and in weight_deltas how far the weights moved since the row before. "
        "Takes a copy of the weights on their device, which state_dict() has too.",
    )
    track_batch_stats: bool = Field(
        default=False, description="Record in batch_stats the shares of the labels that are given to step()."
    )
    label_classes: dict[str, Annotated[int, Field(ge=2, strict=True)]] = Field(
        default_factory=dict, description="Of labels that are classes, how many there are, such as {winner: 2}."
    )
    track_holdout_logits: bool = Field(
        default=False, description="Record holdout_predictions, of the samples that set_holdout() was given."
    )
    holdout_size: int = Field(default=50, ge=1, description="How many samples are held out at most.")
    track_per_layer_stats: bool = Field(
        default=False, description="Record per_layer_stats: a row for each parameter tensor."
    )
    track_weight_snapshots: bool = Field(
        default=False, description="Save the weights as safetensors, in weight_snapshots/."
    )
    weight_snapshot_every_n: int = Field(default=500, ge=1, description="Save the weights every n batches.")
    max_weight_snapshots: int = Field(
        default=100, ge=2, description="Past this many snapshots, every second of the older ones is removed."
    )
    groups: dict[str, str | Globs] | None = Field(
        default=None,
        description="Globs of parameter names for each column. By default the groups are found in the model.",
        strict=False,
    )
    flush_interval_s: Positive = Field(
        default=1.0, description="Rows are written to the files after at most this many seconds."
    )
    max_pending_rows: int = Field(default=1024, ge=1, description="How many collected steps may wait to be written.")
    on_full: Literal["drop", "block"] = Field(
        default="drop", description="When that many steps are waiting: drop the new one, or block until there is space."
    )
    block_timeout_s: Positive = Field(
        default=1.0, description="With on_full: block, drop a step after waiting this many seconds."
    )
    on_error: Literal["warn", "raise"] = Field(
        default="warn", description="If the disk or the data cause trouble: warn once and continue training, or raise."
    )
    fsync: bool = Field(
        default=False, description="Sync files to the disk at every flush, so that they survive a power loss."
    )
    signs: Thresholds = Field(default=Thresholds(), description="The thresholds of warning signs.")


class SampleConfig(_Settings):
    """Generated images and votes in AVA's format, for a first run without AVA."""

    num_images: int = Field(default=800, ge=10, description="How many images to generate.")
    seed: int = Field(default=0, ge=0, description="The same seed generates the same images and votes.")
    image_size: int = Field(default=96, ge=32, description="Width and height of the generated JPEGs, in pixels.")


class SplitConfig(_Settings):
    """The training, validation and test sets: three fractions, or three files with one image id per line."""

    train: float | AnyPath = Field(description="Fraction of the images, or a file of image ids.")
    val: float | AnyPath = Field(description="Fraction of the images, or a file of image ids.")
    test: float | AnyPath | None = Field(
        default=None, description="Fraction of the images, a file of image ids, or null for no test set."
    )

    @property
    def fractions(self) -> tuple[float, ...] | None:
        """The fractions of train, val and test; None if files are given."""
        sets = (self.train, self.val, 0.0 if self.test is None else self.test)
        given = tuple(float(share) for share in sets if not isinstance(share, Path))
        return given if len(given) == len(sets) else None

    @property
    def paths(self) -> dict[str, Path]:
        """The files of image ids by set; empty if fractions are given."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: value for name, value in named.items() if isinstance(value, Path)}

    @model_validator(mode="after")
    def _is_fractions_or_files(self) -> Self:
        fractions = self.fractions
        if fractions is None:
            if len(self.paths) < (2 if self.test is None else 3):
                raise ValueError("fractions and files are mixed; give a fraction for each set, or a file for each set")
        elif min(fractions[:2]) <= 0 or fractions[2] < 0:
            raise ValueError(f"expected train and val above 0, and test 0 or more, got {fractions}")
        elif abs(sum(fractions) - 1) > 1e-6:  # noqa: PLR2004  # the rounding of decimal fractions
            raise ValueError(f"expected fractions that add up to 1, got a sum of {sum(fractions):g}")
        return self


class DataConfig(_Settings):
    """Paths of labels and images. Relative paths are resolved from the current directory."""

    labels: AnyPath = Field(description="AVA.txt: index, image id, votes for 1..10, two tags, challenge.")
    images: AnyPath = Field(description="Folder of the images, each named <image_id>.jpg.")
    split: SplitConfig = Field(
        default=SplitConfig(train=0.9, val=0.05, test=0.05), description="Images for training, validation and testing."
    )
    image_size: int = Field(default=224, ge=32, description="Width and height of the network's input, in pixels.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Largest fraction of images that may be missing or broken."
    )
    num_workers: int = Field(default=2, ge=0, description="Processes that read images; 0 reads in the main process.")
    sample: SampleConfig | None = Field(
        default=None, description="Generate this data if it does not exist yet; null for the real AVA."
    )

    @model_validator(mode="after")
    def _has_labels_beside_images(self) -> Self:
        if self.sample is not None and (self.labels.name != "AVA.txt" or self.images != self.labels.parent / "images"):
            raise ValueError(
                "generated data is written as FOLDER/AVA.txt and FOLDER/images, but labels is "
                f"{self.labels} and images is {self.images}; change these paths, or set sample to null"
            )
        return self


class ModelConfig(_Settings):
    """A torchvision ResNet with an MLP head that outputs ten logits."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        default="resnet50", description="The torchvision ResNet in front of the head."
    )
    weights: str = Field(
        default="imagenet",
        min_length=1,
        description="Initial weights of the backbone: 'imagenet' (downloaded once), 'none', or a state dict file.",
    )
    hidden_sizes: tuple[Annotated[int, Field(ge=1, strict=True)], ...] = Field(
        default=(256,),
        description="Widths of the head's hidden layers; [] makes the head one linear layer.",
        strict=False,
    )
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout after each hidden layer.")


class OptimConfig(_Settings):
    """The optimizer with two parameter groups: 0 is the backbone, 1 the head."""

    name: Literal["sgd", "adamw"] = Field(default="adamw", description="The optimizer.")
    base_lr: Positive = Field(default=1e-4, description="Learning rate of the backbone after warm-up.")
    head_lr_mult: Positive = Field(default=10.0, description="The head's learning rate is this many times base_lr.")
    weight_decay: NotNegative = Field(default=1e-4, description="Weight decay of both groups.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD; AdamW does not use it.")
    warmup_epochs: NotNegative | None = Field(default=None, description="Linear warm-up over this many epochs.")
    warmup_batches: int | None = Field(default=None, ge=0, description="Linear warm-up over this many batches instead.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate schedule after warm-up."
    )
    min_lr: NotNegative = Field(
        default=0.0,
        description="Backbone's learning rate at the end of the cosine; the head's is head_lr_mult times as high.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.warmup_epochs is not None and self.warmup_batches is not None:
            raise ValueError("warmup_epochs and warmup_batches are both given; give only one of them")
        if self.min_lr > self.base_lr:
            raise ValueError(f"expected min_lr of at most base_lr, {self.base_lr:g}, got {self.min_lr:g}")
        return self


class TrainConfig(_Settings):
    """How long to train, with which batches and which precision."""

    epochs: int = Field(default=10, ge=1, description="Passes over the training images.")
    batch_size: int = Field(default=32, ge=2, description="Images per batch; a smaller last batch is skipped.")
    accumulate: int = Field(
        default=1, ge=1, description="Batches whose gradients are accumulated for one optimizer step."
    )
    clip_norm: Positive | None = Field(
        default=None, description="Clip the gradients to this L2 norm; null does not clip."
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto",
        description="Mixed precision. auto: on CUDA bf16 if the device supports it, else fp16; off elsewhere.",
    )
    on_nonfinite_loss: Literal["stop", "continue"] = Field(
        default="stop", description="If the loss is nan or inf: stop, or drop the gradients of that batch and continue."
    )


class CheckpointConfig(_Settings):
    """When to save the run in addition to the end of each epoch."""

    every_n_batches: int | None = Field(
        default=None,
        ge=1,
        description="Also save every n batches, at the next optimizer step; null saves after epochs only.",
    )


class RunConfig(_Settings):
    """All settings of a run of `ava-pipeline train`.

    config = load_config("configs/demo.yaml")      # ava_pipeline.config.load
    config.train.epochs, config.telemetry.collect_every_n
    """

    output_dir: AnyPath = Field(description="Directory of the run, relative to the current directory.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Determines the initial weights, the order of images, the augmentation and the split.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto: CUDA if available, else MPS if available, else the CPU."
    )
    save_val_predictions: bool = Field(
        default=True, description="Write the validation predictions of each epoch to predictions/."
    )
    data: DataConfig = Field(description="Labels, images and split.")
    model: ModelConfig = Field(default=ModelConfig(), description="Backbone and head.")
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimizer and learning rates.")
    train: TrainConfig = Field(default=TrainConfig(), description="Epochs, batches and precision.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints for --resume.")
    telemetry: TelemetryConfig = Field(default=TelemetryConfig(), description="What the collector records.")

    def resolved_telemetry(self) -> TelemetryConfig:
        """The telemetry settings, with `head_rate_above` set if `optim` puts the head's rate above the backbone's."""
        is_above = self.telemetry.signs.head_rate_above or self.optim.head_lr_mult > 1
        signs = self.telemetry.signs.model_copy(update={"head_rate_above": is_above})
        return self.telemetry.model_copy(update={"signs": signs})
