"""`TelemetryCallback` in Lightning's newest release."""

import copy
import csv
import functools
import math
from pathlib import Path
from typing import Any

import pytest

from ava_pipeline import MisuseError, open_run, validate_run
from tests.integrations.references import column, same_weights
from tests.scripts import run_script

pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'ava-pipeline[frameworks]'")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.tuner.tuning import Tuner

from ava_pipeline.integrations.lightning import TelemetryCallback
from tests.integrations.lightning_models import (
    BATCHES,
    Automatic,
    Gan,
    Interrupted,
    Lbfgs,
    Manual,
    float16,
    loader,
    trainer,
)
from tests.integrations.wandb_files import history

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on small loaders and few workers

EVERY: dict[str, Any] = {"collect_every_n": 1}


def fitted(module: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    """Train a module and return it."""
    trainer(folder, *callbacks, **options).fit(module, loader())
    return module


def test_norms_are_those_before_clipping_and_weights_stay_the_same(tmp_path: Path) -> None:
    """Within 1e-5 of float64, over two epochs, with the framework's own count of steps."""
    run = tmp_path / "run"
    module = fitted(Automatic(), tmp_path, TelemetryCallback(run, **EVERY), gradient_clip_val=0.01)
    assert max(module.norms) > 0.05
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms, rel=1e-5)
    assert column(run, "gradient_norms", "epoch") == [0] * BATCHES + [1] * BATCHES
    assert column(run, "steps", "global_step") == list(range(2 * BATCHES))
    assert same_weights(module, fitted(Automatic(), tmp_path, gradient_clip_val=0.01))
    assert validate_run(run) == []
    assert open_run(run).manifest.status == "finished"
    assert open_run(run).events().empty


def test_values_are_the_numbers_that_training_step_returned(tmp_path: Path) -> None:
    """The loss undivided, and every other single number."""
    run = tmp_path / "run"
    module = fitted(Automatic(), tmp_path, TelemetryCallback(run, **EVERY), accumulate_grad_batches=2)
    # A step after two batches, and one at the end of the epoch, which has three.
    assert column(run, "gradient_norms", "batch_idx") == [2, 3, 5, 6]
    assert column(run, "steps", "loss") == pytest.approx([module.losses[batch] for batch in (1, 2, 4, 5)], rel=1e-6)
    assert column(run, "steps", "batch") == [1, 2, 1, 2]
    assert "logits" not in open_run(run).steps().columns
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms, rel=1e-5)
    assert column(run, "steps", "global_step") == [0, 1, 2, 3]
    assert validate_run(run) == []
    assert open_run(run).events().empty


@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_at_true_scale_under_float16(fused: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a parameter
    """Also with an optimizer that unscales the gradients itself."""
    run = tmp_path / "run"
    module = fitted(Automatic(fused=fused), tmp_path, TelemetryCallback(run, **EVERY), plugins=[float16()])
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms, rel=1e-5)
    assert max(module.norms) < 10
    assert column(run, "steps", "loss") == pytest.approx(module.losses, rel=1e-6)
    assert same_weights(module, fitted(Automatic(fused=fused), tmp_path, plugins=[float16()]))


def test_manual_optimization(tmp_path: Path) -> None:
    """A row for each step, with the sum of the losses given to `manual_backward`; the other batches are counted."""
    run = tmp_path / "run"
    module = fitted(Manual(), tmp_path, TelemetryCallback(run, **EVERY), max_epochs=2, limit_train_batches=2)
    assert column(run, "gradient_norms", "batch_idx") == [2, 4]
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms, rel=1e-5)
    assert column(run, "steps", "loss") == pytest.approx([sum(module.losses[:2]), sum(module.losses[2:])], rel=1e-6)
    assert same_weights(module, fitted(Manual(), tmp_path, limit_train_batches=2))
    assert validate_run(run) == []
    assert open_run(run).events().empty


def test_several_optimizers_fill_one_row(tmp_path: Path) -> None:
    """Each group when its gradients are its own, and each loss under its optimizer's name."""
    run, groups = tmp_path / "run", {"generator": "generator.*", "discriminator": "discriminator.*"}
    groups = {name: [pattern] for name, pattern in groups.items()}  # type: ignore[misc]
    module = fitted(Gan(), tmp_path, TelemetryCallback(run, groups=groups, **EVERY))
    for name in ("generator", "discriminator"):
        assert column(run, "gradient_norms", name) == pytest.approx(module.norms[name], rel=1e-5)
    joined = [math.hypot(*pair) for pair in zip(*module.norms.values(), strict=True)]
    assert column(run, "gradient_norms", "overall") == pytest.approx(joined, rel=1e-5)
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, 2 * BATCHES + 1))
    assert {"loss_optimizer_0", "loss_optimizer_1"} <= set(open_run(run).steps().columns)
    assert same_weights(module, fitted(Gan(), tmp_path))
    assert validate_run(run) == []
    assert open_run(run).events().empty


def test_an_optimizer_that_evaluates_several_times_has_one_row_a_step(tmp_path: Path) -> None:
    """LBFGS: the gradients of the first evaluation, at the weights before the step."""
    run = tmp_path / "run"
    module = fitted(Lbfgs(), tmp_path, TelemetryCallback(run, **EVERY), max_epochs=1)
    assert len(module.norms) == 4 * BATCHES
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms[::4], rel=1e-5)
    assert same_weights(module, fitted(Lbfgs(), tmp_path, max_epochs=1))
    assert open_run(run).events().empty


def test_a_fit_from_a_checkpoint_goes_on_with_the_tables(tmp_path: Path) -> None:
    """In a new trainer, as after a crash: no gap, no repetition, and the later rows are set aside."""
    run = tmp_path / "run"
    saved = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, every_n_epochs=1)
    module = fitted(
        Automatic(), tmp_path, TelemetryCallback(run, **EVERY), saved, enable_checkpointing=True, max_epochs=3
    )
    (path,) = (tmp_path / "checkpoints").glob("epoch=0*")
    again = Automatic()
    trainer(tmp_path, TelemetryCallback(run, **EVERY), max_epochs=2).fit(
        again, loader(), ckpt_path=path, weights_only=False
    )
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, 2 * BATCHES + 1))
    assert column(run, "gradient_norms", "epoch") == [0] * BATCHES + [1] * BATCHES
    assert column(run, "steps", "global_step") == list(range(2 * BATCHES))
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms[: 2 * BATCHES], rel=1e-5)
    assert open_run(run).manifest.attempt.resumed_from == BATCHES
    assert validate_run(run) == []


def test_a_second_fit_goes_on_behind_the_first(tmp_path: Path) -> None:
    """The trainer goes on counting epochs and steps, and so do the tables."""
    run, module = tmp_path / "run", Automatic()
    one = trainer(tmp_path, TelemetryCallback(run, **EVERY), max_epochs=1)
    one.fit(module, loader())
    one.fit_loop.max_epochs = 2
    one.fit(module, loader())
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, 2 * BATCHES + 1))
    assert column(run, "gradient_norms", "epoch") == [0] * BATCHES + [1] * BATCHES
    assert validate_run(run) == []


def test_a_callback_for_several_trainers_starts_anew_with_each(tmp_path: Path) -> None:
    """As with cross-validation: the state of one training is not that of another."""
    callback = TelemetryCallback(**EVERY)
    for fold in ("a", "b"):
        fitted(Automatic(), tmp_path / fold, callback, max_epochs=1)
        assert column(tmp_path / fold, "gradient_norms", "batch_idx") == [1, 2, 3]


def test_finding_a_learning_rate_records_nothing(tmp_path: Path) -> None:
    """`lr_find` is a fit that is thrown away; the fit after it begins at batch 1."""
    run, module = tmp_path / "run", Automatic()
    one = trainer(tmp_path, TelemetryCallback(run, **EVERY), max_epochs=1)
    Tuner(one).lr_find(module, loader(), num_training=5, update_attr=False)
    assert not run.exists()
    module.norms.clear()
    one.fit(module, loader())
    assert column(run, "gradient_norms", "overall") == pytest.approx(module.norms, rel=1e-5)
    assert open_run(run).events().empty


@pytest.mark.parametrize(("error", "status"), [(ValueError("a bug"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_how_a_fit_ended_is_in_the_manifest(error: BaseException, status: str, tmp_path: Path) -> None:
    """With every row so far, and the type of the exception, which reaches the program as without telemetry."""
    run, module = tmp_path / "run", Interrupted()
    module.error = error
    with pytest.raises(SystemExit if status == "interrupted" else ValueError):  # Lightning exits
        fitted(module, tmp_path, TelemetryCallback(run, **EVERY))
    manifest = open_run(run).manifest
    assert (manifest.status, manifest.attempt.error) == (status, type(error).__name__)
    assert column(run, "gradient_norms", "batch_idx") == [1, 2, 3]


class NotFinite(Automatic):
    """Its loss is not a number from the second batch on."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Spoil the loss."""
        return {"loss": super().training_step(batch, batch_idx)["loss"] * (math.nan if batch_idx else 1.0)}


class Flush(Callback):  # type: ignore[misc]  # not known without Lightning
    """Waits for the background thread after each batch, so that findings arrive at a known batch."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Flush."""
        telemetry = next(one for one in trainer.callbacks if isinstance(one, TelemetryCallback))._telemetry
        assert telemetry is not None
        assert telemetry.flush()
        telemetry._findings.deliver()


def test_no_finding_stops_a_training_unless_it_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `stop_on`, the training ends after the batch, and the log says why."""
    fitted(NotFinite(), tmp_path, TelemetryCallback(tmp_path / "a", **EVERY), Flush())
    assert len(column(tmp_path / "a", "steps", "loss")) == 2 * BATCHES
    callback = TelemetryCallback(tmp_path / "b", stop_on=["non-finite"], **EVERY)
    fitted(NotFinite(), tmp_path, Flush(), callback)
    assert len(column(tmp_path / "b", "steps", "loss")) < 2 * BATCHES
    assert open_run(tmp_path / "b").manifest.status == "finished"
    assert any("stop_on names non-finite" in message for message in caplog.messages)


def test_an_id_that_no_finding_has_is_refused() -> None:
    """Else a training would go on that should stop."""
    with pytest.raises(MisuseError, match="expected ids of findings, got \\['nan'\\]"):
        TelemetryCallback(stop_on="nan")


class WithPredictions(TelemetryCallback):
    """Writes what the validation step returned."""

    def val_predictions(self, outputs: Any, batch: Any) -> Any:
        """Ids are the first feature, in thousandths."""
        return (batch[0][:, 0] * 1000).long(), outputs, batch[1]


def test_metrics_and_predictions_of_every_epoch(tmp_path: Path) -> None:
    """At the end of each epoch; nothing of the sanity check before the training."""
    run = tmp_path / "run"
    module = Automatic()
    trainer(tmp_path, WithPredictions(run, **EVERY), num_sanity_val_steps=1).fit(module, loader(), loader())
    metrics = open_run(run).metrics()
    assert metrics["epoch"].tolist() == [0, 1]
    losses = [sum(module.losses[:BATCHES]) / BATCHES, sum(module.losses[BATCHES:]) / BATCHES]
    assert metrics["train_loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert metrics["val_loss"].notna().all()
    assert len(open_run(run).val_predictions(0)) == len(open_run(run).val_predictions(1)) == 4 * BATCHES
    assert validate_run(run) == []


def test_metrics_of_an_older_validation_are_not_repeated(tmp_path: Path) -> None:
    """Lightning keeps them in `callback_metrics` in epochs without a validation."""
    run = tmp_path / "run"
    trainer(tmp_path, TelemetryCallback(run, **EVERY), max_epochs=3, check_val_every_n_epoch=2).fit(
        Automatic(), loader(), loader()
    )
    assert open_run(run).metrics()["val_loss"].notna().tolist() == [False, True, False]
    assert open_run(run).metrics()["train_loss"].notna().tolist() == [True, True, True]


def test_validations_within_an_epoch_have_the_batch(tmp_path: Path) -> None:
    """In metrics.csv and in the names of the files."""
    run = tmp_path / "run"
    callback = WithPredictions(run, **EVERY)
    trainer(tmp_path, callback, max_epochs=1, val_check_interval=1).fit(Automatic(), loader(), loader())
    with (run / "metrics.csv").open() as file:
        rows = [(row["batch_idx"], bool(row["val_loss"])) for row in csv.DictReader(file)]
    assert rows[:BATCHES] == [("1", True), ("2", True), ("3", True)]
    assert [path.name for path in sorted((run / "predictions").glob("*.parquet"))] == [
        f"val_epoch_000_batch_{batch:08d}.parquet" for batch in (1, 2, 3)
    ]


class AnyLogger(DummyLogger):  # type: ignore[misc]  # as above
    """A logger with a folder, as Lightning's for trackers."""

    save_dir = "logs"


def test_the_directory_is_that_of_the_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or, without a logger, the trainer's."""
    monkeypatch.chdir(tmp_path)
    fitted(Automatic(), tmp_path, TelemetryCallback(**EVERY), logger=AnyLogger())
    assert (tmp_path / "logs" / "telemetry" / "gradient_norms.csv").exists()
    fitted(Automatic(), tmp_path / "root", TelemetryCallback(**EVERY))
    assert (tmp_path / "root" / "telemetry" / "gradient_norms.csv").exists()


def csv_logged(folder: Path, *callbacks: Any, **options: Any) -> str:
    """Train beside a CSVLogger that writes into `folder`; return its metrics.csv."""
    logger = CSVLogger(folder.parent, name="", version=folder.name, flush_logs_every_n_steps=1)
    trainer(folder.parent, *callbacks, logger=logger, log_every_n_steps=1, **options).fit(
        Automatic(), loader(), loader()
    )
    return (folder / "metrics.csv").read_text()


def test_beside_a_csv_logger(tmp_path: Path) -> None:
    """Which writes a metrics.csv into its folder too: both files are whole, and the run goes into a folder there."""
    plain = csv_logged(tmp_path / "plain")
    assert csv_logged(tmp_path / "logs", TelemetryCallback(**EVERY)) == plain
    run = tmp_path / "logs" / "ava_run"
    assert open_run(run).metrics()["epoch"].tolist() == [0, 1]
    assert open_run(run).metrics()["val_loss"].notna().all()
    assert validate_run(run) == []
    assert open_run(run).events().empty
    assert not (tmp_path / "logs" / "telemetry").exists()


def test_a_csv_logger_in_the_directory_of_the_user(tmp_path: Path) -> None:
    """The fit does not begin, and the error names a directory that is free."""
    with pytest.raises(MisuseError, match=r"the CSVLogger writes its own metrics\.csv: .*logs/ava_run"):
        csv_logged(tmp_path / "logs", TelemetryCallback(tmp_path / "logs", **EVERY))
    assert csv_logged(tmp_path / "more", TelemetryCallback(tmp_path / "run", **EVERY)).startswith("epoch,step,")


def test_beside_a_wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Lightning logs arrives, and telemetry's points too, in the same run."""
    wandb = pytest.importorskip("wandb", reason="W&B is not installed: pip install 'ava-pipeline[trackers]'")
    from ava_pipeline.integrations.wandb import WandbWriter  # noqa: PLC0415  # after the check

    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="test", settings=wandb.Settings(silent=True))
    callback = TelemetryCallback(tmp_path / "run", writers=[WandbWriter(logger.experiment, commit=True)], **EVERY)
    fitted(Automatic(), tmp_path, callback, logger=logger, log_every_n_steps=1)
    logger.experiment.finish()
    rows = history(tmp_path)
    assert len([row for row in rows if "train_loss" in row]) == 2
    points = {row["telemetry/global_step"]: row["telemetry/gradient_norms/overall"] for row in rows if len(row) > 5}
    assert points == dict(enumerate(column(tmp_path / "run", "gradient_norms", "overall")))


class Copied(Callback):  # type: ignore[misc]  # not known without Lightning
    """Copies and saves the module after each batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:  # noqa: ARG002
        """Copy it, with everything that it holds."""
        module = copy.copy(pl_module)
        assert "training_step" not in vars(module)
        copy.deepcopy(pl_module.net)


def test_the_module_is_its_own_between_batches(tmp_path: Path) -> None:
    """`training_step` is replaced for one call only."""
    module = fitted(Automatic(), tmp_path, TelemetryCallback(tmp_path / "run", **EVERY), Copied())
    assert "training_step" not in vars(module)


def test_a_module_whose_method_is_an_attribute(tmp_path: Path) -> None:
    """Lightning gives compiled modules such ones: it is there again after each batch."""
    module = Automatic()
    own = functools.wraps(module.training_step)(functools.partial(module.training_step))
    module.__dict__["training_step"] = own
    fitted(module, tmp_path, TelemetryCallback(tmp_path / "run", **EVERY))
    assert vars(module)["training_step"] is own
    assert column(tmp_path / "run", "steps", "loss") == pytest.approx(module.losses, rel=1e-6)


OLD_NAME = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
from ava_pipeline.integrations.lightning import TelemetryCallback

class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = pytorch_lightning.Trainer(
    callbacks=[TelemetryCallback(sys.argv[1], collect_every_n=1)], max_epochs=1, accelerator="cpu", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(8, 6)), batch_size=4))
assert "lightning.pytorch" not in sys.modules
"""


def test_the_library_under_its_old_name(tmp_path: Path) -> None:
    """`import pytorch_lightning` is the same library with other classes."""
    pytest.importorskip("pytorch_lightning", reason="not installed: pip install pytorch-lightning")
    run_script(OLD_NAME, tmp_path / "run")
    assert column(tmp_path / "run", "steps", "loss")
    assert column(tmp_path / "run", "gradient_norms", "batch_idx") == [1, 2]
