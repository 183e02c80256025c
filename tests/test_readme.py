"""Every Python and shell snippet of the README runs, and so do the commands of `make demo`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
import yaml
from torchvision.models import resnet50

from ava_pipeline.config.load import load_config
from ava_pipeline.config.models import RunConfig
from ava_pipeline.train.data.sample import write_sample_data
from ava_pipeline.train.losses import squared_emd
from tests.collect.models import TinyNet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# A run as the README's, small enough for a test.
SMALL = ["train.epochs=1", "train.batch_size=8", "data.image_size=32", "data.num_workers=0", "train.accumulate=1"]
BATCHES = 4


def snippets(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    """The commands of the README, without their comments."""
    return [line.split(" #")[0].strip() for block in snippets("sh") for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path) -> str:
    """Run one command of the README in a shell and return its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORCH_HOME": str(folder / "torch_home"),
    }
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: configs, AVA, the ImageNet weights, and the run of the demo."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_sample_data(folder / "data" / "ava", num_images=40, seed=1)
    weights = folder / "torch_home" / "hub" / "checkpoints"
    weights.mkdir(parents=True)
    torch.save(resnet50().state_dict(), weights / "resnet50-11ad3fa6.pth")
    small = [*SMALL, "data.sample.num_images=40"]
    run(f"ava-pipeline train configs/demo.yaml --set {' --set '.join(small)}", folder)
    shutil.copytree(folder / "outputs/ava/demo", folder / "outputs/ava/other")
    return folder


def loop_names() -> dict[str, Any]:
    """The names that the loops of the README use: a model, an optimizer, loaders and a loss."""
    model = TinyNet()
    votes = torch.randint(1, 50, (3, 10))
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "epochs": 3,
        "train_loader": [(torch.randn(3, 6), votes)] * BATCHES,
        "val_loader": [(torch.arange(3), torch.randn(3, 6), votes)],
        "emd_loss": squared_emd,
        "device": "cpu",
        "accumulate": 2,
    }


@pytest.mark.parametrize("snippet", snippets("python"))
def test_python_snippets(snippet: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run as printed, in a folder in which the demo has run."""
    mpl.use("Agg")
    monkeypatch.chdir(home)
    names = loop_names()
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102  # our own README
    if "telemetry" in names:
        stats = names["telemetry"].stats()
        assert stats.collected == stats.written > 0
    if "savefig" in snippet:
        assert (home / "norms.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", shell_lines())
def test_shell_snippets(command: str, home: Path) -> None:
    """They exit with 0; targets of make are only checked, and training is made small."""
    if command.startswith("make "):
        subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)  # noqa: S607  # the user's make
        return
    small = [*SMALL, "data.labels=data/ava/AVA.txt", "data.images=data/ava/images"] if " train " in command else []
    run(" ".join([command, *(f"--set {setting}" for setting in small)]), home)


def test_the_demo_can_be_run_again(home: Path) -> None:
    """The commands of make run twice: the second time moves the first run to superseded/. Then the report."""
    steps = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S607  # the user's make
    train, report = re.findall(r"^\.venv/bin/(ava-pipeline .*)$", steps, re.MULTILINE)
    small = [*SMALL, "data.sample.num_images=40", "output_dir=outputs/ava/again"]
    for _ in range(2):
        run(f"{train} --set {' --set '.join(small)}", home)
    assert (home / "outputs/ava/again/superseded/attempt-1/metrics.csv").exists()
    page = home / "outputs/ava/again/report.html"
    run(report.replace("outputs/ava/demo", "outputs/ava/again"), home)
    assert page.stat().st_size > 10_000


def test_yaml_snippets() -> None:
    """The known blocks are part of the config."""
    whole = load_config(ROOT / "configs" / "demo.yaml").model_dump(mode="json")
    for snippet in snippets("yaml"):
        given: dict[str, Any] = yaml.safe_load(snippet)
        RunConfig.model_validate({**whole, **given})


def test_the_demo_is_healthy(home: Path, tmp_path: Path) -> None:
    """Real training with the settings of the demo, for two epochs: `diagnose` finds it healthy."""
    shorter = ["train.epochs=2", "train.batch_size=4", "data.image_size=32", "data.sample.num_images=64"]
    places = [f"output_dir={tmp_path / 'run'}", f"data.labels={tmp_path}/AVA.txt", f"data.images={tmp_path}/images"]
    run(f"ava-pipeline train configs/demo.yaml --set {' --set '.join([*shorter, *places])}", home)
    output = run(f"ava-pipeline diagnose {tmp_path / 'run'}", home)
    assert output.endswith(f"{tmp_path / 'run'}: healthy.\n")
    for sign in ("all-finite", "backbone-learning", "head-learning", "rates-in-order", "rows-complete"):
        assert f"[{sign}]" in output
    assert "rows exist for all 24 of 24 collected steps." in output
