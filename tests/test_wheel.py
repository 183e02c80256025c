"""The wheel works in another environment, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from ava_pipeline import TelemetryCollector
from tests.collect.models import tiny, train

ROOT = Path(__file__).parents[1]
READS_WITHOUT_TORCH = """
import sys
import ava_pipeline
run = ava_pipeline.open_run(sys.argv[1])
print(len(run.gradient_norms()), "torch" in sys.modules)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in another directory and capture its output."""
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and without torch."""
    folder = tmp_path_factory.mktemp("wheel")
    tools = [sys.executable, "-m", "uv"]
    built = run(*tools, "build", "--wheel", "--out-dir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    made = run(*tools, "venv", "--python", sys.executable, folder / "venv", cwd=folder)
    assert made.returncode == 0, made.stderr
    wheel = next(folder.glob("*.whl"))
    put = run(*tools, "pip", "install", "--python", folder / "venv", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    assert put.returncode == 0, put.stderr
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run recorded here, with torch."""
    folder = tmp_path_factory.mktemp("run")
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, folder, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 3)
    return folder


def test_help_and_validate(installed: Path, recorded: Path, tmp_path: Path) -> None:
    """The command line works without torch, in another directory."""
    assert run(installed / "python", "-c", "import torch", cwd=tmp_path).returncode != 0
    result = run(installed / "ava-pipeline", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "validate" in result.stdout
    checked = run(installed / "ava-pipeline", "validate", recorded, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_import_and_read(installed: Path, recorded: Path, tmp_path: Path) -> None:
    """A run can be read without torch."""
    read = run(installed / "python", "-c", READS_WITHOUT_TORCH, recorded, cwd=tmp_path)
    assert read.stdout.split() == ["3", "False"], read.stderr


def test_training_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    """Without torch, `train` names the extra to install."""
    result = run(installed / "ava-pipeline", "train", ROOT / "configs" / "demo.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "ava-pipeline[train]" in result.stderr
    assert "Traceback" not in result.stderr
