"""The optimizer, its learning-rate schedule, mixed precision and the device."""

import math
from dataclasses import dataclass

import torch
from torch import nn, optim
from torch.amp.grad_scaler import GradScaler

from ava_pipeline.config.models import OptimConfig
from ava_pipeline.errors import ConfigError
from ava_pipeline.train.models import AvaModel


def build_optimizer(model: AvaModel, config: OptimConfig) -> optim.Optimizer:
    """Build the optimizer: group 0 is the backbone at `base_lr`, group 1 the head at `head_lr_mult` times that rate."""
    # Norm layers and biases decay like all other parameters, so that there are exactly two groups.
    groups = [_group(model.backbone, config.base_lr), _group(model.mlp_head, config.base_lr * config.head_lr_mult)]
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return optim.AdamW(groups, lr=config.base_lr, weight_decay=config.weight_decay)


def _group(part: nn.Module, lr: float) -> dict[str, object]:
    return {"params": list(part.parameters()), "lr": lr, "initial_lr": lr}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, then a cosine or a constant: a pure function of the optimizer step, all that a resume needs."""

    warmup_steps: int  # the rate rises linearly and reaches its full value at the last of these steps
    total_steps: int  # the cosine reaches `min_factor` at this step
    min_factor: float  # the smallest fraction of a group's base rate; the same for every group
    cosine: bool  # False keeps the rate constant after warm-up

    @classmethod
    def of(cls, config: OptimConfig, *, batches_per_epoch: int, steps_per_epoch: int, epochs: int) -> "Schedule":
        """Build the schedule of a config, with warm-up and epochs counted in optimizer steps."""
        share_of_epoch = config.warmup_epochs or (config.warmup_batches or 0) / batches_per_epoch
        return cls(
            warmup_steps=math.ceil(share_of_epoch * steps_per_epoch),
            total_steps=steps_per_epoch * epochs,
            min_factor=config.min_lr / config.base_lr,
            cosine=config.schedule == "cosine",
        )

    def factor(self, step: int) -> float:
        """The fraction of a group's base rate that the 0-based `step` uses."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.cosine:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def apply(self, optimizer: optim.Optimizer, step: int) -> None:
        """Set every group's rate to that of `step`."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of the forward pass."""

    device_type: str  # "cpu", "cuda" or "mps"
    dtype: torch.dtype | None  # of autocast; None if it is off

    @classmethod
    def of(cls, amp: str, device: torch.device) -> "Precision":
        """Resolve the setting `amp`; raise ConfigError if it is fp16 and the device's gradients cannot be scaled."""
        if amp == "auto":
            return cls(device.type, _best(device))
        if amp == "fp16" and device.type != "cuda":
            raise ConfigError(
                f"train.amp is fp16 on {device.type}; fp16 needs CUDA. Set train.amp to auto, bf16 or off."
            )
        return cls(device.type, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])

    def autocast(self) -> torch.autocast:
        """The autocast context for a forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def grad_scaler(self) -> GradScaler | None:
        """The scaler that keeps fp16 gradients from underflowing; None for other dtypes."""
        return GradScaler(self.device_type) if self.dtype == torch.float16 else None


def pick_device(name: str) -> torch.device:
    """Resolve the device that the config names; raise ConfigError if this machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise ConfigError(f"device is {name!r}, which torch does not find on this machine; use one of: {usable}.")
    return torch.device(name)


def _best(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
