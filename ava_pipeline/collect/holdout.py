"""The holdout: the same samples, evaluated by the model at every collected step."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ava_pipeline.collect.call_checks import CallChecks
from ava_pipeline.collect.measures.holdout_predictions import HoldoutPredictions
from ava_pipeline.collect.measures.measure import Measure
from ava_pipeline.collect.samples import Forward, HoldoutQuestion, Key, Samples, copied, named, read_samples
from ava_pipeline.collect.targets import TrainingTargets, unwrap
from ava_pipeline.collect.undisturbed import Autocast, AutocastProbe, undisturbed
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.builtin_tables import NUM_SCORES, HoldoutKind, holdout_table
from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.tables import Table
from ava_pipeline.errors import MisuseError
from ava_pipeline.logs import logger

if TYPE_CHECKING:
    from ava_pipeline.collect.recorder import Recorder

MAX_NAMED = 3
_UNSET = (
    "track_holdout_logits is on, and set_holdout() was not called, so holdout_predictions has no rows until it is. "
    "Call telemetry.set_holdout(val_loader, forward=..., labels=..., ids=...) before the first step()."
)
_SHARDED = (
    "set_holdout() cannot evaluate a model that is sharded among processes (FSDP): this process would wait for the "
    "others in every forward pass. Call it with a model that each process has whole."
)


class Holdout:
    """The held-out samples, and the evaluation of them by the models in training.

    `models` returns these, as the user gave them to the collector; `parameters` are theirs.
    """

    def __init__(
        self,
        samples: Samples,
        forward: Forward,
        autocast: Autocast,
        models: Callable[[], Sequence[nn.Module]],
        device: torch.device,
        *,
        is_compiled: bool = False,
    ) -> None:
        self.samples = samples
        self._forward = forward
        self._models = models
        self._device = device
        self._num_outputs = NUM_SCORES if samples.kind == "scores" else None
        self._latest: tuple[int, Tensor] | None = None
        self._dtype = autocast if isinstance(autocast, torch.dtype) else None
        self._probe = AutocastProbe(models(), device.type, is_compiled=is_compiled) if autocast == "auto" else None

    def outputs(self, batch_idx: int) -> Tensor:
        """What the model predicts in a batch, (samples, outputs) float32 on the device: evaluated once per batch.

        Raise TypeError or ValueError if `forward` returns something else than expected, and whatever `forward` raises.
        """
        if self._latest is None or self._latest[0] != batch_idx:
            self._latest = (batch_idx, self._evaluate())
        return self._latest[1]

    def table(self, batch_idx: int) -> Table:
        """The table with as many classes as the model has; raise MisuseError if a label is none of them."""
        samples, num_classes = self.samples, self.outputs(batch_idx).shape[1]
        if samples.kind == "classes":
            self._num_outputs = num_classes
            wrong = np.flatnonzero(samples.labels >= num_classes)
            if len(wrong):
                labels = ", ".join(f"{samples.labels[row]} of {named(samples.ids[row])}" for row in wrong[:MAX_NAMED])
                more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
                raise MisuseError(
                    f"labels of held-out samples are not among the model's {num_classes} classes, 0 to "
                    f"{num_classes - 1}: {labels}{more}. Give labels that count classes from 0."
                )
        return holdout_table(
            samples.kind,
            num_ids=len(samples.ids[0]),
            num_classes=num_classes,
            integer_ids=samples.has_integer_ids,
        )

    def _evaluate(self) -> Tensor:
        models = [unwrap(model) for model in self._models()]
        if not models:
            raise RuntimeError("the model is gone: keep a reference to the model that the collector was given.")
        devices = list(dict.fromkeys(parameter.device for model in models for parameter in model.parameters()))
        device = devices[0]
        if device != self._device:
            self.samples.to(device)
            self._device = device
        model = models[0] if len(models) == 1 else models
        with undisturbed(models, devices, self._autocast()):
            outputs = [self._checked(self._forward(model, copied(batch))) for batch in self.samples.batches]
        for output, size in zip(outputs, self.samples.sizes, strict=True):
            self._check_shape(output, size, outputs[0].shape[1] if outputs[0].ndim > 1 else None)
        first = outputs[0].device
        return torch.cat([output.to(first, torch.float32, non_blocking=True) for output in outputs])

    def _autocast(self) -> torch.dtype | None:
        """The dtype of autocast; where it was looked for in vain until the second evaluation, that is given up."""
        if self._probe is None:
            return self._dtype
        if self._latest is not None:
            self._probe.close()
        return self._probe.dtype

    def _checked(self, output: object) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"forward: expected a tensor of {self._expected()}, got {kind}.")
        return output.detach()

    def _check_shape(self, output: Tensor, size: int, num_outputs: int | None) -> None:
        num_outputs = self._num_outputs or num_outputs
        is_right = output.ndim == 2 and tuple(output.shape) == (size, num_outputs)  # noqa: PLR2004  # rows and columns
        if not is_right or (num_outputs or 0) < 2:  # noqa: PLR2004  # classes are two or more
            raise ValueError(
                f"forward: expected {self._expected()} of shape ({size}, {num_outputs or 'classes'}), got shape "
                f"{tuple(output.shape)}. If the last batch could not be cut, give batches of at most holdout_size."
            )

    def _expected(self) -> str:
        return "logits of two or more classes" if self.samples.kind == "classes" else "probabilities of ten scores"


class HoldoutPlace:
    """Where a collector keeps its holdout; empty until `set`."""

    def __init__(self, config: TelemetryConfig, checks: CallChecks) -> None:
        self._config = config
        self._checks = checks
        self._holdout: Holdout | None = None
        self._has_begun = False
        self._is_set = False

    @property
    def ids(self) -> tuple[tuple[int | str, ...], ...]:
        """The ids of the samples in the table; empty before it has begun."""
        return self._holdout.samples.ids if self._holdout is not None and self._has_begun else ()

    def set(
        self,
        batches: Iterable[Any],
        question: HoldoutQuestion,
        autocast: Autocast,
        targets: TrainingTargets,
        *,
        is_collecting: bool,
    ) -> None:
        """Keep samples; nothing if the switch is off, or where nothing is collected. Raise MisuseError if wrong."""
        is_dtype = isinstance(autocast, torch.dtype) and autocast.is_floating_point
        if not (is_dtype or autocast is None or autocast == "auto"):
            raise MisuseError(f"autocast is {shown(autocast)}: give 'auto', a dtype such as torch.bfloat16, or None.")
        if self._is_set:
            raise MisuseError("set_holdout() was called twice: the samples of a run are the same in all of its rows.")
        if is_collecting and self._config.track_holdout_logits:
            self._holdout = self._read(batches, question, autocast, targets)
        elif is_collecting:
            logger.info("set_holdout() keeps nothing, because track_holdout_logits is off.")
        self._is_set = True

    def _read(
        self, batches: Iterable[Any], question: HoldoutQuestion, autocast: Autocast, targets: TrainingTargets
    ) -> Holdout:
        if targets.is_sharded or any(hasattr(parameter, "_local_tensor") for parameter in targets.parameters):
            raise MisuseError(_SHARDED)
        device = targets.parameters[0].device
        samples = read_samples(batches, self._config.holdout_size, question, device)
        checks = self._checks
        return Holdout(
            samples, question.forward, autocast, lambda: checks.modules, device, is_compiled=checks.is_compiled
        )

    def begin(self, batch_idx: int) -> Callable[[TrainingTargets], Measure] | None:
        """Evaluate the samples for the first time; return what makes their measure, or None if there is no new one.

        Raise whatever prevents it. The next call tries again, unless the labels are not the model's.
        """
        holdout = self._holdout
        if self._has_begun or not self._config.track_holdout_logits:
            return None
        if holdout is None:
            self._checks.warn_once("holdout", _UNSET)
            return None
        try:
            table = holdout.table(batch_idx)
        except MisuseError:
            self._holdout, self._has_begun = None, True
            raise
        self._has_begun = True
        return partial(HoldoutPredictions, holdout=holdout, table=table)


class TakesHoldout:
    """The method of the collector that takes held-out samples."""

    _recorder: "Recorder"

    def set_holdout(  # each says of the batches what only the user knows, all but the first by name
        self,
        batches: Iterable[Any],
        *,
        forward: Forward,
        labels: Key,
        ids: Key | Sequence[Key],
        kind: HoldoutKind = "classes",
        autocast: Autocast = "auto",
    ) -> None:
        """Evaluate the same samples at each collected step, and record the predictions in `holdout_predictions`.

        The first `holdout_size` samples of the batches are copied to the model's device and kept. Nothing is kept
        unless `track_holdout_logits` is on. Call it before the first `step`; after it, the table begins with the next
        row.

        The evaluation changes nothing of the training: there are no gradients, every module is in eval mode and has its
        own flag again afterwards, and buffers and random states (of torch, Python and NumPy) are as they were. Other
        state that a forward pass changes, such as plain attributes of modules, is not restored. Hooks on modules are
        called, and can ask `in_holdout()`. What is compiled runs without compilation.

        Example:
            Pairs of images, of which the model says which one wins:

                telemetry = TelemetryCollector(model, optimizer, "outputs/pairs", track_holdout_logits=True)
                telemetry.set_holdout(
                    val_loader,
                    forward=lambda model, batch: model(batch["a"], batch["b"]),
                    labels="winner",
                    ids=("image1", "image2"),
                )

            AVA's scores, with batches of ids, images and votes:

                telemetry.set_holdout(
                    val_loader,
                    forward=lambda model, batch: model(batch[1]).softmax(dim=1),
                    labels=2,
                    ids=0,
                    kind="scores",
                )

        Args:
            batches: a DataLoader or a list of batches. The random states that iterating it changes are restored.
            forward: called with the model, without the wrappers of torch.compile and data parallelism, and a batch on
                its device, of which it may use what it likes. It returns logits, (B, classes), or with `kind="scores"`
                the predicted share of each score, (B, 10), summing to 1. With a list of several modules, it gets a
                list.
            labels: where a batch has its labels: a name (a key or an attribute), a position, or a function of the
                batch. They are whole numbers, (B,), or with `kind="scores"` votes or shares, (B, 10).
            ids: where a batch has the ids of its samples, integers or texts, (B,); two such keys for pairs of images.
            kind: `classes` or `scores`.
            autocast: the dtype of autocast in the evaluation, or None for none. `auto` takes that of the first forward
                pass of training that comes after this call. It cannot see into a compiled model, and uses none then.

        Raises:
            MisuseError: a key finds nothing, labels or ids have a wrong shape or type, an id comes twice or has a line
                break, the model is sharded (FSDP), it was called before, or the collector is closed.
        """
        question = HoldoutQuestion.of(forward=forward, labels=labels, ids=ids, kind=kind)
        self._recorder.set_holdout(batches, question, autocast)
