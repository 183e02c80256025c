"""Clipping that shares the pass over the gradients that `step` makes anyway."""

from collections.abc import Mapping, Sequence
from operator import attrgetter, call, is_
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from ava_pipeline.errors import MisuseError


class ClipFacts(NamedTuple):
    """What came of clipping.

    Attributes:
        total: scalar on the device: the L2 norm of all gradients; None where no clip came before.
        scale: scalar on the device: what `total` is still multiplied by; None where it is true-scale.
        max_norm: of the clip before, which is taken to be that of this step's.
        num_shortened: scalar on the device: clips since the last collected step that shortened the gradients.
        num_clips: clips since the last collected step.
    """

    total: Tensor | None = None
    scale: Tensor | None = None
    max_norm: float | None = None
    num_shortened: Tensor | float = 0.0
    num_clips: int = 0


class Clipping:
    """Clips as `torch.nn.utils.clip_grad_norm_` does, to the bit.

    Where this batch's `step` has measured float32 gradients tensor by tensor, and they are the same since, the total is
    taken from those norms by torch's own formula; everywhere else torch is called. Whether they are the same is told by
    torch's count of changes in place, which changes through `.data` pass by.

    Args:
        parameters: whose gradients are clipped.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._max_norm: float | None = None
        self._marks: _GradientVersions | None = None
        self._total: Tensor | None = None
        self._num_shortened: Tensor | None = None
        self._num_clips = 0

    @property
    def is_used(self) -> bool:
        """Whether the loop clips through here, so that the pass should measure tensor by tensor."""
        return self._max_norm is not None

    def state_dict(self) -> dict[str, float]:
        """What a resumed run must know to write the same rows; empty where nothing was clipped.

        Waits for the device.
        """
        if self._max_norm is None:
            return {}
        num_shortened = 0.0 if self._num_shortened is None else float(self._num_shortened)
        return {
            "clip_max_norm": self._max_norm,
            "clip_num_shortened": num_shortened,
            "clip_num_clips": self._num_clips,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`.

        Raises:
            MisuseError: a number of it is missing, or is none.
        """
        if "clip_max_norm" not in state:
            return
        try:
            max_norm, num_shortened = float(state["clip_max_norm"]), float(state["clip_num_shortened"])
            num_clips = int(state["clip_num_clips"])
        except (KeyError, TypeError, ValueError) as error:
            raise MisuseError(f"{state!r} is no state of clipping: give all that state_dict() returned.") from error
        self._max_norm, self._num_clips = max_norm, num_clips
        self._num_shortened = torch.tensor(num_shortened, device=self._parameters[0].device)

    def mark(self, gradients: Sequence[Tensor | None], batch_idx: int) -> None:
        """Remember which gradients the step measures, before its pass takes the memory's caches for itself."""
        self._marks = _GradientVersions(gradients, batch_idx) if self.is_used else None
        self._total = None

    def look(self, norms: Tensor | None, scale: Tensor | None, *, is_shared: bool) -> ClipFacts:
        """Take the norms of a step's pass for the clip that follows it, and tell what came of the clips so far.

        Args:
            norms: float32, of each tensor there is, in order; None where these do not make up one length.
            scale: what the gradients are still multiplied by; None where they are true-scale.
            is_shared: whether torch's own clipping would compute the very same norms.
        """
        if self._max_norm is None:
            return ClipFacts()
        total = None if norms is None else torch.linalg.vector_norm(norms)
        self._total = total if is_shared else None
        num_shortened = 0.0 if self._num_shortened is None else self._num_shortened
        facts = ClipFacts(total, scale, self._max_norm, num_shortened, self._num_clips)
        self._num_shortened, self._num_clips = None, 0
        return facts

    @torch.no_grad()
    def clip(self, max_norm: float, batch_idx: int) -> Tensor:
        """Clip the gradients as they are now.

        Args:
            max_norm: largest norm of all of them.
            batch_idx: of the latest `step`; norms of an earlier one are of other gradients.

        Returns:
            Their L2 norm before, a scalar on their device.
        """
        self._max_norm = float(max_norm)
        gradients = [parameter.grad for parameter in self._parameters]
        total, self._total = self._total, None
        if total is not None and self._marks is not None and self._marks.are_of(gradients, batch_idx):
            coefficient = _coefficient(total, self._max_norm)
            # What clip_grads_with_norm_ comes to for gradients of one device and dtype, which it would look for again.
            torch._foreach_mul_([one for one in gradients if one is not None], coefficient)
        else:
            total = nn.utils.clip_grad_norm_(self._parameters, max_norm)
            coefficient = _coefficient(total, self._max_norm)
        if not hasattr(total, "placements"):  # a sharded total is no number of this process's, to be recorded here
            self._count(coefficient < 1)
        return total

    def _count(self, is_shortened: Tensor) -> None:
        """Count on the device, where nobody has to wait for the answer."""
        self._num_shortened = (
            is_shortened.float() if self._num_shortened is None else self._num_shortened + is_shortened
        )
        self._num_clips += 1


def _coefficient(total: Tensor, max_norm: float) -> Tensor:
    """The formula of `torch.nn.utils.clip_grads_with_norm_`."""
    return torch.clamp(max_norm / (total + 1e-6), max=1.0)


class _GradientVersions:
    """Which tensors the gradients are and how often each was changed in place, without holding them.

    Weak references, since a gradient that was let go of leaves its `id` to the next one.
    """

    def __init__(self, gradients: Sequence[Tensor | None], batch_idx: int) -> None:
        self._batch_idx = batch_idx
        there = [one for one in gradients if one is not None]
        # Asked of every gradient twice a step, so in C and not in a loop of Python's. torch has no other name for it.
        self._references = [*map(ref, there)]
        self._versions = [*map(_version, there)]

    def are_of(self, gradients: Sequence[Tensor | None], batch_idx: int) -> bool:
        """Whether these are the same tensors, as they were."""
        there = [one for one in gradients if one is not None]
        return (
            batch_idx == self._batch_idx
            and len(there) == len(self._references)
            and all(map(is_, map(call, self._references), there))
            and [*map(_version, there)] == self._versions
        )


_version = attrgetter("_version")
