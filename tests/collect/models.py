"""Small models and batches for tests of the collector."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


class TinyNet(nn.Module):
    """A backbone of two stages and a head of two layers, trained in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.mlp_head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of features (B, 6)."""
        logits: Tensor = self.mlp_head(self.backbone(x))
        return logits


def tiny(seed: int = 0) -> tuple[TinyNet, torch.optim.SGD]:
    """A seeded TinyNet and its optimizer of two groups."""
    torch.manual_seed(seed)
    model = TinyNet()
    groups = [{"params": model.backbone.parameters(), "lr": 0.01}, {"params": model.mlp_head.parameters(), "lr": 0.1}]
    return model, torch.optim.SGD(groups)


def ava_resnet18() -> nn.Module:
    """A ResNet-18 with an MLP in place of its last layer."""
    model: nn.Module = resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, 10))
    return model


def backward(
    model: nn.Module, seed: int = 0, *, dtype: torch.dtype = torch.float32, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """One forward and backward pass on a seeded batch; returns the loss, unscaled."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    loss: Tensor = model(x).logsumexp(dim=1).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]  # torch's
    return loss


def train(telemetry: object, model: nn.Module, optimizer: torch.optim.Optimizer, num_batches: int) -> None:
    """Run batches as a user's loop does, seeded by their number; with `telemetry` None, without a collector."""
    for batch in range(1, num_batches + 1):
        optimizer.zero_grad()
        loss = backward(model, seed=batch)
        if telemetry is not None:
            telemetry.step(0, values={"loss": loss})  # type: ignore[attr-defined]  # a collector
        optimizer.step()
