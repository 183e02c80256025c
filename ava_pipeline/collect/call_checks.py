"""Whether the collector is called in a way that can be right: its counts and the order of its calls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from ava_pipeline.collect.amp import AutocastProbe, Scaling, hooks_show_skips
from ava_pipeline.collect.arguments import whole_number
from ava_pipeline.collect.measures.measure import StepSnapshot, Value
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.errors import MisuseError
from ava_pipeline.write.event_log import EventLog

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class BatchCount:
    """Where the count stands, by itself or as the user says.

    Attributes:
        batch_idx: of the latest `step`, 1-based; 0 before the first.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        num_accumulating: calls in this process that only accumulated gradients.
    """

    def __init__(self) -> None:
        self.batch_idx = self.resumed_from = 0
        self.num_accumulating = 0
        self._has_holes = False

    def resume(self, batch_idx: int) -> None:
        """Go on behind a checkpoint's batch."""
        self.batch_idx = self.resumed_from = batch_idx

    def follow(self, batch_idx: int) -> str | None:
        """Take the user's count where it rises, and go on counting where it does not.

        Returns:
            What is wrong with it, with the remedy; None where nothing is.

        Raises:
            MisuseError: it is no whole number, or below 1.
        """
        if isinstance(batch_idx, int) and batch_idx < 1:
            raise MisuseError(
                f"batch_idx is {batch_idx}; the run's batches count from 1 and on across epochs. "
                "With enumerate, give enumerate(loader, start=1) plus the batches of earlier epochs, or leave it out."
            )
        given, before = whole_number("batch_idx", batch_idx, least=1), self.batch_idx
        if given > before:
            self._has_holes |= given != before + 1
            self.batch_idx = given
            return None
        self.batch_idx += 1
        return (
            f"batch_idx {given} came after {before} and does not rise; the collector counts on by itself. "
            "Give the run's own count, which does not begin again with an epoch, or leave it out."
        )

    def next_multiple(self, every: int) -> int:
        """The first multiple of `every` behind this batch."""
        return (self.batch_idx // every + 1) * every

    @property
    def num_calls(self) -> int | None:
        """Calls in this process that did not only accumulate; None where the user's count has holes."""
        return None if self._has_holes else self.batch_idx - self.resumed_from - self.num_accumulating


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
        self._tells_skips = hooks_show_skips(optimizers)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """What the user said, and where the count stands.

    Attributes:
        batch_idx: 1-based, of the run.
        epoch: 0-based.
        values: scalars to record beside.
        sample_ids: what the batch consisted of.
        is_deferred: later than due.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        num_calls: calls so far that did not only accumulate, this one included; None where the user's count has holes.
    """

    batch_idx: int
    epoch: int
    values: Mapping[str, Value]
    sample_ids: Sequence[object] | None
    is_deferred: bool
    resumed_from: int
    num_calls: int | None


class CallChecks:
    """Looks at each collected step and tells what is odd about it.

    Args:
        log: where to tell.
        optimizers: whose steps are counted, to compare them with the calls.
        autocast: whether the model is trained in float16.
    """

    def __init__(self, log: EventLog, optimizers: Iterable[Optimizer], autocast: AutocastProbe) -> None:
        self._log = log
        self._autocast = autocast
        self._optimizers = tuple(optimizers)
        self._order = CallOrder(self._optimizers)
        self._num_groups: int | None = None
        self._told: set[str] = set()
        self._last_batch_idx = 0

    def look(self, moment: StepSnapshot, call: StepCall, *, value_names: Sequence[str]) -> None:
        """Look at a collected step.

        Args:
            moment: the step as it is.
            call: what the user said of it.
            value_names: of the first collected step.
        """
        batch_idx, epoch = call.batch_idx, call.epoch
        if moment.plan.unmeasured:
            message = (
                f"the norms of {len(moment.plan.unmeasured)} gradients are unknown here, so their groups' norms are "
                "null: sparse ones on a device would have to be waited for, and those sharded among processes (FSDP) "
                "are read by all of them together. Their total is what torch.nn.utils.clip_grad_norm_ returns: give it "
                "in values."
            )
            self.tell("left out", message, batch_idx, epoch, event="left_out")
        elif all(gradient is None for gradient in moment.gradients):
            message = (
                "no parameter had a gradient, so the row's norms are null. "
                "Call step() after backward() and before zero_grad()."
            )
            self.tell("no gradients", message, batch_idx, epoch)
        if Scaling.UNKNOWN in moment.scaler.of_optimizer.values():
            message = (
                "the GradScaler does not tell its scale, so the row's norms are null. Give the torch.amp.GradScaler "
                "that scales this loss, and call step() after scaler.scale(loss).backward()."
            )
            self.tell("unknown scale", message, batch_idx, epoch, event="unknown_scale")
        if not moment.scaler.is_given:
            self._autocast.begin()
        if self._autocast.saw_float16 and not moment.scaler.is_given:
            message = (
                "the model runs under float16 autocast and the collector was given no grad_scaler, so norms are those "
                "of scaled gradients if there is one. Give TelemetryCollector(..., grad_scaler=scaler)."
            )
            self.tell("no scaler", message, batch_idx, epoch)
        unknown = [name for name in moment.values if name not in value_names]
        if unknown:
            message = (
                f"values {unknown} were not among those of the first collected step, {list(value_names)}, "
                "and have no column. Give every value from the first step on."
            )
            self.tell("new values", message, batch_idx, epoch)
        num_groups = sum(len(optimizer.param_groups) for optimizer in self._optimizers)
        if self._num_groups is None:
            self._num_groups = num_groups
        if num_groups > self._num_groups:
            message = (
                f"the optimizers have {num_groups} groups now, and had {self._num_groups} at the first collected step: "
                "the new ones' rates have no column. Add every group before the first step, at rate 0 if need be."
            )
            self.tell("new groups", message, batch_idx, epoch)
        if call.num_calls is not None:
            self._look_at_order(call, call.num_calls, moment)
        self._last_batch_idx = batch_idx

    def tell(self, kind: str, message: str, batch_idx: int, epoch: int, *, event: EventName = "misuse") -> None:
        """Record a warning, the first time its kind comes up."""
        if kind not in self._told:
            self._told.add(kind)
            self._log.add(
                Event(
                    event=event,
                    severity="warning",
                    message=message,
                    batch_idx=batch_idx,
                    batch_idx_end=batch_idx,
                    epoch=epoch,
                )
            )

    def _look_at_order(self, call: StepCall, num_calls: int, moment: StepSnapshot) -> None:
        is_scaled = moment.scaler.scale is not None
        complaint = self._order.complaint(num_calls, may_skip=is_scaled)
        if complaint is not None:
            self.tell("call order", complaint, call.batch_idx, call.epoch)
        num_skipped = self._order.num_skipped(num_calls) if is_scaled else 0
        if num_skipped:
            event = Event(
                event="skipped_step",
                severity="info",
                message=f"{num_skipped} optimizer steps were skipped by the GradScaler: gradients were not finite.",
                batch_idx=max(call.resumed_from + 1, self._last_batch_idx),
                batch_idx_end=call.batch_idx - 1,
                epoch=call.epoch,
                value=float(num_skipped),
            )
            self._log.add(event)

    def close(self) -> None:
        """Stop watching optimizers and the model."""
        self._order.close()
        self._autocast.close()
