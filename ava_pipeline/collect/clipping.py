"""Gradient clipping that shares the pass over the gradients which `step` makes anyway."""

from collections.abc import Mapping, Sequence
from operator import call, is_
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from ava_pipeline.collect.capture import is_capturing
from ava_pipeline.collect.targets import num_changes
from ava_pipeline.errors import MisuseError


class ClipFacts(NamedTuple):
    """What is known of clipping at a collected step; tensors are scalars on the device.

    `total`, the L2 norm of all gradients, is None before the first clip, or if unknown; `scale` is the loss scale that
    still multiplies it. `max_norm` is that of the last clip, assumed to hold for this step's clip too. `num_shortened`
    of `num_clips` clips since the last collected step shortened the gradients. `is_captured` says that clipping is part
    of a CUDA graph, so that nothing else is known.
    """

    total: Tensor | None = None
    scale: Tensor | None = None
    max_norm: float | None = None
    num_shortened: Tensor | float = 0.0
    num_clips: int = 0
    is_captured: bool = False


class Clipping:
    """Clips as `torch.nn.utils.clip_grad_norm_` does, to the bit.

    If this batch's `step` measured float32 gradients tensor by tensor, and they are unchanged since, the total is
    computed from those norms by torch's own formula. Otherwise torch is called. torch's count of changes in place says
    whether gradients are unchanged; it misses changes through `.data`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._max_norm: float | None = None
        self._measured: _GradientVersions | None = None
        self._total: Tensor | None = None
        self._num_shortened: Tensor | float = 0.0
        self._num_clips = 0
        self._is_captured = False

    def use(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clip the gradients of these parameters from now on."""
        self._parameters = parameters
        self._measured = self._total = None

    @property
    def is_used(self) -> bool:
        """Whether the loop clips through the collector, so that the pass should measure tensor by tensor."""
        return self._max_norm is not None

    def remember_gradients(self, gradients: Sequence[Tensor | None], batch_idx: int) -> None:
        """Remember which gradients a step is about to measure; before its pass, which evicts the processor's caches."""
        self._measured = _GradientVersions(gradients, batch_idx) if self.is_used else None
        self._total = None

    def share_norms(self, norms: Tensor | None, scale: Tensor | None, *, equals_torch: bool) -> ClipFacts:
        """Keep the norms of a step's pass for the clip after it, and return what is known of the clips so far.

        `norms` are float32, one for each gradient; None if they have no common length. `scale` is None if they are
        true-scale. `equals_torch` says whether torch's own clipping would compute the same norms.
        """
        if self._max_norm is None or self._is_captured:
            return ClipFacts(is_captured=self._is_captured)
        total = None if norms is None else torch.linalg.vector_norm(norms)
        self._total = total if equals_torch else None
        facts = ClipFacts(total, scale, self._max_norm, self._num_shortened, self._num_clips)
        self._num_shortened, self._num_clips = 0.0, 0
        return facts

    @torch.no_grad()
    def clip(self, max_norm: float, batch_idx: int) -> Tensor:
        """Clip the gradients, with norms of this `batch_idx` only; return the L2 norm before it, a device scalar."""
        self._max_norm = float(max_norm)
        gradients = [parameter.grad for parameter in self._parameters]
        total = self._shared_total(gradients, batch_idx)
        if total is not None:
            coefficient = _coefficient(total, self._max_norm)
            # clip_grads_with_norm_ does the same for gradients of one device and dtype, after grouping them by both.
            torch._foreach_mul_([gradient for gradient in gradients if gradient is not None], coefficient)
        else:
            total = nn.utils.clip_grad_norm_(self._parameters, max_norm)
            coefficient = _coefficient(total, self._max_norm)
        if is_capturing():  # replays are not counted
            self._is_captured = True
        elif not hasattr(total, "placements"):  # a sharded total belongs to all processes and cannot be recorded here
            self._count_clip(coefficient < 1)
        return total

    def _shared_total(self, gradients: Sequence[Tensor | None], batch_idx: int) -> Tensor | None:
        """The total of this batch's `step`, if the gradients are those that it measured.

        None while a CUDA graph is captured, which would clip by the total of this batch in every replay.
        """
        total, self._total = self._total, None
        if total is None or self._measured is None or is_capturing():
            return None
        return total if self._measured.match(gradients, batch_idx) else None

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to write the same rows; empty if nothing was clipped. Waits for the device."""
        if self._max_norm is None:
            return {}
        num_shortened = float(self._num_shortened)
        return {"clip_max_norm": self._max_norm, "clip_num_shortened": num_shortened, "clip_num_clips": self._num_clips}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from what `state_dict` returned; raise MisuseError if an entry is missing, or not a number."""
        if "clip_max_norm" not in state:
            return
        try:
            max_norm, num_shortened = float(state["clip_max_norm"]), float(state["clip_num_shortened"])
            num_clips = int(state["clip_num_clips"])
        except (KeyError, TypeError, ValueError) as error:
            raise MisuseError(
                f"{state!r} is not a complete state of clipping: give all that state_dict() returned."
            ) from error
        self._max_norm, self._num_shortened, self._num_clips = max_norm, num_shortened, num_clips

    def _count_clip(self, is_shortened: Tensor) -> None:
        """Count where the gradients are, so that the training thread does not wait for the answer.

        Gradients may be on another device than those before, as when some are missing, in a model over several devices.
        """
        count = self._num_shortened
        flag: Tensor | float = float(is_shortened) if is_shortened.device.type == "cpu" else is_shortened.float()
        if isinstance(flag, Tensor) and isinstance(count, Tensor):
            flag = flag.to(count.device, non_blocking=True)
        self._num_shortened = count + flag
        self._num_clips += 1


def _coefficient(total: Tensor, max_norm: float) -> Tensor:
    """The formula of `torch.nn.utils.clip_grads_with_norm_`."""
    return torch.clamp(max_norm / (total + 1e-6), max=1.0)


class _GradientVersions:
    """Which tensors the gradients are, and how often each was changed in place, without holding them.

    The references are weak: the `id` of a gradient that is gone can belong to the next one.
    """

    def __init__(self, gradients: Sequence[Tensor | None], batch_idx: int) -> None:
        self._batch_idx = batch_idx
        present = [gradient for gradient in gradients if gradient is not None]
        # Twice a step for every gradient, so in C and not in a Python loop.
        self._references = [*map(ref, present)]
        self._versions = [*map(num_changes, present)]

    def match(self, gradients: Sequence[Tensor | None], batch_idx: int) -> bool:
        """Whether these are the same tensors of the same batch, unchanged."""
        present = [gradient for gradient in gradients if gradient is not None]
        return (
            batch_idx == self._batch_idx
            and len(present) == len(self._references)
            and all(map(is_, map(call, self._references), present))
            and [*map(num_changes, present)] == self._versions
        )
