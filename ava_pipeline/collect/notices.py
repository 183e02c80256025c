"""Calls of the collector that cannot be right: each kind is told once, with its remedy, and nothing is raised."""

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.call_order import CallOrder
from ava_pipeline.collect.measure import Moment
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.write.event_log import EventLog


class Notices:
    """Looks at each collected step and tells what is odd about it.

    Args:
        log: where to tell.
        optimizers: whose steps are counted, to compare them with the calls.
    """

    def __init__(self, log: EventLog, optimizers: Iterable[Optimizer]) -> None:
        self._log = log
        self._order = CallOrder(optimizers)
        self._told: set[str] = set()

    def look(
        self, moment: Moment, batch_idx: int, epoch: int, *, value_names: Sequence[str], num_calls: int | None
    ) -> None:
        """Look at a collected step.

        Args:
            moment: the step.
            batch_idx: 1-based.
            epoch: 0-based.
            value_names: of the first collected step.
            num_calls: of `step` so far, without those that only accumulated; None where the user counts.
        """
        if all(gradient is None for gradient in moment.gradients):
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
        unknown = [name for name in moment.values if name not in value_names]
        if unknown:
            message = (
                f"values {unknown} were not among those of the first collected step, {list(value_names)}, "
                "and have no column. Give every value from the first step on."
            )
            self.tell("new values", message, batch_idx, epoch)
        complaint = self._order.complaint(num_calls, may_skip=moment.scaler.scale is not None) if num_calls else None
        if complaint is not None:
            self.tell("call order", complaint, batch_idx, epoch)

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

    def close(self) -> None:
        """Stop counting optimizer steps."""
        self._order.close()
