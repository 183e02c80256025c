"""Rows of the tables that are off by default, for `RunBuilder.more`: weights, layers, labels and held-out samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.builtin_tables import (
    BATCH_STATS,
    HOLDOUT_CLASSES,
    HOLDOUT_SCORES,
    PER_LAYER_STATS,
    WEIGHT_DELTAS,
    WEIGHT_NORMS,
)
from ava_pipeline.contract.tables import RunTable
from tests.validate.building import BATCHES_PER_EPOCH, NORMS, MoreRows

GROUPS = NORMS.run_column_names
NAN = float("nan")


def _keys(batches: Sequence[int], rows_per_batch: int = 1) -> dict[str, Any]:
    batch_idx = np.repeat(np.asarray(batches, dtype=np.int64), rows_per_batch)
    return {"batch_idx": batch_idx, "epoch": (batch_idx - 1) // BATCHES_PER_EPOCH}


def _rows(declaration: RunTable, columns: dict[str, Any]) -> MoreRows:
    return declaration, pa.table(columns, schema=declaration.arrow_schema)


def _of_groups(backbone: Any, first: Any, last: Any, other: Any) -> dict[str, Any]:
    """The columns of the groups; the squares of the children add up to their parent's."""
    head = np.hypot(first, last)
    overall = np.sqrt(head**2 + backbone**2 + other**2)
    return dict(zip(GROUPS, (overall, backbone, head, first, last), strict=True))


def weights(
    batches: Sequence[int], *, backbone: float = 0.01, first: float = 0.02, num: int | None = None
) -> tuple[MoreRows, MoreRows]:
    """Norms that stay, and how far the weights moved since the row before; null in the first row."""
    ones = np.ones(len(batches))
    norms = _of_groups(4 * ones, ones, ones, 2 * ones)
    moved = _of_groups(backbone * ones, first * ones, 0.02 * ones, 0.01 * ones)
    spans = [None, *(np.diff(batches).tolist() if num is None else [num] * (len(batches) - 1))]
    deltas = {name: [None, *values.tolist()[1:]] for name, values in moved.items()}
    return (
        _rows(RunTable.of(WEIGHT_NORMS, GROUPS), _keys(batches) | norms),
        _rows(RunTable.of(WEIGHT_DELTAS, GROUPS), _keys(batches) | {"num_batches": spans} | deltas),
    )


def layers(batches: Sequence[int], grad_norms: NDArray[np.float64], names: Sequence[str]) -> MoreRows:
    """A row for each layer and batch, with the gradient norms [batches, layers]; nan is null and -1 is nan."""
    num_rows = len(batches) * len(names)
    flat = grad_norms.reshape(-1)
    ones = np.ones(num_rows, dtype=np.float32)
    grad_norm = pa.array(np.where(flat == -1, NAN, flat).astype(np.float32), mask=np.isnan(flat))
    columns = {
        "layer_name": pa.DictionaryArray.from_arrays(
            np.tile(np.arange(len(names), dtype=np.int32), len(batches)), pa.array(list(names))
        ).cast(pa.string()),
        "mean": 0 * ones,
        "std": ones,
        "min": -ones,
        "max": ones,
        "l2_norm": ones,
        "num_params": np.full(num_rows, 10),
        "grad_norm": grad_norm,
    }
    return _rows(RunTable.of(PER_LAYER_STATS), _keys(batches, len(names)) | columns)


def labels(batches: Sequence[int], counts: NDArray[np.int64], size: int = 32) -> MoreRows:
    """The shares of two classes, of which `counts` [batches] samples are of class 1."""
    share = 100 * counts / size
    declaration = RunTable.of(BATCH_STATS, ("winner_0_pct", "winner_1_pct"))
    columns = {"batch_size": np.full(len(batches), size), "winner_0_pct": 100 - share, "winner_1_pct": share}
    return _rows(declaration, _keys(batches) | columns)


def pairs(batches: Sequence[int], logits: NDArray[np.float64]) -> MoreRows:
    """Predictions of pairs by logits [batches, samples, 2]; all labels are 1, and a nan gives no prediction."""
    num_samples = logits.shape[1]
    flat = logits.reshape(-1, 2)
    is_nan: NDArray[np.bool_] = np.asarray(np.isnan(flat).any(axis=1))
    predicted = flat.argmax(axis=1)
    columns = {
        "image1": [f"{sample}a" for sample in range(num_samples)] * len(batches),
        "image2": [f"{sample}b" for sample in range(num_samples)] * len(batches),
        "label": np.ones(len(flat), dtype=np.int64),
        "prediction": pa.array(predicted, mask=is_nan),
        "logit_0": flat[:, 0].astype(np.float32),
        "logit_1": flat[:, 1].astype(np.float32),
        "correct": pa.array(predicted == 1, mask=is_nan),
    }
    return _rows(RunTable.of(HOLDOUT_CLASSES), _keys(batches, num_samples) | columns)


def scores(batches: Sequence[int], pred_mean: NDArray[np.float64], gt_mean: float = 5.0) -> MoreRows:
    """Mean scores [batches, samples] beside a true mean; integer ids."""
    num_samples = pred_mean.shape[1]
    shares = {f"pred_dist_{score}": np.full(pred_mean.size, 0.1, dtype=np.float32) for score in range(1, 11)}
    columns = {
        "image_id": np.tile(np.arange(num_samples), len(batches)),
        "gt_mean": np.full(pred_mean.size, gt_mean),
        "pred_mean": pred_mean.reshape(-1),
        **shares,
    }
    return _rows(RunTable.of(HOLDOUT_SCORES), _keys(batches, num_samples) | columns)
