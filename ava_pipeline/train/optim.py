"""Two parameter groups, and one learning rate that both follow."""

import math
from dataclasses import dataclass

from torch import nn, optim

from ava_pipeline.config import OptimConfig
from ava_pipeline.train.model import AvaModel


def build_optimizer(model: AvaModel, config: OptimConfig) -> optim.Optimizer:
    """Make the optimizer: group 0 the backbone at `base_lr`, group 1 the head at `head_lr_mult` times it.

    Norm layers and biases decay like the rest, so that there are these two groups and `lr_group_0` and `lr_group_1`
    are the backbone's and the head's.
    """
    groups = [
        _group(model.backbone, config.base_lr),
        _group(model.mlp_head, config.base_lr * config.head_lr_mult),
    ]
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return optim.AdamW(groups, lr=config.base_lr, weight_decay=config.weight_decay)


def _group(part: nn.Module, lr: float) -> dict[str, object]:
    return {"params": list(part.parameters()), "lr": lr, "initial_lr": lr}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, then a cosine or a constant, counted in optimizer steps.

    A pure function of the step: a resumed run needs nothing but its count, and follows a changed config.

    Attributes:
        warmup_steps: the rate rises evenly and is whole at the last of these.
        total_steps: the cosine reaches `min_factor` here.
        min_factor: the least share of a group's own rate; the same for every group.
        cosine: False keeps the rate constant after warm-up.
    """

    warmup_steps: int
    total_steps: int
    min_factor: float
    cosine: bool

    @classmethod
    def of(cls, config: OptimConfig, *, batches_per_epoch: int, steps_per_epoch: int, epochs: int) -> "Schedule":
        """Count the config's warm-up and epochs in optimizer steps."""
        share_of_epoch = config.warmup_epochs or (config.warmup_batches or 0) / batches_per_epoch
        return cls(
            warmup_steps=math.ceil(share_of_epoch * steps_per_epoch),
            total_steps=steps_per_epoch * epochs,
            min_factor=config.min_lr / config.base_lr,
            cosine=config.schedule == "cosine",
        )

    def factor(self, step: int) -> float:
        """The share of a group's own rate that step `step` (from 0) uses."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.cosine:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def apply(self, optimizer: optim.Optimizer, step: int) -> None:
        """Give every group the rate of step `step`."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
