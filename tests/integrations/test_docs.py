"""The recipes of docs/frameworks.md run as printed, each in the loop that it is for."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from ava_pipeline import TelemetryCollector, cli, open_run
from ava_pipeline.train.losses import squared_emd
from tests.collect.models import TinyNet, tiny, train
from tests.integrations.references import features

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()


def snippet(section: str, index: int = 0) -> str:
    """The Python of a section."""
    found = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    blocks: list[str] = re.findall(r"```python\n(.*?)```", found[1], re.DOTALL)
    return blocks[index]


def needs(*libraries: str) -> pytest.MarkDecorator:
    """Skip a test where a library is absent."""
    missing = [name for name in libraries if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Paths of the page lie in a folder of the test's."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # so that it reads these settings
    yield
    monkeypatch.undo()


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run a snippet with the names that it uses; return all names afterwards."""
    exec(compile(code.replace("collect_every_n=10", "collect_every_n=1"), "docs/frameworks.md", "exec"), names)  # noqa: S102  # our own page
    return names


def rows(path: str) -> int:
    """The rows of a run."""
    assert open_run(path).manifest.status == "finished"
    return len(open_run(path).gradient_norms())


def images() -> DataLoader[Any]:
    """Batches of images and true distributions."""
    return DataLoader(TensorDataset(*features()), batch_size=4)


@needs("lightning")
def test_lightning() -> None:
    """The callback, and the one that writes predictions."""
    from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415  # after the check

    class Module(LightningModule):  # type: ignore[misc]  # not known without Lightning
        """As a user's."""

        def __init__(self) -> None:
            super().__init__()
            self.net = TinyNet()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
            """The loss."""
            return squared_emd(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
            """The prediction."""
            return {"pred_dist": self.net(batch[1]).softmax(dim=1)}

        def configure_optimizers(self) -> Any:
            """SGD."""
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    make: Any = lambda **options: Trainer(**{**quiet, **options})  # noqa: E731
    run(snippet("Lightning"), Trainer=make, module=Module(), train_loader=images(), epochs=2)
    assert rows("outputs/ava/lightning") == 6
    callback = run(snippet("Lightning", 1))["MyTelemetry"]("outputs/predicted", collect_every_n=1)
    inputs, votes = features()
    validation = DataLoader(TensorDataset(torch.arange(12), inputs, votes), batch_size=4)
    make(callbacks=[callback], max_epochs=1, num_sanity_val_steps=0).fit(Module(), images(), validation)
    assert len(open_run("outputs/predicted").val_predictions(0)) == 12


@needs("transformers", "accelerate")
def test_transformers(tmp_path: Path) -> None:
    """The mixin, in the directory of the arguments."""
    from transformers import Trainer  # noqa: PLC0415  # after the check

    from tests.integrations.test_transformers import Images, Model, arguments  # noqa: PLC0415

    code = snippet("transformers").replace('"collect_every_n": 10', '"collect_every_n": 1')
    run(code, Trainer=Trainer, model=Model(), args=arguments(tmp_path / "out", num_train_epochs=1), dataset=Images())
    assert rows(str(tmp_path / "out")) == 5


@needs("accelerate")
def test_accelerate() -> None:
    """The loop with accumulation."""
    from accelerate import Accelerator  # noqa: PLC0415  # after the check
    from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    model = TinyNet()
    names = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "train_loader": images(), "epochs": 10}
    run(snippet("Accelerate"), accelerator=Accelerator(cpu=True), model=model, emd_loss=squared_emd, **names)
    assert rows("outputs/ava/accelerate") == 3


@needs("timm")
@pytest.mark.parametrize("is_scaled", [True, False])
def test_timm(is_scaled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """train.py's names, with a stand-in for its epoch: the loss is scaled where train.py has made a scaler."""
    from timm.utils import NativeScaler  # type: ignore[attr-defined]  # noqa: PLC0415  # after the check

    make: Any = NativeScaler
    model = TinyNet()

    def train_one_epoch(
        epoch: int, model: nn.Module, loader: Any, optimizer: Any, args: Any, *, loss_scaler: Any
    ) -> None:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_scaler(squared_emd(model(inputs), targets), optimizer, parameters=model.parameters())

    names = run(
        snippet("timm's train.py"),
        device=torch.device("cpu"),
        amp_dtype=torch.float16,  # as train.py has it without --amp too
        loss_scaler=make(device="cpu") if is_scaled else None,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        output_dir="outputs/timm",
        start_epoch=0,
        num_epochs=4,
        train_one_epoch=train_one_epoch,
        loader_train=images(),
        args=None,
    )
    assert rows("outputs/timm") == 1  # every tenth of 12 batches
    assert open_run("outputs/timm").gradient_norms()["epoch"].tolist() == [3]
    assert names["loss_scaler"].grad_scaler.is_enabled() == is_scaled
    assert open_run("outputs/timm").steps()["loss_scale"].notna().all() == is_scaled


class GeneralIQAModel:
    """What pyiqa's model of this name does with its optimizer; the library itself needs far too much."""

    def __init__(self) -> None:
        self.net = TinyNet()
        self.opt = {"path": {"experiments_root": "outputs/iqa"}}
        self.setup_optimizers()

    def setup_optimizers(self) -> None:
        """SGD."""
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def optimize_parameters(self, inputs: Tensor, targets: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        squared_emd(self.net(inputs), targets).backward()  # type: ignore[no-untyped-call]  # torch's
        self.optimizer.step()

    def save(self, epoch: int, current_iter: int) -> None:
        """Save nothing."""


def test_pyiqa() -> None:
    """The hook records each step, and the last save closes the run."""
    model = run(snippet("pyiqa and BasicSR"), GeneralIQAModel=GeneralIQAModel)["MyModel"]()
    for _ in range(4):
        for inputs, targets in images():
            model.optimize_parameters(inputs, targets)
    model.save(epoch=-1, current_iter=-1)
    assert rows("outputs/iqa") == 1
    assert open_run("outputs/iqa").events().empty


@needs("tensorboard", "wandb")
def test_trackers() -> None:
    """Both writers."""
    model, optimizer = tiny()
    section = "TensorBoard and Weights & Biases"
    for index in (0, 1):
        code = snippet(section, index).replace("    ...\n", "    train(telemetry, model, optimizer, 10)\n")
        names: dict[str, Any] = {"model": model, "optimizer": optimizer, "train": train}
        if index:
            import wandb  # noqa: PLC0415  # after the check

            names["wandb"] = wandb
        run(code, **names)
    assert rows("outputs/ava/board_run") == rows("outputs/ava/wandb_run") == 1
    assert list(Path("outputs/ava/board_run/tensorboard").glob("events.out.tfevents*"))
    assert list(Path("wandb").glob("offline-run-*"))


@needs("tensorboard", "wandb", "mlflow")
@pytest.mark.parametrize("command", re.findall(r"^ava-pipeline (export .*)$", PAGE, re.MULTILINE))
def test_export(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, of a run that has ended."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, "outputs/ava/demo", collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 2)
    done = CliRunner().invoke(cli.app, shlex.split(command))
    assert done.exit_code == 0, done.output
    assert os.listdir("outputs/ava/demo")  # noqa: PTH208  # relative to the test's folder


def test_the_readme_names_the_same_classes() -> None:
    """Its table is short for this page."""
    table = (Path(__file__).parents[2] / "README.md").read_text().partition("| in | add |")[2].partition("\n\n")[0]
    for name in re.findall(r"ava_pipeline\.integrations\.\w+ import \w+", table):
        assert name in PAGE
    assert table.count("<br>") >= 11
    made = re.findall(r"^loss_scaler = .*$", PAGE, re.MULTILINE)
    assert re.findall(r"`(loss_scaler = .*?)`", table) == made
