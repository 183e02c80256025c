"""Validation loads Arrow and NumPy, but not pandas, and SciPy only if there are metrics to recompute."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.validate.damaging import set_field
from tests.validate.real_run import record
from tests.validate.test_damage_of_training import train_run

_SCRIPT = """
import sys
from ava_pipeline import validate_run
print(*map(str, validate_run(sys.argv[1])), sep="\\n")
print(*sorted({"pandas", "scipy", "torch", "matplotlib"} & {name.partition(".")[0] for name in sys.modules}))
"""


def loaded_by_validating(root: Path) -> tuple[list[str], list[str]]:
    """The findings, and the heavy packages that a fresh interpreter has loaded after validation."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, str(root)], capture_output=True, text=True, check=True)
    *findings, loaded = done.stdout.splitlines()
    return [finding for finding in findings if finding], loaded.split()


@pytest.mark.parametrize("formats", [("csv", "parquet"), ("csv",), ("parquet",)], ids=str)
def test_a_real_run_is_validated_without_pandas_and_scipy(formats: tuple[str, ...], tmp_path: Path) -> None:
    """The run has tables and predictions, but no metrics.csv to recompute."""
    assert loaded_by_validating(record(tmp_path / "run", formats=formats)) == ([], [])


def test_only_the_metrics_of_predictions_need_scipy(tmp_path: Path) -> None:
    """A run of the training job, with metrics.csv and a damaged row, does not need pandas either."""
    root = train_run(tmp_path / "run")
    set_field(root / "telemetry/steps.csv", 3, "loss", "x")
    findings, loaded = loaded_by_validating(root)
    assert findings == ["telemetry/steps.csv:4 loss: error: expected float64, got 'x'. [values.dtype]"]
    assert loaded == ["scipy"]
