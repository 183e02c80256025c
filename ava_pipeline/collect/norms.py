"""The L2 norm of every parameter's gradient, in one pass over the gradients.

The pass computes float32 norms of pieces: of whole tensors on an accelerator, of rows of `ROW_LENGTH` numbers on a CPU.
A `NormPlan` says which, and serves every step whose gradients have the same types; a `NormLayout` says which parameter
each number belongs to. The background thread combines the pieces in float64, sqrt(Σ norm²), where no float32 square
overflows.

On a CPU torch sums the norm of a tensor in float32, one number after the other, in one thread. A sum of millions loses
digits (2e-3 on constant gradients) and uses half of the memory's speed. The norms of a matrix's rows run on all cores,
and are within 1e-6 on random and 2e-5 on constant gradients.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ava_pipeline.collect.segments import Segments
from ava_pipeline.contract.arrays import Bools, Floats, Integers

ROW_LENGTH = 16_384


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class NormPlan:
    """How to measure gradients; valid while each keeps its type, and while the same ones are missing.

    Attributes:
        whole_tensors: for each device, accelerators first, and each dtype, the gradients measured in one call and the
            dtype to sum in: torch is slow, one kernel for each tensor, if they differ. An index counts the gradients
            that are present and measured.
        by_rows: index and dtype of each gradient that is measured row by row.
        owners: int64, for each number that `measure` returns the position of its parameter.
        equals_torch: whether torch's own clipping would compute the same numbers: float32 gradients, whole, one device.
        unmeasured: positions of gradients that are present and cannot be measured.
    """

    whole_tensors: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    by_rows: tuple[tuple[int, torch.dtype], ...]
    owners: Integers
    is_dense: bool
    is_multi_device: bool
    equals_torch: bool
    unmeasured: frozenset[int]

    @classmethod
    def of(cls, gradients: Sequence[Tensor | None], *, whole: bool = False, are_shards: bool = False) -> Self:
        """Plan the pass over gradients of any shape, dtype, layout and memory format, on any devices.

        With `whole`, tensors on a CPU are measured whole too, with torch's own accuracy. With `are_shards`, each
        gradient is this process's part of a larger one, so none can be measured.
        """
        present = {position: gradient for position, gradient in enumerate(gradients) if gradient is not None}
        unmeasured = frozenset(
            position for position, gradient in present.items() if are_shards or not is_measurable(gradient)
        )
        positions = [position for position in present if position not in unmeasured]
        measured = [present[position] for position in positions]
        by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        by_rows: list[int] = []
        for index, gradient in enumerate(measured):
            is_short = gradient.is_sparse or gradient.numel() <= ROW_LENGTH
            is_whole = whole or is_short or gradient.device.type != "cpu"
            (by_kind[gradient.device, gradient.dtype] if is_whole else by_rows).append(index)
        whole_tensors = [by_kind[kind] for kind in sorted(by_kind, key=lambda kind: kind[0].type == "cpu")]
        owners = [positions[index] for indices in whole_tensors for index in indices]
        owners += [positions[index] for index in by_rows for _ in range(num_rows(dense(measured[index])))]
        return cls(
            whole_tensors=tuple((tuple(indices), sum_dtype(measured[indices[0]])) for indices in whole_tensors),
            by_rows=tuple((index, sum_dtype(measured[index])) for index in by_rows),
            owners=np.array(owners, dtype=np.int64),
            is_dense=not any(gradient.is_sparse or gradient.is_complex() for gradient in measured),
            is_multi_device=len({gradient.device for gradient in measured}) > 1,
            equals_torch=len(whole_tensors) == 1
            and not by_rows
            and {gradient.dtype for gradient in measured} == {torch.float32},
            unmeasured=unmeasured,
        )

    @torch.no_grad()
    def measure(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Read every gradient once; at least one is present, and none at the positions of `unmeasured`. None is kept.

        Return a new float32 vector, on an accelerator if any gradient is on one; its numbers belong to `owners`.
        """
        present = [gradient for gradient in gradients if gradient is not None]
        numbers = present if self.is_dense else [dense(gradient) for gradient in present]
        norms = [norms_of_whole([numbers[index] for index in indices], dtype) for indices, dtype in self.whole_tensors]
        norms += [norms_of_rows(part, dtype) for index, dtype in self.by_rows for part in rows_of(numbers[index])]
        return one_vector(norms, is_multi_device=self.is_multi_device)


@dataclass(frozen=True, slots=True, eq=False)
class NormLayout:
    """What the numbers of one pass belong to.

    `owners` (int64) is the position of each number's parameter, or -1 if the number does not count. For each
    parameter, `present` and `unknown` (bool) say whether it had a gradient with a known or an unknown norm, and
    `is_scaled` whether the loss scale still multiplies it, which then follows the norms as the last number. `has_scale`
    is True even if a GradScaler's gradients are unscaled already.
    """

    owners: Integers
    present: Bools
    unknown: Bools
    is_scaled: Bools
    has_scale: bool = False

    @classmethod
    def unscaled(cls, plan: NormPlan, num_parameters: int) -> Self:
        """The layout of tensors that no loss scale multiplies."""
        positions = np.arange(num_parameters)
        return cls(
            owners=plan.owners,
            present=np.isin(positions, plan.owners),
            unknown=np.isin(positions, list(plan.unmeasured)),
            is_scaled=np.zeros(num_parameters, dtype=np.bool_),
        )

    def without(self, positions: Bools) -> "NormLayout":
        """The layout of the same numbers, in which those of some parameters do not count."""
        owners = np.where((self.owners >= 0) & positions[self.owners], -1, self.owners)
        return replace(self, owners=owners, present=self.present & ~positions, unknown=self.unknown & ~positions)


def combine(numbers: Floats, layout: NormLayout, groups: Sequence[Integers]) -> Floats:
    """The norm of every group, sqrt(Σ norm²) over its pieces, unscaled, in float64.

    `numbers` are (steps, pieces), or (steps, pieces + 1) if gradients are still scaled; `groups` hold the positions of
    their parameters. The result is (steps, groups), 0 for a group without gradients as for a measured 0.
    """
    squares = _squares(numbers, layout)
    # Rows in one block of memory are summed alike, to the last bit, however many steps come together.
    of_groups = (np.ascontiguousarray(squares[:, np.isin(layout.owners, group)]) for group in groups)
    columns = [of_group.sum(axis=1) for of_group in of_groups]
    norms_of_groups: Floats = np.sqrt(np.stack(columns, axis=1))
    return norms_of_groups


def combine_each(numbers: Floats, layout: NormLayout) -> Floats:
    """The squared norm of every parameter's gradient, as `combine` makes the norms of groups: (steps, parameters)."""
    squares = np.zeros((len(numbers), len(layout.present)))
    segments = Segments.of(layout.owners)
    if len(segments.positions):
        squares[:, segments.positions] = segments.reduce(np.add, _squares(numbers, layout)[:, segments.order])
    return squares


def _squares(numbers: Floats, layout: NormLayout) -> Floats:
    """The squared norms of pieces, unscaled."""
    norms = numbers[:, : len(layout.owners)]
    if layout.is_scaled.any():
        scale = np.where(layout.is_scaled[layout.owners], numbers[:, len(layout.owners) :], 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a scale halved down to 0 leaves nothing finite
            norms = norms / scale
    squares: Floats = np.square(norms)
    return squares


def is_measurable(gradient: Tensor) -> bool:
    """Whether this process can compute the norm alone and without waiting.

    Joining the pieces of a sparse gradient waits for the device it is on. A gradient that is sharded among processes
    (a DTensor, as in FSDP2) is read by all of them together, and only rank 0 records.
    """
    return not (gradient.is_sparse and gradient.device.type != "cpu") and not hasattr(gradient, "placements")


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient as a dense real tensor, as a view if possible."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def norms_of_whole(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The norm of each tensor, all of one dtype on one device, as one float32 vector."""
    # torch.nn.utils.get_total_norm is built on this: a few kernels for all tensors. It has no public name.
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)  # noqa: SLF001
    return torch.stack(norms).float()


def norms_of_rows(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of each row of a matrix, as a float32 vector."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=dtype)
    return norms.float()


def rows_of(numbers: Tensor) -> tuple[Tensor, ...]:
    """A tensor as a matrix of rows of `ROW_LENGTH`, and the rest as one row; views if it is in one block of memory."""
    flat = in_memory_order(numbers).reshape(-1)
    num_left = len(flat) % ROW_LENGTH
    if not num_left:
        return (flat.view(-1, ROW_LENGTH),)
    rest = flat[-num_left:].view(1, -1)
    return (flat[:-num_left].view(-1, ROW_LENGTH), rest) if len(flat) > num_left else (rest,)


def in_memory_order(numbers: Tensor) -> Tensor:
    """A view with the dimensions in the order in which the tensor is contiguous, if there is one.

    A norm does not depend on their order.
    """
    if numbers.is_contiguous():
        return numbers
    return numbers.permute(sorted(range(numbers.dim()), key=numbers.stride, reverse=True))


def num_rows(numbers: Tensor) -> int:
    """How many rows `rows_of` makes of a tensor."""
    return -(-numbers.numel() // ROW_LENGTH)


def one_vector(parts: Sequence[Tensor], *, is_multi_device: bool) -> Tensor:
    """Join vectors on the device of the first; accelerators come first, so nothing is copied to the host."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.to(parts[0].device, non_blocking=True) for part in parts] if is_multi_device else [*parts])


def sum_dtype(numbers: Tensor) -> torch.dtype:
    """The dtype to sum in: float32 for half precision, whose squares overflow and vanish early."""
    return torch.promote_types(numbers.dtype.to_real(), torch.float32)
