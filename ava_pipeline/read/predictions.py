"""Read one Parquet file of predictions, of a run or from elsewhere, as arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Floats, float_columns
from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.metrics import Metrics, prediction_metrics
from ava_pipeline.read.settings import read_settings

_COLUMNS = (*PRED_COLUMNS, *GT_COLUMNS, "pred_mean", "gt_mean")
_IMAGE = "image_id"


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """One file of predictions."""

    path: Path
    image_ids: "pa.ChunkedArray[pa.Scalar[pa.DataType]] | None"  # [images] int64 or string
    pred: Floats  # [images, 10] predicted shares; nan of a model that predicts the mean alone
    truth: Floats  # [images, 10] true shares
    pred_mean: Floats  # [images] mean scores
    gt_mean: Floats  # [images]

    @property
    def num_images(self) -> int:
        """The number of rows in the file."""
        return len(self.pred_mean)

    def metrics(self) -> Metrics:
        """The figures of merit of these predictions."""
        return prediction_metrics(self.pred, self.truth, self.pred_mean, self.gt_mean)


def read_predicted(path: Path) -> Predicted:
    """Read a file of predictions. Raise DamagedFileError if it cannot be read or lacks their columns."""
    rows = read_parquet(path)
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise DamagedFileError(f"{path}: expected predictions, but it has no columns {', '.join(missing)}.")
    if not rows.num_rows:
        raise DamagedFileError(f"{path}: expected predictions, got no rows. Remove it, or predict again.")
    for name in _COLUMNS:
        dtype = rows.schema.field(name).type
        if not (pa.types.is_floating(dtype) or pa.types.is_integer(dtype)):
            raise DamagedFileError(f"{path}: column {name}: expected numbers, got {dtype}.")
    values = float_columns(rows, _COLUMNS)
    pred = np.column_stack([values[name] for name in PRED_COLUMNS])
    pred[~pred.any(axis=1)] = np.nan  # a model of the mean alone, whose program wrote zeros
    return Predicted(
        path=path,
        image_ids=rows[_IMAGE] if _IMAGE in rows.column_names else None,
        pred=pred,
        truth=np.column_stack([values[name] for name in GT_COLUMNS]),
        pred_mean=values["pred_mean"],
        gt_mean=values["gt_mean"],
    )


def is_generated(path: Path) -> bool:
    """Whether the run at `path`, or around it, was trained on generated data; False if it has no config.

    Raise DamagedFileError if the config cannot be read, or is a link out of its run.
    """
    candidates = map(RunLayout, (path, *path.resolve().parents[:2]))
    layout = next((candidate for candidate in candidates if candidate.config.is_file()), None)
    data = None if layout is None else read_settings(layout).get("data")
    return isinstance(data, dict) and data.get("sample") is not None
