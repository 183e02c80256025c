"""Checks of each collected step: a loop that is probably wrong is recorded as a warning, once, with the remedy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ava_pipeline.collect.amp import Scaling
from ava_pipeline.collect.arguments import whole_number
from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.collect.changes import TrainingChanges
from ava_pipeline.collect.labels import check_labels, usable_labels
from ava_pipeline.collect.measures.measure import Measure, StepSnapshot, Value
from ava_pipeline.collect.optimizer_steps import CallOrder, NumCalls, OptimizerWatch
from ava_pipeline.collect.step_values import StepCall, as_numbers, check_values
from ava_pipeline.collect.targets import Model, TrainingTargets
from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.errors import MisuseError, in_words
from ava_pipeline.logs import logger
from ava_pipeline.write.event_log import EventLog

if TYPE_CHECKING:
    from ava_pipeline.collect.norms import NormPlan


class CallChecks:
    """Checks each collected step and warns once about each probable mistake.

    `label_classes` are the settings of the same name; None if labels are not recorded.
    """

    def __init__(
        self,
        events: EventLog,
        count: BatchCount,
        targets: TrainingTargets,
        model: Model,
        *,
        label_classes: Mapping[str, int] | None = None,
    ) -> None:
        self._label_classes = label_classes
        self._events = events
        self._count = count
        self._targets = targets
        self._order = CallOrder(targets.optimizers, lambda: count.batch_idx)
        self._watch = OptimizerWatch(targets)
        self._changes = TrainingChanges(targets, model)
        self._plan: NormPlan | None = None
        self._warned: set[str] = set()
        self._last_batch_idx = 0

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that are trained and still exist."""
        return self._changes.modules

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile compiled the model, or a part of it."""
        return self._changes.is_compiled

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

    def gone(self, positions: Sequence[int]) -> list[int]:
        """Which of these positions are those of parameters that the model no longer has."""
        return self._changes.gone(positions)

    def is_optimizer_replaced(self, changes: Sequence[int]) -> bool:
        """Whether parameters change, by these counts, though no optimizer that the collector knows steps."""
        num_calls = self._count.batch_idx - self._count.num_accumulating
        is_replaced = self._order.counts_all and self._watch.is_replaced(
            changes, self._order.num_single_steps, num_calls
        )
        if is_replaced:
            message = (
                "parameters change, but not by the optimizer that the collector was given, so the learning rates are "
                "null from here on. If you made another optimizer, call telemetry.rebind(optimizer=optimizer)."
            )
            self.warn_once("optimizer replaced", message, event="optimizer_replaced")
        return is_replaced

    def global_step(self, given: int | None = None) -> int | None:
        """The optimizer steps of the run before this batch's, as `given` or counted; None if they are not known."""
        if given is not None:
            try:
                return whole_number("global_step", given)
            except MisuseError as error:
                self.warn_once("global step", f"{error} It is null.")
                return None
        count = self._count
        before, num_calls = count.steps_before, count.batch_idx - count.resumed_from - count.num_accumulating
        if before is None or not (self._order.is_counting or num_calls <= 1):
            return None
        return before + self._order.num_steps

    def check_optimizers(self) -> None:
        """Warn if the optimizers belong to another model; called before the first row."""
        if not any(self._targets.optimizers_of()):
            self.warn_once(
                "optimizer",
                "no parameter of the model is in an optimizer that the collector was given, so the learning rates are "
                "another model's. Give it the optimizer that was created from this model's parameters, and create that "
                "after anything that replaces them.",
            )

    def check(self, snapshot: StepSnapshot) -> None:
        """Check a collected step."""
        self._check_parameters(snapshot)
        self._check_gradients(snapshot)
        self._check_scaling(snapshot)
        self._check_clipping(snapshot)
        calls = self._num_calls(snapshot.optimizer)
        if calls is not None and not snapshot.is_optimizer_replaced:
            self._check_order(calls, is_scaled=snapshot.scaler.scale is not None)
        self._last_batch_idx = self._count.batch_idx

    def numbers(self, values: object) -> dict[str, Value]:
        """The values that are numbers; warn once about each other one."""
        numbers, problems = as_numbers(values)
        for name, problem in problems.items():
            self.warn_once(f"value {name!r}", problem)
        return numbers

    def labels(self, labels: object) -> dict[str, Tensor]:
        """The labels that can be counted; warn once about each other one."""
        if self._label_classes is None:
            return {}
        usable, problems = usable_labels(labels, self._label_classes)
        for name, problem in problems.items():
            self.warn_once(f"label {name!r}", f"{problem} It is null.")
        return usable

    def check_first_step(self, call: StepCall) -> None:
        """Raise MisuseError if an argument of `step` cannot be right; in later steps that costs the argument."""
        whole_number("epoch", self._count.epoch)
        if call.global_step is not None:
            whole_number("global_step", call.global_step)
        check_values(call.values)
        if self._label_classes is not None:
            check_labels(call.labels, self._label_classes)
        self.epoch()

    def epoch(self) -> int:
        """The epoch of the latest `step`; if it is not a whole number, warn once and return the last that was."""
        epoch = self._count.last_epoch
        try:
            whole_number("epoch", self._count.epoch)
        except MisuseError as error:
            self.warn_once("epoch", f"{error} Until then, epoch {epoch} is recorded.")
        return epoch

    def _check_gradients(self, snapshot: StepSnapshot) -> None:
        if snapshot.plan.unmeasured:
            message = (
                f"{len(snapshot.plan.unmeasured)} gradients are not measured, so the norms of their groups are null: "
                "reading a sparse gradient on a device would wait for it, and a gradient that is sharded among "
                "processes (FSDP) can only be read by all of them together. torch.nn.utils.clip_grad_norm_ returns the "
                "norm of all gradients: pass it in values."
            )
            self.warn_once("unmeasured", message, event="left_out")
        elif "parameters" not in self._warned and all(gradient is None for gradient in snapshot.gradients):
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
                epoch=self._count.last_epoch,
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
                    epoch=self._count.last_epoch,
                )
            )

    def warn_if_nothing_was_due(self, root: Path, every: int) -> None:
        """Warn if the whole run was too short for a row; no event would say so, since no file is open."""
        num_batches = self._count.batch_idx
        if 0 < num_batches < every == self._count.next_row:
            in_graph = "Call step() after each graph.replay() of the training step, outside the capture."
            logger.warning(
                "telemetry of %s: no row was recorded, because the run had %d batches and collect_every_n is %d. %s",
                root,
                num_batches,
                every,
                in_graph if self.is_optimizer_captured else f"Lower collect_every_n to {num_batches} or less.",
            )

    @property
    def is_optimizer_captured(self) -> bool:
        """Whether a CUDA graph contains an optimizer step, so that replays train."""
        return self._order.is_captured

    def report_unmade(self, measure: type[Measure], error: Exception) -> None:
        """Record that the table of a measure gets no rows."""
        batch_idx = self._count.batch_idx
        self._events.add(
            Event(
                event="failed_write",
                severity="error",
                message=f"the measure {measure.__name__} could not be made, so its table gets no rows: "
                f"{in_words(error)}",
                batch_idx=batch_idx,
                batch_idx_end=batch_idx,
                epoch=self._count.last_epoch,
                column=measure.table.name,
            )
        )

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        self._order.close()
