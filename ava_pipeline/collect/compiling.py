"""torch.compile: a compiled training step calls the collector, and never traces it."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch


def leave_untraced(*functions: Callable[..., object]) -> None:
    """Make torch.compile call these functions rather than trace them; where nothing is compiled, this costs nothing.

    A counter that is traced becomes a condition that fails at the next call, and the training step is compiled again,
    step after step. What the functions call may still be traced, unless it is called through `outside_graphs`.

    The public `torch.compiler.disable` wraps a function, which would cost more than a whole `step` that collects
    nothing. torch's `skip` only marks the code; it has no public name.
    """
    with suppress(ImportError):  # a torch without it traces, which is slow and changes no number
        # Every optimizer has imported torch._dynamo already, which takes too long to do it for those who do not train.
        from torch._dynamo.decorators import skip  # noqa: PLC0415

        for function in functions:
            skip(function)


@cache
def outside_graphs() -> Callable[..., Any]:
    """A function that calls its first argument with the others; torch.compile traces nothing of what happens there."""
    disabled: Callable[..., Any] = torch.compiler.disable(_call)  # type: ignore[no-untyped-call]  # as in torch
    return disabled


def _call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return function(*args, **named)
