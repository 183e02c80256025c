"""Optimizer steps: counted by hooks, compared with the calls of `step`, and used as the global step."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.optim import Optimizer

from ava_pipeline.collect.amp import hooks_show_skips, is_stepped_by_scaler
from ava_pipeline.collect.capture import is_capturing
from ava_pipeline.collect.targets import TrainingTargets

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

MIN_CALLS = 4
MIN_IDLE_CALLS = 2


class CallOrder:
    """Counts optimizer steps and compares them with the calls of `TelemetryCollector.step`.

    In a correct loop k-1 optimizer steps come before the k-th call that does not only accumulate, or fewer if steps
    were skipped. Calls that name an optimizer are compared with its steps. Other calls come too late if the optimizer
    that steps least often has stepped before each, and too often if no optimizer steps between them. Nothing is
    compared if optimizer steps run without their hooks, as in a CUDA graph or a compiled function.

    The hooks hold numbers only. Neither a copy nor a pickle of an optimizer includes its hooks. `batch_idx` returns
    that of the latest `step`.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], batch_idx: Callable[[], int]) -> None:
        self._counts: dict[str, _StepCount] = {}
        self._hooks: list[RemovableHandle] = []
        self._batches = _BatchSteps(batch_idx)
        self.attach(optimizers, 0, {})

    def attach(self, optimizers: Mapping[str, Optimizer], num_calls: int, named_calls: Mapping[str, int]) -> None:
        """Count the steps of these optimizers from now on; the numbers of calls are those until now."""
        self._num_steps_before = self.num_steps
        self._num_calls_before, self._named_before = num_calls, dict(named_calls)
        self._has_hooks = True
        self._num_skipped = dict.fromkeys(optimizers, 0)
        self.close()
        self._counts = {name: _StepCount(self._batches) for name in optimizers}
        self._shows_skips = {name: hooks_show_skips([optimizer]) for name, optimizer in optimizers.items()}
        for name, one in optimizers.items():
            try:
                self._hooks.append(one.register_step_post_hook(self._counts[name]))
            except AttributeError:  # a subclass that does not call the constructor of Optimizer has no hooks
                self._has_hooks = False

    @property
    def num_steps(self) -> int:
        """The optimizer steps of the run; in a batch with several optimizers, those of the one that steps most."""
        return self._batches.num_steps

    @property
    def num_single_steps(self) -> int:
        """The steps of all present optimizers."""
        return sum(count.value for count in self._counts.values())

    @property
    def is_counting(self) -> bool:
        """Whether every step is counted, and a hook was ever called; those of a wrapper may never be."""
        return self.counts_all and self.num_steps > 0

    @property
    def counts_all(self) -> bool:
        """Whether no optimizer step is known to run without its hooks."""
        return self._has_hooks and not any(count.is_captured or count.is_compiled for count in self._counts.values())

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph contains an optimizer step."""
        return any(count.is_captured for count in self._counts.values())

    def look_for_scaler(self) -> None:
        """Find out at the next optimizer step whether a GradScaler makes it."""
        for count in self._counts.values():
            count.must_look = not count.found_scaler

    @property
    def found_scaler(self) -> bool:
        """Whether a GradScaler was found."""
        return any(count.found_scaler for count in self._counts.values())

    def num_skipped(self, calls: "NumCalls") -> int:
        """Optimizer steps that a GradScaler skipped since the last call; 0 if only its scale shows them."""
        name, num_calls, num_steps = self._compared(calls)
        if not self.counts_all or not self._shows_skips[name] or (calls.optimizer is None and len(self._counts) > 1):
            return 0
        skipped = max(0, num_calls - 1 - num_steps)
        new, self._num_skipped[name] = max(0, skipped - self._num_skipped[name]), skipped
        return new

    def complaint(self, calls: "NumCalls", *, may_skip: bool) -> str | None:
        """What is wrong with the order of calls, with the remedy; None if it is right, or cannot be judged."""
        if not self.counts_all:
            return None
        name, num_calls, num_steps = self._compared(calls)
        of_name = "" if calls.optimizer is None else f" of {name!r}"
        if num_steps >= num_calls:
            return (
                f"step() was called after optimizer.step(){of_name}, so the rates and, with AMP, the scale are those "
                "of the next step. Call it after backward() and before clipping and optimizer.step()."
            )
        if calls.optimizer is None:
            num_steps = self.num_steps - self._num_steps_before
        if may_skip or num_steps == 0 or num_calls < MIN_CALLS or num_calls - 1 < 2 * num_steps:
            return None
        return (
            f"step() was called {num_calls} times for {num_steps} optimizer steps{of_name}. Call it once per batch, "
            "with accumulating=True for batches that only accumulate gradients."
        )

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _compared(self, calls: "NumCalls") -> tuple[str, int, int]:
        """The name of an optimizer, and the calls and the steps that are compared."""
        if calls.optimizer is not None:
            name, before = calls.optimizer, self._named_before.get(calls.optimizer, 0)
        else:
            name, before = min(self._counts, key=lambda name: self._counts[name].value), self._num_calls_before
        return name, calls.value - before, self._counts[name].value


class NumCalls(NamedTuple):
    """The calls of `step` so far that did not only accumulate: all, or those that name one optimizer."""

    value: int
    optimizer: str | None = None


class _BatchSteps:
    """Counts optimizer steps batch by batch: several optimizers that step in one batch make one step of the run."""

    def __init__(self, batch_idx: Callable[[], int]) -> None:
        self.num_steps = 0
        self._batch_idx = batch_idx
        self._batch = -1
        self._most = 0
        self._num_steps_of: Counter[int] = Counter()

    def add(self, optimizer: int) -> None:
        """Count a step of the optimizer with this id."""
        batch_idx = self._batch_idx()
        if batch_idx != self._batch:
            self._batch, self._most = batch_idx, 0
            self._num_steps_of.clear()
        self._num_steps_of[optimizer] += 1
        if self._num_steps_of[optimizer] > self._most:
            self._most += 1
            self.num_steps += 1


class _StepCount:
    """A step hook that holds numbers and nothing else.

    `is_captured` and `is_compiled` are True once an optimizer step became part of a CUDA graph or a compiled function.
    """

    def __init__(self, batches: _BatchSteps) -> None:
        self._batches = batches
        self.value = 0
        self.is_captured = self.is_compiled = False
        self.must_look = False
        self.found_scaler = False

    def __call__(self, *_: object) -> None:
        if torch.compiler.is_compiling():  # what follows would be traced, and a count fails as a guard
            self.is_compiled = True
            return
        self.value += 1
        self._batches.add(id(self))
        if is_capturing():
            self.is_captured = True
        if self.must_look:
            self.must_look = False
            self.found_scaler = is_stepped_by_scaler()


class OptimizerWatch:
    """Notices that parameters change though their optimizer no longer steps: another one was made.

    torch counts how often a tensor was changed in place. A step that a GradScaler skips changes nothing.
    """

    def __init__(self, targets: TrainingTargets) -> None:
        self._is_held = [bool(optimizers) for optimizers in targets.optimizers_of()]
        self._before: tuple[int, int, int] | None = None
        self._num_idle_calls = 0

    def is_replaced(self, changes: Sequence[int], num_steps: int, num_calls: int) -> bool:
        """Whether the optimizer was replaced.

        The counts at this row are the changes of each parameter, the steps of the optimizer, and the calls of `step`.
        """
        version = sum(compress(changes, self._is_held))
        before, self._before = self._before, (version, num_steps, num_calls)
        if before is None or num_steps > before[1]:
            self._num_idle_calls = 0
        elif version != before[0]:
            self._num_idle_calls += num_calls - before[2]
        return num_steps > 0 and self._num_idle_calls >= MIN_IDLE_CALLS
