"""Mixed precision: which dtype a device computes in, and whether the loss must be scaled."""

from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from ava_pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Precision:
    """How the forward pass computes.

    Attributes:
        device_type: "cpu", "cuda" or "mps".
        dtype: what autocast uses; None where it is off.
    """

    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def of(cls, amp: str, device: torch.device) -> "Precision":
        """Find what `amp` means on `device`.

        Raises:
            ConfigError: fp16 was asked for where gradients cannot be scaled.
        """
        if amp == "auto":
            return cls(device.type, _best(device))
        if amp == "fp16" and device.type != "cuda":
            raise ConfigError(
                f"train.amp is fp16 on {device.type}; fp16 needs CUDA. Set train.amp to auto, bf16 or off."
            )
        return cls(device.type, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def grad_scaler(self) -> GradScaler | None:
        """Keeps fp16 gradients above zero; the other dtypes need none."""
        return GradScaler(self.device_type) if self.dtype == torch.float16 else None


def pick_device(name: str) -> torch.device:
    """Find the device that the config names.

    Raises:
        ConfigError: this machine has none of that name.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise ConfigError(f"device is {name!r}, which torch does not find here; use one of: {usable}.")
    return torch.device(name)


def _best(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
