"""Evaluate a model while it is trained, and leave the training as it was, bit for bit."""

import random
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ava_pipeline.collect.targets import unwrap

Autocast: TypeAlias = torch.dtype | Literal["auto"] | None

_is_holdout: ContextVar[bool] = ContextVar("is_holdout", default=False)


def in_holdout() -> bool:
    """Whether the collector is evaluating the held-out samples of `set_holdout` in this thread.

    Modules are called then that the training does not call. A hook of yours that counts or measures what the training
    does asks this first. `torch.compile` need not be able to trace it: the held-out samples are evaluated without it.

    Example:
        def count_calls(module, inputs):
            if not in_holdout():
                counts[module] += 1

        model.backbone.register_forward_pre_hook(count_calls)

    Returns:
        True during the forward passes of the held-out samples, else False.
    """
    return _is_holdout.get()


@contextmanager
def undisturbed(
    modules: Sequence[nn.Module], devices: Collection[torch.device], autocast: torch.dtype | None = None
) -> Iterator[None]:
    """Evaluate models in a `with` block: no gradients, every module in eval mode, under `autocast` if it is a dtype.

    Afterwards each module has its own train flag, each buffer is the tensor that it was, with the bits that it had, and
    random states are as before: torch's on the CPU and on `devices`, Python's and NumPy's. Within the block, buffers
    are copies, so that whatever a module does to one is forgotten. What torch.compile compiled runs without it, since
    another mode would be compiled anew. `in_holdout` is True in the block.
    """
    every = list(dict.fromkeys(module for model in modules for module in model.modules()))
    with ExitStack() as stack:
        stack.enter_context(same_random_states(devices))
        stack.enter_context(_copied_buffers(every))
        stack.enter_context(_in_eval_mode(every))
        stack.enter_context(_marked())
        stack.enter_context(_uncompiled())
        stack.enter_context(torch.no_grad())  # not inference_mode: what a module keeps must be usable in training
        for kind in {device.type for device in devices if device.type == "cpu" or _random_module(device)}:
            # Also if it is off, since the loop may call `step` under its own. Its cache would serve casts without grad.
            stack.enter_context(torch.autocast(kind, autocast, enabled=autocast is not None, cache_enabled=False))
        yield


@contextmanager
def same_random_states(devices: Collection[torch.device]) -> Iterator[None]:
    """Set the random states of torch, on the CPU and on `devices`, of Python and of NumPy to what they were before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # the global one
    of_devices = [(device, _random_module(device)) for device in devices]
    states = [(device, module, _state(device, module)) for device, module in of_devices if module is not None]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002  # as above
        torch.set_rng_state(cpu)
        for device, module, state in states:
            _set_state(device, module, state)


def _random_module(device: torch.device) -> Any:
    """The module that holds the generator of a device; None of the CPU, and of CUDA before its first use."""
    if device.type not in {"cuda", "xpu", "mps"}:
        return None
    module: Any = torch.get_device_module(device)
    return module if device.type == "mps" or module.is_initialized() else None


def _state(device: torch.device, module: Any) -> Tensor:
    """The state of a device's generator, which is on the host, so that reading it waits for nothing."""
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def _set_state(device: torch.device, module: Any, state: Tensor) -> None:
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


@contextmanager
def _copied_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give the modules copies of their buffers, and then their own again: these are never touched.

    To write the bits back would count as a change of the tensor, which a pending backward pass may need unchanged.
    """
    own = [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()  # noqa: SLF001  # `buffers()` does not say where each of them is
        if buffer is not None and not is_lazy(buffer)
    ]
    copies: dict[int, Tensor] = {}  # modules may share a buffer
    try:
        for module, name, buffer in own:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())  # noqa: SLF001  # as above
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer  # noqa: SLF001  # as above


@contextmanager
def _in_eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Set the flags themselves: `eval()` and `train()` of a module may do more, and would wake one that is frozen."""
    flags = [(module, module.training) for module in modules]
    try:
        for module, is_training in flags:
            if is_training:
                module.training = False
        yield
    finally:
        for module, is_training in flags:
            if module.training != is_training:
                module.training = is_training


@contextmanager
def _marked() -> Iterator[None]:
    token = _is_holdout.set(True)
    try:
        yield
    finally:
        _is_holdout.reset(token)


def _uncompiled() -> AbstractContextManager[object]:
    """Run what is compiled as it is written; a torch before 2.6 compiles it for the evaluation too."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None or "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = set_stance("force_eager")
    return stance


class AutocastProbe:
    """Finds out under which autocast models are trained, at their next call with gradients: the `dtype`, or None.

    It is a hook on the calls of all modules, so that nothing is put on the model. It is removed at that call, by
    `close`, or with the object. Compiled models are not probed: such a hook would make torch.compile compile them
    again. In a compiled step it sees nothing, and its removal would do the same, so `close` waits for a call outside.
    """

    def __init__(self, models: Sequence[nn.Module], device_type: str, *, is_compiled: bool) -> None:
        self.dtype: torch.dtype | None = None
        self._device_type = device_type
        self._models = [weakref.ref(unwrap(model)) for model in models]
        self._was_called = False
        self._remove: Callable[[], object] | None = None
        if not is_compiled:
            own = weakref.ref(self)
            handle = nn.modules.module.register_module_forward_pre_hook(partial(_probe, own))
            self._remove = weakref.finalize(self, handle.remove)

    def look(self, module: nn.Module) -> None:
        """Note the autocast of a call, if it is one of a model in training."""
        if not torch.is_grad_enabled():
            return
        self._was_called = True
        if any(module is model() for model in self._models):
            if torch.is_autocast_enabled(self._device_type):
                self.dtype = torch.get_autocast_dtype(self._device_type)
            self.close()

    def close(self) -> None:
        """Remove the hook, if a module was called with gradients outside of what is compiled."""
        if self._remove is not None and self._was_called:
            self._remove()
            self._remove = None


def _probe(reference: "weakref.ref[AutocastProbe]", module: nn.Module, _inputs: object) -> None:
    if torch.compiler.is_compiling():  # this is traced, and must leave no trace
        return
    probe = reference()
    if probe is not None:
        probe.look(module)
