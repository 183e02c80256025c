"""The L2 norm of every parameter's gradient, in one pass over the gradients.

The pass yields float32 norms of pieces: of whole tensors on an accelerator, of rows of `ROW_LENGTH` numbers on a CPU,
where one long sum in float32 is neither quick nor exact. What each number is a norm of stands in a `NormLayout`; the
pieces are combined in float64 off the training thread, sqrt(Σ norm²), which no float32 square could overflow.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW_LENGTH = 16_384


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
        _norms([dense(gradients[position]) for position in positions])
        if whole or device.type != "cpu"
        else _row_norms([_flat(dense(gradients[position])) for position in positions])
        for device, positions in _by_device(gradients).items()
    ]
    # Accelerators come first, so that nothing is brought home here.
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device, non_blocking=True) for part in parts])


def piece_owners(gradients: Sequence[Tensor], *, whole: bool = False) -> NDArray[np.int64]:
    """For each number of `piece_norms`, the position of the gradient it is a piece of."""
    owners = []
    for device, positions in _by_device(gradients).items():
        whole_here = whole or device.type != "cpu"
        lengths = np.array([1 if whole_here else dense(gradients[position]).numel() for position in positions])
        if not whole_here:
            owners.append(np.repeat(positions, lengths // ROW_LENGTH))
        owners.append(np.array(positions)[lengths % ROW_LENGTH > 0])
    return np.concatenate(owners)


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient as a dense real tensor: a view wherever it is one already."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _by_device(gradients: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    """Positions of the gradients on each device, accelerators first."""
    found: dict[torch.device, list[int]] = {}
    for position, gradient in enumerate(gradients):
        found.setdefault(gradient.device, []).append(position)
    return found if len(found) == 1 else dict(sorted(found.items(), key=lambda item: item[0].type == "cpu"))


def _row_norms(flats: Sequence[Tensor]) -> Tensor:
    rows, short = [], []
    for flat in flats:
        num_rows, rest = divmod(flat.numel(), ROW_LENGTH)
        if num_rows:
            whole_rows = flat[: num_rows * ROW_LENGTH].view(num_rows, ROW_LENGTH)
            rows.append(torch.linalg.vector_norm(whole_rows, dim=1, dtype=_sum_dtype([flat])).float())
        if rest:
            short.append(flat[num_rows * ROW_LENGTH :])
    return torch.cat([*rows, _norms(short)] if short else rows)


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
