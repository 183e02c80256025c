"""Checks of how the collector is called: its arguments and the process, the count of batches, the order of the calls.

A call that cannot be right raises. A loop that is probably wrong is recorded as a warning, once, with the remedy.
"""

import json
import math
import operator
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor, nn

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.changes import TrainingChanges
from ava_pipeline.collect.measures.measure import StepSnapshot, Value
from ava_pipeline.collect.optimizer_steps import CallOrder, NumCalls, OptimizerWatch
from ava_pipeline.collect.targets import Model, TrainingTargets
from ava_pipeline.config.messages import describe_errors
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import ConfigError, MisuseError, require_extra
from ava_pipeline.write.event_log import EventLog

if TYPE_CHECKING:
    from ava_pipeline.collect.norms import NormPlan

_JSON = TypeAdapter(dict[str, JsonValue])


def check_arguments(model: object, output_dir: object, groups: object, grad_scaler: object) -> None:
    """Raise MisuseError if an argument of the constructor has a wrong type, rather than fail in a later step."""
    modules = model if isinstance(model, list | tuple) else [model]
    others = sorted({type(module).__name__ for module in modules if not isinstance(module, nn.Module)})
    if others or not modules:
        contents = f", not of {', '.join(others) or 'nothing'}" if modules is model else ""
        raise MisuseError(
            f"model is a {type(model).__name__}: give the torch.nn.Module that is being trained, or a list of modules "
            f"that are trained together{contents}."
        )
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
    """Merge single fields into a config; raise ConfigError with all fields that are unknown or invalid.

    It is also raised if a switch is on whose library is not installed.
    """
    if config is not None and not isinstance(config, TelemetryConfig | Mapping):
        raise ConfigError(f"config is {config!r}: give a TelemetryConfig, a mapping of its fields, or None.")
    given = config.model_dump() if isinstance(config, TelemetryConfig) else dict(config or {})
    try:
        settings = TelemetryConfig.model_validate({**given, **overrides})
    except ValidationError as error:
        problems = describe_errors(error, TelemetryConfig, source_of=lambda _: "TelemetryConfig")
        raise ConfigError(problems) from error
    if settings.enabled and settings.track_weight_snapshots:
        require_extra("track_weight_snapshots", "snapshots", "safetensors")
    return settings


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
    """Raise MisuseError unless values map names that can name columns to scalars."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise MisuseError(f"values is {values!r}: give a mapping name -> number, such as {{'loss': loss}}.")
    for name, value in values.items():
        if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
            raise MisuseError(
                f"values[{name!r}] is a tensor of shape {tuple(value.shape)} and {value.dtype}: give one real number, "
                "such as its .mean()."
            )
        check_column_name(name)


def check_step(values: Mapping[str, Value], global_step: int | None, epoch: int = 0) -> None:
    """Raise MisuseError if an argument of `step` cannot be right; here, where it is cheap, and not in a later step."""
    whole_number("epoch", epoch)
    if global_step is not None:
        whole_number("global_step", global_step)
    check_values(values)


def as_numbers(values: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, object]]:
    """The values that are numbers, arrays of one element among them, and those that are none; the latter are null."""
    numbers: dict[str, Value] = {}
    others: dict[str, object] = {}
    given: Mapping[str, Any] = values  # whatever a user passes
    for name, value in given.items():
        numbers[name] = value
        if not (value is None or isinstance(value, Tensor | float)):
            try:
                numbers[name] = float(value.item() if hasattr(value, "item") else value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                numbers[name], others[name] = None, value
    return numbers, others


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

    `every` is infinity if nothing is collected, `snapshots_every` if no weights are saved. `batch_idx`, 1-based and 0
    before the first, and `epoch` are those of the latest `step`. `due` is the batch at which `step` does more than
    count: `next_row` or `next_snapshot`, or -1 before the first batch, whose arguments are checked, and if a finding
    waits for delivery. `num_accumulating` counts the calls in this process that only accumulated gradients,
    `named_calls` the others by the optimizer that they name. `steps_before` are the optimizer steps before this
    process; None if they are not known.
    """

    def __init__(self, every: float, snapshots_every: float = math.inf) -> None:
        self._every, self._snapshots_every = every, snapshots_every
        self._has_holes = False
        self.epoch = self.batch_idx = self.resumed_from = self.num_accumulating = 0
        self.next_row, self.next_snapshot, self.due = every, snapshots_every, -1.0
        self.named_calls: Counter[str] = Counter()
        self.steps_before: int | None = 0
        self._called: set[str] = set()

    @classmethod
    def of(cls, config: TelemetryConfig) -> Self:
        """The count by which this process collects; nothing, if telemetry is off or another rank writes."""
        if not config.enabled or process_rank() != 0:
            return cls(math.inf)
        return cls(
            config.collect_every_n, config.weight_snapshot_every_n if config.track_weight_snapshots else math.inf
        )

    def resume(self, batch_idx: int, epoch: int, global_step: int | None) -> None:
        """Continue after a checkpoint's batch, and after its optimizer steps if they are known."""
        self.batch_idx = self.resumed_from = batch_idx
        self.epoch = epoch
        self.steps_before = global_step
        self.schedule_row(batch_idx)
        self.schedule_snapshot(batch_idx)

    def begins_batch(self, optimizer: str, *, accumulating: bool) -> bool:
        """Count a call that names an optimizer; whether it is the first of its batch: a name comes once in each."""
        if not accumulating:
            self.named_calls[optimizer] += 1
        is_first = not self._called or optimizer in self._called
        self._called = {optimizer} if is_first else {*self._called, optimizer}
        return is_first

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

    def schedule_snapshot(self, after: int) -> None:
        """Set the next weight snapshot to the first multiple of `snapshots_every` after a batch."""
        self.next_snapshot = (after // self._snapshots_every + 1) * self._snapshots_every

    def schedule_step(self) -> None:
        """Let `step` only count until the next row or the next snapshot."""
        self.due = min(self.next_row, self.next_snapshot)

    def wake(self) -> None:
        """Make the next `step` deliver findings; called in the background thread."""
        self.due = -1

    @property
    def is_collecting(self) -> bool:
        """Whether any row will be due."""
        return self._every != math.inf

    def stop(self) -> None:
        """Collect nothing from now on."""
        self._every = self._snapshots_every = self.next_row = self.next_snapshot = self.due = math.inf

    def finish(self) -> None:
        """Make every further `step` due, so that it raises: the collector is closed."""
        self.next_row = self.due = 0
        self.next_snapshot = math.inf

    @property
    def num_calls(self) -> int | None:
        """Calls in this process that did not only accumulate; None if the user's count left out batches."""
        return None if self._has_holes else self.batch_idx - self.resumed_from - self.num_accumulating


class CallChecks:
    """Checks each collected step and warns once about each probable mistake."""

    def __init__(self, events: EventLog, count: BatchCount, targets: TrainingTargets, model: Model) -> None:
        self._events = events
        self._count = count
        self._targets = targets
        self._order = CallOrder(targets.optimizers)
        self._watch = OptimizerWatch(targets)
        self._changes = TrainingChanges(targets, model)
        self._plan: NormPlan | None = None
        self._warned: set[str] = set()
        self._last_batch_idx = 0

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that are trained and still exist."""
        return self._changes.modules

    def rebind(self, targets: TrainingTargets, model: Model | None) -> None:
        """Check the calls for other targets, and for another model unless it is None; old warnings may come again."""
        self._order.attach(targets.optimizers, self._count.num_calls or 0, self._count.named_calls)
        self._changes.begin(targets, model)
        self._warned -= {"parameters", "optimizer replaced", "optimizer"}
        self.follow(targets)

    def follow(self, targets: TrainingTargets) -> None:
        """Compare with targets that have further parameter groups or values."""
        self._targets = targets
        self._watch = OptimizerWatch(targets)

    def have_targets_changed(self) -> bool:
        """Whether the optimizers hold other parameters, or others are trained, than at the last collected step."""
        have_changed = self._changes.have_come()
        if have_changed:
            self._plan = None
        return have_changed

    def is_optimizer_replaced(self) -> bool:
        """Whether parameters change though no optimizer that the collector knows steps."""
        num_calls = self._count.batch_idx - self._count.num_accumulating
        is_replaced = self._order.counts_all and self._watch.is_replaced(self._order.num_steps, num_calls)
        if is_replaced:
            message = (
                "parameters change, but not by the optimizer that the collector was given, so the learning rates are "
                "null from here on. If you made another optimizer, call telemetry.rebind(optimizer=optimizer)."
            )
            self.warn_once("optimizer replaced", message, event="optimizer_replaced")
        return is_replaced

    def global_step(self) -> int | None:
        """The optimizer steps of the run before this batch's; None if they cannot be counted."""
        count = self._count
        before, num_calls = count.steps_before, count.batch_idx - count.resumed_from - count.num_accumulating
        if before is None or not (self._order.is_counting or num_calls <= 1):
            return None
        return before + self._order.num_steps

    def check_optimizers(self) -> None:
        """Warn if the optimizers belong to another model; called before the first row."""
        if all(owner is None for owner in self._targets.optimizer_of()):
            self.warn_once(
                "optimizer",
                "no parameter of the model is in an optimizer that the collector was given, so the learning rates are "
                "another model's. Give it the optimizer that was created from this model's parameters, and create that "
                "after anything that replaces them.",
            )

    def check(self, snapshot: StepSnapshot) -> None:
        """Check a collected step."""
        self._check_gradients(snapshot)
        self._check_scaling(snapshot)
        self._check_clipping(snapshot)
        self._check_parameters(snapshot)
        calls = self._num_calls(snapshot.optimizer)
        if calls is not None and not snapshot.is_optimizer_replaced:
            self._check_order(calls, is_scaled=snapshot.scaler.scale is not None)
        self._last_batch_idx = self._count.batch_idx

    def check_unread(self, values: Mapping[str, object]) -> None:
        """Warn once about each value that is not a number."""
        for name, value in values.items():
            message = (
                f"values[{name!r}] is {shown(value)} ({type(value).__name__}), which is not a number, so it is null. "
                "Pass numbers, or tensors with one element."
            )
            self.warn_once(f"value {name}", message)

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
                "no parameter had a gradient, so the row's norms are null. Call step() after backward() and before "
                "zero_grad(). If the optimizer steps inside backward() and frees the gradients, measure them in its "
                "hook and pass the norm in values."
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

    def _check_parameters(self, snapshot: StepSnapshot) -> None:
        """Compare the parameters of model and optimizers with the known ones, if other gradients are missing now."""
        if snapshot.plan is self._plan:
            return
        self._plan = snapshot.plan
        # A call that names an optimizer measures only its parameters.
        gradients = snapshot.gradients if snapshot.optimizer is None else ()
        missing = frozenset(position for position, gradient in enumerate(gradients) if gradient is None)
        complaint = self._changes.complaint(missing)
        if complaint is not None:
            self.warn_once("parameters", complaint)

    def _num_calls(self, optimizer: str | None) -> NumCalls | None:
        if optimizer is not None:
            return NumCalls(self._count.named_calls[optimizer], optimizer)
        return None if self._count.num_calls is None else NumCalls(self._count.num_calls)

    def _check_order(self, calls: NumCalls, *, is_scaled: bool) -> None:
        complaint = self._order.complaint(calls, may_skip=is_scaled)
        if complaint is not None:
            self.warn_once("call order", complaint)
        num_skipped = self._order.num_skipped(calls) if is_scaled else 0
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

    def follow_count(self, batch_idx: object) -> None:
        """Take over the user's count of batches; raise MisuseError if it is not one, and warn once if it falls."""
        remedy = (
            " The batches of the run are counted from 1, across epochs: pass the number of enumerate(loader, start=1) "
            "plus the batches of earlier epochs, or leave batch_idx out."
        )
        complaint = self._count.follow(whole_number("batch_idx", batch_idx, least=1, remedy=remedy))
        if complaint is not None:
            self.warn_once("batch_idx", complaint)

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
