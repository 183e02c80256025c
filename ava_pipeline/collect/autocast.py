"""Seeing whether a model is trained under float16 autocast."""

import torch
from torch import nn


class AutocastWatch:
    """Looks at one training forward pass, from a hook that then removes itself.

    There is no hook before `begin`: `torch.jit.script` refuses a model that has one.

    Args:
        model: whose forward pass to look at.

    Attributes:
        saw_float16: whether that pass ran under float16 autocast.
    """

    def __init__(self, model: nn.Module) -> None:
        self.saw_float16 = False
        self._model: nn.Module | None = model
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def begin(self) -> None:
        """Look at the next training forward pass; only once, however often this is called."""
        if self._model is not None:
            self._hook = self._model.register_forward_pre_hook(self._look)
            self._model = None

    def close(self) -> None:
        """Stop looking."""
        self._model = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _look(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return  # a compiler traces hooks too, and must find nothing to do in this one
        kind = next(module.parameters()).device.type  # now: the model may have been moved since it was given
        self.saw_float16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        self.close()
