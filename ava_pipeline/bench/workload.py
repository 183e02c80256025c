"""The training that a benchmark measures: AVA's model, loss and optimizer on generated images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.bench.options import Options
from ava_pipeline.bench.timing import Clock, clock_for
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.config.models import ModelConfig, OptimConfig
from ava_pipeline.contract.builtin_tables import NUM_SCORES
from ava_pipeline.train.losses import squared_emd
from ava_pipeline.train.models import build_model
from ava_pipeline.train.optim import build_optimizer, pick_device

_BLOCK_TIMEOUT_S = 600.0


class Workload:
    """A ResNet with an MLP head, in training mode, and one batch on which it is trained repeatedly."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        self._options = options
        self.device = pick_device(options.device)
        self.clock: Clock = clock_for(self.device)
        order = torch.channels_last if options.channels_last else torch.contiguous_format
        config = ModelConfig.model_validate({"backbone": options.model, "weights": "none"})
        self.model = build_model(config).to(self.device, memory_format=order)  # type: ignore[call-overload]  # torch names its formats for 4 dimensions only
        self._images = torch.randn(self._shape()).to(self.device, memory_format=order)
        self._votes = torch.randint(1, 50, (options.batch_size, NUM_SCORES)).to(self.device)

    def optimizer(self) -> Optimizer:
        """A new optimizer; several can step the same model in turn."""
        return build_optimizer(self.model, OptimConfig())

    def backward(self) -> Tensor:
        """Run one forward and backward pass and return the loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._options.bf16):
            logits = self.model(self._images)
        loss = squared_emd(logits, self._votes)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return loss.detach()

    def gradients(self) -> Sequence[Tensor]:
        """The gradients of the latest backward pass."""
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def _shape(self) -> tuple[int, int, int, int]:
        size = self._options.image_size
        return self._options.batch_size, 3, size, size


def collector(
    workload: Workload, optimizer: Optimizer, folder: Path, every: int, **overrides: Any
) -> TelemetryCollector:
    """Create a collector of the workload's model; `overrides` are further settings."""
    return collector_of(workload.model, optimizer, folder, every, **overrides)


def collector_of(
    model: nn.Module,
    optimizer: Optimizer,
    folder: Path,
    every: int,
    groups: Mapping[str, Sequence[nn.Parameter]] | None = None,
    **overrides: Any,
) -> TelemetryCollector:
    """Create a collector as users do, but block if the channel is full: to drop a row is cheaper than to write it."""
    return TelemetryCollector(
        model,
        optimizer,
        folder,
        collect_every_n=every,
        groups=groups,
        on_full="block",
        block_timeout_s=_BLOCK_TIMEOUT_S,
        on_error="raise",
        **overrides,
    )
