"""Which files of predictions a run holds."""

import re
from pathlib import Path
from typing import NamedTuple

from ava_pipeline.contract.layout import RunLayout

PREDICTION_NAME = re.compile(r"(?P<name>.+)_epoch_(?P<epoch>\d{3,})\.parquet")


class PredictionFile(NamedTuple):
    """One epoch's predictions of one set."""

    name: str
    epoch: int
    path: Path


def prediction_files(layout: RunLayout) -> list[PredictionFile]:
    """Every file of predictions, by set and epoch; other files are left out."""
    found = map(prediction_file, layout.predictions.glob("*.parquet"))
    return sorted(file for file in found if file is not None)


def prediction_file(path: Path) -> PredictionFile | None:
    """Which set and epoch a file is of, as its name says; None where it does not."""
    match = PREDICTION_NAME.fullmatch(path.name)
    return PredictionFile(match["name"], int(match["epoch"]), path) if match else None
