"""The tables of the measures that come with the package: what a reader knows of them without a manifest and torch."""

from ava_pipeline.contract.keys import KEY_COLUMNS
from ava_pipeline.contract.tables import Column, Table

GRADIENT_NORMS = Table(
    name="gradient_norms",
    description="L2 norm of every group's gradients taken as one vector: true scale, before clipping.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<group>",
        dtype="float32",
        description="L2 norm of the group's gradients; null where it had none.",
        nullable=True,
        not_below=0,
    ),
    l2_of_groups=True,
)

LEARNING_RATES = Table(
    name="learning_rates",
    description="The learning rate this step uses, in the optimizer's own group order, on through further optimizers.",
    columns=KEY_COLUMNS,
    run_columns=Column(
        name="<lr_group>",
        dtype="float64",
        description="Rate of one parameter group; null where the group came later or is gone.",
        nullable=True,
        not_below=0,
    ),
)

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
