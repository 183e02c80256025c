"""The tables of the built-in measures, of `ava-pipeline train` and of predictions, also for readers without torch."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from ava_pipeline.contract.columns import Column, Dtype
from ava_pipeline.contract.tables import BATCH, KEY_COLUMNS, RunTable, Table
from ava_pipeline.errors import MisuseError

NUM_SCORES = 10
SCORES = range(1, NUM_SCORES + 1)
HOLDOUT = "holdout_predictions"
HoldoutKind = Literal["classes", "scores"]


def _share(name: str, what: str) -> Column:
    return Column(name=name, dtype="float32", description=what, not_below=0)


GRADIENT_NORMS = Table(
    name="gradient_norms",
    description="L2 norm of each group's gradients, taken as one vector: at true scale and before clipping.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<group>",
        dtype="float32",
        description="L2 norm of the group's gradients; null if they were missing or could not be measured.",
        nullable=True,
        not_below=0,
    ),
    l2_of_groups=True,
)

LEARNING_RATES = Table(
    name="learning_rates",
    description="The learning rates that each step uses: those of the optimizer's groups, then of further optimizers.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<lr_group>",
        dtype="float64",
        description="Rate of one parameter group; null before the group was added and after it was removed.",
        nullable=True,
        not_below=0,
    ),
)

STEPS = Table(
    name="steps",
    description="The time and the loss scale of each collected step, the effect of clipping, and the user's values.",
    columns=(
        *KEY_COLUMNS,
        Column(name="time_utc", dtype="timestamp", description="When the step was collected, in UTC."),
        Column(
            name="global_step",
            dtype="int64",
            description="Optimizer steps before this one, as given to step() or counted; null if unknown.",
            nullable=True,
            not_below=0,
        ),
        Column(
            name="loss_scale",
            dtype="float64",
            description="Factor by which AMP multiplied the loss; null without a GradScaler.",
            nullable=True,
            not_below=0,
        ),
        Column(
            name="clip_coefficient",
            dtype="float64",
            description="Factor by which clipping to the previous clip's max_norm multiplies this step's gradients; "
            "1 if they are short enough. Null without telemetry.clip_grad_norm_.",
            nullable=True,
            not_below=0,
        ),
        Column(
            name="clip_rate",
            dtype="float64",
            description="Share of the clips since the previous row, without this step's own, that shortened gradients.",
            nullable=True,
            not_below=0,
        ),
    ),
    run_columns=Column(
        name="<value>", dtype="float64", description="A value that was passed to step().", nullable=True
    ),
)

WEIGHT_NORMS = Table(
    name="weight_norms",
    description="L2 norm of each group's parameters, taken as one vector: those that the batch was computed with.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<group>",
        dtype="float64",
        description="L2 norm of the group's parameters; null if they could not be measured.",
        nullable=True,
        not_below=0,
    ),
    l2_of_groups=True,
)

WEIGHT_DELTAS = Table(
    name="weight_deltas",
    description="How far each group's parameters moved since the row before: L2 norm of the difference.",
    columns=(
        *KEY_COLUMNS,
        Column(
            name="num_batches",
            dtype="int64",
            description="Batches since the row that the weights are compared with; null if there is none.",
            nullable=True,
            not_below=1,
        ),
    ),
    run_columns=Column(
        name="<group>",
        dtype="float64",
        description="L2 norm of the difference; null in a run's first row, or if the weights before are not known.",
        nullable=True,
        not_below=0,
    ),
    l2_of_groups=True,
)


def _of_weights(name: str, what: str, *, not_below: int | None = None) -> Column:
    return Column(name=name, dtype="float32", description=what, nullable=True, not_below=not_below)


PER_LAYER_STATS = Table(
    name="per_layer_stats",
    description="Statistics of each parameter tensor, those that the batch was computed with, and of its gradient.",
    columns=(
        *KEY_COLUMNS,
        Column(name="layer_name", dtype="string", description="The parameter's name in the model."),
        _of_weights("mean", "Mean; null if the tensor is empty or could not be read."),
        _of_weights("std", "Standard deviation, with n - 1 in the denominator; null also of one number.", not_below=0),
        _of_weights("min", "Least number; null as the mean."),
        _of_weights("max", "Largest number; null as the mean."),
        _of_weights("l2_norm", "L2 norm; null if the tensor could not be read.", not_below=0),
        Column(
            name="num_params",
            dtype="int64",
            description="How many numbers the tensor has; null if each process knows only its own part.",
            nullable=True,
            not_below=0,
        ),
        _of_weights(
            "grad_norm", "L2 norm of its gradient, at true scale and before clipping; null if missing.", not_below=0
        ),
    ),
    row_key=("layer_name",),
    in_csv=False,
)

BATCH_STATS = Table(
    name="batch_stats",
    description="The labels of each collected batch, as they were given to step().",
    columns=(
        *KEY_COLUMNS,
        Column(
            name="batch_size", dtype="int64", description="Samples; null without labels.", nullable=True, not_below=0
        ),
    ),
    run_columns=Column(
        name="<label>",
        dtype="float64",
        description="<label>_<class>_pct, in percent of the batch; or, of labels that are scores' votes or shares, "
        "<label>_mean and <label>_std of the samples' mean scores.",
        nullable=True,
    ),
)


def holdout_table(kind: HoldoutKind, *, num_ids: int, num_classes: int, integer_ids: bool) -> Table:
    """The table of the held-out samples' predictions: of two or more classes, or of ten scores.

    A sample has one id (`image_id`), or two if it is a pair of images (`image1`, `image2`).
    """
    names = ("image_id",) if num_ids == 1 else tuple(f"image{place}" for place in range(1, num_ids + 1))
    dtype: Dtype = "int64" if integer_ids else "string"
    ids = tuple(Column(name=name, dtype=dtype, description="The id of a held-out image.") for name in names)
    predicted = _predicted_scores() if kind == "scores" else _predicted_classes(num_classes)
    return Table(
        name=HOLDOUT,
        description="Predictions of the same held-out samples at each collected step.",
        columns=(*KEY_COLUMNS, *ids, *predicted),
        row_key=names,
    )


def _predicted_classes(num_classes: int) -> tuple[Column, ...]:
    return (
        Column(name="label", dtype="int64", description="The true class, from 0.", not_below=0),
        Column(name="prediction", dtype="int64", description="The class with the largest logit.", nullable=True),
        *(
            Column(name=f"logit_{index}", dtype="float32", description=f"The model's output for class {index}.")
            for index in range(num_classes)
        ),
        Column(
            name="correct",
            dtype="bool",
            description="Whether the prediction is the label; null if a logit is nan.",
            nullable=True,
        ),
    )


def _predicted_scores() -> tuple[Column, ...]:
    return (
        Column(name="gt_mean", dtype="float64", description="Mean of the true votes, 1 to 10."),
        Column(name="pred_mean", dtype="float64", description="Mean of the predicted distribution, 1 to 10."),
        *(_share(f"pred_dist_{score}", f"Predicted share of score {score}.") for score in SCORES),
    )


_EPOCH = Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0)
_VALIDATED_BATCH = Column(
    name=BATCH,
    dtype="int64",
    description="The batch after which the model was validated; null at the end of the epoch.",
    nullable=True,
    not_below=1,
)

_METRIC = Column(
    name="<metric>",
    dtype="float64",
    description="A metric that was passed to log_metrics(); null if the row has none.",
    nullable=True,
)

METRICS = Table(
    name="metrics",
    description="metrics.csv of a run that logged metrics: one row per epoch.",
    columns=(_EPOCH,),
    run_columns=_METRIC,
)

METRICS_BY_BATCH = Table(
    name="metrics",
    description="metrics.csv of a run that logged metrics: one row per epoch, and one per batch that batch_idx names.",
    columns=(_EPOCH, _VALIDATED_BATCH),
    run_columns=_METRIC,
)


def metrics_table(column_names: Sequence[str]) -> RunTable:
    """The table of a metrics.csv with these columns; raise MisuseError if it cannot have them."""
    table = METRICS_BY_BATCH if BATCH in column_names[1:2] else METRICS
    num_keys = len(table.columns)
    if [column.name for column in table.columns] != list(column_names[:num_keys]):
        raise MisuseError(
            f"expected the columns epoch, perhaps batch_idx, and metrics, got {','.join(column_names)!r}."
        )
    RunTable.of(METRICS_BY_BATCH, column_names[num_keys:])  # batch_idx is the second column or none
    return RunTable.of(table, column_names[num_keys:])


def _metric(name: str, description: str, *, not_below: int | None = None) -> Column:
    return Column(name=name, dtype="float64", description=description, not_below=not_below)


TRAIN_METRICS = Table(
    name="metrics",
    description="metrics.csv of `ava-pipeline train`: one row per epoch; nan if a metric is not defined, such as a "
    "correlation with a constant.",
    columns=(
        _EPOCH,
        _metric("train_loss", "Mean training loss of the epoch."),
        _metric("emd_r1", "Mean absolute difference of the cumulative distributions.", not_below=0),
        _metric("emd_r2", "Mean over images of the root mean squared difference of their CDFs.", not_below=0),
        _metric("srcc", "Spearman's rank correlation of the mean scores.", not_below=-1),
        _metric("plcc", "Pearson's correlation of the mean scores.", not_below=-1),
        _metric("accuracy", "Share of images predicted on the right side of a mean score of 5.", not_below=0),
        _metric("mae", "Mean absolute error of the mean scores, in score points.", not_below=0),
        _metric("rmse", "Root mean squared error of the mean scores, in score points.", not_below=0),
    ),
)

PRED_COLUMNS = tuple(f"pred_dist_{score}" for score in SCORES)
GT_COLUMNS = tuple(f"gt_dist_{score}" for score in SCORES)


HOLDOUT_CLASSES = holdout_table("classes", num_ids=2, num_classes=2, integer_ids=False)
HOLDOUT_SCORES = holdout_table("scores", num_ids=1, num_classes=NUM_SCORES, integer_ids=True)
BUILT_IN_TABLES = (
    GRADIENT_NORMS,
    LEARNING_RATES,
    STEPS,
    WEIGHT_NORMS,
    WEIGHT_DELTAS,
    PER_LAYER_STATS,
    BATCH_STATS,
    HOLDOUT_CLASSES,
)

PREDICTIONS = Table(
    name="predictions",
    description="Predicted and true score distributions, one row per image. image_id may be a string.",
    columns=(
        Column(name="image_id", dtype="int64", description="The image's id; int64 if every id is an integer."),
        Column(name="pred_mean", dtype="float64", description="Mean of the predicted distribution, 1 to 10."),
        Column(name="gt_mean", dtype="float64", description="Mean of the true votes, 1 to 10, from integer counts."),
        *(_share(f"pred_dist_{score}", f"Predicted share of score {score}.") for score in SCORES),
        *(_share(f"gt_dist_{score}", f"True share of score {score}.") for score in SCORES),
    ),
)

_INTEGER_IDS = RunTable.of(PREDICTIONS).arrow_schema
_STRING_IDS = _INTEGER_IDS.set(0, pa.field("image_id", pa.string(), nullable=False))


def predictions_schema(*, integer_ids: bool) -> pa.Schema:
    """The Arrow schema of a file of predictions, whose image ids are int64 or strings."""
    return _INTEGER_IDS if integer_ids else _STRING_IDS
