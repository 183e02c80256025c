"""A run that the collector recorded: a small model, three epochs, validation predictions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ava_pipeline import TelemetryCollector

NUM_EPOCHS = 3
BATCHES_PER_EPOCH = 8


class SmallModel(nn.Module):
    """A backbone and a head, with the names that the training job uses."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.mlp_head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[images, 6] -> [images, 10] logits."""
        logits: torch.Tensor = self.mlp_head(self.backbone(images))
        return logits


def record(root: Path, **settings: Any) -> Path:
    """Train for three epochs with telemetry on; `settings` are passed to the collector."""
    torch.manual_seed(0)
    model = SmallModel()
    optimizer = torch.optim.SGD(
        [{"params": model.backbone.parameters(), "lr": 0.01}, {"params": model.mlp_head.parameters(), "lr": 0.1}]
    )
    settings = {"collect_every_n": 2, "flush_interval_s": 0.01, **settings}
    with TelemetryCollector(model, optimizer, root, **settings) as telemetry:
        for epoch in range(NUM_EPOCHS):
            _train(model, optimizer, telemetry, epoch)
            _validate(model, telemetry, epoch)
    return root


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, telemetry: TelemetryCollector, epoch: int) -> None:
    model.train()
    for _ in range(BATCHES_PER_EPOCH):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 6)).log_softmax(dim=1).square().mean()
        loss.backward()
        telemetry.step(epoch, values={"loss": loss})
        optimizer.step()


def _validate(model: nn.Module, telemetry: TelemetryCollector, epoch: int) -> None:
    model.eval()
    votes = torch.arange(50).reshape(5, 10) % 7 + 1
    images = torch.linspace(0, 1, 30).reshape(5, 6)
    with torch.inference_mode(), telemetry.val_predictions(epoch) as predictions:
        predictions.add([11, 12, 13, 14, 15], model(images).softmax(dim=1), votes)
