"""Small Lightning modules that keep the norms of their gradients, as float64 and before clipping."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.collect.models import TinyNet
from tests.integrations.references import features, norm

BATCHES = 3  # of an epoch


def loader(num: int = 4 * BATCHES) -> DataLoader[Any]:
    """Batches of four samples, in order."""
    return DataLoader(TensorDataset(*features(num)), batch_size=4)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    """A trainer that prints, logs and saves nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})


def float16() -> MixedPrecision:
    """Automatic mixed precision with a loss scale, on a CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of distributions."""
    return nn.functional.cross_entropy(logits.float(), target)


class Automatic(LightningModule):  # type: ignore[misc]  # not known without Lightning
    """Returns its loss and another number; `norms` and `losses` are those of each step."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.net = TinyNet()
        self.fused = fused
        self.lr = 0.1
        self.norms: list[float] = []
        self.losses: list[float] = []

    def configure_optimizers(self) -> Any:
        """SGD with momentum."""
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9, fused=self.fused)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The loss, a second number, and things that are no numbers."""
        logits = self.net(batch[0])
        loss = loss_of(logits, batch[1])
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return {"loss": loss, "largest": logits.detach().abs().max(), "batch": batch_idx, "logits": logits}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep the norm at true scale."""
        scaler: Any = getattr(self.trainer.precision_plugin, "scaler", None)
        is_scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        self.norms.append(norm(self.net.parameters(), scale=scaler.get_scale() if is_scaled else 1.0))

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002  # as Lightning calls it
        """The predicted distributions."""
        logits = self.net(batch[0])
        self.log("val_loss", loss_of(logits, batch[1]))
        predicted: Tensor = logits.softmax(dim=1)
        return predicted


class Manual(Automatic):
    """Steps every second batch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # manual optimization returns nothing
        """Add up the gradients of two batches."""
        loss = loss_of(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.manual_backward(loss)
        if batch_idx % 2 == 1:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Gan(LightningModule):  # type: ignore[misc]  # as above
    """A generator and a discriminator, each with an optimizer; `norms` are those of each, in turn."""

    def __init__(self) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.automatic_optimization = False
        self.generator = nn.Linear(6, 6)
        self.discriminator = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
        self.norms: dict[str, list[float]] = {"generator": [], "discriminator": []}

    def configure_optimizers(self) -> Any:
        """One for each."""
        return [torch.optim.SGD(one.parameters(), lr=0.1) for one in (self.generator, self.discriminator)]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # as Lightning calls it
        """The generator's step, then the discriminator's."""
        real = batch[0]
        for name, optimizer in zip(self.norms, self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            fake = self.discriminator(self.generator(real) if name == "generator" else self.generator(real).detach())
            loss = fake.square().mean() if name == "generator" else (fake - self.discriminator(real)).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.norms[name].append(norm(getattr(self, name).parameters()))
            optimizer.step()
            self.untoggle_optimizer(optimizer)


class Lbfgs(Automatic):
    """An optimizer that computes the gradients of a step several times."""

    def configure_optimizers(self) -> Any:
        """Four evaluations a step."""
        return torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=4)


class Interrupted(Automatic):
    """Raises in its fourth batch."""

    error: BaseException = ValueError("a bug")

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Raise."""
        if self.trainer.global_step == BATCHES:
            raise self.error
        return super().training_step(batch, batch_idx)
