"""Optimizer steps: counted by hooks, compared with the calls of `step`, and used as the global step."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from ava_pipeline.collect.amp import hooks_show_skips
from ava_pipeline.collect.targets import TrainingTargets

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

MIN_CALLS = 4
MIN_IDLE_CALLS = 2

_version = attrgetter("_version")


class CallOrder:
    """Counts optimizer steps and compares them with the calls of `TelemetryCollector.step`.

    In a correct loop k-1 optimizer steps come before the k-th call that does not only accumulate, or fewer if steps
    were skipped. Of several optimizers, each is compared with the calls that name it; if none is named, the one that
    steps least often is compared with all calls.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._counts: dict[str, _StepCount] = {}
        self._hooks: list[RemovableHandle] = []
        self._num_steps_before = 0
        self.attach(optimizers, 0, {})

    def attach(self, optimizers: Mapping[str, Optimizer], num_calls: int, named_calls: Mapping[str, int]) -> None:
        """Count the steps of these optimizers from now on; the numbers of calls are those until now."""
        self._num_steps_before = self.num_steps
        self._num_calls_before, self._named_before = num_calls, dict(named_calls)
        self._num_skipped = 0
        self.close()
        self._counts = {name: _StepCount() for name in optimizers}
        self._shows_skips = {name: hooks_show_skips([optimizer]) for name, optimizer in optimizers.items()}
        self._hooks = [one.register_step_post_hook(self._counts[name]) for name, one in optimizers.items()]

    @property
    def num_steps(self) -> int:
        """The steps so far of the optimizer that stepped most often."""
        return self._num_steps_before + max((count.value for count in self._counts.values()), default=0)

    @property
    def is_counting(self) -> bool:
        """Whether a hook was ever called; those of a wrapper may never be."""
        return self.num_steps > 0

    def num_skipped(self, num_calls: int, named_calls: Mapping[str, int]) -> int:
        """Optimizer steps that a GradScaler skipped since the last call; 0 if only its scale shows them."""
        skipped = sum(
            max(0, calls - 1 - steps)
            for name, calls, steps in self._compared(num_calls, named_calls)
            if self._shows_skips.get(name) and (named_calls or len(self._counts) == 1)
        )
        new, self._num_skipped = max(0, skipped - self._num_skipped), skipped
        return new

    def complaint(self, num_calls: int, named_calls: Mapping[str, int], *, may_skip: bool) -> str | None:
        """What is wrong with the order of calls, with the remedy; None if it is right, or cannot be judged."""
        for name, calls, steps in self._compared(num_calls, named_calls):
            of_name = f" of {name!r}" if named_calls else ""
            if steps >= calls:
                return (
                    f"step() was called after optimizer.step(){of_name}, so the rates and, with AMP, the scale are "
                    "those of the next step. Call it after backward() and before clipping and optimizer.step()."
                )
            if not may_skip and steps and calls >= MIN_CALLS and calls - 1 >= 2 * steps:
                return (
                    f"step() was called {calls} times for {steps} optimizer steps{of_name}. Call it once a batch, "
                    "with accumulating=True for batches that only accumulate gradients."
                )
        return None

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _compared(self, num_calls: int, named_calls: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
        """Names of optimizers, with the calls and the steps that are compared."""
        if named_calls:
            for name, calls in named_calls.items():
                if name in self._counts:
                    yield name, calls - self._named_before.get(name, 0), self._counts[name].value
        else:
            name = min(self._counts, key=lambda name: self._counts[name].value)
            yield name, num_calls - self._num_calls_before, self._counts[name].value


class _StepCount:
    """A step hook that holds a number and nothing else."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, *_: object) -> None:
        self.value += 1


class OptimizerWatch:
    """Notices that parameters change though their optimizer no longer steps: another one was made.

    torch counts how often a tensor was changed in place. A step that a GradScaler skips changes nothing.
    """

    def __init__(self, targets: TrainingTargets) -> None:
        owners = targets.optimizer_of()
        self._parameters = [one for one, owner in zip(targets.parameters, owners, strict=True) if owner is not None]
        self._before: tuple[int, int, int] | None = None
        self._num_idle_calls = 0

    def is_replaced(self, num_steps: int, num_calls: int) -> bool:
        """Whether the optimizer was replaced, by the counts of its steps and of calls of `step` at this row."""
        version = sum(map(_version, self._parameters))
        before, self._before = self._before, (version, num_steps, num_calls)
        if before is None or num_steps > before[1]:
            self._num_idle_calls = 0
        elif version != before[0]:
            self._num_idle_calls += num_calls - before[2]
        return num_steps > 0 and self._num_idle_calls >= MIN_IDLE_CALLS
