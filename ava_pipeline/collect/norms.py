"""The L2 norm of every parameter's gradient, in one pass over the gradients.

The pass yields float32 norms of pieces: of whole tensors on an accelerator, of at most `PIECE_LENGTH` numbers on a CPU.
What each number is a norm of stands in a `NormLayout`; the pieces are combined in float64 off the training thread,
sqrt(Σ norm²), which no float32 square could overflow.

On a CPU torch sums a norm one number after the other in float32, in one thread. A sum of millions loses digits (2e-3 on
constant gradients), so long tensors are split: the error stays below 2e-6 on random and 1e-4 on constant gradients.
Norms of rows (`vector_norm(rows, dim=1)`) would use every core and be quicker on an idle machine, but each tensor then
waits for all threads, and beside a busy data loader the pass takes ten times as long.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE_LENGTH = 98_304


@dataclass(frozen=True, slots=True, eq=False)
class NormLayout:
    """What the numbers of one pass are.

    Attributes:
        owners: int64, the parameter that each number is a piece of; -1 for one whose scale is not known.
        present: bool, a parameter each: whether it had a gradient.
        is_scaled: bool, a parameter each: whether its gradient is still multiplied by the loss scale, which is then
            the last number, behind the norms.
    """

    owners: NDArray[np.int64]
    present: NDArray[np.bool_]
    is_scaled: NDArray[np.bool_]


@torch.no_grad()
def piece_norms(gradients: Sequence[Tensor], *, whole: bool = False) -> Tensor:
    """Measure every gradient.

    Args:
        gradients: at least one, of any shape, dtype, layout and memory format, on any devices; read, never kept.
        whole: on a CPU too one norm a tensor, in torch's own accuracy.

    Returns:
        A new float32 vector, on an accelerator where any of them is; `piece_owners` tells what its numbers are of.
    """
    parts = [
        _norms([piece for position in positions for piece in _pieces(gradients[position], is_whole=is_whole)])
        for positions, is_whole in _by_device(gradients, whole=whole)
    ]
    # Accelerators come first, so that nothing is brought home here.
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device, non_blocking=True) for part in parts])


def piece_owners(gradients: Sequence[Tensor], *, whole: bool = False) -> NDArray[np.int64]:
    """For each number of `piece_norms`, the position of the gradient it is a piece of."""
    return np.array([
        position
        for positions, is_whole in _by_device(gradients, whole=whole)
        for position in positions
        for _ in _pieces(gradients[position], is_whole=is_whole)
    ])  # fmt: skip


def _by_device(gradients: Sequence[Tensor], *, whole: bool) -> list[tuple[list[int], bool]]:
    """Positions of the gradients on each device, accelerators first, and whether tensors stay whole there."""
    found: dict[torch.device, list[int]] = {}
    for position, gradient in enumerate(gradients):
        found.setdefault(gradient.device, []).append(position)
    order = sorted(found, key=lambda device: device.type == "cpu")
    return [(found[device], whole or device.type != "cpu") for device in order]


def _pieces(gradient: Tensor, *, is_whole: bool) -> Sequence[Tensor]:
    gradient = dense(gradient)
    if is_whole or gradient.numel() <= PIECE_LENGTH:
        return (gradient,)
    pieces: tuple[Tensor, ...] = torch.split(_flat(gradient), PIECE_LENGTH)
    return pieces


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient as a dense real tensor: a view wherever it is one already."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    # What torch.nn.utils.get_total_norm is built on: a few kernels for all tensors, and no public name for it.
    norms = torch._foreach_norm(list(tensors), 2, dtype=_sum_dtype(tensors))  # noqa: SLF001
    return torch.stack(norms).float()


def _sum_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Half precision is summed in float32, where squares neither overflow nor vanish as early."""
    dtypes = {tensor.dtype for tensor in tensors}
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _flat(gradient: Tensor) -> Tensor:
    """All numbers in one dimension, in the order they lie in memory where that avoids a copy."""
    if not gradient.is_contiguous():
        # A norm knows no order, so any dimension order that makes the tensor contiguous will do.
        order = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
        gradient = gradient.permute(order)
    return gradient.reshape(-1)


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
        norms = norms / scale
    squares = np.square(norms)
    columns = [squares[:, np.isin(layout.owners, group)].sum(axis=1) for group in groups]
    norms_of_groups: NDArray[np.float64] = np.sqrt(np.stack(columns, axis=1))
    return norms_of_groups
