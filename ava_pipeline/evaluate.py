"""The metrics of predictions on disk: no torch, no labels, only the Parquet files of a run or of anybody else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ava_pipeline import yaml_text
from ava_pipeline.contract.inside import check_inside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet_file import read_parquet
from ava_pipeline.contract.predictions import GT_COLUMNS, PRED_COLUMNS
from ava_pipeline.errors import DamagedFileError, NotARunError
from ava_pipeline.metrics import Metrics, constant_predictor, prediction_metrics

_COLUMNS = (*PRED_COLUMNS, *GT_COLUMNS, "pred_mean", "gt_mean")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One file of predictions.

    Attributes:
        path: the Parquet file.
        num_images: rows in it.
        metrics: of its predictions.
        constant: what predicting its own mean true distribution for every image would reach.
    """

    path: Path
    num_images: int
    metrics: Metrics
    constant: Metrics

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a figure is not defined."""
        return {
            "file": str(self.path),
            "num_images": self.num_images,
            **self.metrics.to_json(),
            "constant_predictor": self.constant.to_json(),
        }


def evaluate(path: Path) -> list[Evaluated]:
    """Evaluate a file of predictions, or every one of a run.

    Args:
        path: a run directory, its predictions folder or a Parquet file.

    Returns:
        One entry a file, by name and so by epoch.

    Raises:
        NotARunError: there are no predictions at `path`.
        DamagedFileError: a file is no Parquet, holds no predictions, or lies outside of the run.
    """
    return [_evaluate_file(file) for file in _files(path)]


def is_generated(path: Path) -> bool:
    """Whether the run that `path` is or lies in was trained on generated data; no config, no claim.

    Raises:
        DamagedFileError: the config is none.
    """
    candidates = (folder / "config.yaml" for folder in (path, *path.resolve().parents[:2]))
    config = next((file for file in candidates if file.is_file()), None)
    if config is None:
        return False
    try:
        values = yaml_text.parse(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{config} cannot be read: {error}. Restore it, or move it away.") from error
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and data.get("sample") is not None


def _files(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    layout = RunLayout(path.parent if path.name == "predictions" else path)
    check_inside(layout)
    files = sorted(layout.predictions.glob("*.parquet"))
    if not files:
        raise NotARunError(
            f"{path}: no predictions there. Give a run directory whose config has save_val_predictions: true and that "
            "has finished an epoch, or a Parquet file with pred_dist_1..10, gt_dist_1..10, pred_mean and gt_mean."
        )
    return files


def _evaluate_file(path: Path) -> Evaluated:
    table = _read(path)
    pred, truth = _matrix(table, PRED_COLUMNS), _matrix(table, GT_COLUMNS)
    pred_mean, gt_mean = (_column(table, name) for name in ("pred_mean", "gt_mean"))
    return Evaluated(
        path=path,
        num_images=table.num_rows,
        metrics=prediction_metrics(pred, truth, pred_mean, gt_mean),
        constant=constant_predictor(truth, truth, gt_mean),
    )


def _read(path: Path) -> pa.Table:
    rows = read_parquet(path)
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise DamagedFileError(f"{path}: no predictions; it has no columns {', '.join(missing)}.")
    return rows


def _matrix(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.column_stack([_column(table, name) for name in names])


def _column(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return table[name].to_numpy().astype(np.float64)
