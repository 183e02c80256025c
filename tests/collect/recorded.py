"""Reads the rows and the warnings that a collector leaves."""

import logging
from pathlib import Path

import pandas as pd
import pytest


def batches(folder: Path, table: str = "gradient_norms") -> list[int]:
    """The batch_idx column of a table."""
    return [int(one) for one in pd.read_csv(folder / "telemetry" / f"{table}.csv")["batch_idx"]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages logged as warnings."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
