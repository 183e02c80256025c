"""The columns of a file of predictions: one epoch of one set, one row per image."""

import pyarrow as pa

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.tables import RunTable, Table

NUM_SCORES = 10
SCORES = range(1, NUM_SCORES + 1)
PRED_COLUMNS = tuple(f"pred_dist_{score}" for score in SCORES)
GT_COLUMNS = tuple(f"gt_dist_{score}" for score in SCORES)


def _share(name: str, what: str) -> Column:
    return Column(name=name, dtype="float32", description=what, not_below=0)


PREDICTIONS = Table(
    name="predictions",
    description="Predicted and true score distributions, a row an image. image_id may be a string.",
    columns=(
        Column(name="image_id", dtype="int64", description="The image's id; int64 where every id is an integer."),
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
