"""The GitHub Actions recipe of docs/validating.md: it is YAML, and its commands do what they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.validate.building import RunBuilder
from tests.validate.damaging import set_field

DOC = Path(__file__).parents[1] / "docs" / "validating.md"


def steps() -> list[dict[str, Any]]:
    """The steps of the recipe's one job."""
    (recipe,) = re.findall(r"```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    (job,) = yaml.safe_load(recipe)["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def run_step(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A step as GitHub's runner runs it, with this environment's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", command],  # noqa: S607  # the runner's own shell
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_commands_of_the_recipe_judge_the_runs(is_sound: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a case
    """The step fails where one run is not clean, and leaves what it found for a program."""
    for name in ("one", "two"):
        RunBuilder(root=tmp_path / "runs" / name).write()
    if not is_sound:
        set_field(tmp_path / "runs/two/telemetry/steps.csv", 3, "loss", "0.5")
    commands = [step["run"] for step in steps() if step.get("run", "").startswith("ava-pipeline")]
    done = [run_step(tmp_path, command) for command in commands]
    assert [one.returncode for one in done] == [int(not is_sound)] * 2, done
    runs = json.loads((tmp_path / "validation.json").read_text())
    assert {path: one["clean"] for path, one in runs.items()} == {"runs/one": True, "runs/two": is_sound}


def test_the_recipe_installs_no_torch() -> None:
    """Validating needs none, and the file that is kept is the one that is written."""
    commands = [step["run"] for step in steps() if "run" in step]
    (kept,) = [step["with"]["path"] for step in steps() if "upload-artifact" in step.get("uses", "")]
    assert "pip install ava-pipeline" in commands
    assert any(command.endswith(f"--json > {kept}") for command in commands)
