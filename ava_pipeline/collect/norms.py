"""The L2 norm of every parameter's gradient, in one pass over the gradients.

The pass yields float32 norms of pieces: of whole tensors on an accelerator, of rows of `ROW_LENGTH` numbers on a CPU.
A `NormPlan` says how, and is made once for gradients of the same kinds; what each number is a norm of stands in a
`NormLayout`. The pieces are combined in float64 off the training thread,
sqrt(Σ norm²), which no float32 square could overflow.

On a CPU torch sums the norm of a tensor one number after the other in float32, in one thread. A sum of millions loses
digits (2e-3 on constant gradients) and leaves half of the memory's speed unused. The norms of a matrix's rows are
shared among all cores, and stay within 1e-6 on random and 2e-5 on constant gradients.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW_LENGTH = 16_384


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class NormPlan:
    """How gradients are measured, as long as each is there or not, dense or sparse, as when the plan was made.

    Attributes:
        at_once: which of the gradients there are, counted from 0, are measured as whole tensors in one call a device,
            accelerators first, and the dtype they are summed in.
        in_rows: which are measured row by row, each with its dtype.
        owners: int64, the place of the gradient that each number of `measure` is a piece of, absent ones counted.
        are_dense: whether every gradient is a dense tensor of real numbers.
        are_apart: whether gradients lie on several devices.
        are_torchs: whether the numbers are what torch's own clipping would compute of float32 gradients.
        left_out: the places of gradients that are there and cannot be measured.
    """

    at_once: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    in_rows: tuple[tuple[int, torch.dtype], ...]
    owners: NDArray[np.int64]
    are_dense: bool
    are_apart: bool
    are_torchs: bool
    left_out: frozenset[int]

    @classmethod
    def of(cls, gradients: Sequence[Tensor | None], *, whole: bool = False, are_shards: bool = False) -> Self:
        """Plan the pass.

        Args:
            gradients: of any shape, dtype, layout and memory format, on any devices; None where there is none.
            whole: on a CPU too one norm a tensor, in torch's own accuracy.
            are_shards: each is but this process's part of a gradient, and none can be measured.
        """
        known = {position: one for position, one in enumerate(gradients) if one is not None}
        left_out = frozenset(
            position for position, gradient in known.items() if are_shards or not is_measurable(gradient)
        )
        positions = [position for position in known if position not in left_out]
        there = [known[position] for position in positions]
        together: dict[torch.device, list[int]] = defaultdict(list)
        in_rows: list[int] = []
        for index, gradient in enumerate(there):
            is_short = gradient.is_sparse or gradient.numel() <= ROW_LENGTH
            is_at_once = whole or is_short or gradient.device.type != "cpu"
            (together[gradient.device] if is_at_once else in_rows).append(index)
        at_once = [together[device] for device in sorted(together, key=lambda device: device.type == "cpu")]
        owners = [positions[index] for of_it in at_once for index in of_it]
        owners += [positions[index] for index in in_rows for _ in range(_num_rows(there[index]))]
        return cls(
            at_once=tuple((tuple(of_it), _sum_dtype(there[index] for index in of_it)) for of_it in at_once),
            in_rows=tuple((index, _sum_dtype([there[index]])) for index in in_rows),
            owners=np.array(owners, dtype=np.int64),
            are_dense=not any(gradient.is_sparse or gradient.is_complex() for gradient in there),
            are_apart=len({gradient.device for gradient in there}) > 1,
            are_torchs=len(at_once) == 1 and not in_rows and {one.dtype for one in there} == {torch.float32},
            left_out=left_out,
        )

    @torch.no_grad()
    def measure(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Read every gradient once.

        Args:
            gradients: as the plan was made for, None in the places of `left_out`, at least one there; read, never kept.

        Returns:
            A new float32 vector, on an accelerator where any of them is; `owners` tells what its numbers are of.
        """
        there = [gradient for gradient in gradients if gradient is not None]
        numbers = there if self.are_dense else [dense(gradient) for gradient in there]
        norms = [_norms([numbers[index] for index in indices], dtype) for indices, dtype in self.at_once]
        norms += [part for index, dtype in self.in_rows for part in _row_norms(numbers[index], dtype)]
        if len(norms) == 1:
            return norms[0]
        if self.are_apart:  # accelerators come first, so that nothing is brought home here
            norms = [one.to(norms[0].device, non_blocking=True) for one in norms]
        return torch.cat(norms)


@dataclass(frozen=True, slots=True, eq=False)
class NormLayout:
    """What the numbers of one pass are.

    Attributes:
        owners: int64, the parameter that each number is a piece of; -1 for one whose scale is not known.
        present: bool, a parameter each: whether it had a gradient, and its norm is known.
        unknown: bool, a parameter each: whether it had a gradient, and its norm is not known.
        is_scaled: bool, a parameter each: whether its gradient is still multiplied by the loss scale, which is then
            the last number, behind the norms.
        has_scale: whether a GradScaler scales the loss, be the gradients unscaled already or not.
    """

    owners: NDArray[np.int64]
    present: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    is_scaled: NDArray[np.bool_]
    has_scale: bool = False

    @classmethod
    def unscaled(cls, plan: NormPlan, num_parameters: int) -> Self:
        """The layout of tensors that no loss scale multiplies."""
        places = np.arange(num_parameters)
        return cls(
            owners=plan.owners,
            present=np.isin(places, plan.owners),
            unknown=np.isin(places, list(plan.left_out)),
            is_scaled=np.zeros(num_parameters, dtype=np.bool_),
        )


def is_measurable(gradient: Tensor) -> bool:
    """Whether this process alone can have the norm without waiting.

    To join the pieces of a sparse gradient is to wait for the device that it lies on. One that is sharded among
    processes (a DTensor, as of FSDP2) is read by all of them together, and only rank 0 records.
    """
    return not (gradient.is_sparse and gradient.device.type != "cpu") and not hasattr(gradient, "placements")


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient as a dense real tensor: a view wherever it is one already."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _norms(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    # What torch.nn.utils.get_total_norm is built on: a few kernels for all tensors, and no public name for it.
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)  # noqa: SLF001
    return torch.stack(norms).float()


def _row_norms(gradient: Tensor, dtype: torch.dtype) -> Iterable[Tensor]:
    """Of every whole row, and of what is left: views wherever the numbers lie without gaps."""
    if not gradient.is_contiguous():
        # A norm knows no order, so any dimension order that makes the tensor contiguous will do.
        gradient = gradient.permute(sorted(range(gradient.dim()), key=gradient.stride, reverse=True))
    num_left = gradient.numel() % ROW_LENGTH
    if not num_left:
        return (_norms_of_rows(gradient.reshape(-1, ROW_LENGTH), dtype),)
    flat = gradient.reshape(-1)
    rows, left = flat[:-num_left].view(-1, ROW_LENGTH), flat[-num_left:].view(1, -1)
    return _norms_of_rows(rows, dtype), _norms_of_rows(left, dtype)


def _norms_of_rows(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=dtype)
    return norms.float()


def _num_rows(gradient: Tensor) -> int:
    return -(-dense(gradient).numel() // ROW_LENGTH)


def _sum_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Half precision is summed in float32, where squares neither overflow nor vanish as early."""
    dtypes = {dense(tensor).dtype for tensor in tensors}
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def combine(
    numbers: NDArray[np.float64], layout: NormLayout, groups: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """The norm of every group: sqrt(Σ norm²) over its pieces, unscaled, in float64.

    Args:
        numbers: (steps, pieces), or one more where gradients are still scaled.
        layout: what they are.
        groups: for each group the positions of its parameters.

    Returns:
        (steps, groups); nan in a column whose group had no gradient at all, which the caller knows from `layout`.
    """
    norms = numbers[:, : len(layout.owners)]
    if layout.is_scaled.any():
        scale = np.where(layout.is_scaled[layout.owners], numbers[:, len(layout.owners) :], 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a scale that was halved down to 0 leaves nothing finite
            norms = norms / scale
    squares = np.square(norms)
    columns = [squares[:, np.flatnonzero(np.isin(layout.owners, group))].sum(axis=1) for group in groups]
    norms_of_groups: NDArray[np.float64] = np.sqrt(np.stack(columns, axis=1))
    return norms_of_groups
