"""Seeing whether a model is trained under float16 autocast."""

import torch
from torch import nn


class AutocastWatch:
    """Looks at the first training forward pass, from a hook that then removes itself.

    Args:
        model: whose forward pass to look at.
        device: that it runs on.

    Attributes:
        saw_float16: whether that pass ran under float16 autocast.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.saw_float16 = False
        self._device_type = device.type
        self._hook = model.register_forward_pre_hook(self._look)

    def close(self) -> None:
        """Stop looking."""
        self._hook.remove()

    def _look(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return  # a compiler traces hooks too, and must find nothing to do in this one
        kind = self._device_type
        self.saw_float16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        self.close()
