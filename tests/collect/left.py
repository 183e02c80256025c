"""What a collector left behind: rows, and warnings."""

import logging
from pathlib import Path

import pandas as pd
import pytest


def batches(folder: Path, table: str = "gradient_norms") -> list[int]:
    """The batch_idx column of a table."""
    return [int(one) for one in pd.read_csv(folder / "telemetry" / f"{table}.csv")["batch_idx"]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
