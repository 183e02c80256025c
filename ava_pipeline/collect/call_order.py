"""Telling whether `step` is called where it should be: once a batch, between backward and `optimizer.step`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from ava_pipeline.collect.amp import hooks_tell_skips

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_MIN_CALLS = 4


class CallOrder:
    """Counts optimizer steps by their hooks and compares them with the calls of `TelemetryCollector.step`.

    In a right loop the k-th call that does not only accumulate stands behind k-1 optimizer steps, or fewer where
    steps were skipped.

    Args:
        optimizers: all of them; each is counted, the one that steps least often is compared.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._counts: list[_StepCount] = []
        self._hooks: list[RemovableHandle] = []
        self._num_skipped = 0
        self._tells_skips = hooks_tell_skips(optimizers)
        for optimizer in optimizers:
            self._counts.append(_StepCount())
            self._hooks.append(optimizer.register_step_post_hook(self._counts[-1]))

    def num_skipped(self, num_calls: int) -> int:
        """Optimizer steps that a GradScaler left out since the last time this was asked; 0 where only its scale tells.

        Args:
            num_calls: of `step` so far, this one included, whose own optimizer step is yet to come.
        """
        if not self._tells_skips:
            return 0
        skipped = max(0, num_calls - 1 - self._counts[0].value)
        new, self._num_skipped = max(0, skipped - self._num_skipped), skipped
        return new

    def complaint(self, num_calls: int, *, may_skip: bool) -> str | None:
        """What is wrong with the order of calls, with the remedy; None where nothing is, or it cannot be told.

        Args:
            num_calls: calls so far, this one included, without those that only accumulated.
            may_skip: a GradScaler may have skipped optimizer steps.
        """
        num_steps = min(count.value for count in self._counts)
        if num_steps >= num_calls:
            return (
                "step() was called after optimizer.step(), so the rates and, with AMP, the scale are those of the next "
                "step. Call it after backward() and before clipping and optimizer.step()."
            )
        if may_skip or num_steps == 0 or num_calls < _MIN_CALLS or num_calls - 1 < 2 * num_steps:
            return None
        return (
            f"step() was called {num_calls} times for {num_steps} optimizer steps. Call it once a batch, with "
            "accumulating=True for batches that only accumulate gradients."
        )

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _StepCount:
    """A hook that holds nothing alive."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, *_: object) -> None:
        self.value += 1
