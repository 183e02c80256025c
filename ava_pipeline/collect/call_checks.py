"""Checks of how the collector is called: its arguments and the process, the count of batches, the order of the calls.

A call that cannot be right raises. A loop that is probably wrong is recorded as a warning, once, with the remedy.
"""

import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.collect.amp import Scaling, hooks_show_skips, is_stepped_by_scaler
from ava_pipeline.collect.capture import is_capturing
from ava_pipeline.collect.measures.measure import StepSnapshot, Value
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.config.messages import describe_errors
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.errors import ConfigError, MisuseError
from ava_pipeline.write.event_log import EventLog

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_JSON = TypeAdapter(dict[str, JsonValue])


def check_arguments(model: object, output_dir: object, groups: object, grad_scaler: object) -> None:
    """Raise MisuseError if an argument of the constructor has a wrong type, rather than fail in a later step."""
    if not isinstance(model, nn.Module):
        raise MisuseError(f"model is a {type(model).__name__}: give the torch.nn.Module that is being trained.")
    path = os.fspath(output_dir) if isinstance(output_dir, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise MisuseError(f"output_dir is {output_dir!r}: give the run's directory, such as 'outputs/ava/my_run'.")
    if groups is not None and not isinstance(groups, Mapping):
        raise MisuseError(
            f"groups is a {type(groups).__name__}: give a mapping column -> module, parameters or name globs, "
            "such as {'stem': 'conv1.*'}."
        )
    if grad_scaler is not None and not callable(getattr(grad_scaler, "is_enabled", None)):
        raise MisuseError(
            f"grad_scaler is a {type(grad_scaler).__name__}: "
            "give the torch.amp.GradScaler that scales the loss, or None."
        )


def telemetry_config(
    config: TelemetryConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> TelemetryConfig:
    """Merge single fields into a config; raise ConfigError with all fields that are unknown or invalid."""
    if config is not None and not isinstance(config, TelemetryConfig | Mapping):
        raise ConfigError(f"config is {config!r}: give a TelemetryConfig, a mapping of its fields, or None.")
    given = config.model_dump() if isinstance(config, TelemetryConfig) else dict(config or {})
    try:
        return TelemetryConfig.model_validate({**given, **overrides})
    except ValidationError as error:
        problems = describe_errors(error, TelemetryConfig, source_of=lambda _: "TelemetryConfig")
        raise ConfigError(problems) from error


def as_json(run_info: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The user's facts as JSON values, or a MisuseError; bytes of a string that are not UTF-8 become question marks."""
    try:
        facts = _JSON.validate_python(dict(run_info))
        text = json.dumps(facts, allow_nan=False, ensure_ascii=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MisuseError(
            f"run_info[{first['loc'][0]!r}] cannot be stored as JSON ({first['msg']}): "
            "give numbers, strings, lists and mappings."
        ) from error
    except ValueError as error:
        raise MisuseError(f"run_info cannot be stored as JSON ({error}): give finite numbers.") from error
    storable_facts: dict[str, JsonValue] = json.loads(text.encode("utf-8", "replace"))
    return storable_facts


def check_values(values: Mapping[str, Value]) -> None:
    """Raise MisuseError unless values map names to scalars; what is neither tensor nor number fails its row later."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise MisuseError(f"values is {values!r}: give a mapping name -> number, such as {{'loss': loss}}.")
    for name, value in values.items():
        if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
            raise MisuseError(
                f"values[{name!r}] is a tensor of shape {tuple(value.shape)} and {value.dtype}: give one real number, "
                "such as its .mean()."
            )


def whole_number(name: str, value: object, *, least: int = 0, remedy: str = "") -> int:
    """Return an integer, NumPy's too, as an int, or raise MisuseError; reading a tensor would wait for the device."""
    try:
        number = None if isinstance(value, Tensor | bool) else operator.index(value)  # type: ignore[arg-type]  # tried here
    except TypeError:
        number = None
    if number is None or not least <= number < 2**63:
        raise MisuseError(
            f"{name} is {value!r} ({type(value).__name__}): give an int, {least} or more and below 2**63.{remedy}"
        )
    return number


def process_rank() -> int:
    """This process's rank; only rank 0 writes. Raise MisuseError if the variable RANK is not a number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    given = os.environ.get("RANK", "")
    try:
        return int(given or "0")
    except ValueError as error:
        message = (
            f"the environment variable RANK is {given!r}: set it to this process's number, 0 if alone, or unset it."
        )
        raise MisuseError(message) from error


class BatchCount:
    """Where the run is, and at which batch `step` has more to do than to count.

    `every` is infinity if nothing is collected. `batch_idx`, 1-based and 0 before the first, and `epoch` are those of
    the latest `step`. `due` is the batch at which `step` does more than count: `next_row`, or -1 if a finding waits for
    delivery. `num_accumulating` counts the calls in this process that only accumulated gradients.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._has_holes = False
        self.epoch = self.batch_idx = self.resumed_from = self.num_accumulating = 0
        self.next_row = self.due = every

    def resume(self, batch_idx: int, epoch: int) -> None:
        """Continue after a checkpoint's batch."""
        self.batch_idx = self.resumed_from = batch_idx
        self.epoch = epoch
        self.schedule_row(batch_idx)
        self.due = self.next_row

    def follow(self, batch_idx: int) -> str | None:
        """Take over the user's count; if it does not rise, add one to the own count and return what is wrong."""
        before = self.batch_idx
        if batch_idx > before:
            self._has_holes |= batch_idx != before + 1
            self.batch_idx = batch_idx
            return None
        self.batch_idx += 1
        return (
            f"batch_idx {batch_idx} came after {before} and does not rise, so the collector continues its own count. "
            "Give a count of the whole run, which does not start over with an epoch, or leave it out."
        )

    def schedule_row(self, after: int) -> None:
        """Set the next row to the first multiple of `every` after a batch."""
        self.next_row = (after // self._every + 1) * self._every

    def wake(self) -> None:
        """Make the next `step` deliver findings; called in the background thread."""
        self.due = -1

    @property
    def is_collecting(self) -> bool:
        """Whether any row will be due."""
        return self._every != math.inf

    def stop(self) -> None:
        """Collect nothing from now on."""
        self._every = self.next_row = self.due = math.inf

    def finish(self) -> None:
        """Make every further `step` due, so that it raises: the collector is closed."""
        self.next_row = self.due = 0

    @property
    def num_calls(self) -> int | None:
        """Calls in this process that did not only accumulate; None if the user's count left out batches."""
        return None if self._has_holes else self.batch_idx - self.resumed_from - self.num_accumulating


class CallChecks:
    """Checks each collected step and warns once about each probable mistake."""

    def __init__(self, events: EventLog, count: BatchCount, targets: TrainingTargets) -> None:
        self._events = events
        self._count = count
        self._targets = targets
        self._optimizers = tuple(targets.optimizers.values())
        self._order = CallOrder(self._optimizers)
        self._num_groups: int | None = None
        self._warned: set[str] = set()
        self._last_batch_idx = 0

    def check_optimizers(self) -> None:
        """Warn if the optimizers belong to another model; called before the first row."""
        if all(owner is None for owner in self._targets.optimizer_of()):
            self.warn_once(
                "optimizer",
                "no parameter of the model is in an optimizer that the collector was given, so the learning rates are "
                "another model's. Give it the optimizer that was created from this model's parameters, and create that "
                "after anything that replaces them.",
            )

    def check(self, snapshot: StepSnapshot, value_names: Sequence[str]) -> None:
        """Check a collected step; `value_names` are those of the first one."""
        self._check_gradients(snapshot)
        self._check_scaling(snapshot)
        self._check_clipping(snapshot)
        self._check_columns(snapshot, value_names)
        num_calls = self._count.num_calls
        if num_calls is not None:
            self._check_order(num_calls, is_scaled=snapshot.scaler.scale is not None)
        self._last_batch_idx = self._count.batch_idx

    def _check_gradients(self, snapshot: StepSnapshot) -> None:
        if snapshot.plan.unmeasured:
            message = (
                f"{len(snapshot.plan.unmeasured)} gradients are not measured, so the norms of their groups are null: "
                "reading a sparse gradient on a device would wait for it, and a gradient that is sharded among "
                "processes (FSDP) can only be read by all of them together. torch.nn.utils.clip_grad_norm_ returns the "
                "norm of all gradients: pass it in values."
            )
            self.warn_once("unmeasured", message, event="left_out")
        elif all(gradient is None for gradient in snapshot.gradients):
            message = (
                "no parameter had a gradient, so the row's norms are null. "
                "Call step() after backward() and before zero_grad()."
            )
            self.warn_once("no gradients", message)

    def _check_scaling(self, snapshot: StepSnapshot) -> None:
        if Scaling.UNKNOWN in snapshot.scaler.of_optimizer.values():
            message = (
                "the GradScaler's scale cannot be read, so the row's norms are null. Pass the torch.amp.GradScaler "
                "that scales this loss, and call step() after scaler.scale(loss).backward()."
            )
            self.warn_once("unknown scale", message, event="unknown_scale")
        if snapshot.scaler.is_given:
            return
        self._order.look_for_scaler()
        if self._order.found_scaler:
            message = (
                "a GradScaler steps the optimizer and the collector was given none, so the norms are those of scaled "
                "gradients, unless unscale_() comes before step(). "
                "Pass the scaler: TelemetryCollector(..., grad_scaler=scaler)."
            )
            self.warn_once("no scaler", message)

    def _check_clipping(self, snapshot: StepSnapshot) -> None:
        if snapshot.clipping.is_captured:
            message = (
                "clip_grad_norm_() is part of a CUDA graph, so after a replay the rows hold norms after clipping, and "
                "what it did is unknown. Capture no more than forward and backward, and after replay() call step(), "
                "clip_grad_norm_() and optimizer.step()."
            )
            self.warn_once("captured clip", message)

    def _check_columns(self, snapshot: StepSnapshot, value_names: Sequence[str]) -> None:
        unknown = [name for name in snapshot.values if name not in value_names]
        if unknown:
            message = (
                f"values {unknown} were not among those of the first collected step, {list(value_names)}, "
                "and have no column. Pass every value from the first step on."
            )
            self.warn_once("new values", message)
        num_groups = sum(len(optimizer.param_groups) for optimizer in self._optimizers)
        if self._num_groups is None:
            self._num_groups = num_groups
        if num_groups > self._num_groups:
            message = (
                f"the optimizers have {num_groups} groups now and had {self._num_groups} at the first collected step, "
                "so the new groups' rates have no column. Add every group before the first step, with rate 0 if needed."
            )
            self.warn_once("new groups", message)

    def _check_order(self, num_calls: int, *, is_scaled: bool) -> None:
        complaint = self._order.complaint(num_calls, may_skip=is_scaled)
        if complaint is not None:
            self.warn_once("call order", complaint)
        num_skipped = self._order.num_skipped(num_calls) if is_scaled else 0
        if num_skipped:
            event = Event(
                event="skipped_step",
                severity="info",
                message=f"the GradScaler skipped {num_skipped} of the optimizer's steps: gradients were not finite.",
                batch_idx=max(self._count.resumed_from + 1, self._last_batch_idx),
                batch_idx_end=self._count.batch_idx - 1,
                epoch=self._count.epoch,
                value=float(num_skipped),
            )
            self._events.add(event)

    def warn_once(self, key: str, message: str, *, event: EventName = "misuse") -> None:
        """Record a warning about the current batch, unless one of this key was recorded before."""
        if key not in self._warned:
            self._warned.add(key)
            batch_idx = self._count.batch_idx
            self._events.add(
                Event(
                    event=event,
                    severity="warning",
                    message=message,
                    batch_idx=batch_idx,
                    batch_idx_end=batch_idx,
                    epoch=self._count.epoch,
                )
            )

    @property
    def is_optimizer_captured(self) -> bool:
        """Whether a CUDA graph contains an optimizer step, so that replays train."""
        return self._order.is_captured

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        self._order.close()


MIN_CALLS = 4


class CallOrder:
    """Counts optimizer steps by their hooks and compares them with the calls of `TelemetryCollector.step`.

    In a correct loop k-1 optimizer steps come before the k-th call that does not only accumulate, or fewer if steps
    were skipped. Of several optimizers, the one that steps least often is compared. Nothing is compared if an
    optimizer step is part of a CUDA graph or of a compiled function, which runs without its hooks.

    The hooks hold numbers only. Neither a copy nor a pickle of an optimizer includes its hooks.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._counts: list[_StepCount] = []
        self._hooks: list[RemovableHandle] = []
        self._num_skipped = 0
        self._hooks_show_skips = hooks_show_skips(optimizers)
        for optimizer in optimizers:
            self._counts.append(_StepCount())
            self._hooks.append(optimizer.register_step_post_hook(self._counts[-1]))

    def num_skipped(self, num_calls: int) -> int:
        """Optimizer steps that a GradScaler skipped since the last call; 0 if only its scale shows them."""
        if not self._hooks_show_skips or self._is_uncounted:
            return 0
        skipped = max(0, num_calls - 1 - self._counts[0].value)
        new, self._num_skipped = max(0, skipped - self._num_skipped), skipped
        return new

    def complaint(self, num_calls: int, *, may_skip: bool) -> str | None:
        """What is wrong with the order of calls, with the remedy; None if it is right, or cannot be judged."""
        if self._is_uncounted:
            return None
        num_steps = min(count.value for count in self._counts)
        if num_steps >= num_calls:
            return (
                "step() was called after optimizer.step(), so the rates and, with AMP, the scale are those of the next "
                "step. Call it after backward() and before clipping and optimizer.step()."
            )
        if may_skip or num_steps == 0 or num_calls < MIN_CALLS or num_calls - 1 < 2 * num_steps:
            return None
        return (
            f"step() was called {num_calls} times for {num_steps} optimizer steps. Call it once per batch, with "
            "accumulating=True for batches that only accumulate gradients."
        )

    def look_for_scaler(self) -> None:
        """Find out at the next optimizer step whether a GradScaler makes it."""
        for count in self._counts:
            count.must_look = not count.found_scaler

    @property
    def found_scaler(self) -> bool:
        """Whether a GradScaler was found."""
        return any(count.found_scaler for count in self._counts)

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph contains an optimizer step."""
        return any(count.is_captured for count in self._counts)

    @property
    def _is_uncounted(self) -> bool:
        return self.is_captured or any(count.is_compiled for count in self._counts)

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _StepCount:
    """A step hook that holds numbers and nothing else.

    `is_captured` and `is_compiled` are True once an optimizer step became part of a CUDA graph or a compiled function.
    """

    def __init__(self) -> None:
        self.value = 0
        self.is_captured = self.is_compiled = False
        self.must_look = False
        self.found_scaler = False

    def __call__(self, *_: object) -> None:
        if torch.compiler.is_compiling():  # what follows would be traced, and a count fails as a guard
            self.is_compiled = True
            return
        self.value += 1
        if is_capturing():
            self.is_captured = True
        if self.must_look:
            self.must_look = False
            self.found_scaler = is_stepped_by_scaler()
