"""Calls of the collector that cannot be right: each kind is told once, with its remedy, and nothing is raised."""

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.autocast import AutocastWatch
from ava_pipeline.collect.call_order import CallOrder
from ava_pipeline.collect.measure import Moment
from ava_pipeline.collect.step_call import StepCall
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.write.event_log import EventLog


class Notices:
    """Looks at each collected step and tells what is odd about it.

    Args:
        log: where to tell.
        optimizers: whose steps are counted, to compare them with the calls.
        autocast: whether the model is trained in float16.
    """

    def __init__(self, log: EventLog, optimizers: Iterable[Optimizer], autocast: AutocastWatch) -> None:
        self._log = log
        self._autocast = autocast
        self._optimizers = tuple(optimizers)
        self._order = CallOrder(self._optimizers)
        self._num_groups: int | None = None
        self._told: set[str] = set()
        self._last_batch_idx = 0

    def look(self, moment: Moment, call: StepCall, *, value_names: Sequence[str]) -> None:
        """Look at a collected step.

        Args:
            moment: the step as it is.
            call: what the user said of it.
            value_names: of the first collected step.
        """
        batch_idx, epoch = call.batch_idx, call.epoch
        if moment.plan.left_out:
            message = (
                f"the norms of {len(moment.plan.left_out)} gradients are not known here, so those of their groups are "
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

    def _look_at_order(self, call: StepCall, num_calls: int, moment: Moment) -> None:
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
